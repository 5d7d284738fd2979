"""A limit that is passed, as callers in Python see it."""

from __future__ import annotations

import json
from dataclasses import replace

import psycopg
import pytest

from jobforge_mcp.errors import LimitError
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.limits import CODES
from jobforge_mcp.server import wire
from jobforge_mcp.types import Caller, CallOrigin, Limits, NewJob

ECHO = NewJob("demo.echo", '{"a": 1}')


@pytest.mark.parametrize(
    ("limits", "job", "code", "is_retryable"),
    [
        (Limits(rps=0.1, burst=1), ECHO, "RATE_LIMITED", True),
        (Limits(max_queued=1), ECHO, "QUEUE_FULL", True),
        (Limits(budget_units=1), ECHO, "BUDGET_USED_UP", False),
        (
            Limits(max_payload_bytes=20),
            ECHO._replace(payload='{"a": "01234567890123456789"}'),
            "PAYLOAD_TOO_LARGE",
            False,
        ),
        (Limits(max_priority=2), ECHO._replace(priority=1), "PRIORITY_TOO_HIGH", False),
    ],
)
async def test_the_error_names_the_limit_and_when_to_try_again(
    router: Router, acme: Caller, limits: Limits, job: NewJob, code: str, is_retryable: bool
) -> None:
    caller = replace(acme, token_id="t1", limits=limits)
    await router.enqueue_job(caller, ECHO)

    with pytest.raises(LimitError) as caught:
        await router.enqueue_job(caller, job)

    error = caught.value
    assert (error.code, error.retryable) == (code, is_retryable)
    assert code in CODES
    assert (error.retry_after_ms is not None) == is_retryable
    assert "token t1" in error.message
    assert error.hint
    shown = wire.view_error(error).wire()
    assert shown.get("retryAfterMs") == error.retry_after_ms
    await router.enqueue_job(acme, job)


async def test_a_limit_of_a_tool_binds_calls_through_it(
    router: Router, acme: Caller, admin: psycopg.Connection
) -> None:
    limits = json.dumps({"budget_jobs": 0})
    admin.execute("select jobforge.set_limit('acme', 'tool', 'execute-job', %s)", [limits])

    with pytest.raises(LimitError, match="tool execute-job"):
        await router.enqueue_job(acme, ECHO, origin=CallOrigin(tool="execute-job"))
    await router.enqueue_job(acme, ECHO, origin=CallOrigin(tool="client"))
