"""The arguments of every tool: one strict model each, which is its validation and its JSON Schema.

Unknown names are refused with the nearest known one, types are not converted, and no message repeats a value. An
argument that is ``null`` counts as absent, because some models fill in every name they see.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Literal, TypeVar, cast
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails, PydanticCustomError

from jobforge_mcp.definitions.complaints import complain
from jobforge_mcp.definitions.json_limits import check_value
from jobforge_mcp.definitions.model import is_job_name
from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.types import JobId, JsonObject, JsonValue

RUN_IDS_MOST = 50
PAGE_MOST = 100
PAGE = 20
FIRST_RUN_AT = datetime(1970, 1, 1, tzinfo=UTC)
LAST_RUN_AT = datetime.max.replace(tzinfo=UTC)


def _text_only(value: object) -> object:
    if isinstance(value, str | datetime) or value is None:
        return value
    raise PydanticCustomError("not_text", "must be a time as text")


def _storable(value: datetime) -> datetime:
    """Refuse what the database refuses: in UTC, a time before 1970 or after 9999."""
    if FIRST_RUN_AT <= value <= LAST_RUN_AT:
        return value
    raise PydanticCustomError("time_range", "must be a time from 1970 to 9999")


def _run_id(value: object) -> object:
    if isinstance(value, str) and len(value) == 36:
        try:
            return UUID(value)
        except ValueError:
            pass
    raise PydanticCustomError("run_id", "is not a runId")


_Short = Annotated[str, Field(max_length=200)]
_Name = Annotated[str, Field(max_length=100)]
_Time = Annotated[
    AwareDatetime,
    Field(strict=False),
    BeforeValidator(_text_only),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
_RunAt = Annotated[_Time, AfterValidator(_storable)]
_RunId = Annotated[UUID, BeforeValidator(_run_id), WithJsonSchema({"type": "string"})]
_Labels = dict[Annotated[str, Field(max_length=63)], Annotated[str, Field(max_length=255)]]
_Object = Annotated[dict[str, object], WithJsonSchema({"type": "object"})]
_Any = Annotated[object, WithJsonSchema({})]
_Objects = Annotated[list[object], WithJsonSchema({"type": "array"})]
_Strings = Annotated[list[str], WithJsonSchema({"type": "array", "items": {"type": "string"}})]
_Limit = Annotated[int, Field(ge=1, le=PAGE_MOST)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


Project = Annotated[
    str | None,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$"),
    WithJsonSchema({"type": "string"}),
]
Short = _Short
Name = _Name
Time = _Time
RunAt = _RunAt
Limit = _Limit


def parse_uuid(value: object) -> object:
    """Read a cursor that is an id."""
    return None if value is None else _run_id(value)


class Arguments(BaseModel):
    """Base of all: camelCase names, nothing unknown, nothing converted."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        strict=True,
        frozen=True,
        hide_input_in_errors=True,
    )


class ListJobs(Arguments):
    """Which definitions to list."""

    query: Annotated[_Short | None, Field(description="words, all must occur")] = None
    tags: Annotated[list[_Name] | None, Field(max_length=20, description="all must be there")] = (
        None
    )
    labels: _Labels | None = None
    detail: Annotated[bool | None, Field(description="add schemas, timeout, retry")] = None
    cursor: Annotated[_Short | None, Field(description="nextCursor of the page before")] = None
    limit: Annotated[_Limit | None, Field(description="default 20")] = None


