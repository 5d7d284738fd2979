"""What a job definition is, in every form it takes, and the decorator that makes one from a function.

A definition is one frozen model with three uses: a JSON file in ``job_definitions/``, the argument of ``register-job``
and one element of ``list-jobs``. A decorated handler yields the same model from its types. A *bound* job is a definition
together with the function that does its work; only the registry and the worker handle those.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, cast, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic import JsonValue as PydanticJson
from pydantic.alias_generators import to_camel

from jobforge_mcp.definitions.complaints import complain
from jobforge_mcp.definitions.composition import MAX_STEPS, Composition, Map, Step, Switch
from jobforge_mcp.definitions.durations import Duration, milliseconds
from jobforge_mcp.definitions.mapping import check
from jobforge_mcp.definitions.schema import Schema, schema_of
from jobforge_mcp.errors import CallerError, DefinitionError
from jobforge_mcp.types import Effects, Guard, Isolation, JobAction

Handler: TypeAlias = Callable[..., object]
"""``def`` or ``async def (input: SomeModel, job: JobContext) -> Output``."""

FILE_MODULE_PREFIX = "jobforge_file_"
"""How the made-up module names begin under which the loader executes files."""

EXPRESSIONS = frozenset({"$ref", "$jmespath", "$literal"})
"""Names that make an object of a definition's ``input`` an expression of the mapping language."""

_MAX_MS = 7 * 86_400_000
_NAME = r"^[a-z0-9][a-z0-9._-]{0,99}$"


def _one_line(text: str) -> str:
    """Refuse what could hide in a text that people and models read: control, bidirectional and zero-width characters."""
    if any(not (character.isprintable() or character == "\n") for character in text):
        raise ValueError("must not contain control or invisible characters")
    return text


def _limit_key(text: str) -> str:
    if text.startswith("/"):
        try:
            check({"$ref": "/input" + text})
        except CallerError as error:
            raise ValueError(error.message) from None
    return _one_line(text)


JobName = Annotated[str, Field(pattern=_NAME)]
Text = Annotated[str, Field(max_length=512), AfterValidator(_one_line)]
Tag = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$")]
LabelValue = Annotated[str, Field(max_length=255), AfterValidator(_one_line)]
RoleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$")]
ScopeName = Annotated[str, Field(pattern=r"^[a-z]+:[a-z]+$")]


class _Model(BaseModel):
    """snake_case in Python, camelCase in files and on the wire, nothing unknown."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


class RetryPolicy(_Model):
    """How often and when a failed attempt is tried again; jitter only ever adds."""

    max_attempts: Annotated[int, Field(ge=1, le=1_000)] = 3
    """Attempts in all, the first included."""
    backoff_ms: Annotated[int, Field(ge=0, le=_MAX_MS)] = 1_000
    """Milliseconds before the second attempt."""
    backoff_multiplier: Annotated[float, Field(ge=1, le=100)] = 2
    """What the wait is multiplied with for each further attempt."""
    max_backoff_ms: Annotated[int, Field(ge=0, le=_MAX_MS)] = 60_000
    """Milliseconds the wait never exceeds."""


class Permission(_Model):
    """What a caller needs for one action beyond the scope that its tool asks for."""

    action: JobAction = JobAction.EXECUTE
    """What is allowed: ``list``, ``read``, ``execute`` (and retry), ``cancel`` or ``register``."""
    roles: Annotated[tuple[RoleName, ...], Field(max_length=16)] = ()
    """Roles of which the token must carry one; none asks for no role."""
    scopes: Annotated[tuple[ScopeName, ...], Field(max_length=16)] = ()
    """Scopes the token must hold, all of them."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> Permission:
        if not self.roles and not self.scopes:
            raise ValueError("a permission names roles, scopes or both")
        return self


LimitKey = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_limit_key)]
"""A literal, or a JSON Pointer into the input."""


class ConcurrencyLimit(_Model):
    """How many runs may be running at once; those over it wait their turn in the queue."""

    limit: Annotated[int, Field(ge=1, le=1_000_000)]
    """Runs at once of each key."""
    key: LimitKey | None = None
    """Whose runs are counted together: a JSON Pointer into the input (``/customerId``), or a word. Absent means all."""


