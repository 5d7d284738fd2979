"""Keys that an issuer publishes: fetched from it alone, rotated without a restart, kept when it is away."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest

from jobforge_mcp.errors import PolicyDeniedError, SettingsError
from jobforge_mcp.policy.gate import Credential, Door, Gate
from jobforge_mcp.policy.keys import KeyFolder, SigningKey
from jobforge_mcp.policy.remote_keys import LARGEST_KEY_SET, REFETCH_SECONDS, RemoteKeys
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.policy.tokens import Grant, TokenVerifier, issue_token
from jobforge_mcp.settings import Settings, load_settings
from tests.egress.test_client import Receiver, answer, started

RSA = {"kty": "RSA", "kid": "rsa", "use": "sig", "alg": "RS256", "n": "AQAB", "e": "AQAB"}


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def issuer() -> AsyncGenerator[Receiver]:
    """An OAuth server, of which only the key set matters here."""
    async with anyio.create_task_group() as tasks:
        yield await started(tasks)
        tasks.cancel_scope.cancel()


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    made = KeyFolder(tmp_path / "issuer")
    made.ensure()
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


def publish(issuer: Receiver, *elements: object) -> None:
    body = json.dumps({"keys": list(elements)}).encode()
    issuer.answers["/jwks"] = answer(b"200 OK", body, b"Content-Type: application/json")


def jwk(key: SigningKey) -> dict[str, object]:
    return dict(key.public.to_jwk())


def keys_of(issuer: Receiver, clock: Clock, *, allow_private: bool = True) -> RemoteKeys:
    return RemoteKeys(issuer.url("/jwks"), allow_private=allow_private, clock=clock)


def gate_of(issuer: Receiver, keys: RemoteKeys) -> Gate:
    verifier = TokenVerifier(keys, issuer=issuer.url(""), audience="https://jobs.example")
    return Gate(lambda: verifier, has_local_tenant=False, has_remote_keys=True)


def token_of(issuer: Receiver, key: SigningKey) -> str:
    return issue_token(
        key,
        Grant("acme", {Scope.JOBS_READ}),
        issuer=issuer.url(""),
        audience="https://jobs.example",
    )


async def identify(gate: Gate, token: str) -> str:
    """Come through HTTP, as the doorkeeper lets in; return the tenant or the code of the refusal."""
    await gate.prepare(token)
    try:
        return gate.identify(Credential(token, Door.HTTP)).tenant_id
    except PolicyDeniedError as error:
        return error.code


@pytest.mark.requirement("policy.remote-keys")
async def test_a_token_is_checked_with_the_keys_that_its_issuer_publishes(
    issuer: Receiver, folder: KeyFolder, clock: Clock
) -> None:
    publish(issuer, RSA, jwk(folder.ensure()))
    gate = gate_of(issuer, keys_of(issuer, clock))

    assert await identify(gate, token_of(issuer, folder.ensure())) == "acme"
    assert [asked for asked, _, _ in issuer.asked] == ["GET /jwks"]


@pytest.mark.requirement("policy.remote-keys")
async def test_a_rotation_needs_no_restart_and_the_key_before_stays_good(
    issuer: Receiver, folder: KeyFolder, clock: Clock
) -> None:
    first = folder.ensure()
    publish(issuer, jwk(first))
    gate = gate_of(issuer, keys_of(issuer, clock))
    old = token_of(issuer, first)
    assert await identify(gate, old) == "acme"

    second = folder.rotate()
    publish(issuer, jwk(second), jwk(first))
    clock.now += REFETCH_SECONDS

    assert await identify(gate, token_of(issuer, second)) == "acme"
    assert await identify(gate, token_of(issuer, first)) == "acme"


async def test_a_key_that_the_issuer_took_back_is_forgotten(
    issuer: Receiver, folder: KeyFolder, clock: Clock
) -> None:
    first = folder.ensure()
    publish(issuer, jwk(first))
    keys = keys_of(issuer, clock)
    await keys.learn(first.public.key_id)

    publish(issuer, jwk(folder.rotate()))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keys.run)
        with anyio.fail_after(30):
            while keys.find(first.public.key_id) is not None:  # noqa: ASYNC110  # it tells nobody
                await anyio.sleep(0.02)
        tasks.cancel_scope.cancel()

    assert len(keys.all()) == 1


@pytest.mark.requirement("policy.remote-keys")
async def test_unknown_keys_make_one_request_a_minute_however_many_ask(
    issuer: Receiver, folder: KeyFolder, tmp_path: Path, clock: Clock
) -> None:
    publish(issuer, jwk(folder.ensure()))
    gate = gate_of(issuer, keys_of(issuer, clock))
    stranger = token_of(issuer, KeyFolder(tmp_path / "stranger").ensure())

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(identify, gate, stranger)
    in_the_first_minute = len(issuer.asked)
    clock.now += REFETCH_SECONDS
    refused = [await identify(gate, stranger) for _ in range(20)]

    assert in_the_first_minute == 1
    assert set(refused) == {"TOKEN_INVALID"}
    assert len(issuer.asked) == 2


BROKEN = {
    "not found": answer(b"404 None", b"{}"),
    "a redirect": answer(b"302 Found", b"", b"Location: http://127.0.0.1:1/jwks"),
    "no JSON": answer(b"200 OK", b"<html>"),
    "no keys": answer(b"200 OK", b'{"keys": []}'),
    "other keys alone": answer(b"200 OK", json.dumps({"keys": [RSA]}).encode()),
    "too large": answer(b"200 OK", b" " * (LARGEST_KEY_SET + 1)),
    "duplicate members": answer(b"200 OK", b'{"keys": [], "keys": []}'),
}


@pytest.mark.requirement("policy.remote-keys")
@pytest.mark.parametrize("broken", BROKEN)
async def test_whatever_the_issuer_answers_the_last_good_keys_stay(
    broken: str, issuer: Receiver, folder: KeyFolder, clock: Clock
) -> None:
    key = folder.ensure()
    publish(issuer, jwk(key))
    keys = keys_of(issuer, clock)
    await keys.learn(key.public.key_id)

    issuer.answers["/jwks"] = BROKEN[broken]
    clock.now += REFETCH_SECONDS
    await keys.learn("another")

    assert len(issuer.asked) == 2
    assert keys.find(key.public.key_id) is not None


async def test_three_keys_are_refused_and_a_silent_issuer_is_given_up(
    issuer: Receiver, folder: KeyFolder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = folder.ensure()
    publish(issuer, *(jwk(folder.rotate()) for _ in range(3)))
    keys = keys_of(issuer, clock)
    await keys.learn(key.public.key_id)
    with pytest.raises(SettingsError):
        keys.find(key.public.key_id)

    monkeypatch.setattr("jobforge_mcp.policy.remote_keys.FETCH_SECONDS", 0.2)
    issuer.is_silent = True
    clock.now += REFETCH_SECONDS
    with anyio.fail_after(30):
        await keys.learn(key.public.key_id)

    assert len(issuer.asked) == 2


@pytest.mark.requirement("policy.remote-keys")
async def test_loopback_is_called_only_where_that_is_configured(
    issuer: Receiver, folder: KeyFolder, clock: Clock
) -> None:
    publish(issuer, jwk(folder.ensure()))
    keys = keys_of(issuer, clock, allow_private=False)

    await keys.learn(folder.ensure().public.key_id)

    assert issuer.asked == []
    with pytest.raises(SettingsError):
        keys.find(folder.ensure().public.key_id)


async def test_a_command_without_a_loop_fetches_the_keys_itself(
    issuer: Receiver, folder: KeyFolder, clock: Clock
) -> None:
    key = folder.ensure()
    publish(issuer, jwk(key))
    found: list[object] = []

    keys = keys_of(issuer, clock)
    await anyio.to_thread.run_sync(lambda: found.append(keys.find(key.public.key_id)))

    assert found != [None]
    assert threading.active_count() >= 1


@pytest.mark.requirement("policy.remote-keys")
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"token_keys": "https://keys.example/jwks"}, "somebody else"),
        ({"token_issuer": "https://login.example", "token_keys": "https://other.example/jwks"}, "somebody else"),
        ({"token_issuer": "http://login.example", "token_keys": "http://login.example/jwks"}, "https"),
        ({"token_issuer": "https://login.example", "token_keys": "https://u:p@login.example/jwks"}, "plain"),
    ],
)  # fmt: skip
def test_keys_of_somebody_else_or_in_the_clear_refuse_to_start(
    overrides: dict[str, object], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        load_settings(**overrides)


def test_the_keys_of_an_oauth_server_may_be_a_url() -> None:
    settings: Settings = load_settings(
        oauth_issuer="https://login.example",
        resource_url="https://jobs.example/mcp",
        token_keys="https://login.example/.well-known/jwks.json",
    )

    assert settings.has_remote_keys
