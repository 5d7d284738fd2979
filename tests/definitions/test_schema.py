"""Compiled schemas: what is refused before it is compiled, and what is said about values that do not fit."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import cast

import pytest
from pydantic import BaseModel, TypeAdapter

from jobforge_mcp.definitions.schema import Schema, input_defaults, schema_of
from jobforge_mcp.errors import DefinitionError
from jobforge_mcp.types import JsonObject, JsonValue


def deep() -> JsonObject:
    schema: JsonObject = {"type": "string"}
    for _ in range(40):
        schema = {"items": schema}
    return schema


def doubling() -> JsonObject:
    definitions: JsonObject = {
        f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]}
        for n in range(40)
    }
    return {"$defs": {**definitions, "d40": {}}, "$ref": "#/$defs/d0"}


@pytest.mark.requirement("definitions.closed-schemas")
@pytest.mark.parametrize(
    "source",
    [
        {"$ref": "http://127.0.0.1:9/schema"},
        {"$ref": "file:///etc/passwd"},
        {"properties": {"a": {"$ref": "other.json"}}},
        {"$dynamicRef": "https://example.com/x"},
        {"$ref": "#/$defs/missing"},
        {"$ref": "#anchor"},
        {"$id": "https://example.com/x"},
        {"$schema": "http://json-schema.org/draft-07/schema#"},
        {"pattern": "(?=look-ahead)"},
        {"type": "nonsense"},
        {"description": "x" * 40_000},
        deep(),
        doubling(),
    ],
    ids=lambda source: str(source)[:40],
)
def test_a_schema_that_could_do_harm_is_refused(source: JsonObject) -> None:
    with pytest.raises(DefinitionError):
        Schema(source)


@pytest.mark.requirement("definitions.closed-schemas")
def test_no_reference_is_ever_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        calls: list[object] = []
        watcher = threading.Thread(target=lambda: accept(server, calls.append))
        watcher.start()
        with pytest.raises(DefinitionError):
            Schema({"$ref": f"http://127.0.0.1:{server.getsockname()[1]}/x"})
        watcher.join()

    assert calls == []


def accept(server: socket.socket, note: Callable[[object], None]) -> None:
    try:
        connection, peer = server.accept()
    except TimeoutError:
        return
    connection.close()
    note(peer)


def test_a_property_may_be_called_like_a_keyword() -> None:
    schema = Schema({"properties": {"$ref": {"type": "integer"}, "title": {"type": "string"}}})

    assert schema.problems({"$ref": 1, "title": "x"}) == []


def test_a_schema_may_refer_to_itself() -> None:
    schema = Schema({"properties": {"next": {"$ref": "#"}}, "additionalProperties": False})

    assert schema.problems({"next": {"next": {}}}) == []
    assert schema.problems({"next": {"other": 1}}) == ["next has unknown properties: other"]


@pytest.mark.parametrize("length", [10, 30, 100_000])
def test_a_pattern_that_hangs_other_engines_is_matched_in_linear_time(length: int) -> None:
    schema = Schema({"pattern": "^(a+)+$"})

    assert schema.problems("a" * length + "!") == ["it must match the pattern ^(a+)+$"]


@pytest.mark.parametrize(
    ("source", "value", "problem"),
    [
        ({"type": "integer"}, "secret", "it must be an integer"),
        ({"type": ["string", "null"]}, 5, "it must be null or a string"),
        ({"required": ["a"]}, {}, "it needs 'a'"),
        ({"properties": {"a": {"maximum": 3}}}, {"a": 4}, "a must be at most 3"),
        ({"properties": {"a": {"items": {"minLength": 2}}}}, {"a": ["x"]}, "a[0] must have at least 2 characters"),
        ({"enum": ["a", "b"]}, "secret", 'it must be "a" or "b"'),
        ({"const": 1}, 2, "it must be 1"),
        ({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}, 0, "it must be at least 1"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "secret", "it must be an integer or null"),
        ({"properties": {"x": {}}, "additionalProperties": False}, {"a\nb": 1}, "it has unknown properties: (a property)"),
        ({"properties": {"a": False}}, {"a": 1}, "a is not allowed"),
        ({"not": {}}, "secret", "it does not fit any form the schema allows"),
        ({"uniqueItems": True}, [1, 1], "it must not have an item twice"),
    ],
)  # fmt: skip
def test_a_problem_names_the_place_and_the_expectation(
    source: JsonObject, value: JsonValue, problem: str
) -> None:
    assert Schema(source).problems(value) == [problem]


def test_at_most_three_problems_are_told() -> None:
    schema = Schema({"items": {"type": "string"}})

    numbers: JsonValue = [1, 2, 3, 4, 5]

    assert len(schema.problems(numbers)) == 3


class Inner(BaseModel):
    x: int


class Outer(BaseModel, title="Not shown"):
    title: str = "a"
    inner: Inner
    free: dict[str, int] = {}


class Open(BaseModel, extra="allow"):
    pass


def test_a_generated_schema_has_no_titles_and_is_closed() -> None:
    adapter = cast("TypeAdapter[object]", TypeAdapter(Outer))

    assert schema_of(adapter, "validation") == {
        "$defs": {
            "Inner": {
                "type": "object",
                "properties": {"x": {"type": "integer"}},
                "required": ["x"],
                "additionalProperties": False,
            }
        },
        "type": "object",
        "properties": {
            "title": {"type": "string", "default": "a"},
            "inner": {"$ref": "#/$defs/Inner"},
            "free": {"type": "object", "additionalProperties": {"type": "integer"}, "default": {}},
        },
        "required": ["inner"],
        "additionalProperties": False,
    }


def test_a_model_that_allows_more_stays_open() -> None:
    adapter = cast("TypeAdapter[object]", TypeAdapter(Open))

    assert schema_of(adapter, "validation")["additionalProperties"] is True


def test_defaults_of_a_schema_are_those_of_its_outermost_properties() -> None:
    assert input_defaults({"properties": {"a": {"default": 1}, "b": {}, "c": True}}) == {"a": 1}
    assert input_defaults({}) == {}
