"""JSON Schema, compiled once and safe to run on what strangers send: jsonschema-rs, offline, with linear regexes.

What reaches the compiler has passed caps of our own, because a chain of ``$ref`` that doubles forty times hangs every
validator. What reaches a validator has passed ``json_limits``, because fifty thousand nested arrays crash this one.
Messages name the place and what was expected, and never repeat a value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Literal, cast

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError

from jobforge_mcp.definitions.plain_schema import MAX_VALUES, Check, plain_check
from jobforge_mcp.errors import DefinitionError
from jobforge_mcp.types import JsonObject, JsonValue

if TYPE_CHECKING:
    import jsonschema_rs

DIALECT = "https://json-schema.org/draft/2020-12/schema"
"""The one dialect that is accepted, and the default where a schema names none."""

MAX_BYTES = 32 * 1024
"""Bytes of JSON text a schema may have."""

MAX_DEPTH = 32
"""Arrays and objects of a schema inside each other."""

MAX_EXPANSION = 10_000
"""Subschemas after every ``$ref`` is written out; a cycle counts once."""

MAX_PLAIN = 10_000
"""Values that one schema judges without the library; with more its speed is worth its memory."""

_SHOWN_PROBLEMS = 3
_HARMLESS_NAME = re.compile(r"[A-Za-z0-9_.$-]{1,64}")
_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SCHEMAS = (
    "not", "if", "then", "else", "items", "contains", "additionalProperties", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties", "contentSchema",
)  # fmt: skip


class Schema:
    """One compiled schema.

    The library is loaded for one that is not plain, for one that is used much, and for a value that does not plainly fit.
    """

    def __init__(self, source: JsonObject) -> None:
        """Check and compile.

        Raises:
            DefinitionError: The schema is not one, is too large, or refers to something outside itself.
        """
        _check(source)
        self.source = source
        self._plain = plain_check(source)
        self._plain_left = MAX_PLAIN
        if self._plain is None:
            _ = self._validator  # compiled now, so that a bad one is found here

    def problems(self, value: JsonValue) -> list[str]:
        """Return at most three sentences about what does not fit; none when all fits."""
        if self._plain is not None and self._plainly_fits(self._plain, value):
            return []
        if self._validator.is_valid(value):
            return []
        found = islice(self._validator.iter_errors(value), _SHOWN_PROBLEMS)
        return [_describe(error) for error in found]

    def _plainly_fits(self, check: Check, value: JsonValue) -> bool:
        self._plain_left -= 1
        try:
            if self._plain_left >= 0 and check(value, [MAX_VALUES]):
                return True
        except RecursionError:  # of references that lead to each other
            pass
        self._plain = None  # this one loads the library, which is faster for all that follow
        return False

    @cached_property
    def _validator(self) -> jsonschema_rs.Draft202012Validator:
        import jsonschema_rs

        try:
            return jsonschema_rs.Draft202012Validator(
                self.source,
                offline=True,
                pattern_options=jsonschema_rs.RegexOptions(),
                validate_formats=False,
            )
        except ValueError as error:
            reason = str(error).partition("\n")[0][:200]
            raise DefinitionError(
                f"the schema is not valid JSON Schema 2020-12: {reason}"
            ) from None


def schema_of(
    adapter: TypeAdapter[object], mode: Literal["validation", "serialization"]
) -> JsonObject:
    """Return the schema of a Python type, without titles, and closed unless the type says otherwise.

    Raises:
        DefinitionError: The type has no JSON form.
    """
    try:
        schema = cast("JsonObject", adapter.json_schema(mode=mode))
    except (PydanticInvalidForJsonSchema, PydanticSchemaGenerationError) as error:
        raise DefinitionError(f"the type has no JSON Schema: {error.message}") from None
    _tidy(schema)
    return schema


def input_defaults(schema: JsonObject) -> JsonObject:
    """Return the defaults that a schema gives its outermost properties."""
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {}
    return {
        name: member["default"]
        for name, member in properties.items()
        if isinstance(member, dict) and "default" in member
    }


def _tidy(schema: JsonObject) -> None:
    """Drop pydantic's titles and close objects, in place."""
    schema.pop("title", None)
    if schema.get("type") == "object" and "additionalProperties" not in schema:
        schema["additionalProperties"] = False
    for member in _members(schema):
        _tidy(member)


def _members(schema: JsonObject) -> Iterator[JsonObject]:
    """Yield the direct subschemas; what is data (``default``, ``enum``, ``const``) is not one."""
    for keyword, value in schema.items():
        candidates: list[JsonValue] = []
        if keyword in _SCHEMAS_BY_NAME and isinstance(value, dict):
            candidates = list(value.values())
        elif keyword in _SCHEMA_LISTS and isinstance(value, list):
            candidates = value
        elif keyword in _SCHEMAS:
            candidates = [value]
        yield from (candidate for candidate in candidates if isinstance(candidate, dict))