class RateLimit(_Model):
    """How many runs may start within a time; those over it wait for it to pass."""

    count: Annotated[int, Field(ge=1, le=1_000_000)]
    """Starts within any ``periodMs``, of each key; attempts after the first count as well."""
    period_ms: Annotated[int, Field(ge=100, le=_MAX_MS)]
    """Milliseconds."""
    key: LimitKey | None = None
    """Whose starts are counted together: a JSON Pointer into the input (``/customerId``), or a word. Absent means all."""


class Debounce(_Model):
    """How long a run waits for a newer one of its key, which takes its place."""

    window_ms: Annotated[int, Field(ge=1, le=_MAX_MS)]
    """Milliseconds without a newer run after which the last one starts."""
    max_wait_ms: Annotated[int, Field(ge=1, le=_MAX_MS)] | None = None
    """Milliseconds after the first of them when the last one starts in any case; ten windows if absent."""
    key: LimitKey | None = None
    """What counts as the same: a JSON Pointer into the input (``/customerId``), or a word. Absent means every run."""

    @model_validator(mode="after")
    def _waits_for_a_window(self) -> Debounce:
        if self.max_wait_ms is not None and self.max_wait_ms < self.window_ms:
            raise ValueError("maxWaitMs is not shorter than windowMs")
        return self


Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,31}$")]


class Pinned(_Model):
    """What is noted of the registered jobs among a composition's steps when it is registered; nobody writes it by hand."""

    jobs: Annotated[dict[JobName, Version], Field(min_length=1, max_length=MAX_STEPS)]
    """The versions that its steps run, whatever is registered under these names later."""
    handlers: tuple[JobName, ...] = ()
    """The installed handlers behind them."""
    permissions: tuple[Permission, ...] = ()
    """What they ask of callers besides their handlers."""
    effects: Effects = Effects.NONE
    """What they change besides their own runs."""
    depth: Annotated[int, Field(ge=1, le=10)] = 1
    """Compositions inside each other, this one counted."""


class JobDefinition(_Model):
    """What may be run, and how."""

    name: JobName
    """Dotted name of the job type."""
    version: Version = "1"
    """Version of the definition; each run keeps the one it was enqueued with."""
    title: Annotated[str, Field(max_length=100), AfterValidator(_one_line)] | None = None
    """A few words for people."""
    description: Text | None = None
    """When to use the job and what comes back, for people and models."""
    handler: JobName | None = None
    """For a declarative definition: the job whose handler does the work. A decorated handler has none."""
    input: dict[str, PydanticJson] = Field(default_factory=dict)
    """For a declarative definition: input its handler gets, unless the run's own input names the same property. With an
    expression in it (``{"$ref": "/input/city"}``) it is a template, and the handler gets what that makes of the run's
    input."""
    chain: Annotated[tuple[Step, ...], Field(min_length=1, max_length=MAX_STEPS)] | None = None
    """For a composition instead of a handler: steps in order."""
    map: Map | None = None
    """The same: one step for each element of a list."""
    switch: Switch | None = None
    """The same: one of several steps."""
    result: PydanticJson = None
    """Template of a composition's result."""
    input_schema: dict[str, PydanticJson] = Field(
        default_factory=lambda: {"type": "object", "properties": {}, "additionalProperties": False}
    )
    """JSON Schema 2020-12 of the input."""
    output_schema: dict[str, PydanticJson] | None = None
    """JSON Schema of the result; absent when any JSON may come back."""
    timeout_ms: Annotated[int, Field(ge=1, le=_MAX_MS)] = 300_000
    """Milliseconds after which an attempt is stopped."""
    retry: RetryPolicy = RetryPolicy()
    """How a failed attempt is tried again."""
    tags: Annotated[tuple[Tag, ...], Field(max_length=16)] = ()
    """Words to find the job by."""
    labels: Annotated[dict[Tag, LabelValue], Field(max_length=16)] = Field(default_factory=dict)
    """Names with values to find the job by."""
    hidden: bool = False
    """Not listed; can be run by whoever knows the name."""
    isolation: Isolation | None = None
    """Where the handler runs. A declarative definition takes its handler's."""
    permissions: Annotated[tuple[Permission, ...], Field(max_length=16)] = ()
    """What a caller needs besides the tool's own scope."""
    effects: Effects | None = None
    """What the job changes besides its own run; ``external`` needs an idempotency key. A declarative definition
    takes its handler's."""
    idempotent: bool = False
    """Whether running it twice with the same input is as good as once."""
    cost: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Units of a budget that each run uses; what an operator set for the job type comes before."""
    concurrency: ConcurrencyLimit | None = None
    """How many runs may be running at once."""
    rate_limit: RateLimit | None = None
    """How many runs may start within a time."""
    debounce: Debounce | None = None
    """How long a run waits for a newer one, which takes its place."""
    pinned: Pinned | None = None
    """For a composition with steps that are registered jobs: which versions of them it runs."""

    @property
    def composition(self) -> Composition | None:
        """What it runs, if it is a composition."""
        if self.chain is None and self.map is None and self.switch is None:
            return None
        return Composition(chain=self.chain, map=self.map, switch=self.switch, result=self.result)

    @model_validator(mode="after")
    def _does_one_thing(self) -> JobDefinition:
        composition = self.composition  # which raises if it is not sound
        if composition is not None and (self.handler is not None or self.input):
            raise ValueError("a composition has no handler and no input of its own")
        return self

    def required_scopes(self, action: JobAction | Literal["execute"]) -> frozenset[str]:
        """Return the scopes that an action on this job needs besides the tool's own."""
        return frozenset(
            scope
            for permission in self.permissions
            if permission.action == action
            for scope in permission.scopes
        )


