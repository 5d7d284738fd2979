"""What is said of values without the library never differs from what the library says."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, cast

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter

from jobforge_mcp.definitions import schema as schema_module
from jobforge_mcp.definitions.plain_schema import MAX_VALUES, plain_check
from jobforge_mcp.definitions.schema import Schema, schema_of
from jobforge_mcp.types import JsonObject, JsonValue

NAMES = st.sampled_from(["a", "b", "c"])
NUMBERS = st.integers(-3, 3) | st.sampled_from([0.0, 1.0, -1.5, 2**53, 1e300])
SCALARS = st.none() | st.booleans() | NUMBERS | st.text("ab-Zé\n", max_size=4)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
PATTERNS = st.sampled_from(
    ["^[a-z]+$", "^[a-zA-Z_-]{1,3}$", "^[ab][a.:-]*$", "^[z-a]$", "^[a]{3,1}$", "a", "^(a+)+$", "["]
)
TYPES = st.sampled_from(["array", "boolean", "integer", "null", "number", "object", "string"])
COUNTS = st.integers(0, 3)
REFERENCES = st.sampled_from(["#/$defs/a", "#/$defs/b", "#", "#/$defs/z"])


def keywords(schemas: st.SearchStrategy[JsonValue]) -> st.SearchStrategy[JsonValue]:
    known: dict[str, st.SearchStrategy[object]] = {
        "type": TYPES | st.lists(TYPES, max_size=3) | st.just("nonsense"),
        "title": SCALARS,
        "default": VALUES,
        "deprecated": SCALARS,
        "examples": VALUES,
        "enum": st.lists(SCALARS, max_size=4) | VALUES,
        "const": SCALARS | VALUES,
        "minimum": NUMBERS | SCALARS,
        "maximum": NUMBERS,
        "exclusiveMinimum": NUMBERS,
        "exclusiveMaximum": NUMBERS,
        "minLength": COUNTS | SCALARS,
        "maxLength": COUNTS,
        "pattern": PATTERNS,
        "items": schemas,
        "minItems": COUNTS,
        "maxItems": COUNTS,
        "uniqueItems": st.booleans(),
        "properties": st.dictionaries(NAMES, schemas, max_size=3),
        "required": st.lists(NAMES, max_size=2),
        "additionalProperties": schemas,
        "minProperties": COUNTS,
        "maxProperties": COUNTS,
        "anyOf": st.lists(schemas, max_size=3),
        "allOf": st.lists(schemas, max_size=3),
        "oneOf": st.lists(schemas, max_size=2),
        "not": schemas,
        "$ref": REFERENCES,
        "mystery": VALUES,
    }
    few = st.lists(st.sampled_from(sorted(known)), max_size=3, unique=True)
    made = few.flatmap(lambda names: st.fixed_dictionaries({name: known[name] for name in names}))
    return cast("st.SearchStrategy[JsonValue]", made)


LEAVES = st.booleans() | TYPES.map(lambda kind: {"type": kind})
SCHEMAS = st.recursive(cast("st.SearchStrategy[JsonValue]", LEAVES), keywords, max_leaves=6)
WHOLE = st.tuples(keywords(SCHEMAS), st.dictionaries(NAMES, SCHEMAS, max_size=2)).map(
    lambda parts: {**cast("JsonObject", parts[0]), **({"$defs": parts[1]} if parts[1] else {})}
)


@pytest.mark.requirement("definitions.checked-twice")
@settings(max_examples=500, deadline=None)
@given(cast("st.SearchStrategy[JsonObject]", WHOLE), st.lists(VALUES, min_size=1, max_size=4))
def test_what_plainly_fits_a_schema_fits_it_and_a_plain_schema_is_a_valid_one(
    source: JsonObject, values: list[JsonValue]
) -> None:
    check = plain_check(source)
    if check is None:
        return

    library = jsonschema_rs.Draft202012Validator(source, offline=True, validate_formats=False)

    for value in values:
        try:
            plainly_fits = check(value, [MAX_VALUES])
        except RecursionError:
            continue
        assert library.is_valid(value) or not plainly_fits, (source, value)


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    key: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    color: Color | None = None
    below: list[Part] = []


class Whole(BaseModel):
    count: Annotated[int, Field(ge=0, lt=100)]
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    mode: Literal["fast", "slow"] = "fast"
    at: datetime | None = None
    parts: Annotated[list[Part], Field(min_length=1)]
    free: dict[str, int | str] = {}
    is_on: bool = True
    nothing: None = None


FITS: JsonObject = {
    "count": 7,
    "share": 0.25,
    "mode": "slow",
    "at": "2026-01-01T00:00:00Z",
    "parts": [{"key": "a.b", "color": "red", "below": [{"key": "c", "color": None}]}],
    "free": {"a": 1, "b": "x"},
    "is_on": False,
    "nothing": None,
}


def test_the_usual_types_of_handlers_are_plain() -> None:
    source = schema_of(cast("TypeAdapter[object]", TypeAdapter(Whole)), "validation")
    check = plain_check(source)

    assert check is not None
    assert check(FITS, [MAX_VALUES])


@pytest.mark.parametrize(
    "change",
    [
        {"count": True},
        {"count": 100},
        {"share": 0},
        {"mode": "odd"},
        {"parts": []},
        {"parts": [{"key": "a\n"}]},
        {"parts": [{"key": "a", "below": [{"key": ""}]}]},
        {"free": {"a": 1.5}},
        {"nothing": False},
        {"other": 1},
    ],
    ids=str,
)
def test_what_does_not_fit_is_told_by_the_library(change: JsonObject) -> None:
    schema = Schema(schema_of(cast("TypeAdapter[object]", TypeAdapter(Whole)), "validation"))

    assert schema.problems(FITS) == []
    assert schema.problems({**FITS, **change}) != []
    assert schema.problems(FITS) == []


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ({"type": "integer"}, 1.0),
        ({"enum": [1]}, 1.0),
        ({"const": {"a": [1]}}, {"a": [1.0]}),
        ({"items": {"type": "integer"}}, list[JsonValue](range(MAX_VALUES + 1))),
        ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {}]}}, "$ref": "#/$defs/a"}, "x"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_fits_though_not_plainly_is_left_to_the_library(
    source: JsonObject, value: JsonValue
) -> None:
    assert Schema(source).problems(value) == []


def test_a_schema_that_is_used_much_is_judged_by_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schema_module, "MAX_PLAIN", 2)
    schema = Schema({"type": "integer"})

    assert [schema.problems(number) for number in range(4)] == [[]] * 4
    assert "_validator" in vars(schema)


LOADS = """
import sys
from jobforge_mcp.definitions.schema import Schema
schema = Schema({source})
assert schema.problems({value}) == []
print("jsonschema_rs" in sys.modules)
"""


@pytest.mark.requirement("worker.light")
@pytest.mark.parametrize(
    ("source", "value", "is_loaded"),
    [
        ({"type": "object", "additionalProperties": {"type": "integer"}}, {"a": 1}, False),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, {"a": 1.0}, True),
        ({"type": "object", "additionalProperties": {"not": {"type": "null"}}}, {"a": 1}, True),
    ],
)
def test_the_library_is_loaded_only_when_it_is_asked(
    source: JsonObject, value: JsonValue, is_loaded: bool
) -> None:
    program = LOADS.format(source=source, value=value)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert done.stdout.decode().strip() == str(is_loaded)
