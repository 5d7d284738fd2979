"""``/hooks``: what signs as its scheme says becomes one event, and everything else gets one answer."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from jobforge_mcp.db.pool import Database
from jobforge_mcp.errors import PermanentError
from jobforge_mcp.maintenance import Maintenance
from jobforge_mcp.router.maintenance import MaintenanceRouter
from jobforge_mcp.server import hooks
from jobforge_mcp.server.hooks import event_type_of
from jobforge_mcp.signatures import sign, verify
from jobforge_mcp.types import EventFilter, JsonObject, TriggerKind, TriggerSpec
from tests.end_to_end.doors import http_server
from tests.postgres import ScratchDatabase
from tests.server.stage import Stage, open_stage

KEYS = {
    "one": f"whsec_{base64.b64encode(b'1' * 32).decode()}",
    "two": f"whsec_{base64.b64encode(b'2' * 32).decode()}",
}
BODY = b'{"id": "evt_1", "type": "invoice.paid", "amount": 7}'
NOW = 1_800_000_000.0


def mac(secret: str, content: bytes) -> hmac.HMAC:
    return hmac.new(secret.encode(), content, hashlib.sha256)


def signed(
    scheme: str, secret: str, body: bytes = BODY, at: float = NOW, message: str = "m1"
) -> dict[str, str]:
    """Return the headers a sender of this scheme sets."""
    match scheme:
        case "standard":
            return {
                "webhook-id": message,
                "webhook-timestamp": str(int(at)),
                "webhook-signature": sign(secret, message, int(at), body),
            }
        case "github":
            return {
                "x-hub-signature-256": f"sha256={mac(secret, body).hexdigest()}",
                "x-github-delivery": message,
                "x-github-event": "push",
            }
        case "stripe":
            digest = mac(secret, f"{int(at)}.".encode() + body).hexdigest()
            return {"stripe-signature": f"t={int(at)},v1={'0' * 64},v1={digest},v0=abc"}
        case _:
            return {
                "x-shopify-hmac-sha256": base64.b64encode(mac(secret, body).digest()).decode(),
                "x-shopify-webhook-id": message,
                "x-shopify-topic": "orders/create",
            }


SCHEMES = ["standard", "github", "stripe", "shopify"]


@pytest.mark.requirement("webhooks.in")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_either_of_two_secrets_signs_and_nothing_else_does(scheme: str) -> None:
    good = signed(scheme, KEYS["two"])
    both = [KEYS["one"], KEYS["two"]]

    delivery = verify(scheme, both, good, BODY, NOW)

    assert delivery is not None
    assert delivery.delivery_id == ("evt_1" if scheme == "stripe" else "m1")
    assert verify(scheme, [KEYS["one"]], good, BODY, NOW) is None
    assert verify(scheme, both, good, BODY + b" ", NOW) is None
    assert verify(scheme, both, {}, BODY, NOW) is None
    assert verify(scheme, [], good, BODY, NOW) is None
    assert verify("unknown", both, good, BODY, NOW) is None


@pytest.mark.requirement("webhooks.in")
@pytest.mark.parametrize("scheme", ["standard", "stripe"])
@pytest.mark.parametrize("off", [-301, 301])
def test_what_is_too_old_or_too_new_is_not_taken(scheme: str, off: int) -> None:
    headers = signed(scheme, KEYS["one"], at=NOW + off)

    assert verify(scheme, [KEYS["one"]], headers, BODY, NOW) is None
    assert verify(scheme, [KEYS["one"]], headers, BODY, NOW + off) is not None


def test_githubs_own_example_is_taken() -> None:
    headers = {
        "x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        "x-github-delivery": "d",
    }

    assert verify("github", ["It's a Secret to Everybody"], headers, b"Hello, World!", NOW)


def test_a_public_key_checks_what_the_private_one_signed() -> None:
    seed = bytes(range(32))
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    headers = signed("standard", f"whsk_{base64.b64encode(seed).decode()}")
    key = f"whpk_{base64.b64encode(raw).decode()}"

    assert verify("standard", [key], headers, BODY, NOW) is not None
    assert verify("standard", [key], headers, BODY + b" ", NOW) is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [("push", "hub.push"), ("orders/create", "hub.orders.create"), ("", "hub"), ("a..b c", "hub.a.b-c")],
)  # fmt: skip
def test_an_event_is_named_after_the_webhook_and_what_came(said: str, expected: str) -> None:
    assert event_type_of("hub", said) == expected


def secret(name: str) -> str:
    if name not in KEYS:
        raise PermanentError("no such secret", code="SECRET_MISSING")
    return KEYS[name]


@asynccontextmanager
async def hearing(
    database: ScratchDatabase, tmp_path: Path, *, is_on: bool = True
) -> AsyncGenerator[tuple[Stage, str]]:
    with database.connect() as admin:
        for scheme in SCHEMES:
            config = json.dumps({"scheme": scheme, "secrets": ["missing", "one"]})
            admin.execute("select jobforge.set_incoming_webhook('acme', %s, %s)", [scheme, config])
    async with open_stage(database, tmp_path, has_pool=False, webhooks_enabled=is_on) as opened:
        stage = replace(opened, parts=replace(opened.parts, secret=secret))
        async with http_server(stage) as server:
            yield stage, server.url


async def stored(stage: Stage) -> list[tuple[str, JsonObject]]:
    caller = stage.parts.gate.identify(stage.credential())
    events = await stage.parts.desk.list(caller, EventFilter(limit=100))
    return [(event.event_type, json.loads(event.payload)) for event in reversed(events)]


@pytest.mark.requirement("webhooks.in")
async def test_a_delivery_is_one_event_however_often_it_comes(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    async with hearing(database, tmp_path) as (stage, url), httpx2.AsyncClient() as http:
        answers: list[tuple[int, Any]] = []
        for scheme in SCHEMES:
            headers = signed(scheme, KEYS["one"], at=time.time())
            for _ in range(2):
                got = await http.post(f"{url}/hooks/acme/{scheme}", content=BODY, headers=headers)
                answers.append((got.status_code, got.json()))
        events = await stored(stage)

    assert [status for status, _ in answers] == [202] * 8
    assert [said["outcome"] for _, said in answers] == ["created", "replayed"] * 4
    for first, second in zip(answers[::2], answers[1::2], strict=True):
        assert first[1]["eventId"] == second[1]["eventId"]
    assert [event_type for event_type, _ in events] == [
        "standard.invoice.paid", "github.push", "stripe.invoice.paid", "shopify.orders.create",
    ]  # fmt: skip
    assert all(payload == json.loads(BODY) for _, payload in events)


@pytest.mark.requirement("webhooks.in")
async def test_deliveries_that_come_at_once_are_one_event(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    outcomes: list[str] = []
    headers = signed("github", KEYS["one"])
    async with hearing(database, tmp_path) as (stage, url), httpx2.AsyncClient(timeout=60) as http:

        async def deliver() -> None:
            got = await http.post(f"{url}/hooks/acme/github", content=BODY, headers=headers)
            outcomes.append(got.json()["outcome"])

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(deliver)
        events = await stored(stage)

    assert sorted(outcomes) == ["created", *["replayed"] * 7]
    assert len(events) == 1


@pytest.mark.requirement("webhooks.in")
async def test_a_stranger_learns_nothing_about_names(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    wrong = signed("github", KEYS["two"])
    paths = ["acme/github", "acme/other", "globex/github", "nobody/-", "Ünknown/github", "acme/GitHub"]  # fmt: skip
    async with hearing(database, tmp_path) as (stage, url), httpx2.AsyncClient() as http:
        answers = [
            await http.post(f"{url}/hooks/{path}", content=BODY, headers=wrong) for path in paths
        ]
        large = await http.post(f"{url}/hooks/acme/github", content=b" " * 1_100_000)
        events = await stored(stage)

    assert {(got.status_code, got.content) for got in answers} == {(401, answers[0].content)}
    assert large.status_code == 413
    assert events == []


async def test_webhooks_are_off_until_they_are_switched_on(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    headers = signed("github", KEYS["one"])
    async with (
        hearing(database, tmp_path, is_on=False) as (_, url),
        httpx2.AsyncClient() as http,
    ):
        got = await http.post(f"{url}/hooks/acme/github", content=BODY, headers=headers)

    assert got.status_code == 404


@pytest.mark.requirement("webhooks.in")
async def test_a_body_that_is_no_json_and_a_delivery_without_id_are_refused(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    async with hearing(database, tmp_path) as (stage, url), httpx2.AsyncClient() as http:
        odd = signed("github", KEYS["one"], b"{", message=str(uuid4()))
        nameless = {k: v for k, v in signed("github", KEYS["one"]).items() if "delivery" not in k}
        first = await http.post(f"{url}/hooks/acme/github", content=b"{", headers=odd)
        second = await http.post(f"{url}/hooks/acme/github", content=BODY, headers=nameless)
        events = await stored(stage)

    assert (first.status_code, second.status_code) == (400, 400)
    assert events == []


@pytest.mark.requirement("secrets.scan-of-arguments")
@pytest.mark.parametrize("key", ["AKIA" + "Q" * 16, "\\u0041KIA" + "Q" * 16])
@pytest.mark.parametrize("padding", [0, 100_000])
async def test_an_obvious_key_in_a_body_is_not_stored(
    database: ScratchDatabase, tmp_path: Path, key: str, padding: int
) -> None:
    body = f'{{"a": [{{"note": "{key}"}}], "b": "{" " * padding}"}}'.encode()
    async with hearing(database, tmp_path) as (stage, url), httpx2.AsyncClient() as http:
        headers = signed("github", KEYS["one"], body, message=str(uuid4()))
        got = await http.post(f"{url}/hooks/acme/github", content=body, headers=headers)
        events = await stored(stage)

    assert (got.status_code, events) == (400, [])
    assert "AWS access key" in got.text
    assert "Q" * 16 not in got.text


@pytest.mark.requirement("webhooks.in")
async def test_a_delivery_starts_what_its_triggers_start(
    database: ScratchDatabase, tmp_path: Path, worker_database: Database
) -> None:
    spec = TriggerSpec(
        "on-push",
        TriggerKind.EVENT,
        job_name="test.echo",
        event_type="github.*",
        input_mapping={"text": {"$ref": "/event/type"}},
    )
    async with hearing(database, tmp_path) as (stage, url), httpx2.AsyncClient() as http:
        caller = stage.parts.gate.identify(stage.credential())
        await stage.parts.desk.register(caller, spec)
        headers = signed("github", KEYS["one"])
        for _ in range(2):
            await http.post(f"{url}/hooks/acme/github", content=BODY, headers=headers)
        upkeep = Maintenance(MaintenanceRouter(worker_database), stage.parts.registry)
        done = [await upkeep.run_once(), await upkeep.run_once()]
    with database.connect() as admin:
        jobs = admin.execute("select job_type, payload ->> 'text' from jobforge.jobs").fetchall()
        audited = admin.execute(
            """select action, outcome, actor from jobforge.audit_log
            where tenant_id = 'acme' and action = 'submit_event'"""
        ).fetchall()

    assert done == [1, 0]
    assert jobs == [("test.echo", "github.push")]
    assert audited == [("submit_event", "created", "webhook:github")]


@pytest.mark.requirement("webhooks.in")
async def test_what_a_webhook_hides_is_shown_to_nobody(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    hidden = '{"scheme": "github", "secrets": ["one"], "redactFields": ["amount"]}'
    async with hearing(database, tmp_path) as (stage, url), httpx2.AsyncClient() as http:
        with database.connect() as admin:
            admin.execute("select jobforge.set_incoming_webhook('acme', 'github', %s)", [hidden])
        headers = signed("github", KEYS["one"])
        got = await http.post(f"{url}/hooks/acme/github", content=BODY, headers=headers)
        events = await stored(stage)

    assert got.status_code == 202
    assert [payload["amount"] for _, payload in events] == ["[redacted]"]


@pytest.mark.requirement("webhooks.in")
async def test_numbers_of_a_body_are_kept_to_the_last_digit_and_a_list_is_wrapped(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    body = b'[{"price": 12345678.123456789012345}]'
    async with hearing(database, tmp_path) as (_, url), httpx2.AsyncClient() as http:
        headers = signed("github", KEYS["one"], body)
        got = await http.post(f"{url}/hooks/acme/github", content=body, headers=headers)
    with database.connect() as admin:
        payloads = admin.execute("select payload::text from jobforge.events").fetchall()

    assert got.status_code == 202
    assert payloads == [('{"body": [{"price": 12345678.123456789012345}]}',)]


@pytest.mark.requirement("webhooks.in")
async def test_a_body_that_does_not_come_is_not_waited_for(
    database: ScratchDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "BODY_SECONDS", 0.2)

    async def dripping() -> AsyncGenerator[bytes]:
        yield b"{"
        await anyio.sleep(30)

    async with hearing(database, tmp_path) as (_, url), httpx2.AsyncClient(timeout=60) as http:
        got = await http.post(f"{url}/hooks/acme/github", content=dripping())

    assert got.status_code == 408


@pytest.mark.parametrize("secret", ["whsec_", "whsec_YWJj", "not-base64", "whpk_YWJj", "whpk_%"])
def test_a_key_that_anybody_could_guess_signs_nothing(secret: str) -> None:
    raw = base64.b64decode(secret.removeprefix("whsec_")) if secret.startswith("whsec_") else b""
    digest = hmac.new(raw, f"m1.{int(NOW)}.".encode() + BODY, hashlib.sha256).digest()
    headers = {
        "webhook-id": "m1",
        "webhook-timestamp": str(int(NOW)),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()} v1a,AAAA",
    }

    assert verify("standard", [secret], headers, BODY, NOW) is None