def _check(source: JsonObject) -> None:
    """Apply the caps, and refuse whatever could lead outside the schema."""
    if _depth_exceeds(source, MAX_DEPTH):
        raise DefinitionError(f"the schema is nested more than {MAX_DEPTH} deep")
    size = len(json.dumps(source, ensure_ascii=False).encode(errors="replace"))
    if size > MAX_BYTES:
        raise DefinitionError(f"the schema has {size} bytes and the limit is {MAX_BYTES}")
    if _expansion(source, source, {}) > MAX_EXPANSION:
        raise DefinitionError(
            f"the schema has more than {MAX_EXPANSION} subschemas with its references written out"
        )


def _depth_exceeds(value: JsonValue, limit: int) -> bool:
    level: list[JsonValue] = [value]
    for _ in range(limit + 1):
        level = [
            member
            for item in level
            for member in (
                item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
            )
        ]
        if not level:
            return False
    return True


def _expansion(schema: JsonObject, root: JsonObject, known: dict[int, int]) -> int:
    """Count the subschemas below and behind references; one that is being counted already counts nothing."""
    if id(schema) in known:
        return known[id(schema)]
    known[id(schema)] = 0
    dialect = schema.get("$schema")
    if isinstance(dialect, str) and dialect.rstrip("#") != DIALECT:
        raise DefinitionError(f"the schema names another dialect than {DIALECT}")
    if isinstance(schema.get("$id"), str):
        raise DefinitionError(
            "the schema has $id, which is not allowed: references stay inside the schema"
        )
    total = 1 + sum(_expansion(member, root, known) for member in _members(schema))
    for keyword in ("$ref", "$dynamicRef"):
        reference = schema.get(keyword)
        if isinstance(reference, str):
            target = _resolve(reference, root)
            total += _expansion(target, root, known) if target is not None else 1
    known[id(schema)] = total
    return total


def _resolve(reference: str, root: JsonObject) -> JsonObject | None:
    """Follow a reference of the form ``#`` or ``#/…``; ``None`` for the schemas ``true`` and ``false``."""
    if reference != "#" and not reference.startswith("#/"):
        raise DefinitionError(
            "the schema refers to something outside itself",
            hint="references have the form #/$defs/name; nothing is ever fetched",
        )
    found: JsonValue = root
    for part in reference.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(name)
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            found = None
    if found is None:
        raise DefinitionError(f"the schema refers to {reference[:80]!r}, which it does not contain")
    return found if isinstance(found, dict) else None


def _describe(error: jsonschema_rs.ValidationError) -> str:
    return f"{_place(error.instance_path)} {_expectation(error.kind)}"


def _place(path: list[str | int]) -> str:
    parts = "".join(
        f"[{part}]" if isinstance(part, int) else f".{_name(part)}" for part in path[:8]
    )
    return parts.removeprefix(".") or "it"


def _name(name: str) -> str:
    """Repeat a name only if it looks like one: names too come from the caller."""
    return name if _HARMLESS_NAME.fullmatch(name) else "(a property)"


def _expectation(kind: jsonschema_rs.ValidationErrorKind) -> str:
    facts = kind.as_dict()
    match kind.name:
        case "type":
            return f"must be {_either([_with_article(str(name)) for name in facts['types']])}"
        case "required":
            return f"needs {facts['property']!r}"
        case "additionalProperties" | "unevaluatedProperties":
            unexpected = ", ".join(_name(str(name)) for name in facts["unexpected"][:3])
            return f"has unknown properties: {unexpected}"
        case "enum":
            return (
                f"must be {_either([json.dumps(option)[:40] for option in facts['options'][:12]])}"
            )
        case "const":
            return f"must be {json.dumps(facts['expected_value'])[:40]}"
        case "pattern":
            return f"must match the pattern {facts['pattern'][:80]}"
        case "falseSchema":
            return "is not allowed"
        case "anyOf" | "oneOf":
            return _nearest(facts.get("context") or [])
        case name if name in _LIMITS:
            return _LIMITS[name].format(*facts.values())
        case _:
            return "does not fit any form the schema allows"


def _nearest(branches: list[list[jsonschema_rs.ValidationError]]) -> str:
    """Say what the branch of the right type expects; where none has it, which types there are."""
    first = [branch[0] for branch in branches if branch]
    for error in first:
        if error.kind.name != "type":
            return _expectation(error.kind)
    types = [_with_article(str(name)) for error in first for name in error.kind.as_dict()["types"]]
    return f"must be {_either(types)}" if types else "does not fit any form the schema allows"


_LIMITS = {
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "exclusiveMinimum": "must be more than {}",
    "exclusiveMaximum": "must be less than {}",
    "multipleOf": "must be a multiple of {}",
    "minLength": "must have at least {} characters",
    "maxLength": "must have at most {} characters",
    "minItems": "must have at least {} items",
    "maxItems": "must have at most {} items",
    "minProperties": "must have at least {} properties",
    "maxProperties": "must have at most {} properties",
    "uniqueItems": "must not have an item twice",
}


def _with_article(name: str) -> str:
    return name if name == "null" else f"an {name}" if name[0] in "aio" else f"a {name}"


def _either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