class ExecuteJob(Arguments):
    """What to run, and how long to wait for it."""

    name: Annotated[_Name, Field(description="job name from list-jobs")]
    # Any JSON value is taken (it has passed check_value), and the job's own schema says what fits; models are told the
    # usual case.
    input: Annotated[
        object, WithJsonSchema({"type": "object"}), Field(description="fits the job's inputSchema")
    ] = None
    background: Annotated[bool | None, Field(description="return at once, do not wait")] = None
    wait_seconds: Annotated[
        _Seconds | None, Field(description="wait this long for the end; default 20, cap 45")
    ] = None
    idempotency_key: Annotated[
        str | None,
        Field(
            description="your own id of this request: repeated with the same input it returns the same run instead of "
            "a second one"
        ),
    ] = None
    run_at: Annotated[_RunAt | None, Field(description="do not start before")] = None
    priority: Annotated[int | None, Field(ge=0, le=3, description="0 is first; default 2")] = None
    ordering_key: Annotated[
        str | None, Field(description="runs with the same key run one at a time, in order")
    ] = None
    project_id: Annotated[
        str | None,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$"),
        WithJsonSchema({"type": "string"}),
    ] = None
    labels: Annotated[_Labels | None, Field(max_length=20)] = None
    dry_run: Annotated[bool | None, Field(description="only say what would happen")] = None
    rehearse: Annotated[
        bool | None, Field(description="run it, but the handler is told to leave out its effects")
    ] = None
    cancel_on_disconnect: Annotated[
        bool | None,
        Field(description="cancel the run if this call is cut off; default: it goes on"),
    ] = None


class BundleRequest(ExecuteJob):
    """One request of a bundle: what `execute-job` takes, but for the wait, and what it depends on."""

    id: _Name
    depends_on: Annotated[list[_Name] | None, Field(max_length=100)] = None
    on_failure: Literal["cancel", "continue"] | None = None


class ExecuteBundle(Arguments):
    """Requests, each of which is checked by itself."""

    requests: Annotated[
        _Objects,
        Field(
            min_length=1,
            max_length=100,
            description="of {id,name,input,dependsOn:[ids],onFailure:cancel|continue,orderingKey,priority,runAt,projectId,"
            "labels,idempotencyKey}",
        ),
    ]
    idempotency_key: Annotated[
        str | None, Field(description="of the whole: repeated it returns the same runs")
    ] = None
    dry_run: Annotated[bool | None, Field(description="only say what would happen")] = None


class GetJobStatus(Arguments):
    """Which runs to tell about."""

    run_id: _RunId | None = None
    run_ids: Annotated[
        list[_RunId] | None,
        Field(min_length=1, max_length=RUN_IDS_MOST, description="instead of runId"),
    ] = None
    wait_seconds: Annotated[
        _Seconds | None, Field(description="wait this long for the end; default 0, cap 45")
    ] = None
    since_version: Annotated[
        int | None, Field(ge=0, description="end the wait on any change past this version")
    ] = None
    include: Annotated[
        list[Literal["input", "logs", "attempts", "manifest", "report"]] | None,
        Field(description="tell these too"),
    ] = None


class ListRuns(Arguments):
    """Which runs to list."""

    name: Annotated[_Name | None, Field(description="job name")] = None
    status: (
        Literal["queued", "running", "waiting", "succeeded", "failed", "dead", "canceled"] | None
    ) = None
    project_id: _Name | None = None
    trace_id: _Short | None = None
    since: Annotated[_Time | None, Field(description="created then or later")] = None
    cursor: Annotated[_Short | None, Field(description="nextCursor of the page before")] = None
    limit: Annotated[_Limit | None, Field(description="default 20")] = None


class CancelJob(Arguments):
    """Which run to end."""

    run_id: _RunId
    reason: Annotated[str | None, Field(max_length=500)] = None
    dry_run: Annotated[bool | None, Field(description="only say what would happen")] = None


class RetryJob(Arguments):
    """Which run to queue again."""

    run_id: _RunId
    if_version: Annotated[
        int | None, Field(ge=0, description="refuse if the run changed since this version")
    ] = None
    run_at: Annotated[_RunAt | None, Field(description="do not start before")] = None
    reset_attempts: Annotated[bool | None, Field(description="grant all attempts anew")] = None
    force: Annotated[bool | None, Field(description="needed for a succeeded run")] = None
    dry_run: Annotated[bool | None, Field(description="only say what would happen")] = None