@dataclass(frozen=True, slots=True)
class Retry:
    """A retry policy as an author writes it: ``Retry(max_attempts=5, backoff="2s")``."""

    max_attempts: int = 3
    """Attempts in all, the first included."""
    backoff: Duration = "1s"
    """Before the second attempt."""
    multiplier: float = 2
    """What the wait is multiplied with for each further attempt."""
    max_backoff: Duration = "1m"
    """What the wait never exceeds."""

    def policy(self) -> RetryPolicy:
        """Return the same as the model of the definition."""
        return RetryPolicy(
            max_attempts=self.max_attempts,
            backoff_ms=milliseconds(self.backoff),
            backoff_multiplier=self.multiplier,
            max_backoff_ms=milliseconds(self.max_backoff),
        )


@dataclass(frozen=True, slots=True)
class HandlerRef:
    """Where a fresh interpreter finds a handler again: nothing of the function itself travels."""

    source: str
    """Path of a Python file, or dotted name of a module."""
    name: str
    """Name of the decorated job in it."""


@dataclass(frozen=True)
class BoundJob:
    """A definition with the function that does its work."""

    definition: JobDefinition
    handler: Handler = field(repr=False)
    input_type: TypeAdapter[object] = field(repr=False)
    """The handler's own input type; a declarative definition has a narrower schema in front of it."""
    output_type: TypeAdapter[object] = field(repr=False)
    """The handler's declared result."""
    ref: HandlerRef
    """How a child process finds the handler."""
    guards: tuple[Guard, ...] = field(default=(), repr=False)
    """Asked before any action on the job or its runs; a declarative definition has its handler's."""
    lane_type: str | None = None
    """Set for a definition that a tenant registered: the type that workers claim its runs by."""
    source: str | None = field(default=None, repr=False)
    """JSON text of a definition that a tenant registered, as it is stored."""
    memory_mb: int = 0
    """Mebibytes of address space that the handler's child process may take; 0 leaves the worker's own limit."""
    cpu_seconds: int = 0
    """Seconds of CPU that one run may use in its child process; 0 leaves the worker's own limit."""

    @property
    def name(self) -> str:
        """Name of the job type."""
        return self.definition.name

    @property
    def isolation(self) -> Isolation:
        """Where the handler runs."""
        return self.definition.isolation or Isolation.PROCESS

    @property
    def effects(self) -> Effects:
        """What the job changes besides its own run."""
        return self.definition.effects or Effects.INTERNAL

    @property
    def permissions(self) -> tuple[Permission, ...]:
        """What actions on the job ask of their callers."""
        return self.definition.permissions

    @cached_property
    def is_templated(self) -> bool:
        """Whether the definition's ``input`` is a template, which makes the whole of what the handler gets."""
        return _has_expression(self.definition.input)

    @property
    def is_async(self) -> bool:
        """Whether the handler is a coroutine function."""
        return inspect.iscoroutinefunction(self.handler)

    @cached_property
    def input_schema(self) -> Schema:
        """The compiled input schema."""
        return Schema(self.definition.input_schema)

    @cached_property
    def output_schema(self) -> Schema | None:
        """The compiled output schema, if there is one."""
        source = self.definition.output_schema
        return Schema(source) if source is not None else None


