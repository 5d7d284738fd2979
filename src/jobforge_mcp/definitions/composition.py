"""Compositions: definitions that run other jobs in an order, as data.

A composition is one of ``chain`` (steps in order), ``map`` (one step for each element of a list) and ``switch`` (the first
case whose condition holds); a step is one of these again, or a job by name. Where a value comes from is said in the mapping
language (`jobforge_mcp.definitions.mapping`), over this scope:

``input`` the run's input · ``steps.<name>.result``, ``.status`` and ``.error`` of the steps before, in this chain and those
around it · ``item`` and ``index`` inside of a map · ``run.id``, ``.traceId``, ``.projectId`` and ``.dryRun``

Nothing here runs anything: `jobforge_mcp.worker.replay` does. Who may name which job is for whoever registers to say, which
is why `jobs_of` tells all names before anything runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic import JsonValue as PydanticJson
from pydantic.alias_generators import to_camel

from jobforge_mcp.definitions import mapping
from jobforge_mcp.errors import CallerError, DefinitionError
from jobforge_mcp.types import JsonValue

COMPOSITION_TYPE = "jobforge.composition"
"""The reserved type that every worker serves: runs of compositions are claimed by it."""

MAX_STEPS = 50
"""Steps of one definition, those inside of others included."""
MAX_DEPTH = 4
"""Chains, maps and switches inside each other; the outermost is the first."""
MAX_ITEMS = 1_000
"""Elements that a map may have, and steps that one run may enqueue."""
MAX_CONCURRENCY = 100
"""Elements of a map at the same time."""

StepName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
JobName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$")]
OnFailure: TypeAlias = Literal["stop", "continue"]


class _Model(BaseModel):
    """snake_case in Python, camelCase on the wire, nothing unknown."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


class Step(_Model):
    """One part of a composition: a job by name, or a composition inside of it."""

    name: StepName | None = None
    """By which later steps of a chain know it; every step of a chain has one."""
    handler: JobName | None = None
    """Name of the job to run, installed or registered."""
    input: dict[str, PydanticJson] = Field(default_factory=dict)
    """Template of its input."""
    chain: Annotated[tuple[Step, ...], Field(min_length=1, max_length=MAX_STEPS)] | None = None
    """Steps in order."""
    map: Map | None = None
    """One step for each element of a list."""
    switch: Switch | None = None
    """One of several steps."""
    when: PydanticJson = True
    """In a chain: the step is skipped unless this condition holds."""
    on_failure: OnFailure = "stop"
    """Whether the chain around it goes on when the step fails, with the error in its place."""
    max_attempts: Annotated[int, Field(ge=1, le=1_000)] | None = None
    """Attempts of the job instead of those of its definition."""
    timeout_ms: Annotated[int, Field(ge=1, le=7 * 86_400_000)] | None = None
    """Timeout of an attempt of the job instead of that of its definition."""
    priority: Annotated[int, Field(ge=0, le=3)] | None = None
    """Priority of the job instead of that of the run."""

    @model_validator(mode="after")
    def _is_one_thing(self) -> Step:
        given = [self.handler, self.chain, self.map, self.switch]
        if sum(part is not None for part in given) != 1:
            raise ValueError("a step is one of handler, chain, map and switch")
        of_jobs = (self.max_attempts, self.timeout_ms, self.priority)
        if self.handler is None and (self.input or any(value is not None for value in of_jobs)):
            raise ValueError("input, maxAttempts, timeoutMs and priority belong to a handler")
        return self


class Map(_Model):
    """One step for each element of a list; its result is the list of theirs, in the same order."""

    items: PydanticJson
    """Template that gives the list."""
    do: Step
    """What is done with each: ``item`` and ``index`` are in its scope."""
    concurrency: Annotated[int, Field(ge=1, le=MAX_CONCURRENCY)] = 10
    """Elements at the same time."""
    max_items: Annotated[int, Field(ge=1, le=MAX_ITEMS)] = 100
    """A longer list fails the map before anything is done."""
    on_failure: OnFailure = "stop"
    """``stop``: after a failure no further element is begun, and the map fails once those under way have ended.
    ``continue``: a failed element is null in the result."""


class Case(_Model):
    """One way a switch can go."""

    when: PydanticJson
    """Condition."""
    do: Step
    """What is done then."""


class Switch(_Model):
    """The first case whose condition holds, or the default; without either its result is null."""

    cases: Annotated[tuple[Case, ...], Field(min_length=1, max_length=20)]
    """In the order in which they are asked."""
    default: Step | None = None
    """What is done when none holds."""