class RegisterJob(Arguments):
    """One job definition. Only the outermost names are checked here; what they hold is for the definition's own model."""

    name: Annotated[_Name, Field(description="a-z 0-9 . -")]
    handler: Annotated[_Name | None, Field(description="job that does the work")] = None
    input: Annotated[
        _Object | None,
        Field(
            description='fixed input of the handler, under the run\'s own; or a template: {"$ref":"/input/x"}, {"$jmespath":"input.x"}'
        ),
    ] = None
    chain: Annotated[
        _Objects | None,
        Field(
            description="instead of handler: steps {name,handler,input,when}; input sees /steps/NAME/result"
        ),
    ] = None
    map: Annotated[
        _Object | None, Field(description="instead: {items,do,concurrency}; do sees /item, /index")
    ] = None
    switch: Annotated[_Object | None, Field(description="instead: {cases:[{when,do}],default}")] = (
        None
    )
    result: Annotated[_Any | None, Field(description="template of a composition's result")] = None
    version: Annotated[str | None, Field(description="default: the next number")] = None
    title: str | None = None
    description: Annotated[str | None, Field(description="when to use it, what comes back")] = None
    input_schema: Annotated[_Object | None, Field(description="JSON Schema 2020-12")] = None
    output_schema: _Object | None = None
    timeout_ms: int | None = None
    retry: Annotated[
        _Object | None,
        Field(description="maxAttempts backoffMs backoffMultiplier maxBackoffMs"),
    ] = None
    tags: _Strings | None = None
    labels: _Object | None = None
    hidden: bool | None = None
    permissions: Annotated[_Objects | None, Field(description="of {action,roles,scopes}")] = None
    effects: Literal["none", "internal", "external"] | None = None
    idempotent: bool | None = None
    cost: int | None = None
    concurrency: Annotated[
        _Object | None, Field(description='{limit,key}: runs at once; key "/x" for each input.x')
    ] = None
    rate_limit: Annotated[_Object | None, Field(description="{count,periodMs,key}")] = None
    debounce: Annotated[
        _Object | None, Field(description="{windowMs,maxWaitMs,key}: a newer run replaces one")
    ] = None
    dry_run: Annotated[bool | None, Field(description="only say what would happen")] = None

    def definition(self) -> JsonObject:
        """Return the definition as it came."""
        return cast(
            "JsonObject", self.model_dump(by_alias=True, exclude_unset=True, exclude={"dry_run"})
        )


class RemoveJob(Arguments):
    """Which registered job to remove."""

    name: _Name
    dry_run: Annotated[bool | None, Field(description="only say what would happen")] = None


ModelT = TypeVar("ModelT", bound=Arguments)


def parse(model: type[ModelT], given: Mapping[str, object] | None) -> ModelT:
    """Check the arguments of one call.

    Raises:
        InvalidInputError: ``INVALID_ARGUMENTS``, or ``INVALID_RUN_ID`` for an id that cannot be one.
        LimitError: They are nested too deeply.
    """
    values = dict(given or {})
    check_value(values)
    try:
        return model.model_validate({k: v for k, v in values.items() if v is not None})
    except ValidationError as error:
        raise explain(model, error.errors(include_url=False, include_input=False)) from None


def parse_run_id(text: str) -> JobId:
    """Read the id of a run from a URI or cursor.

    Raises:
        InvalidInputError: ``INVALID_RUN_ID``.
    """
    try:
        return JobId(cast("UUID", _run_id(text)))
    except PydanticCustomError:
        raise _malformed("runId") from None


def what_is_named(tool: str, given: Mapping[str, object] | None) -> tuple[str | None, JobId | None]:
    """Return the job type and the run that a call names, where they have the form of such; for the audit log."""
    arguments = given or {}
    name = arguments.get("name") if tool in _NAMES_A_JOB else arguments.get("jobName")
    run_id = arguments.get("runId")
    try:
        job_id = parse_run_id(run_id) if isinstance(run_id, str) else None
    except InvalidInputError:
        job_id = None
    return (name if isinstance(name, str) and is_job_name(name) else None), job_id


_NAMES_A_JOB = frozenset({"execute-job", "register-job", "remove-job"})


@cache
def schema_of(model: type[Arguments]) -> JsonObject:
    """Return the JSON Schema a client sees: no titles, no nulls, nothing a model does not need."""
    return cast("JsonObject", squeeze(model.model_json_schema(by_alias=True)))