def job(
    *,
    name: str,
    version: str = "1",
    title: str | None = None,
    description: str | None = None,
    timeout: Duration = "5m",
    retry: Retry | None = None,
    tags: Iterable[str] = (),
    labels: Mapping[str, str] | None = None,
    hidden: bool = False,
    isolation: Isolation | Literal["async", "process", "thread"] | None = None,
    scopes: Iterable[str] = (),
    permissions: Iterable[Permission] = (),
    guard: Guard | None = None,
    effects: Effects | Literal["none", "internal", "external"] = Effects.INTERNAL,
    idempotent: bool = False,
    cost: int = 1,
    concurrency: ConcurrencyLimit | int | None = None,
    rate_limit: RateLimit | None = None,
    debounce: Debounce | None = None,
    memory_mb: int = 0,
    cpu_seconds: int = 0,
) -> Callable[[Handler], BoundJob]:
    """Make a job of a function ``(input: SomeModel, job: JobContext) -> Output``.

    The function's types are the schemas, its docstring the description unless one is given. ``async def`` runs on the
    worker's loop and ``def`` in a child process, unless ``isolation`` says otherwise; ``scopes`` are needed to execute it
    besides ``jobs:execute``. ``permissions`` ask for roles and scopes action by action; ``guard`` is asked about every action
    and refuses unless it returns ``True``. ``cost`` is what each run uses of a budget of units. ``concurrency`` (a number, or one for each key) and ``rate_limit``
    hold back runs that are too many at once or within a time; ``debounce`` lets a newer run take an older one's place.
    ``memory_mb`` and ``cpu_seconds`` are what one run may take in its child process, and never more than the worker's own limits.

    Raises:
        DefinitionError: An argument or the function's signature does not fit; file and line are named.
    """

    def bind(handler: Handler) -> BoundJob:
        place = _place(handler)
        try:
            input_type, output_type = _types(handler)
            definition = JobDefinition(
                name=name,
                version=version,
                title=title,
                description=description or inspect.getdoc(handler),
                input_schema=schema_of(input_type, "validation"),
                output_schema=schema_of(output_type, "serialization") or None,
                timeout_ms=milliseconds(timeout),
                retry=(retry or Retry()).policy(),
                tags=tuple(tags),
                labels=dict(labels or {}),
                hidden=hidden,
                isolation=_isolation(handler, isolation),
                permissions=(
                    *((Permission(scopes=scopes_given),) if scopes_given else ()),
                    *permissions,
                ),
                effects=Effects(effects),
                idempotent=idempotent,
                cost=cost,
                concurrency=ConcurrencyLimit(limit=concurrency)
                if isinstance(concurrency, int)
                else concurrency,
                rate_limit=rate_limit,
                debounce=debounce,
            )
            bound = BoundJob(
                definition,
                handler,
                input_type,
                output_type,
                _ref(handler, name),
                guards=() if guard is None else (guard,),
                memory_mb=memory_mb,
                cpu_seconds=cpu_seconds,
            )
            _check_limits(bound)
            _ = (
                bound.input_schema,
                bound.output_schema,
            )  # compiled now, so that a bad one is found here
        except ValidationError as error:
            raise DefinitionError(f"{place}: job {name[:100]!r}: {complaint(error)}") from None
        except DefinitionError as error:
            raise DefinitionError(
                f"{place}: job {name[:100]!r}: {error.message}", hint=error.hint
            ) from None
        return bound

    scopes_given = tuple(scopes)
    return bind


