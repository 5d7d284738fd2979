"""Every exception of jobforge-mcp, with the code, sentence and hint that a caller gets.

::

    JobForgeError
    ├── CallerError                the caller can mend it: becomes a tool result, an exit code, an exception of the client
    │   ├── InvalidInputError      JF400  INVALID_INPUT and its kin: the arguments do not fit
    │   ├── PolicyDeniedError      JF403  POLICY_DENIED, TOKEN_INVALID, TOKEN_REVOKED, TOKEN_USED: the token does not allow it
    │   ├── NotFoundError          JF404  RUN_NOT_FOUND, JOB_NOT_FOUND: unknown, or another tenant's, which is the same
    │   ├── ConflictError          JF409  CONFLICT, IDEMPOTENCY_CONFLICT: the run is not in a state that allows it
    │   └── LimitError             JF429  LIMIT_EXCEEDED, QUEUE_FULL and its kin: too large, too many, too often
    ├── OperatorError              whoever runs the installation has to act
    │   ├── SettingsError          a setting is missing or unsafe
    │   ├── SchemaError            the database's schema is absent, older, newer or changed
    │   ├── DefinitionError        a job definition file or decorated handler is wrong
    │   └── DatabaseUnavailableError  DATABASE_UNAVAILABLE, OUTCOME_UNKNOWN: try again later, or look first
    └── LeaseLostError             JF410  this attempt is no longer the living one: stop, and write nothing

    HandlerSignal                  what a handler raises to say how its attempt ended
    ├── PermanentError             do not retry: the run goes ``failed``
    ├── RetryableError             the attempt failed; retry it, and not before a time that a receiver named
    └── RetryLater                 try again after a delay; no failure, spends no attempt

This module is the lowest layer and imports only the standard library, so that the keeper and the bridge can use it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar


class JobForgeError(Exception):
    """Base of all errors of this package."""

    default_code: ClassVar[str] = "INTERNAL"
    default_retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        """Keep one sentence that says what was asked, what stood in the way, and the way out in ``hint``."""
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint
        self.retryable = self.default_retryable if retryable is None else retryable


class CallerError(JobForgeError):
    """The caller asked for something that cannot be done as asked."""

    default_code = "INVALID_INPUT"


class InvalidInputError(CallerError):
    """The arguments do not fit; the same call will never succeed."""

    default_code = "INVALID_INPUT"


class PolicyDeniedError(CallerError):
    """The credential is missing, wrong or does not allow this."""

    default_code = "POLICY_DENIED"


class NotFoundError(CallerError):
    """It does not exist for this caller; what belongs to another tenant does not exist."""

    default_code = "NOT_FOUND"


class ConflictError(CallerError):
    """The run or key is in a state that does not allow this."""

    default_code = "CONFLICT"


class LimitError(CallerError):
    """A size, count or rate was passed; the message names the limit and its value."""

    default_code = "LIMIT_EXCEEDED"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        """Take the time after which the same call may pass; without one it is not worth repeating."""
        super().__init__(message, code=code, hint=hint, retryable=retry_after_ms is not None)
        self.retry_after_ms = retry_after_ms


class OperatorError(JobForgeError):
    """The installation needs a person: the message says what stands in the way, the hint the way out."""

    default_code = "OPERATOR"


class SettingsError(OperatorError):
    """A setting is missing, malformed or unsafe."""

    default_code = "SETTINGS"


class SchemaError(OperatorError):
    """The database's schema is absent, incomplete, or was changed after release."""

    default_code = "SCHEMA"


class DefinitionError(OperatorError):
    """A job definition is wrong and was not loaded."""

    default_code = "DEFINITION"


class DatabaseUnavailableError(OperatorError):
    """The database did not answer: a loop waits and goes on, a server is not ready, a caller may try again.

    With code ``OUTCOME_UNKNOWN`` the call may have been carried out, and repeating it could do it twice.
    """

    default_code = "DATABASE_UNAVAILABLE"
    default_retryable = True


class LeaseLostError(JobForgeError):
    """This attempt no longer holds its lease; whatever it writes from now on is refused."""

    default_code = "LEASE_LOST"


class HandlerSignal(JobForgeError):
    """What a handler raises to tell the worker how its attempt ended."""

    default_code = "HANDLER"


class PermanentError(HandlerSignal):
    """The job cannot succeed however often it is tried: it goes ``failed`` at once."""

    default_code = "PERMANENT"


class RetryableError(HandlerSignal):
    """The attempt failed and counts; while attempts are left, try again, not before ``retry_after`` has passed."""

    default_code = "RETRYABLE"
    default_retryable = True

    def __init__(
        self,
        message: str,
        *,
        retry_after: timedelta | float | None = None,
        code: str | None = None,
        hint: str | None = None,
    ) -> None:
        """Take the earliest next try as a ``timedelta`` or in seconds; the usual backoff may only be later."""
        super().__init__(message, code=code, hint=hint)
        self.retry_after = (
            retry_after
            if retry_after is None or isinstance(retry_after, timedelta)
            else timedelta(seconds=retry_after)
        )


class RetryLater(HandlerSignal):
    """Not now: queue the job again after ``delay`` without spending an attempt."""

    default_code = "RETRY_LATER"
    default_retryable = True

    def __init__(
        self, delay: timedelta | float, message: str = "the handler asked to be run later"
    ) -> None:
        """Take the delay as a ``timedelta`` or in seconds; the database adds it to its own clock."""
        super().__init__(message)
        self.delay = delay if isinstance(delay, timedelta) else timedelta(seconds=delay)
