"""What a definition that somebody registers must pass, and how little it may cost to find that out."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from jobforge_mcp.definitions.intake import clean, fold, is_near, read
from jobforge_mcp.definitions.schema import Schema
from jobforge_mcp.errors import CallerError, DefinitionError
from jobforge_mcp.types import JsonObject

LONGEST_SECONDS = 30.0
"""Generous: what hangs a validator hangs it for hours."""


def definition(schema: dict[str, Any]) -> JsonObject:
    return cast("JsonObject", {"name": "acme.hello", "handler": "test.echo", "inputSchema": schema})


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return schema


def doubling() -> dict[str, Any]:
    defs = {
        f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]}
        for n in range(40)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**defs, "d40": {"type": "string"}}}


HOSTILE: dict[str, dict[str, Any]] = {
    "too deep": nested(20),
    "too many subschemas": {"properties": {f"p{n}": {"type": "string"} for n in range(600)}},
    "too large": {"description": "x" * 33_000},
    "doubling references": doubling(),
    "a file": {"$ref": "file:///etc/passwd"},
    "another host": {"$ref": "https://example.com/schema.json"},
    "a base elsewhere": {"$id": "https://example.com/", "type": "object"},
    "another dialect": {"$schema": "http://json-schema.org/draft-04/schema#"},
    "look-around": {"properties": {"a": {"pattern": "(?=a)b"}}},
    "a back reference": {"properties": {"a": {"pattern": r"(a)\1"}}},
    "huge repetition": {"properties": {"a": {"pattern": "(a{9999}){9999}"}}},
    "nested repetition": {"properties": {"a": {"pattern": "(((a{200}){200}){200}){200}"}}},
    "many patterns": {"properties": {f"p{n}": {"pattern": "a" * 100} for n in range(50)}},
    "not a schema": {"type": "nonsense"},
    "a hidden name": {"properties": {"a\u200b": {"type": "string"}}},
    "a hidden value": {"enum": ["a\u202eb"]},
}


@pytest.mark.requirement("registering.schemas")
@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_schema_is_refused_before_it_costs_anything(schema: dict[str, Any]) -> None:
    started = time.monotonic()

    with pytest.raises((CallerError, DefinitionError)):
        Schema(read(definition(schema)).input_schema)

    assert time.monotonic() - started < LONGEST_SECONDS


@pytest.mark.requirement("registering.schemas")
@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"pattern": "^(a+)+$"}}},
        {"properties": {"self": {"$ref": "#"}}},
        {"properties": {"a": {"type": "string", "format": "email"}}},
    ],
)
def test_an_odd_schema_that_is_harmless_is_taken(schema: dict[str, Any]) -> None:
    compiled = Schema(read(definition(schema)).input_schema)

    assert compiled.problems({"a": "a" * 5_000 + "!"}) is not None


def test_texts_of_a_schema_are_cleaned() -> None:
    schema = {"description": "Say\x1b[2J it\u200b.", "properties": {"a": {"title": "T\u202e"}}}

    taken = read(definition(schema)).input_schema

    assert taken == {"description": "Say it.", "properties": {"a": {"title": "T"}}}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\nlines", "plain\nlines"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07window", "window"),
        ("a\U000e0041b", "ab"),
        ("a\u2066b\u2069", "ab"),
        ("\ufeffbom", "bom"),
        ("é und ü", "é und ü"),
    ],
)
def test_what_does_not_show_is_taken_out(text: str, shown: str) -> None:
    assert clean(text, 512) == shown


@pytest.mark.requirement("registering.names")
@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("report.daily", "rep0rt.daily", True),
        ("report.daily", "report-daily", True),
        ("forms.send", "forrns.send", True),
        ("report.daily", "reprot.daily", True),
        ("report.daily", "report.daly", True),
        ("report.daily", "report.dailyy", True),
        ("report.daily", "report.weekly", False),
        ("step-1", "step-2", False),
        ("step-1", "step-11", False),
        ("abcd", "abce", False),
    ],
)
def test_names_that_could_be_taken_for_each_other(one: str, other: str, alike: bool) -> None:
    assert (fold(one) == fold(other) or is_near(one, other)) is alike
    assert is_near(one, other) == is_near(other, one)