def _has_expression(value: PydanticJson) -> bool:
    if isinstance(value, dict):
        return not EXPRESSIONS.isdisjoint(value) or any(map(_has_expression, value.values()))
    return isinstance(value, list) and any(map(_has_expression, value))


def is_job_name(name: str) -> bool:
    """Whether a text has the form of a job's name, and so may be repeated in a message."""
    return re.fullmatch(_NAME, name) is not None


def complaint(error: ValidationError) -> str:
    """Say in one line what pydantic found first, without the value."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    words = complain(first) or first["msg"].removeprefix("Value error, ")
    return f"{place}: {words}" if place else words


def _types(handler: Handler) -> tuple[TypeAdapter[object], TypeAdapter[object]]:
    """Read the input and output type from a handler's signature."""
    if not inspect.isfunction(handler):
        raise DefinitionError("@job decorates a function")
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(handler).parameters.values())
    if len(parameters) != 2 or any(parameter.kind not in positional for parameter in parameters):
        raise DefinitionError(
            "a handler takes exactly two arguments",
            hint="write (input: SomeModel, job: JobContext)",
        )
    hints = _hints(handler)
    wanted = hints.get(parameters[0].name)
    if not (inspect.isclass(wanted) and issubclass(wanted, BaseModel)):
        raise DefinitionError(
            f"the type of {parameters[0].name!r} must be a pydantic model",
            hint="without input, use an empty one: class Nothing(BaseModel): ...",
        )
    if getattr(wanted, "__pydantic_generic_metadata__", {}).get("parameters"):
        raise DefinitionError(
            f"the input type {wanted.__name__} is generic", hint="name its parameters"
        )
    if "return" not in hints:
        raise DefinitionError(
            "the handler does not say what it returns",
            hint="write -> SomeModel, -> None or -> JsonValue",
        )
    try:
        return TypeAdapter(wanted), TypeAdapter(cast("type[object]", hints["return"]))
    except PydanticUserError as error:
        raise DefinitionError(f"a type has no JSON form: {error.message.splitlines()[0]}") from None


def _hints(handler: Handler) -> dict[str, object]:
    # JobContext belongs to a layer above this one, and authors may import it for type checkers alone. JsonValue is a
    # forward reference that only pydantic's own recursive type can stand for.
    known = {"JobContext": object, "JsonValue": PydanticJson, "JsonObject": dict[str, PydanticJson]}
    try:
        return get_type_hints(handler, localns=known, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise DefinitionError(
            f"the handler's types cannot be read: {error}",
            hint="define or import them at the top of the module, not under TYPE_CHECKING",
        ) from None


def _isolation(handler: Handler, wanted: Isolation | str | None) -> Isolation:
    is_async = inspect.iscoroutinefunction(handler)
    if wanted is None:
        return Isolation.ASYNC if is_async else Isolation.PROCESS
    try:
        isolation = Isolation(wanted)
    except ValueError:
        raise DefinitionError(f"isolation must be one of {', '.join(Isolation)}") from None
    if isolation is Isolation.ASYNC and not is_async:
        raise DefinitionError(
            "isolation async needs async def", hint="use process, or write async def"
        )
    if isolation is Isolation.THREAD and is_async:
        raise DefinitionError(
            "isolation thread needs def", hint="use async or process, or write def"
        )
    return isolation


def _check_limits(bound: BoundJob) -> None:
    if bound.memory_mb < 0 or bound.cpu_seconds < 0:
        raise DefinitionError("memory_mb and cpu_seconds are at least 0, which is no limit")
    if (bound.memory_mb or bound.cpu_seconds) and bound.isolation is not Isolation.PROCESS:
        raise DefinitionError(
            f"memory_mb and cpu_seconds hold in a child process, not with isolation {bound.isolation}",
            hint="add isolation='process'",
        )


def _ref(handler: Handler, name: str) -> HandlerRef:
    module = handler.__module__
    if module == "__main__" or module.startswith(FILE_MODULE_PREFIX):
        return HandlerRef(str(Path(handler.__code__.co_filename).resolve()), name)
    return HandlerRef(module, name)


def _place(handler: Handler) -> str:
    code = getattr(handler, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(handler)
