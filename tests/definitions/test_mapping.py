"""The mapping language: what templates give, what is refused, and that no expression costs more than its budget."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobforge_mcp.definitions.json_limits import MAX_BYTES
from jobforge_mcp.definitions.mapping import check, check_condition, evaluate, matches, references
from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.types import JsonObject, JsonValue

SCOPE: JsonObject = {
    "input": {
        "customer": {"id": "c1", "a/b": 1, "m~n": 2},
        "items": [{"price": 5, "name": "pen"}, {"price": 20, "name": "desk"}],
        "zero": 0,
        "yes": True,
        "nothing": None,
    },
    "steps": {"fetch": {"result": {"status": 200}}},
}


def outcome(template: JsonValue, scope: JsonObject) -> tuple[JsonValue, str | None]:
    """Return what a template gives, or the code of its refusal."""
    try:
        return evaluate(template, scope), None
    except InvalidInputError as failed:
        return None, failed.code


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("plain", "plain"),
        ({"a": [1, None, {"b": True}]}, {"a": [1, None, {"b": True}]}),
        ({"$ref": "/input/customer/id"}, "c1"),
        ({"$ref": "/input/customer/a~1b"}, 1),
        ({"$ref": "/input/customer/m~0n"}, 2),
        ({"$ref": "/input/items/1/name"}, "desk"),
        ({"$ref": "/input/nothing"}, None),
        ({"$ref": "/input/missing", "$default": {"x": 1}}, {"x": 1}),
        ({"$ref": ""}, SCOPE),
        ({"$jmespath": "input.items[?price > `10`].name"}, ["desk"]),
        ({"$jmespath": "sum(input.items[].price)"}, 25),
        ({"$jmespath": "input.missing"}, None),
        ({"$jmespath": "sort_by(input.items, &name)[0].price"}, 20),
        ({"$literal": {"$ref": "/input"}}, {"$ref": "/input"}),
        ({"url": {"$ref": "/input/customer/id"}, "n": 1}, {"url": "c1", "n": 1}),
    ],
)
def test_a_template_is_filled_from_the_scope(template: JsonValue, value: JsonValue) -> None:
    assert evaluate(template, SCOPE) == value


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (True, True),
        (False, False),
        ({"$ref": "/input/yes"}, True),
        ({"$ref": "/input/zero"}, True),
        ({"$ref": "/input/nothing"}, False),
        ({"$ref": "/input/missing"}, False),
        ({"$ref": "/steps/fetch/result/status", "equals": 200}, True),
        ({"$ref": "/input/yes", "equals": 1}, False),
        ({"$ref": "/input/missing", "equals": None}, False),
        ({"$ref": "/input/customer/id", "in": ["c0", "c1"]}, True),
        ({"$jmespath": "length(input.items) > `1`"}, True),
        ({"$jmespath": "input.items[?price > `100`]"}, False),
        ({"all": [True, {"$ref": "/input/yes"}]}, True),
        ({"any": [False, {"not": {"$ref": "/input/yes"}}]}, False),
        ({"all": []}, True),
    ],
)
def test_a_condition_holds_or_not(condition: JsonValue, holds: bool) -> None:
    assert matches(condition, SCOPE) is holds


@pytest.mark.parametrize(
    "template",
    [
        {"$ref": "input"},
        {"$ref": "/a~2"},
        {"$ref": 1},
        {"$ref": "/a", "b": 1},
        {"$ref": "/a", "$jmespath": "a"},
        {"$default": 1},
        {"$eval": "1"},
        {"$jmespath": "a["},
        {"$jmespath": "env('HOME')"},
        {"$jmespath": ""},
        {"$jmespath": "a" * 1001},
        {"$jmespath": "(" * 400 + "a" + ")" * 400},
        {"$jmespath": "!" * 40 + "a"},
        {"$ref": "/" + "a" * 1000},
        [0] * 2000,
        json.loads("[" * 40 + "]" * 40),
        {"a": 2**60},
    ],
)
@pytest.mark.requirement("definitions.mapping")
def test_what_is_no_template_is_refused_when_it_is_registered(template: JsonValue) -> None:
    with pytest.raises(InvalidInputError) as refused:
        check(template)

    assert refused.value.code == "MAPPING_INVALID"


@pytest.mark.parametrize(
    "condition",
    [1, "a", None, {}, {"all": 1}, {"any": [1]}, {"equals": 1}, {"$ref": "/a", "in": 1},
     {"$ref": "/a", "equals": 1, "in": []}, {"$literal": True}, {"not": {"x": 1}}],
)  # fmt: skip
def test_what_is_no_condition_is_refused(condition: JsonValue) -> None:
    with pytest.raises(InvalidInputError) as refused:
        check_condition(condition)

    assert refused.value.code == "MAPPING_INVALID"


@pytest.mark.parametrize(
    "template",
    [
        {"$ref": "/input/missing"},
        {"$ref": "/input/items/2"},
        {"$ref": "/input/items/01"},
        {"$ref": "/input/items/-"},
        {"$jmespath": "abs(input.customer)"},
        {"$jmespath": "input.items[::0]"},
    ],
)
def test_what_has_no_value_fails_with_a_code(template: JsonValue) -> None:
    with pytest.raises(InvalidInputError) as failed:
        evaluate(template, SCOPE)

    assert failed.value.code == "MAPPING_FAILED"


@pytest.mark.parametrize(
    "expression",
    [
        " | ".join(["[@,@]"] * 28),
        " | ".join(["[@,@]"] * 25) + " | @[0] == @[1]",
        " | ".join(["[@,@]"] * 25) + " | to_string(@)",
        "map(&map(&map(&@, $), $), $)".replace("$", "input.n"),
        "input.n[].[@, @, @][] | [].[@, @, @][] | [].[@, @, @][] | [].[@, @, @][] | [].[@, @, @][]",
        "input.n[?length(input) == `0`]" + "|[0:1]" * 10,
        " | ".join(["[@[0], @]"] * 25) + " | to_string(@)",
    ],
)
@pytest.mark.requirement("definitions.mapping")
def test_a_small_expression_with_an_endless_value_stops_at_its_budget(expression: str) -> None:
    scope: JsonObject = {"input": {"n": list(range(3000)), "text": "x" * 500_000}}
    value, code = outcome({"$jmespath": expression}, scope)

    assert code in {None, "MAPPING_FAILED"}
    assert len(json.dumps(value)) < 2 * MAX_BYTES


def test_pointers_of_a_template_are_known_beforehand() -> None:
    template: JsonValue = {"a": {"$ref": "/steps/fetch/result"}, "b": [{"$ref": "/item"}]}

    assert list(references(template)) == [["steps", "fetch", "result"], ["item"]]


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=20,
)  # fmt: skip


@given(json_values)
def test_any_value_travels_as_a_literal(value: JsonValue) -> None:
    assert evaluate({"$literal": value}, {}) == value


@given(json_values, st.text(max_size=20))
def test_any_text_is_a_value_or_an_error_with_a_code(value: JsonValue, text: str) -> None:
    for word in ("$jmespath", "$ref"):
        _, code = outcome({word: text}, {"input": value})
        assert code in {None, "MAPPING_INVALID", "MAPPING_FAILED"}
