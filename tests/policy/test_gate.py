"""The gate: who acts, who may, and what a refusal gives away."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from jobforge_mcp.errors import PolicyDeniedError
from jobforge_mcp.policy.gate import LOCAL_CALLER, Credential, Door, Gate
from jobforge_mcp.policy.keys import KeyFolder, KeySource, SigningKey
from jobforge_mcp.policy.scopes import ALL_SCOPES, Scope
from jobforge_mcp.policy.tokens import Grant, TokenVerifier, issue_token
from jobforge_mcp.settings import load_settings


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return KeyFolder(tmp_path / "keys").ensure()


@pytest.fixture
def gate(key: SigningKey, clock: Clock) -> Gate:
    keys = KeySource(json.dumps({"keys": [key.public.to_jwk()]}))
    verifier = TokenVerifier(keys, issuer="jobforge", audience="jobforge", clock=clock)
    return Gate(lambda: verifier, has_local_tenant=True, clock=clock)


def issue(key: SigningKey, clock: Clock, *scopes: Scope, minutes: float = 60) -> str:
    grant = Grant("acme", scopes, lifetime=timedelta(minutes=minutes))
    return issue_token(key, grant, issuer="jobforge", audience="jobforge", clock=clock)


@pytest.mark.requirement("policy.gate")
@pytest.mark.parametrize("door", list(Door))
def test_a_token_decides_who_acts_at_every_door(
    gate: Gate, key: SigningKey, clock: Clock, door: Door
) -> None:
    token = issue(key, clock, Scope.JOBS_READ)

    caller = gate.authorize(Credential(token, door), Scope.JOBS_READ)

    assert caller.tenant_id == "acme"
    assert caller.scopes == {"jobs:read", "jobs:list"}


@pytest.mark.requirement("policy.local-tenant")
def test_without_a_token_a_local_door_acts_as_the_local_tenant_with_every_scope(gate: Gate) -> None:
    caller = gate.authorize(Credential(None), Scope.OPS_READ)

    assert caller is LOCAL_CALLER
    assert caller.tenant_id == "local"
    assert caller.scopes == {scope.value for scope in ALL_SCOPES}


@pytest.mark.requirement("policy.local-tenant")
def test_http_is_never_the_local_tenant(gate: Gate) -> None:
    with pytest.raises(PolicyDeniedError) as caught:
        gate.identify(Credential(None, Door.HTTP))

    assert caught.value.code == "TOKEN_INVALID"


def test_with_a_database_of_its_own_nobody_is_the_local_tenant(tmp_path: Path) -> None:
    settings = load_settings(database_url="postgresql://db/", state_dir=tmp_path)
    gate = Gate.from_settings(settings)

    assert not gate.accepts_tokens
    with pytest.raises(PolicyDeniedError):
        gate.caller_of(None)
    with pytest.raises(PolicyDeniedError):
        gate.caller_of("a.b.c")


def test_a_wrong_token_is_not_the_local_tenant_either(gate: Gate) -> None:
    with pytest.raises(PolicyDeniedError):
        gate.caller_of("")
    with pytest.raises(PolicyDeniedError):
        gate.caller_of("nonsense")


@pytest.mark.requirement("policy.gate")
@pytest.mark.parametrize("scope", list(Scope))
def test_a_scope_that_was_not_granted_is_refused(
    gate: Gate, key: SigningKey, clock: Clock, scope: Scope
) -> None:
    others = [other for other in Scope if other not in {scope, Scope.JOBS_EXECUTE, Scope.JOBS_READ}]
    token = issue(key, clock, *others)

    with pytest.raises(PolicyDeniedError) as caught:
        gate.authorize(Credential(token), scope)

    assert caught.value.code == "POLICY_DENIED"
    assert scope.value in caught.value.message


@pytest.mark.requirement("policy.gate")
def test_every_refused_token_gives_the_same_words_and_a_reason_for_the_log_alone(
    gate: Gate, key: SigningKey, clock: Clock, tmp_path: Path
) -> None:
    stranger = KeyFolder(tmp_path / "other").ensure()
    past = Clock()
    past.now -= 7_200
    good = issue(key, clock)
    bad = {
        "too_long": "a" * 10_000,
        "malformed": "canary",
        "unknown_key": issue(stranger, clock),
        "expired": issue(key, past),
        "signature": good[:-4] + ("AAAA" if good[-4:] != "AAAA" else "BBBB"),
        "absent": None,
    }
    words: set[tuple[str, str, str | None, bool]] = set()

    with capture_logs() as logs:
        for token in bad.values():
            with pytest.raises(PolicyDeniedError) as caught:
                gate.identify(Credential(token, Door.HTTP))
            error = caught.value
            words.add((error.code, error.message, error.hint, error.retryable))

    assert len(words) == 1
    assert [log["event"] for log in logs] == ["policy_refused"] * len(bad)
    assert [log["reason"] for log in logs] == list(bad)
    assert not any(token and token in str(logs) for token in bad.values())


def test_a_verified_token_is_remembered_for_a_minute_and_never_past_its_end(
    key: SigningKey, clock: Clock
) -> None:
    keys = KeySource(json.dumps({"keys": [key.public.to_jwk()]}))
    verifier = TokenVerifier(keys, issuer="jobforge", audience="jobforge", clock=clock)
    gate = Gate(lambda: verifier, has_local_tenant=False, clock=clock)
    long, short = issue(key, clock), issue(key, clock, minutes=0.5)
    first = gate.caller_of(long)
    gate.caller_of(short)

    clock.now += 59
    assert gate.caller_of(long) is first

    clock.now += 2
    assert gate.caller_of(long) is not first
    with pytest.raises(PolicyDeniedError):
        gate.caller_of(short)


def test_the_embedded_default_makes_its_keys_when_the_first_token_comes(tmp_path: Path) -> None:
    settings = load_settings(state_dir=tmp_path)
    gate = Gate.from_settings(settings)
    assert gate.accepts_tokens

    gate.caller_of(None)
    assert not settings.keys_dir.exists()

    with pytest.raises(PolicyDeniedError):
        gate.caller_of("nonsense")
    assert (settings.keys_dir / "signing.pem").exists()


def test_a_credential_does_not_print_its_token() -> None:
    assert "canary" not in repr(Credential("canary"))
