"""What a composition has to do next, computed from its definition, its input and how its steps stand. Nothing else.

A composition keeps no state of its own. Each time its run is claimed the whole definition is gone through again: what has
ended gives its result, what is open is waited for, and what comes next is enqueued. The same steps in the same state give
the same answer, so it does not matter how often a worker dies on the way, or which of them goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from jobforge_mcp.definitions.composition import MAX_ITEMS, Composition, Map, Step, count_jobs
from jobforge_mcp.definitions.mapping import evaluate, matches
from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.types import JobId, JsonObject, JsonValue, RunError, StepRun


@dataclass(frozen=True, slots=True)
class NextStep:
    """A step that is to be enqueued."""

    path: str
    step: Step
    input: JsonValue


@dataclass(frozen=True, slots=True)
class Done:
    """It has ended well."""

    value: JsonValue = None
    errors: tuple[JsonValue, ...] = ()
    """Of the elements of a map that failed and were passed over."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It has ended otherwise."""

    error: RunError


@dataclass(frozen=True, slots=True)
class Pending:
    """It has not ended."""


Outcome = Done | Failed | Pending


@dataclass(slots=True)
class Replay:
    """One look at a composition."""

    composition: Composition
    runs: Mapping[str, StepRun]
    """Steps that were enqueued, by path."""
    results: Mapping[str, JsonValue]
    """Results that were read so far, by path."""
    to_enqueue: list[NextStep] = field(default_factory=list[NextStep])
    to_read: list[str] = field(default_factory=list[str])
    """Paths of steps whose results it needs before it can go on."""
    open: dict[str, JobId] = field(default_factory=dict[str, JobId])
    """Steps that have not ended."""
    done: int = 0
    """Steps that have."""
    total: int = 0
    """Steps that there will be, as far as that is known."""

    def look(self, scope: JsonObject) -> Outcome:
        """Go through the definition; ``scope`` holds ``input`` and ``run``."""
        try:
            outcome = self._step(self.composition.root, "", _Scope(scope))
            if not isinstance(outcome, Done):
                return outcome
            steps: JsonObject = {}
            result = outcome.value
            if self.composition.chain is not None:
                steps = cast("JsonObject", outcome.value)
                result = _last_result(self.composition.chain, steps)
            if self.composition.result is None:
                return Done(result, outcome.errors)
            whole: JsonObject = {**scope, "steps": steps, "result": result}
            return Done(evaluate(self.composition.result, whole))
        except InvalidInputError as error:
            return Failed(RunError(error.code, error.message, retryable=False, hint=error.hint))

    def _step(self, step: Step, path: str, scope: _Scope, *, needs_value: bool = True) -> Outcome:
        """``path`` is empty for the whole, whose parts begin theirs."""
        if step.handler is not None:
            return self._job(step, path, scope, needs_value=needs_value)
        if step.chain is not None:
            return self._chain(step.chain, path, scope, is_whole=not path)
        if step.map is not None:
            return self._map(step.map, path, scope, needs_value=needs_value)
        return self._switch(step, path, scope, needs_value=needs_value)

    def _job(self, step: Step, path: str, scope: _Scope, *, needs_value: bool) -> Outcome:
        self.total += 1
        run = self.runs.get(path)
        if run is None:
            try:
                given = evaluate(cast("JsonValue", step.input), scope.values)
            except InvalidInputError as error:
                return self._bad_mapping(error, path)
            if len(self.runs) + len(self.to_enqueue) >= MAX_ITEMS:
                message = f"the composition would enqueue more than {MAX_ITEMS} steps"
                return Failed(RunError("TOO_MANY_STEPS", message, retryable=False))
            self.to_enqueue.append(NextStep(path, step, given))
            return Pending()
        if run.status == "open":
            self.open[path] = run.child_id
            return Pending()
        self.done += 1
        if run.status != "succeeded":
            return Failed(_error_of(run, path, step))
        if path in self.results:
            return Done(self.results[path])
        if needs_value:
            self.to_read.append(path)
            return Pending()
        return Done()

    def _chain(
        self, steps: tuple[Step, ...], path: str, scope: _Scope, *, is_whole: bool
    ) -> Outcome:
        """The whole chain's value is its steps, for the template of the result; any other's is its last result."""
        known = dict(scope.steps)
        own: JsonObject = {}
        for place, step in enumerate(steps):
            name = cast("str", step.name)
            inner = scope.with_steps({**known, **own})
            try:
                is_wanted = matches(step.when, inner.values)
            except InvalidInputError as error:
                return self._bad_mapping(error, _join(path, name))
            if not is_wanted:
                own[name] = {"status": "skipped", "result": None}
                continue
            outcome = self._step(step, _join(path, name), inner)
            if isinstance(outcome, Failed) and step.on_failure == "continue":
                own[name] = {"status": "failed", "result": None, "error": _as_json(outcome.error)}
                continue
            if not isinstance(outcome, Done):
                self.total += sum(map(count_jobs, steps[place + 1 :]))
                return outcome
            own[name] = {"status": "succeeded", "result": outcome.value}
            if outcome.errors:
                own[name] = {**cast("JsonObject", own[name]), "errors": list(outcome.errors)}
        return Done(own if is_whole else _last_result(steps, own))

    def _map(self, given: Map, path: str, scope: _Scope, *, needs_value: bool) -> Outcome:
        before = self.total
        try:
            items = evaluate(given.items, scope.values)
        except InvalidInputError as error:
            return self._bad_mapping(error, path)
        if not isinstance(items, list):
            return _failed("MAP_NEEDS_A_LIST", f"the items of {_named(path)} are not a list")
        if len(items) > given.max_items:
            message = f"{_named(path)} has {len(items)} items and the limit is {given.max_items}"
            return _failed("MAP_TOO_LONG", message)
        outcomes = self._elements(given, items, path, scope)
        self.total = max(self.total, before + len(items) * count_jobs(given.do))
        if any(isinstance(outcome, Pending) for outcome in outcomes.values()):
            return Pending()
        failed = [(i, o) for i, o in sorted(outcomes.items()) if isinstance(o, Failed)]
        if failed and given.on_failure == "stop":
            return failed[0][1]
        if not needs_value:
            return Done()
        values: list[JsonValue] = []
        is_pending = False
        for index in range(len(items)):
            outcome = outcomes[index]
            if isinstance(outcome, Done) and given.do.handler is not None:
                # Read only now: until all have ended nobody needs them.
                element = _join(path, str(index))
                if element not in self.results:
                    self.to_read.append(element)
                    is_pending = True
                    continue
                outcome = Done(self.results[element])
            values.append(outcome.value if isinstance(outcome, Done) else None)
        if is_pending:
            return Pending()
        errors = tuple(
            cast("JsonValue", {"index": index, **_as_json(outcome.error)})
            for index, outcome in failed
        )
        return Done(values, errors)

    def _elements(
        self, given: Map, items: list[JsonValue], path: str, scope: _Scope
    ) -> dict[int, Outcome]:
        """Look at those that were begun, and begin as many more as may be under way."""
        begun = {index for index in range(len(items)) if self._has_begun(_join(path, str(index)))}
        outcomes = {i: self._element(given, items, i, path, scope) for i in sorted(begun)}
        under_way = sum(isinstance(outcome, Pending) for outcome in outcomes.values())
        is_stopped = given.on_failure == "stop" and any(
            isinstance(outcome, Failed) for outcome in outcomes.values()
        )
        for index in range(len(items)):
            if index in begun or is_stopped:
                continue
            if under_way >= given.concurrency:
                outcomes[index] = Pending()
                continue
            outcomes[index] = self._element(given, items, index, path, scope)
            under_way += isinstance(outcomes[index], Pending)
            is_stopped = given.on_failure == "stop" and isinstance(outcomes[index], Failed)
        return outcomes

    def _element(
        self, given: Map, items: list[JsonValue], index: int, path: str, scope: _Scope
    ) -> Outcome:
        inner = scope.with_item(items[index], index)
        return self._step(given.do, _join(path, str(index)), inner, needs_value=given.do.handler is None)  # fmt: skip

    def _has_begun(self, path: str) -> bool:
        return path in self.runs or any(name.startswith(f"{path}/") for name in self.runs)

    def _switch(self, step: Step, path: str, scope: _Scope, *, needs_value: bool) -> Outcome:
        assert step.switch is not None
        for place, case in enumerate(step.switch.cases):
            try:
                holds = matches(case.when, scope.values)
            except InvalidInputError as error:
                return self._bad_mapping(error, path)
            if holds:
                return self._step(
                    case.do, _join(path, f"case-{place}"), scope, needs_value=needs_value
                )
        if step.switch.default is not None:
            return self._step(
                step.switch.default, _join(path, "default"), scope, needs_value=needs_value
            )
        return Done()

    def _bad_mapping(self, error: InvalidInputError, path: str) -> Failed:
        message = f"{_named(path)}: {error.message}"
        return Failed(RunError(error.code, message, retryable=False, hint=error.hint))