def squeeze(node: JsonValue, *, is_map: bool = False) -> JsonValue:
    """Drop pydantic's titles, the null of optional members, and lengths that only the validation needs.

    ``is_map`` says that the names of ``node`` are names of members and not keywords.
    """
    if isinstance(node, list):
        return [squeeze(item) for item in node]
    if not isinstance(node, dict):
        return node
    if is_map:
        return {name: squeeze(member) for name, member in node.items()}
    options = node.get("anyOf")
    if isinstance(options, list):
        rest = [option for option in options if option != {"type": "null"}]
        if len(rest) == 1 and isinstance(rest[0], dict):
            node = {**{k: v for k, v in node.items() if k != "anyOf"}, **rest[0]}
    noise = _NOISE | {"description"} if "properties" in node else _NOISE  # a docstring of ours
    return {
        name: squeeze(member, is_map=name in ("properties", "$defs"))
        for name, member in node.items()
        if name not in noise and not (name == "default" and member is None)
    }


_NOISE = frozenset({"title", "maxLength", "propertyNames", "minItems", "maxItems", "maxProperties"})


def explain(model: type[Arguments], problems: list[ErrorDetails]) -> InvalidInputError:
    """Say in one sentence what is wrong with the first argument that does not fit."""
    # a name that is not known is most often the one that is missing, written otherwise
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    argument = str(problem["loc"][0]) if problem["loc"] else "arguments"
    match problem["type"]:
        case "extra_forbidden":
            return _unknown(model, argument)
        case "run_id":
            inner = [part for part in problem["loc"][1:] if isinstance(part, int)]
            return _malformed(f"member {inner[0] + 1} of {argument}" if inner else argument)
        case "missing":
            return InvalidInputError(
                f"the argument {argument} is required",
                code="INVALID_ARGUMENTS",
                hint=f"required: {', '.join(_required(model))}",
            )
        case _:
            return InvalidInputError(
                f"{_place(problem, argument)} {_complaint(problem)}",
                code="INVALID_ARGUMENTS",
                hint=f"its schema is {_schema_text(model, argument)}",
            )


def _place(problem: ErrorDetails, argument: str) -> str:
    """Name an argument, or say that it is a part of it that does not fit, without repeating a name that was given."""
    inner = [part for part in problem["loc"][1:] if isinstance(part, int)]
    if inner:
        return f"member {inner[0] + 1} of the argument {argument}"
    if problem["loc"][-1:] == ("[key]",):
        return f"a name in the argument {argument}"
    return (
        f"the argument {argument}"
        if len(problem["loc"]) == 1
        else f"a value in the argument {argument}"
    )


def _unknown(model: type[Arguments], argument: str) -> InvalidInputError:
    known = list(_properties(model))
    close = get_close_matches(argument, known, n=1) or get_close_matches(
        to_camel(argument), known, n=1
    )
    shown = argument if len(argument) <= 40 and argument.isprintable() else "given here"
    return InvalidInputError(
        f"there is no argument {shown}",
        code="INVALID_ARGUMENTS",
        hint=f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}",
    )


def _malformed(argument: str) -> InvalidInputError:
    return InvalidInputError(
        f"{argument} is not the id of a run: it must be a UUID such as 01890a5d-ac96-774b-bcce-b302099a8057",
        code="INVALID_RUN_ID",
        hint="use the runId that execute-job or list-runs returned, unchanged",
    )


def _properties(model: type[Arguments]) -> JsonObject:
    return cast("JsonObject", schema_of(model)["properties"])


def _required(model: type[Arguments]) -> list[str]:
    return cast("list[str]", schema_of(model).get("required", []))


def _schema_text(model: type[Arguments], argument: str) -> str:
    return json.dumps(_properties(model).get(argument, {}), separators=(",", ":"))


def _complaint(problem: ErrorDetails) -> str:
    kind = problem["type"]
    if kind.startswith(("datetime", "timezone", "not_text")):
        return "must be a time with offset such as 2026-11-22T10:00:00Z, before the year 10000"
    return complain(problem, _COMPLAINTS) or "does not fit its schema"


_COMPLAINTS = {
    "time_range": "must be a time from 1970 to 9999, in UTC",
    "string_pattern_mismatch": "must be 1 to 63 letters, digits or . _ : - and begin with a letter or digit",
}