class Composition(_Model):
    """What a definition says of its composition, besides all that every definition says."""

    chain: Annotated[tuple[Step, ...], Field(min_length=1, max_length=MAX_STEPS)] | None = None
    """Steps in order."""
    map: Map | None = None
    """One step for each element of a list."""
    switch: Switch | None = None
    """One of several steps."""
    result: PydanticJson = None
    """Template of the run's result, with ``result`` in its scope: that of the last step of the chain, of the map, or of the
    case, which without a template is the run's."""

    @property
    def root(self) -> Step:
        """The composition as the one step that it is."""
        return Step(chain=self.chain, map=self.map, switch=self.switch)

    @model_validator(mode="after")
    def _is_sound(self) -> Composition:
        if sum(part is not None for part in (self.chain, self.map, self.switch)) != 1:
            raise ValueError("a composition is one of chain, map and switch")
        steps = list(steps_of(self.root))
        if len(steps) - 1 > MAX_STEPS:
            raise ValueError(f"a composition has at most {MAX_STEPS} steps")
        if not any(step.handler is not None for step in steps):
            raise ValueError("a composition names at least one handler")
        try:
            _check(self.root, known=frozenset(), in_map=False, depth=0)
            if self.result is not None:
                _check_result(self.result, {step.name for step in self.chain or () if step.name})
        except CallerError as error:
            raise ValueError(error.message) from None
        return self


def parse_composition(definition: str) -> Composition:
    """Read the composition of a definition's JSON text.

    Raises:
        DefinitionError: It has none, or a wrong one.
    """
    document = cast("dict[str, Any]", json.loads(definition))
    parts = {name: document[name] for name in ("chain", "map", "switch", "result") if name in document}  # fmt: skip
    try:
        return Composition.model_validate(
            {name: part for name, part in parts.items() if part is not None or name == "result"}
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DefinitionError(
            f"the composition is wrong: {place}: {first['msg']}" if place else first["msg"]
        ) from None


def jobs_of(composition: Composition) -> list[str]:
    """Return the names of all jobs that a composition may run, in order."""
    return sorted({step.handler for step in steps_of(composition.root) if step.handler is not None})


def steps_of(step: Step) -> Iterator[Step]:
    """Yield a step and all inside of it."""
    yield step
    for inner in _inside(step):
        yield from steps_of(inner)


def count_jobs(step: Step) -> int:
    """Count the jobs that a step runs at least; of a switch its largest case, of a map one element."""
    if step.chain is not None:
        return sum(count_jobs(inner) for inner in step.chain)
    return 1 if step.handler is not None else max(map(count_jobs, _inside(step)))


def _inside(step: Step) -> list[Step]:
    if step.map is not None:
        return [step.map.do]
    if step.switch is not None:
        default = [step.switch.default] if step.switch.default is not None else []
        return [*(case.do for case in step.switch.cases), *default]
    return list(step.chain or ())


def _check(step: Step, *, known: frozenset[str], in_map: bool, depth: int) -> None:
    if step.handler is None and depth >= MAX_DEPTH:
        raise ValueError(f"compositions are nested at most {MAX_DEPTH} deep")
    _check_condition(step.when, known=known, in_map=in_map)
    if step.handler is not None:
        _check_template(cast("JsonValue", step.input), known=known, in_map=in_map)
    elif step.chain is not None:
        own = [inner.name for inner in step.chain]
        if None in own or len(set(own)) < len(own):
            raise ValueError("every step of a chain has a name, and no two the same")
        for inner in step.chain:
            _check(inner, known=known, in_map=in_map, depth=depth + 1)
            known = known | {cast("str", inner.name)}
    elif step.map is not None:
        _check_template(step.map.items, known=known, in_map=in_map)
        _check(step.map.do, known=known, in_map=True, depth=depth + 1)
    elif step.switch is not None:
        for case in step.switch.cases:
            _check_condition(case.when, known=known, in_map=in_map)
            _check(case.do, known=known, in_map=in_map, depth=depth + 1)
        if step.switch.default is not None:
            _check(step.switch.default, known=known, in_map=in_map, depth=depth + 1)


def _check_result(template: JsonValue, known: set[str]) -> None:
    mapping.check(template)
    for names in mapping.references(template):
        if names[:1] != ["result"]:
            _check_reference(names, frozenset(known), in_map=False)


def _check_template(template: JsonValue, *, known: frozenset[str], in_map: bool) -> None:
    mapping.check(template)
    for names in mapping.references(template):
        _check_reference(names, known, in_map)


def _check_condition(condition: JsonValue, *, known: frozenset[str], in_map: bool) -> None:
    mapping.check_condition(condition)
    for names in mapping.condition_references(condition):
        _check_reference(names, known, in_map)


def _check_reference(names: list[str], known: frozenset[str], in_map: bool) -> None:
    """Refuse a pointer that can lead nowhere, whatever the input."""
    match names:
        case ["steps", name, *_] if name not in known:
            raise ValueError(f"no step {name[:32]!r} comes before the place that refers to it")
        case ["item" | "index", *_] if not in_map:
            raise ValueError("item and index are known inside of a map alone")
        case ["input" | "steps" | "item" | "index" | "run", *_] | []:
            pass
        case [name, *_]:
            raise ValueError(
                f"a pointer begins with /input, /steps, /run, /item or /index, not /{name[:32]}"
            )
        case _:
            pass


Step.model_rebuild()
Composition.model_rebuild()
