"""The jobs of this process by name: what callers are shown, and what stands before and after every handler.

Input is checked twice, when it is enqueued and when it is claimed, because a definition may change in between and a row
may come from ``psql``. A result is checked before the run may be ``succeeded``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple, TypeAlias, cast

import structlog
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, from_json

from jobforge_mcp.definitions.json_limits import (
    MAX_BYTES,
    MAX_RESULT_BYTES,
    check_value,
    check_written,
    dump_limited,
    load_limited,
)
from jobforge_mcp.definitions.mapping import evaluate
from jobforge_mcp.definitions.model import BoundJob, JobDefinition, complaint, is_job_name
from jobforge_mcp.definitions.schema import input_defaults
from jobforge_mcp.errors import (
    CallerError,
    DefinitionError,
    InvalidInputError,
    NotFoundError,
    PermanentError,
    PolicyDeniedError,
)
from jobforge_mcp.redaction import find_shape, shape_of
from jobforge_mcp.types import JsonObject, JsonValue

_log = structlog.stdlib.get_logger(__name__)


class Prepared(NamedTuple):
    """An input that may be enqueued."""

    definition: JobDefinition
    payload: str
    """JSON text with the definition's defaults filled in."""
    received: str
    """JSON text of the input as it came, which the idempotency hash covers."""


Fill: TypeAlias = Callable[[JsonObject], JsonObject]
"""Puts the values of secrets where an input names them."""

PayloadScan: TypeAlias = Literal["refuse", "warn", "off"]
"""What becomes of an input that holds an obvious key."""


