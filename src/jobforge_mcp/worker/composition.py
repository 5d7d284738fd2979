"""One attempt at a composition: look at it, enqueue what is next, and give it back until that has ended.

No handler runs here and nothing is kept in memory. Whatever dies on the way, the next claim looks again: steps that were
enqueued are found, those that were not are enqueued, and each has one run. What is next is computed by
`jobforge_mcp.worker.replay`; what becomes of the run is decided by the database when the verdict is settled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import cast

import anyio
import structlog

from jobforge_mcp.definitions.composition import Composition, parse_composition
from jobforge_mcp.definitions.json_limits import dump_limited, load_limited
from jobforge_mcp.definitions.schema import Schema, input_defaults
from jobforge_mcp.errors import (
    CallerError,
    DefinitionError,
    InvalidInputError,
    JobForgeError,
    LeaseLostError,
    PolicyDeniedError,
)
from jobforge_mcp.types import (
    Completion,
    Failure,
    FailureKind,
    JobId,
    JsonObject,
    JsonValue,
    NewJob,
    RunError,
    StepRun,
)
from jobforge_mcp.worker.attempt import Attempt, Verdict, Wait
from jobforge_mcp.worker.evidence import capped
from jobforge_mcp.worker.executor import stopped
from jobforge_mcp.worker.failures import MAX_MESSAGE_BYTES, tell
from jobforge_mcp.worker.links import Services
from jobforge_mcp.worker.replay import Done, Failed, NextStep, Replay

MAX_RESULTS = 16 * 1024 * 1024
"""Characters of step results that one look may read."""

RETRY_SECONDS = 1.0
"""When to look again after the database or a limit said later, unless it said when."""

log = structlog.stdlib.get_logger(__name__)


async def compose(attempt: Attempt, services: Services) -> Verdict | None:
    """Take a composition as far as it goes now, and say how; ``None`` when there is nothing to settle."""
    if attempt.stop_reason is not None:
        return stopped(attempt)
    try:
        verdict = await _Attempt(attempt, services).go_on()
    except LeaseLostError:
        return None
    except anyio.get_cancelled_exc_class():
        if attempt.scope is not None and attempt.scope.cancel_called:
            return stopped(attempt)
        raise
    except JobForgeError as error:
        verdict = _refused(attempt, error)
    except Exception as error:
        log.exception("composition_broke", **attempt.names)
        told = tell(error)
        verdict = Failure(attempt.fence, told.kind, told.error, told.traceback, told.delay_ms)
    return stopped(attempt) if attempt.is_enforced else verdict


@dataclass
class _Attempt:
    """One claim of a composition."""

    attempt: Attempt
    services: Services

    async def go_on(self) -> Verdict:
        """Look until there is nothing more to do now."""
        composition, definition = self._read()
        scope = self._scope(definition)
        runs = {run.step: run for run in await self._steps()}
        results: dict[str, JsonValue] = {}
        while True:
            replay = Replay(composition, runs, results)
            outcome = replay.look(scope)
            if isinstance(outcome, Failed):
                return self._fail(outcome.error)
            if isinstance(outcome, Done):
                return self._complete(outcome.value, definition)
            if replay.to_read:
                runs |= await self._read_results(replay.to_read, results)
            elif self._is_over(runs):
                return self._fail(self._timed_out(replay))
            elif replay.to_enqueue:
                runs |= await self._enqueue(replay.to_enqueue)
            else:
                return self._wait(replay, runs)

    def _read(self) -> tuple[Composition, JsonObject]:
        text = self.attempt.claimed.definition
        if text is None:
            raise DefinitionError(f"the definition of {self.attempt.claimed.job_type} is not there")
        return parse_composition(text), cast("JsonObject", json.loads(text))

    def _scope(self, definition: JsonObject) -> JsonObject:
        claimed = self.attempt.claimed
        run: JsonObject = {
            "id": str(claimed.fence.job_id),
            "traceId": claimed.trace_id,
            "projectId": claimed.project_id,
            "dryRun": claimed.is_dry_run,
        }
        return {"input": self._input(definition), "run": run}

    def _input(self, definition: JsonObject) -> JsonValue:
        """Return the input as its schema has it: whoever enqueued it by plain SQL had nobody look at it."""
        given = load_limited(self.attempt.claimed.payload)
        schema = definition.get("inputSchema")
        if not isinstance(schema, dict):
            return given
        if isinstance(given, dict):
            given = {**input_defaults(schema), **given}
        problems = Schema(schema).problems(given)
        if problems:
            raise InvalidInputError(
                f"the input of {self.attempt.claimed.job_type} does not fit: {'; '.join(problems)}"
            )
        return given

    async def _steps(self) -> list[StepRun]:
        return await self.services.router.steps.list_steps(self.attempt.fence)

    async def _read_results(
        self, paths: list[str], results: dict[str, JsonValue]
    ) -> Mapping[str, StepRun]:
        """Read results, and return those steps that were purged or retried since the look."""
        found = await self.services.router.steps.list_steps(self.attempt.fence, paths)
        if sum(len(run.result or "") for run in found) > MAX_RESULTS:
            raise CallerError(
                f"the results of the steps have more than {MAX_RESULTS} characters together",
                code="COMPOSITION_TOO_LARGE",
                hint="let steps return references to what they make",
            )
        for run in found:
            if run.status == "succeeded":
                results[run.step] = cast("JsonValue", json.loads(run.result or "null"))
        return {run.step: run for run in found if run.status != "succeeded"}

    async def _enqueue(self, steps: list[NextStep]) -> Mapping[str, StepRun]:
        """Enqueue steps; one that its job, a token or a limit refuses has failed without a run."""
        jobs: list[tuple[str, NewJob, int | None]] = []
        refused: dict[str, StepRun] = {}
        prepared = await self.services.prepare_steps(
            self.attempt, [(cast("str", step.step.handler), step.input) for step in steps]
        )
        for step, job in zip(steps, prepared, strict=True):
            if isinstance(job, NewJob):
                jobs.append((step.path, _with_overrides(job, step), step.step.priority))
            else:
                refused[step.path] = self._never_ran(step.path, job)
        return {**refused, **await self._enqueue_allowed(jobs)} if jobs else refused

    async def _enqueue_allowed(
        self, jobs: list[tuple[str, NewJob, int | None]]
    ) -> Mapping[str, StepRun]:
        """Enqueue steps together; where a token or a limit refuses some, those have failed and the others are enqueued."""
        try:
            return self._opened(
                await self.services.router.steps.enqueue_steps(self.attempt.fence, jobs)
            )
        except CallerError as error:
            if error.retryable:
                raise
            if len(jobs) == 1:
                return {jobs[0][0]: self._never_ran(jobs[0][0], error)}
        runs: dict[str, StepRun] = {}
        denied: dict[str, PolicyDeniedError] = {}
        for path, job, priority in jobs:
            error = denied.get(job.job_type)
            try:
                if error is not None:
                    raise error
                one = await self.services.router.steps.enqueue_steps(
                    self.attempt.fence, [(path, job, priority)]
                )
                runs |= self._opened(one)
            except CallerError as refusal:
                if refusal.retryable:
                    raise
                if isinstance(refusal, PolicyDeniedError):
                    denied[job.job_type] = refusal
                runs[path] = self._never_ran(path, refusal)
        return runs

    def _opened(self, enqueued: Sequence[tuple[str, JobId]]) -> dict[str, StepRun]:
        now = self.attempt.claimed.claimed_at
        return {path: StepRun(path, child, "open", None, None, now) for path, child in enqueued}

    def _never_ran(self, path: str, error: JobForgeError) -> StepRun:
        text = json.dumps({"code": error.code, "message": error.message, "hint": error.hint})
        run_id = self.attempt.fence.job_id
        return StepRun(path, run_id, "refused", None, text, self.attempt.claimed.claimed_at)

    # Ends

    def _complete(self, value: JsonValue, definition: JsonObject) -> Verdict:
        schema = definition.get("outputSchema")
        problems = Schema(schema).problems(value) if isinstance(schema, dict) else []
        if problems:
            message = f"the result is not what the definition allows: {'; '.join(problems)}"
            return self._fail(RunError("OUTPUT_INVALID", message, retryable=False))
        return Completion(self.attempt.fence, dump_limited(value, what="result"))

    def _fail(self, error: RunError) -> Failure:
        message = capped(error.message, MAX_MESSAGE_BYTES)
        return Failure(self.attempt.fence, FailureKind.PERMANENT, replace(error, message=message))

    def _wait(self, replay: Replay, runs: Mapping[str, StepRun]) -> Wait:
        """Wait for what is open: of many, for some, so that others can be begun."""
        count = len(replay.open)
        self.services.note_progress(
            self.attempt, replay.done, max(replay.total, replay.done), _awaited(replay)
        )
        return Wait(
            self.attempt.fence,
            tuple(replay.open.values()),
            may_remain=count - max(1, count // 8),
            until_at=min(run.made_at for run in runs.values()) + self._timeout,
        )

    @property
    def _timeout(self) -> timedelta:
        return timedelta(milliseconds=self.attempt.claimed.timeout_ms)

    def _is_over(self, runs: Mapping[str, StepRun]) -> bool:
        """Whether the first step was enqueued longer ago than the composition may take."""
        begun = min((run.made_at for run in runs.values()), default=None)
        return begun is not None and begun + self._timeout <= self.attempt.claimed.claimed_at

    def _timed_out(self, replay: Replay) -> RunError:
        seconds = self.attempt.claimed.timeout_ms / 1_000
        message = f"the composition passed its timeout of {seconds:g} s; {_awaited(replay)}"
        return RunError("TIMED_OUT", message, retryable=False)


def _awaited(replay: Replay) -> str:
    """Say in a few words what is open."""
    names = list(replay.open)
    if not names:
        return "no step is open"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"waits for step {names[0]}{more}"


def _with_overrides(job: NewJob, step: NextStep) -> NewJob:
    given = step.step
    return job._replace(
        max_attempts=given.max_attempts or job.max_attempts,
        timeout_ms=given.timeout_ms or job.timeout_ms,
    )


def _refused(attempt: Attempt, error: JobForgeError) -> Failure:
    """Try again what may pass later, and spend no attempt on it."""
    told = RunError(error.code, capped(error.message, MAX_MESSAGE_BYTES), error.retryable, hint=error.hint)  # fmt: skip
    if not error.retryable:
        return Failure(attempt.fence, FailureKind.PERMANENT, told)
    delay_ms = getattr(error, "retry_after_ms", None) or int(RETRY_SECONDS * 1_000)
    return Failure(attempt.fence, FailureKind.DEFERRED, told, delay_ms=delay_ms)
