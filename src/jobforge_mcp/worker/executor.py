"""One attempt, from the claimed row to its verdict, as a chain of small steps over one value.

``load`` finds the definition, ``check`` validates the input once more, ``run`` calls the handler where its isolation
says, ``conclude`` makes the verdict. A step that fails ends the chain with what it tells; nothing here writes to the
database, the settler does. No retry time and no next status is computed here.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import assert_never, cast

import anyio
import structlog

from jobforge_mcp.definitions.json_limits import MAX_RESULT_BYTES, load_limited
from jobforge_mcp.definitions.model import BoundJob
from jobforge_mcp.definitions.registry import Fill, check_output
from jobforge_mcp.errors import (
    CallerError,
    DefinitionError,
    LimitError,
    PermanentError,
    RetryableError,
)
from jobforge_mcp.types import (
    Completion,
    Failure,
    FailureKind,
    Isolation,
    RunError,
)
from jobforge_mcp.worker.artifacts import fits_row
from jobforge_mcp.worker.attempt import Attempt, Release, StopReason, Verdict
from jobforge_mcp.worker.children import ChildPool
from jobforge_mcp.worker.context import JobContext
from jobforge_mcp.worker.failures import Told, refusal, tell
from jobforge_mcp.worker.links import LocalLink, Services
from jobforge_mcp.worker.secrets import may_refer

log = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True)
class Execution:
    """One attempt on its way through the chain."""

    attempt: Attempt
    services: Services
    children: ChildPool
    validated: object = None
    """Input as the handler gets it."""
    payload: str = ""
    """The same as JSON text, for a handler in a child."""
    result: str | None = None
    """JSON text of a valid result as its row can hold it, without secrets; set last."""
    told: Told | None = None
    """What went wrong; ends the chain."""


async def execute(execution: Execution) -> Verdict | None:
    """Take an attempt through the chain and say how it ended; ``None`` when there is nothing to settle."""
    try:
        job = load(execution)
        if job is not None:
            names_secrets = job.definition.input or may_refer(execution.attempt.claimed.payload)
            check(execution, job, await resolve(execution, job) if names_secrets else None)
            if execution.told is None:
                await run(execution, job)
    except Exception as error:
        log.exception("attempt_broke", **execution.attempt.names)
        execution.told = tell(error)
    return conclude(execution)


def load(execution: Execution) -> BoundJob | None:
    """Find the definition of the claimed type."""
    attempt = execution.attempt
    try:
        attempt.job = job = execution.services.definitions.of(attempt.claimed)
    except (CallerError, DefinitionError) as error:
        execution.told = refusal(error.code, error.message, hint=error.hint)
        return None
    attempt.isolation = job.isolation
    return job


async def resolve(execution: Execution, job: BoundJob) -> Fill | None:
    """Fetch the secrets that the input names."""
    try:
        return await execution.services.resolve_references(execution.attempt, job)
    except Exception as error:  # noqa: BLE001 - whatever a row holds, it fails alone
        execution.told = _refused_input(error)
        return None


def check(execution: Execution, job: BoundJob, fill: Fill | None) -> None:
    """Validate the input again: the definition may have changed since, and the row may come from psql."""
    if execution.told is not None:
        return
    attempt, registry = execution.attempt, execution.services.registry
    try:
        if attempt.isolation is Isolation.PROCESS:
            execution.payload = registry.handler_input(job, attempt.claimed.payload, fill)
        else:
            execution.validated = registry.check_input(job, attempt.claimed.payload, fill)
    except Exception as error:  # noqa: BLE001 - whatever a row holds, it fails alone
        execution.told = _refused_input(error)


def _refused_input(error: Exception) -> Told:
    told = tell(error)
    if isinstance(error, PermanentError | RetryableError):
        return told
    code = told.error.code if told.error.code != "HANDLER_ERROR" else "INVALID_INPUT"
    return refusal(code, told.error.message, hint=told.error.hint)


async def run(execution: Execution, job: BoundJob) -> None:
    """Call the handler, and stop it when its scope is cancelled."""
    attempt = execution.attempt
    if attempt.stop_reason is not None:
        attempt.has_seen_stop = True
        return
    try:
        if attempt.isolation is Isolation.ASYNC:
            text = check_output(job, await call_on_loop(attempt, execution, job))
        else:
            text = await _run_elsewhere(execution, job)
        result = attempt.redact_json(text)
        if not fits_row(result):
            result = await execution.services.keeper.keep_result(attempt, result)
        execution.result = result
    except anyio.get_cancelled_exc_class() as error:
        if attempt.scope is not None and attempt.scope.cancel_called:
            return
        if anyio.current_effective_deadline() == float("-inf"):
            raise
        # Not ours: the handler cancelled itself.
        execution.told = tell(error)
    except _ToldInChild as ended:
        execution.told = ended.told
    except BaseException as error:  # noqa: BLE001 - a handler may raise anything, SystemExit too, and the worker goes on
        execution.told = tell(error)


def conclude(execution: Execution) -> Verdict | None:
    """Make the verdict of an attempt whose handler has ended."""
    attempt = execution.attempt
    if attempt.committed is not None:
        return None
    if attempt.stop_reason is not None and (attempt.is_enforced or attempt.has_seen_stop):
        return stopped(attempt)
    if execution.told is not None:
        return _failure(attempt, execution.told)
    if execution.result is not None:
        return Completion(attempt.fence, execution.result, attempt.manifest())
    return stopped(attempt)


def stopped(attempt: Attempt) -> Verdict | None:
    """Make the verdict of an attempt that had to end."""
    reason = attempt.stop_reason
    match reason:
        case StopReason.TIMED_OUT:
            seconds = attempt.claimed.timeout_ms / 1_000
            message = f"the work was stopped at its timeout of {seconds:g} s"
            error = RunError("TIMED_OUT", message, retryable=True)
            return Failure(attempt.fence, FailureKind.TIMED_OUT, error, manifest=attempt.manifest())
        case StopReason.CANCELED:
            error = RunError("CANCELED", "the work was stopped on request", retryable=False)
            return Failure(attempt.fence, FailureKind.CANCELED, error, manifest=attempt.manifest())
        case StopReason.RELEASED:
            return Release(attempt.fence)
        case StopReason.LEASE_LOST | None:
            return None
        case _:
            assert_never(reason)


def _failure(attempt: Attempt, told: Told) -> Failure:
    error = told.error
    redacted = RunError(
        error.code,
        attempt.redact(error.message),
        error.retryable,
        error.type,
        attempt.redact(error.hint) if error.hint else None,
    )
    trace = attempt.redact(told.traceback) if told.traceback else None
    return Failure(
        attempt.fence, told.kind, redacted, trace, told.delay_ms, manifest=attempt.manifest()
    )


class _ToldInChild(Exception):
    """Carries what a child told of its failure up the chain."""

    def __init__(self, told: Told) -> None:
        super().__init__(told.error.message)
        self.told = told


async def _run_elsewhere(execution: Execution, job: BoundJob) -> str:
    if execution.attempt.isolation is Isolation.THREAD:
        return check_output(job, await _call_on_thread(execution, job))
    return await _run_in_child(execution, job)


async def call_on_loop(attempt: Attempt, execution: Execution, job: BoundJob) -> object:
    """Call an async handler. The heartbeat looks for this frame, and for ``attempt`` in it, on a blocked loop's stack."""
    link = LocalLink(execution.services, attempt, is_async=True)
    context = JobContext(attempt, execution.validated, link=link)
    work = cast("Awaitable[object]", job.handler(execution.validated, context))
    return await work