@dataclass(frozen=True, slots=True)
class _Scope:
    """What templates see at one place."""

    values: JsonObject

    @property
    def steps(self) -> JsonObject:
        return cast("JsonObject", self.values.get("steps", {}))

    def with_steps(self, steps: JsonObject) -> _Scope:
        return replace(self, values={**self.values, "steps": steps})

    def with_item(self, item: JsonValue, index: int) -> _Scope:
        return replace(self, values={**self.values, "item": item, "index": index})


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _named(path: str) -> str:
    return f"step {path}" if path else "the composition"


def _last_result(steps: tuple[Step, ...], own: JsonObject) -> JsonValue:
    """Return the result of the last step that was not skipped."""
    for step in reversed(steps):
        ended = cast("JsonObject", own[cast("str", step.name)])
        if ended["status"] != "skipped":
            return ended["result"]
    return None


def _failed(code: str, message: str) -> Failed:
    return Failed(RunError(code, message, retryable=False))


def _error_of(run: StepRun, path: str, step: Step) -> RunError:
    """Tell of a failed step in the words of its run."""
    if run.status == "purged":
        message = f"{_named(path)} ended, and its run {run.child_id} was purged since"
        return RunError("STEP_PURGED", message, retryable=False)
    told = cast("JsonObject", json.loads(run.error or "{}"))
    said = str(told.get("message") or run.status)[:1_000]
    if run.status == "refused":
        return RunError(
            str(told["code"])[:100],
            f"{_named(path)} ({step.handler}) was refused and never ran: {said}",
            retryable=False,
            hint=cast("str | None", told.get("hint")),
        )
    return RunError(
        str(told.get("code") or "STEP_FAILED")[:100],
        f"{_named(path)} ({step.handler}) ended {run.status}: {said}",
        retryable=False,
        hint=f"look at run {run.child_id}; retrying this run does the steps again that did not succeed",
    )


def _as_json(error: RunError) -> JsonObject:
    return {"code": error.code, "message": error.message}
