"""``connector.webhook.deliver``: one signed message to a public address, as Standard Webhooks has it.

A message keeps its id through all attempts, so a receiver that knows the id acts once: unlike other POSTs it may be sent
again when nobody knows whether it arrived.
"""

from __future__ import annotations

import json
import time
from typing import Annotated

import anyio
from pydantic import BaseModel, Field, JsonValue

from jobforge_mcp import JobContext, PermanentError, Retry, RetryableError, job
from jobforge_mcp.egress.client import EgressPolicy, Incoming, Outgoing, SendError, judge, send
from jobforge_mcp.egress.urls import parse_url
from jobforge_mcp.signatures import sign

from ._sending import (  # noqa: TID252 - a file of job definitions has no other name for its neighbours
    policy,
    retry_after,
)

_PASSING = frozenset({408, 409, 425, 429})


class WebhookDeliverInput(BaseModel):
    """One message and where it goes."""

    url: str = Field(max_length=4_096, description="Absolute http or https URL of a public host.")
    payload: dict[str, JsonValue] = Field(description="The message, sent as JSON.")
    secrets: list[Annotated[str, Field(min_length=1, max_length=512)]] = Field(
        min_length=1,
        max_length=4,
        description="Signing secrets as secret://NAME: whsec_ and whsk_. Several while one replaces another.",
    )
    message_id: str | None = Field(
        default=None,
        alias="messageId",
        pattern=r"^[A-Za-z0-9_-]{1,255}$",
        description="Id by which the receiver knows a message again; without it the run's own.",
    )
    timeout_seconds: float = Field(
        default=20, alias="timeoutSeconds", gt=0, le=60, description="Limit for one attempt."
    )


class WebhookDeliverOutput(BaseModel):
    """That it was accepted."""

    status: int | None = Field(description="Status of the answer; null for a dry run.")
    message_id: str = Field(serialization_alias="messageId")
    elapsed_ms: int = Field(serialization_alias="elapsedMs")


@job(
    name="connector.webhook.deliver",
    title="Deliver a webhook",
    description="Posts a JSON message to a public URL with the signed headers of Standard Webhooks (HMAC or Ed25519). Any answer "
    "but 2xx is an error; it is tried again, with Retry-After honoured, unless the receiver refused it for good.",
    timeout="2m",
    retry=Retry(max_attempts=8, backoff="5s", multiplier=5, max_backoff="1h"),
    tags=["connector", "webhook"],
    effects="external",
)
async def deliver_webhook(input: WebhookDeliverInput, job: JobContext) -> WebhookDeliverOutput:
    """Send the message under the operator's policy."""
    return await deliver(input, job, policy())


async def deliver(
    wanted: WebhookDeliverInput, job: JobContext, allowed: EgressPolicy
) -> WebhookDeliverOutput:
    """Sign and send, and decide what the answer means for the run."""
    started = time.monotonic()
    target = parse_url(wanted.url)
    message_id = wanted.message_id or str(job.run_id)
    outgoing = _outgoing(wanted, message_id)
    if job.dry_run:
        await judge(target, allowed)
        return WebhookDeliverOutput(status=None, message_id=message_id, elapsed_ms=0)
    try:
        with anyio.fail_after(wanted.timeout_seconds):
            answer = await send(outgoing, allowed)
    except TimeoutError:
        slow = f"{target.place} took more than {wanted.timeout_seconds:g} s"
        raise SendError(slow, was_sent=True) from None
    _judge_status(answer, target.place)
    elapsed_ms = round((time.monotonic() - started) * 1_000)
    return WebhookDeliverOutput(status=answer.status, message_id=message_id, elapsed_ms=elapsed_ms)


def _outgoing(wanted: WebhookDeliverInput, message_id: str) -> Outgoing:
    body = json.dumps(wanted.payload, ensure_ascii=False, separators=(",", ":")).encode()
    # Of this attempt, not of the message: receivers refuse what is old.
    timestamp = int(time.time())
    headers = {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(
            sign(secret, message_id, timestamp, body) for secret in wanted.secrets
        ),
    }
    return Outgoing("POST", wanted.url, headers, body, max_redirects=0, max_bytes=0)


def _judge_status(answer: Incoming, place: str) -> None:
    """Raise unless the receiver took it; a redirect is not followed and counts as a refusal."""
    status = answer.status
    if 200 <= status < 300:
        return
    message = f"{place} answered the webhook with status {status}"
    if status >= 500 or status in _PASSING:
        after = retry_after(answer.headers.get("retry-after"))
        raise RetryableError(message, code="WEBHOOK_STATUS", retry_after=after)
    raise PermanentError(
        message,
        code="WEBHOOK_STATUS",
        hint="correct the address or the receiver, then call retry-job",
    )
