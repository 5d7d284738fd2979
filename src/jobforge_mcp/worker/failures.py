"""How an exception of a handler is told: kind, code, capped message, capped traceback, delay.

Loaded by workers and by their children. It computes no retry time: a delay that the handler or a receiver asked for is
passed on, and the database decides.
"""

from __future__ import annotations

import math
import traceback as tracebacks
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from jobforge_mcp.errors import (
    DefinitionError,
    InvalidInputError,
    JobForgeError,
    PermanentError,
    RetryLater,
)
from jobforge_mcp.types import FailureKind, RunError
from jobforge_mcp.worker.evidence import capped
from jobforge_mcp.worker.requests import UsageError

MAX_MESSAGE_BYTES = 2_048
"""Of an error's message: a sentence, not a dump."""

MAX_TRACEBACK_BYTES = 16_384
"""Of a traceback, the middle cut out: both the call and the raise matter."""

MAX_DELAY_MS = 7 * 24 * 3_600_000
"""A receiver that says "in a year" is taken to mean a week."""


@dataclass(frozen=True, slots=True)
class Told:
    """A failure, ready to be settled."""

    kind: FailureKind
    error: RunError
    traceback: str | None = None
    delay_ms: int | None = None


def tell(error: BaseException) -> Told:
    """Describe what a handler raised."""
    cause = _cause(error)
    kind = _kind(cause)
    is_ours = isinstance(cause, JobForgeError)
    return Told(
        kind,
        RunError(
            code=cause.code if is_ours else "HANDLER_ERROR",
            message=capped(_message(cause), MAX_MESSAGE_BYTES),
            retryable=kind is not FailureKind.PERMANENT,
            type=capped(type(cause).__qualname__, 200),
            hint=capped(cause.hint, MAX_MESSAGE_BYTES) if is_ours and cause.hint else None,
        ),
        None if kind is FailureKind.DEFERRED else _traceback(error),
        _delay_ms(cause),
    )


def refusal(code: str, message: str, *, hint: str | None = None) -> Told:
    """Describe a failure that no further attempt can mend and that no exception of the handler caused."""
    message = capped(message, MAX_MESSAGE_BYTES)
    return Told(FailureKind.PERMANENT, RunError(code, message, retryable=False, hint=hint))


def _kind(error: BaseException) -> FailureKind:
    if isinstance(error, RetryLater):
        return FailureKind.DEFERRED
    # These four say the same thing every time they are tried: only a change of input or code mends them.
    if isinstance(error, PermanentError | InvalidInputError | UsageError | DefinitionError):
        return FailureKind.PERMANENT
    return FailureKind.FAILED


def _cause(error: BaseException) -> BaseException:
    """Look into the groups that task groups raise: the one error, or the first that says what to do."""
    leaves = list(_leaves(error))
    for leaf in leaves:
        if isinstance(leaf, PermanentError | RetryLater):
            return leaf
    return leaves[0] if len(leaves) == 1 else error


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]  # isinstance cannot narrow the parameter
            yield from _leaves(inner)  # pyright: ignore[reportUnknownArgumentType]  # the same
    else:
        yield error


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a handler's exception may fail to print, and must still be told
        text = ""
    return text or f"the handler raised {type(error).__qualname__} without a message"


def _delay_ms(error: BaseException) -> int | None:
    if isinstance(error, RetryLater):
        seconds = error.delay.total_seconds()
    else:
        asked: object = getattr(error, "retry_after", None)
        if isinstance(asked, timedelta):
            seconds = asked.total_seconds()
        elif isinstance(asked, int | float) and not isinstance(asked, bool):
            seconds = float(asked)
        else:
            return None
    if math.isnan(seconds):
        return None
    return int(min(max(seconds * 1_000, 0), MAX_DELAY_MS))


def _traceback(error: BaseException) -> str:
    try:
        text = "".join(tracebacks.format_exception(error))
    except Exception:  # noqa: BLE001 - as in _message
        return ""
    data = text.replace("\0", "�").encode("utf-8", errors="replace")
    if len(data) <= MAX_TRACEBACK_BYTES:
        return data.decode()
    half = MAX_TRACEBACK_BYTES // 2 - 8
    return f"{data[:half].decode(errors='ignore')}\n…\n{data[-half:].decode(errors='ignore')}"
