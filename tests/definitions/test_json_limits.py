"""Limits of JSON text and values: each kind of bad input has a code of its own, and none is repeated."""

from __future__ import annotations

import json

import pytest

from jobforge_mcp.definitions.json_limits import (
    MAX_BYTES,
    MAX_DEPTH,
    check_key,
    dump_limited,
    load_limited,
)
from jobforge_mcp.errors import CallerError


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.requirement("definitions.bad-input")
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('"' + "x" * MAX_BYTES + '"', "INPUT_TOO_LARGE"),
        ('"' + "ä" * (MAX_BYTES // 2) + '"', "INPUT_TOO_LARGE"),
        (nested(MAX_DEPTH + 1), "INPUT_TOO_DEEP"),
        (nested(400_000), "INPUT_TOO_DEEP"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "INPUT_TOO_DEEP"),
        ('{"a": NaN}', "INPUT_NUMBER_RANGE"),
        ("-Infinity", "INPUT_NUMBER_RANGE"),
        ("1e131071", "INPUT_NUMBER_RANGE"),
        ("9007199254740993", "INPUT_NUMBER_RANGE"),
        ("-9007199254740993", "INPUT_NUMBER_RANGE"),
        ("9" * 100_000, "INPUT_NUMBER_RANGE"),
        ('"a\\u0000b"', "INPUT_NOT_TEXT"),
        ('{"a\\u0000": 1}', "INPUT_NOT_TEXT"),
        ('"\\ud800"', "INPUT_NOT_TEXT"),
        ('"\ud800"', "INPUT_NOT_TEXT"),
        ("{'a': 1}", "INPUT_NOT_JSON"),
        ("", "INPUT_NOT_JSON"),
        ("1 2", "INPUT_NOT_JSON"),
    ],
    ids=[
        "long",
        "long in bytes",
        "deep",
        "very deep",
        "deep objects",
        "nan",
        "infinity",
        "huge float",
        "above 2^53",
        "below -2^53",
        "many digits",
        "nul",
        "nul in name",
        "escaped surrogate",
        "surrogate",
        "quotes",
        "empty",
        "two values",
    ],
)
def test_bad_text_is_refused_with_its_code(text: str, code: str) -> None:
    with pytest.raises(CallerError) as refused:
        load_limited(text)

    assert refused.value.code == code
    assert refused.value.hint
    assert len(refused.value.message) < 200


def test_bytes_that_are_not_utf8_are_not_json() -> None:
    with pytest.raises(CallerError) as refused:
        load_limited(b'"\xff\xfe"')

    assert refused.value.code == "INPUT_NOT_JSON"


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        2**53,
        -(2**53),
        1.5,
        1e300,
        "",
        "text, ümläut and 🙂",
        [],
        {},
        {"a": [{"b": None}]},
        json.loads(nested(MAX_DEPTH)),
    ],
)
def test_a_value_within_the_limits_survives_writing_and_reading(value: object) -> None:
    assert load_limited(dump_limited(value)) == value


@pytest.mark.parametrize("value", [{1, 2}, (1, 2), b"x", object(), {1: 2}])
def test_what_is_not_json_cannot_be_written(value: object) -> None:
    with pytest.raises(CallerError) as refused:
        dump_limited(value, what="result")

    assert refused.value.code == "RESULT_NOT_JSON"


def test_a_value_that_holds_itself_is_too_deep() -> None:
    ring: list[object] = []
    ring.append(ring)

    with pytest.raises(CallerError) as refused:
        dump_limited(ring)

    assert refused.value.code == "INPUT_TOO_DEEP"


def test_the_largest_text_is_exactly_the_limit() -> None:
    assert len(dump_limited("x" * (MAX_BYTES - 2))) == MAX_BYTES


@pytest.mark.requirement("definitions.bad-input")
@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("", "INVALID_KEY"),
        ("a\0b", "INVALID_KEY"),
        ("\ud800", "INVALID_KEY"),
        ("x" * 256, "KEY_TOO_LONG"),
        ("ä" * 128, "KEY_TOO_LONG"),
    ],
)
def test_a_key_that_fits_no_index_is_refused(key: str, code: str) -> None:
    with pytest.raises(CallerError) as refused:
        check_key(key, "idempotencyKey")

    assert refused.value.code == code


def test_a_key_of_255_bytes_fits() -> None:
    assert check_key("x" * 255, "orderingKey") == "x" * 255
