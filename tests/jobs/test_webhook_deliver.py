"""``connector.webhook.deliver`` against real receivers: what is signed, what is sent again, and what fails the run."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sys
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import PermanentError
from jobforge_mcp.signatures import sign
from jobforge_mcp.types import CallOrigin, JobId, NewJob, Run, RunStatus
from tests.egress.test_client import Receiver, answer, started
from tests.jobs.conftest import result_of
from tests.postgres import ScratchDatabase
from tests.worker.conftest import Desk, PoolMaker, eventually

JOB = "connector.webhook.deliver"
OLD, NEW = (f"whsec_{base64.b64encode(bytes([n]) * 32).decode()}" for n in (1, 2))
SEED = bytes(range(32))
PRIVATE = f"whsk_{base64.b64encode(SEED).decode()}"
ENVIRON = {
    "JOBFORGE_SECRET_OLD": OLD,
    "JOBFORGE_SECRET_NEW": NEW,
    "JOBFORGE_SECRET_PRIVATE": PRIVATE,
    "JOBFORGE_SECRET_ODD": "no-known-form",
}
REFERENCES = ("old@127.0.0.1", "new@127.0.0.1", "private@127.0.0.1", "odd@127.0.0.1")


@pytest.fixture
async def receiver(
    registry: Registry, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Receiver]:
    """A receiver that the operator's settings allow, and workers that know the secrets for it."""
    policy = vars(sys.modules[registry.get(JOB).handler.__module__])["policy"]
    async with anyio.create_task_group() as tasks:
        receiver = await started(tasks)
        monkeypatch.setenv("JOBFORGE_HTTP_ALLOW_PORTS", str(receiver.port))
        monkeypatch.setenv("JOBFORGE_HTTP_ALLOW_PRIVATE", "true")
        policy.cache_clear()
        async with make_pool(environ=ENVIRON, secret_references=REFERENCES):
            yield receiver
        policy.cache_clear()
        tasks.cancel_scope.cancel()


async def enqueue(desk: Desk, receiver: Receiver, **more: Any) -> JobId:
    given: dict[str, Any] = {
        "url": receiver.url(), "payload": {"type": "test", "n": "ü"}, "secrets": ["secret://old"], **more
    }  # fmt: skip
    prepared = desk.registry.prepare(JOB, given)
    job = NewJob(JOB, prepared.payload, max_attempts=3, backoff_ms=1)
    return (await desk.router.enqueue_job(desk.caller, job, origin=CallOrigin("test"))).job_id


async def delivered(desk: Desk, receiver: Receiver, **more: Any) -> Run:
    return await desk.until_final(await enqueue(desk, receiver, **more))


def mac(secret: str, headers: dict[str, str], body: bytes) -> str:
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return f"v1,{base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()}"


@pytest.mark.requirement("jobs.webhook")
def test_a_signature_is_the_one_of_the_standards_own_library() -> None:
    body = b'{"test": 2432232314}'

    signed = sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body
    )

    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("secret", ["", "plain", "whsec_%%", "whsec_c2hvcnQ=", "whsk_c2hvcnQ="])
def test_a_secret_of_no_known_form_signs_nothing(secret: str) -> None:
    with pytest.raises(PermanentError) as caught:
        sign(secret, "id", 1, b"{}")

    assert caught.value.code == "WEBHOOK_SECRET"
    assert not secret or secret not in str(caught.value)


@pytest.mark.requirement("jobs.webhook")
async def test_a_message_is_signed_with_every_secret_it_names(
    receiver: Receiver, desk: Desk
) -> None:
    receiver.answers["/"] = answer(b"202 Accepted", b"")

    run = await delivered(
        desk,
        receiver,
        secrets=["secret://old", "secret://new", "secret://private"],
        messageId="m-1",
    )

    assert run.status is RunStatus.SUCCEEDED, run
    result = result_of(run)
    assert (result["status"], result["messageId"]) == (202, "m-1")
    ((line, headers, body),) = receiver.asked
    assert (line, json.loads(body)) == ("POST /", {"type": "test", "n": "ü"})
    assert (headers["webhook-id"], headers["content-type"]) == ("m-1", "application/json")
    first, second, third = headers["webhook-signature"].split(" ")
    assert (first, second) == (mac(OLD, headers, body), mac(NEW, headers, body))
    content = f"m-1.{headers['webhook-timestamp']}.".encode() + body
    assert third.startswith("v1a,")
    public = Ed25519PrivateKey.from_private_bytes(SEED).public_key()
    public.verify(base64.b64decode(third.removeprefix("v1a,")), content)