async def _call_on_thread(execution: Execution, job: BoundJob) -> object:
    """Call a def handler on a daemon thread: it cannot be stopped, and must not keep the process from ending."""
    attempt, mailbox = execution.attempt, execution.services.mailbox
    link = LocalLink(execution.services, attempt, is_async=False)
    context = JobContext(attempt, execution.validated, link=link)
    ended = anyio.Event()
    outcome: list[tuple[object, BaseException | None]] = []

    def body() -> None:
        try:
            outcome.append((job.handler(execution.validated, context), None))
        except BaseException as error:  # noqa: BLE001 - raised again in the task that waits
            outcome.append((None, error))
        attempt.evidence.metrics["cpuMs"] = round(time.thread_time() * 1_000)
        mailbox.post(ended.set)

    name = f"jobforge-{attempt.claimed.job_type}"
    threading.Thread(
        target=contextvars.copy_context().run, args=(body,), name=name, daemon=True
    ).start()
    await ended.wait()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


async def _run_in_child(execution: Execution, job: BoundJob) -> str:
    answer = await execution.children.run(execution.attempt, job, execution.payload)
    if isinstance(answer, Told):
        raise _ToldInChild(answer)
    # The child checked it against the handler's own type; a declarative definition may promise more.
    try:
        value = load_limited(answer, what="result", max_bytes=MAX_RESULT_BYTES)
    except LimitError as error:
        raise PermanentError(error.message, code=error.code, hint=error.hint) from None
    if job.definition.handler is not None and job.output_schema is not None:
        problems = job.output_schema.problems(value)
        if problems:
            raise PermanentError(
                f"the handler returned what its definition does not allow: {'; '.join(problems)}",
                code="OUTPUT_INVALID",
            )
    return answer