class Registry:
    """Every job this process knows. Built once, at start."""

    def __init__(
        self,
        jobs: Iterable[BoundJob],
        *,
        switched_off: Mapping[str, str] | None = None,
        payload_scan: PayloadScan = "refuse",
        max_payload_bytes: int = MAX_BYTES,
    ) -> None:
        """Take the jobs.

        ``switched_off`` names those that must not run, and the setting that would change it; ``payload_scan`` says what
        becomes of an input that holds an obvious key, ``max_payload_bytes`` how large one may be.

        Raises:
            DefinitionError: Two have the same name.
        """
        self._off = dict(switched_off or {})
        self._payload_scan: PayloadScan = payload_scan
        self._max_bytes = max_payload_bytes
        self._jobs: dict[str, BoundJob] = {}
        for bound in jobs:
            if bound.name in self._jobs:
                raise DefinitionError(f"the job name {bound.name!r} is taken twice")
            self._jobs[bound.name] = bound

    def names(self) -> list[str]:
        """Return all names, hidden ones too, in order; what is switched off is not here."""
        return sorted(self._jobs.keys() - self._off.keys())

    @property
    def by_name(self) -> Mapping[str, BoundJob]:
        """Every job, hidden and switched-off ones too: their permissions hold for the runs they had."""
        return self._jobs

    def is_installed(self, name: str) -> bool:
        """Tell whether a name is one of ours, be it switched off or not."""
        return name in self._jobs or name in self._off

    def get(self, name: str, *, is_visible: Callable[[BoundJob], bool] | None = None) -> BoundJob:
        """Return one job; ``is_visible`` says which others may be named to the caller.

        Raises:
            NotFoundError: ``JOB_NOT_FOUND``, with what the caller may have meant.
            PolicyDeniedError: ``FEATURE_DISABLED``: it is switched off here.
        """
        bound = self._jobs.get(name)
        self.require_on(name)
        if bound is None:
            raise NotFoundError(
                f"there is no job named {name!r}"
                if is_job_name(name)
                else "there is no job of this name",
                code="JOB_NOT_FOUND",
                hint=self._meant(name, is_visible),
            )
        return bound

    @property
    def has_switched_off(self) -> bool:
        """Whether any job is switched off here."""
        return bool(self._off)

    def is_on(self, name: str) -> bool:
        """Whether a job is not switched off here; one that this process does not know is not."""
        return name not in self._off

    def require_on(self, name: str) -> None:
        """Refuse a job that is switched off here; one that this process does not know passes.

        Raises:
            PolicyDeniedError: ``FEATURE_DISABLED``.
        """
        if name in self._off:
            raise PolicyDeniedError(
                f"{name} is switched off on this installation, for every caller",
                code="FEATURE_DISABLED",
                hint=f"whoever operates it can set {self._off[name]}=true for servers and workers",
            )

    def list(
        self,
        query: str | None = None,
        tags: Iterable[str] | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        is_visible: Callable[[BoundJob], bool] | None = None,
    ) -> list[BoundJob]:
        """Return the jobs that are not hidden, by name.

        Args:
            query: Words that must all occur in name, title, description or tags.
            tags: Tags that a job must all have.
            labels: Labels that a job must all have.
            is_visible: Says which are shown to the caller. ``None`` shows all.
        """
        words = (query or "").casefold().split()
        wanted_tags, wanted_labels = set(tags or ()), dict(labels or {}).items()
        return [
            bound
            for _, bound in sorted(self._jobs.items())
            if not bound.definition.hidden
            and bound.name not in self._off
            and (is_visible is None or is_visible(bound))
            and wanted_tags <= set(bound.definition.tags)
            and wanted_labels <= bound.definition.labels.items()
            and all(word in _searchable(bound.definition) for word in words)
        ]

    def prepare(self, name: str, input: JsonValue = None) -> Prepared:
        """Check an input as a caller sent it and fill in the defaults; nothing given means ``{}``.

        Raises:
            NotFoundError: There is no such job.
            CallerError: The input breaks a limit, the schema or a rule of its type.
        """
        return self.prepare_bound(self.get(name), input)

    def prepare_bound(self, bound: BoundJob, input: JsonValue = None) -> Prepared:
        """Do the same for a job that was found already, be it ours or one that a tenant registered."""
        given = {} if input is None else input
        received = dump_limited(given, max_bytes=self._max_bytes)
        if self._payload_scan != "off" and shape_of(received) is not None:
            self._refuse_key(bound, given)
        checked = _check_schema(bound, given)
        payload = checked
        if bound.definition.composition is None:
            defaults = _defaults(bound, _to_model(bound, checked))
            payload = {**defaults, **checked} if defaults else checked
        text = received
        if payload is not given and payload != given:
            text = dump_limited(payload, max_bytes=self._max_bytes)
        return Prepared(bound.definition, text, received)

    def check_input(self, bound: BoundJob, payload: str, fill: Fill | None = None) -> object:
        """Return what the handler gets for a claimed payload; ``fill`` puts in what only the worker knows.

        Raises:
            CallerError: The payload does not fit the definition, which may have changed since it was enqueued.
        """
        return _to_model(bound, _check_schema(bound, load_limited(payload)), fill)

    def handler_input(self, bound: BoundJob, payload: str, fill: Fill | None = None) -> str:
        """Check a claimed payload, and return the JSON text that the handler of ``bound.ref`` is to be given."""
        checked = _check_schema(bound, load_limited(payload))
        _to_model(bound, checked, fill)
        merged = handler_values(bound, checked)
        return dump_limited(merged if fill is None else fill(merged))

    def check_output(self, bound: BoundJob, value: object) -> str:
        """Return the JSON text of what a handler returned."""
        return check_output(bound, value)

    def scan(self, said: Mapping[str, JsonValue]) -> None:
        """Look for obvious keys in what is stored beside an input: labels, keys, reasons; by the name of the argument.

        Raises:
            InvalidInputError: ``SECRET_IN_INPUT``, unless the setting says otherwise.
        """
        if self._payload_scan == "off":
            return
        for name, value in said.items():
            found = None if value is None else find_shape(value)
            if found is None:
                continue
            if self._payload_scan == "warn":
                _log.warning("key_in_argument", argument=name, kind=found[1])
                continue
            raise InvalidInputError(
                f"{name} holds what looks like a {found[1]}; it is stored and can be read",
                code="SECRET_IN_INPUT",
                hint="leave the key out: whoever may see the run would see it",
            )

    def _refuse_key(self, bound: BoundJob, given: JsonValue) -> None:
        where, kind = find_shape(given) or ("/", "key")
        if self._payload_scan == "warn":
            _log.warning("key_in_input", job_type=bound.name, path=where, kind=kind)
            return
        raise InvalidInputError(
            f"the input of {bound.name} holds what looks like a {kind} at {where}; inputs are stored and can be read",
            code="SECRET_IN_INPUT",
            hint="let the operator keep it as a secret of the workers, and pass secret://NAME instead",
        )

    def _meant(self, name: str, is_visible: Callable[[BoundJob], bool] | None) -> str:
        from difflib import get_close_matches

        shown = [bound.name for bound in self.list(is_visible=is_visible)]
        close = get_close_matches(name[:200].casefold(), shown, n=3, cutoff=0.6)
        listed = "list-jobs shows every job that you may run"
        return f"did you mean {' or '.join(close)}? {listed}" if close else listed