@pytest.mark.requirement("jobs.webhook")
@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 503])
async def test_what_may_pass_is_sent_again_under_the_same_id(
    receiver: Receiver, desk: Desk, status: int
) -> None:
    receiver.answers["/"] = answer(b"%d No" % status, b"")
    job_id = await enqueue(desk, receiver)
    await desk.first_failure(job_id)
    receiver.answers["/"] = answer(b"200 OK", b"")

    run = await desk.until_final(job_id)

    # all attempts may have met the first answer before it was changed
    assert run.status in (RunStatus.SUCCEEDED, RunStatus.DEAD, RunStatus.FAILED)
    assert len(receiver.asked) == run.attempt_no > 1
    for _, headers, body in receiver.asked:
        assert headers["webhook-id"] == str(job_id)
        assert headers["webhook-signature"] == mac(OLD, headers, body)


async def test_a_receiver_says_how_long_to_leave_it_alone(receiver: Receiver, desk: Desk) -> None:
    receiver.answers["/"] = answer(b"503 No", b"", b"Retry-After: 1800")
    job_id = await enqueue(desk, receiver)
    await desk.first_failure(job_id)

    run = await desk.router.get_run(desk.caller, job_id)

    assert (run.run_at - run.created_at).total_seconds() > 1_700
    assert len(receiver.asked) == 1


@pytest.mark.requirement("jobs.webhook")
@pytest.mark.parametrize("status", [301, 400, 401, 404, 410, 422])
async def test_what_is_refused_for_good_fails_the_run_at_once(
    receiver: Receiver, desk: Desk, status: int
) -> None:
    receiver.answers["/"] = answer(b"%d No" % status, b"instructions", b"Location: /elsewhere")

    run = await delivered(desk, receiver)

    assert (run.status, run.attempt_no) == (RunStatus.FAILED, 1)
    assert run.error is not None
    assert (run.error.code, run.error.retryable) == ("WEBHOOK_STATUS", False)
    assert str(status) in run.error.message
    assert "instructions" not in str(run.error)
    assert len(receiver.asked) == 1


async def test_a_secret_that_cannot_sign_sends_nothing(receiver: Receiver, desk: Desk) -> None:
    run = await delivered(desk, receiver, secrets=["secret://odd"])

    assert run.error is not None
    assert run.error.code == "WEBHOOK_SECRET"
    assert receiver.asked == []


async def test_a_message_goes_nowhere_the_operator_does_not_allow(
    receiver: Receiver, desk: Desk
) -> None:
    elsewhere = await delivered(desk, receiver, url=f"http://127.0.0.1:{receiver.port - 1}/")
    unlisted = await delivered(desk, receiver, url=f"http://localhost:{receiver.port}/")

    assert elsewhere.error is not None
    assert unlisted.error is not None
    assert (elsewhere.error.code, unlisted.error.code) == ("URL_REFUSED", "SECRET_NOT_ALLOWED")
    assert receiver.asked == []


@pytest.mark.requirement("webhooks.completion")
async def test_a_receiver_is_told_that_a_run_ended(
    receiver: Receiver, desk: Desk, database: ScratchDatabase
) -> None:
    receiver.answers["/"] = answer(b"204 No Content", b"")
    config = {"url": receiver.url(), "secrets": ["old", "new"], "scope": "label"}
    with database.connect() as admin:
        admin.execute(
            "select jobforge.set_completion_webhook('acme', 'erp', %s)", [json.dumps(config)]
        )
    job = NewJob("demo.flaky", '{"failures": 0}', labels={"webhook": "erp"})

    enqueued = await desk.router.enqueue_job(desk.caller, job, origin=CallOrigin("test"))
    await eventually(lambda: bool(receiver.asked))

    ((_, headers, body),) = receiver.asked
    run = await desk.until_final(enqueued.job_id)
    assert headers["webhook-id"] == f"completion_erp_{run.job_id}_{run.epoch}"
    assert headers["webhook-signature"] == f"{mac(OLD, headers, body)} {mac(NEW, headers, body)}"
    message = json.loads(body)
    assert message["type"] == f"run.{run.status}"
    assert (message["data"]["runId"], message["data"]["jobName"]) == (str(run.job_id), "demo.flaky")
    assert "result" not in message["data"]