def check_output(bound: BoundJob, value: object) -> str:
    """Return the JSON text of what a handler returned, once it is known to fit the definition.

    Raises:
        PermanentError: ``OUTPUT_INVALID`` or a limit of results: running the same code again would not mend it.
    """
    try:
        # the parts of the TypeAdapter themselves: its own methods take longer than a small value
        checked = bound.output_type.validator.validate_python(value)
        text = bound.output_type.serializer.to_json(
            checked, by_alias=True, warnings="error"
        ).decode()
        check_written(text, what="result", max_bytes=MAX_RESULT_BYTES)
        # the writer makes null of what JSON cannot say
        if "null" in text and _is_infinite(bound.output_type.dump_python(checked)):
            raise PermanentError(
                "the result holds a number that is infinite or NaN, and JSON has no such value",
                code="RESULT_NUMBER_RANGE",
                hint="return null or a string instead",
            )
    except ValidationError as error:
        raise _bad_output(complaint(error)) from None
    except PydanticSerializationError:
        raise _bad_output("a value is not of its declared type, or has no JSON form") from None
    except CallerError as error:
        raise PermanentError(error.message, code=error.code, hint=error.hint) from None
    if bound.output_schema is not None and (
        problems := bound.output_schema.problems(from_json(text))
    ):
        raise _bad_output("; ".join(problems))
    return text


def _is_infinite(value: object) -> bool:
    """Whether any number in a value is infinite or NaN."""
    match value:
        case float():
            return not math.isfinite(value)
        case dict():
            return any(_is_infinite(item) for item in cast("dict[object, object]", value).values())
        case list() | tuple() | set() | frozenset():
            return any(_is_infinite(item) for item in cast("Iterable[object]", value))
        case _:
            return False


def _check_schema(bound: BoundJob, value: JsonValue) -> JsonObject:
    """Fill in a declarative schema's defaults and validate."""
    if not isinstance(value, dict):
        raise InvalidInputError("the input must be an object", hint=_expected(bound.definition))
    checked: JsonObject = value
    if bound.definition.handler is not None or bound.lane_type is not None:
        checked = {**input_defaults(bound.definition.input_schema), **value}
    problems = bound.input_schema.problems(checked)
    if problems:
        raise InvalidInputError(
            f"the input of {bound.name} does not fit: {'; '.join(problems)}",
            hint=_expected(bound.definition),
        )
    return checked


def _to_model(bound: BoundJob, checked: JsonObject, fill: Fill | None = None) -> BaseModel:
    """Make the handler's input, with the fixed part of a declarative definition underneath."""
    merged = handler_values(bound, checked)
    try:
        model: BaseModel = bound.input_type.validator.validate_python(
            merged if fill is None else fill(merged)
        )
    except ValidationError as error:
        raise InvalidInputError(
            f"the input of {bound.name} does not fit: {complaint(error)}",
            hint=_expected(bound.definition),
        ) from None
    return model


def handler_values(bound: BoundJob, checked: JsonObject) -> JsonObject:
    """Return what a handler gets: the run's input over the fixed part, or what the definition's template makes of it."""
    if not bound.is_templated:
        fixed = bound.definition.input
        return {**fixed, **checked} if fixed else checked
    return cast("JsonObject", evaluate(bound.definition.input, {"input": checked}))


def _defaults(bound: BoundJob, model: BaseModel) -> JsonObject:
    """Return what the handler's type fills in. What the caller wrote stays as it was written."""
    fields = type(model).__pydantic_fields__.keys()
    if bound.definition.handler is not None or fields <= model.__pydantic_fields_set__:
        return {}
    unset = fields - model.__pydantic_fields_set__
    filled = cast("JsonObject", model.model_dump(mode="json", by_alias=True, include=unset))
    check_value(filled)
    return filled


def _expected(definition: JobDefinition) -> str:
    """Name the properties, so that the next call can be right without another look-up."""
    properties = definition.input_schema.get("properties")
    required = definition.input_schema.get("required")
    if not isinstance(properties, dict) or not properties:
        return (
            "the input is an object without properties"
            if "$ref" not in definition.input_schema
            else "list-jobs with detail shows the schema"
        )
    needed = set(required) if isinstance(required, list) else set[object]()
    names = [name if name in needed else f"{name} (optional)" for name in list(properties)[:20]]
    return f"properties: {', '.join(names)}; list-jobs with detail shows the schema"


def _searchable(definition: JobDefinition) -> str:
    texts = (definition.name, definition.title, definition.description, *definition.tags)
    return " ".join(text for text in texts if text).casefold()


def _bad_output(why: str) -> PermanentError:
    return PermanentError(
        f"the handler returned what its definition does not allow: {why}",
        code="OUTPUT_INVALID",
        hint="the handler or its declared result has to be corrected",
    )
