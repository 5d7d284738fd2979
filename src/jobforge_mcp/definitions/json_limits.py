"""JSON text and values within limits that Postgres, JavaScript clients and validators all survive.

Checked before anything else reads a value: a document nested thousands deep crashes schema validators, ``1e131071`` is
thirteen bytes that Postgres stores as 131,072 digits, and an integer above 2^53 changes silently in JavaScript. Messages
name the place and the limit, never the content.
"""

from __future__ import annotations

import json
import math
import re
import sys
from typing import Literal, NoReturn, cast

from pydantic_core import from_json, to_json

from jobforge_mcp.errors import CallerError, InvalidInputError, LimitError
from jobforge_mcp.types import JsonValue

MAX_BYTES = 1024 * 1024
"""Bytes of JSON text an input may have, and a result in the row of its run."""

MAX_RESULT_BYTES = 16 * 1024 * 1024
"""Bytes a result may have; above `MAX_BYTES` it becomes an artifact."""

MAX_DEPTH = 64
"""Arrays and objects inside each other, the outermost counted as one."""

MAX_INTEGER = 2**53
"""Largest whole number, either sign, that every JSON reader keeps as it is."""

MAX_KEY_BYTES = 255
"""Bytes of UTF-8 an idempotency or ordering key may have: longer ones do not fit an index row."""

What = Literal["input", "result"]
"""Which document is meant: it begins the messages and the codes."""


def load_limited(
    text: str | bytes, *, what: What = "input", max_bytes: int = MAX_BYTES
) -> JsonValue:
    """Parse JSON text and return its value.

    Raises:
        LimitError: ``INPUT_TOO_LARGE``, ``INPUT_TOO_DEEP``, or the same of the result.
        InvalidInputError: ``INPUT_NOT_JSON``, ``INPUT_NOT_TEXT`` or ``INPUT_NUMBER_RANGE``.
    """
    is_text = isinstance(text, str)
    if not is_text:
        _check_size(len(text), what, max_bytes)
    elif _is_harmless(text, what, max_bytes):
        try:
            value: JsonValue = from_json(text, allow_inf_nan=False)
            return value
        except (ValueError, TypeError):
            pass  # what is wrong with it is said below
    try:
        plain = text if is_text else text.decode(json.detect_encoding(text), "surrogatepass")
        value = cast("JsonValue", _DECODERS[what].decode(plain))
    except RecursionError:
        raise _too_deep(what) from None
    except UnicodeDecodeError:
        raise _not_json(what, "it is not UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"{error.msg.lower()} at line {error.lineno}, column {error.colno}"
        raise _not_json(what, where) from None
    check_value(value, what=what)
    return value


def dump_limited(value: object, *, what: What = "input", max_bytes: int = MAX_BYTES) -> str:
    """Write a value as compact JSON text, after the same checks."""
    try:
        text = to_json(value)
        # what is harmless and reads as it was needs no closer look
        plain = text.decode()
        if _is_harmless(plain, what, max_bytes) and from_json(text, allow_inf_nan=False) == value:
            return plain
    except (ValueError, TypeError):
        pass  # what is wrong with it is said below
    check_value(value, what=what)
    text = to_json(value)
    _check_size(len(text), what, max_bytes)
    return text.decode()


def check_written(text: str, *, what: What = "input", max_bytes: int = MAX_BYTES) -> None:
    """Make the same checks of text that a JSON writer has written; it is parsed only where it could break a limit."""
    if not _is_harmless(text, what, max_bytes):
        load_limited(text, what=what, max_bytes=max_bytes)


def check_value(value: object, *, what: What = "input") -> None:
    """Refuse a value that is not JSON, is nested too deeply, or holds a number or text that would not survive."""
    _check(value, 0, what)


def _is_plain(item: object) -> bool:
    """Tell of the commonest values, by their very type, that nothing can be wrong with them; others are looked at closely."""
    kind = type(item)
    if kind is str:
        text = cast("str", item)
        return text.isascii() and "\0" not in text
    if kind is int:
        return -MAX_INTEGER <= cast("int", item) <= MAX_INTEGER
    if kind is float:
        return -_LARGEST <= cast("float", item) <= _LARGEST
    return kind is bool or item is None


def _check(item: object, depth: int, what: What) -> None:
    if _is_plain(item):
        return
    match item:
        case dict():
            if depth >= MAX_DEPTH:
                raise _too_deep(what)
            for name, member in cast("dict[object, object]", item).items():
                if not isinstance(name, str):
                    raise _not_json(what, "it holds an object with a name that is not a string")
                if not name.isascii() or "\0" in name:
                    _check_text(name, what)
                if not _is_plain(member):
                    _check(member, depth + 1, what)
        case list():
            if depth >= MAX_DEPTH:
                raise _too_deep(what)
            for member in cast("list[object]", item):
                if not _is_plain(member):
                    _check(member, depth + 1, what)
        case str():
            _check_text(item, what)
        case None | bool():
            pass
        case int():
            if not -MAX_INTEGER <= item <= MAX_INTEGER:
                raise _number_range(what)
        case float():
            if not math.isfinite(item):
                _refuse_constant(what)
        case _:
            raise _not_json(what, f"it holds a value of type {type(item).__name__}")


def check_key(key: str, argument: str) -> str:
    """Return an idempotency or ordering key that fits an index row.

    Raises:
        InvalidInputError: ``INVALID_KEY``: empty, or with characters that Postgres cannot store.
        LimitError: ``KEY_TOO_LONG``.
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        size = 0
    if size == 0 or "\0" in key:
        raise InvalidInputError(
            f"{argument} must be 1 to {MAX_KEY_BYTES} bytes of text without NUL",
            code="INVALID_KEY",
            hint="use the id of whatever asked for this job, or a UUID",
        )
    if size > MAX_KEY_BYTES:
        raise LimitError(
            f"{argument} has {size} bytes and the limit is {MAX_KEY_BYTES}",
            code="KEY_TOO_LONG",
            hint="use a hash of the long key",
        )
    return key


def _is_harmless(text: str, what: What, max_bytes: int) -> bool:
    """Refuse what is too large, and tell whether the rest need not be looked at: short plain documents, as most are."""
    length = len(text)
    if length > max_bytes or not text.isascii():
        _check_size(_size(text, what), what, max_bytes)
    if length > MAX_DEPTH and text.count("[") + text.count("{") > MAX_DEPTH:
        return False
    return "\\u" not in text and _SUSPICIOUS_NUMBER.search(text) is None


def _check_text(text: str, what: What) -> None:
    if "\0" in text:
        raise InvalidInputError(
            f"the {what} has a string with the character NUL (U+0000), which the database cannot store",
            code=f"{what.upper()}_NOT_TEXT",
            hint="leave the character out, or encode binary data as base64",
        )
    if not text.isascii():
        _size(text, what)


def _size(text: str, what: What) -> int:
    try:
        return len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        raise InvalidInputError(
            f"the {what} has a string with half a surrogate pair, which is not text",
            code=f"{what.upper()}_NOT_TEXT",
            hint="send valid Unicode, or encode binary data as base64",
        ) from None


def _check_size(size: int, what: What, max_bytes: int) -> None:
    if size > max_bytes:
        raise LimitError(
            f"the {what} has {size} bytes of JSON and the limit is {max_bytes}",
            code=f"{what.upper()}_TOO_LARGE",
            hint="store the data elsewhere and pass a reference to it",
        )


def _parse_int(digits: str, what: What) -> int:
    # The length first: Python takes quadratic time for digits, and refuses more than 4,300 in words of its own.
    if len(digits) > 17:
        raise _number_range(what)
    return int(digits)


def _refuse_constant(what: What) -> NoReturn:
    raise InvalidInputError(
        f"the {what} holds NaN, Infinity or a number too large for a double, and JSON has no such value",
        code=f"{what.upper()}_NUMBER_RANGE",
        hint="send null or a string instead",
    )


def _number_range(what: What) -> CallerError:
    return InvalidInputError(
        f"the {what} has an integer outside -2^53 to 2^53, which other readers would change",
        code=f"{what.upper()}_NUMBER_RANGE",
        hint="send it as a string",
    )


def _not_json(what: What, why: str) -> CallerError:
    return InvalidInputError(
        f"the {what} is not JSON: {why}",
        code=f"{what.upper()}_NOT_JSON",
        hint="send one JSON value",
    )


def _too_deep(what: What) -> CallerError:
    return LimitError(
        f"the {what} is nested more than {MAX_DEPTH} deep",
        code=f"{what.upper()}_TOO_DEEP",
        hint="flatten it, or pass the inner part as a string",
    )


def _decoder(what: What) -> json.JSONDecoder:
    return json.JSONDecoder(
        parse_constant=lambda _: _refuse_constant(what),
        parse_int=lambda digits: _parse_int(digits, what),
    )


# Made once: json.loads with arguments makes a new one for each call, which takes longer than a small text.
_DECODERS: dict[What, json.JSONDecoder] = {"input": _decoder("input"), "result": _decoder("result")}

_LARGEST = sys.float_info.max

# What it takes to write an integer above 2^53, or a number too large for a double. A pattern that begins with a digit
# skips what is none quickly: with alternatives at its beginning it takes four times as long.
_SUSPICIOUS_NUMBER = re.compile(r"[0-9](?:[0-9]{15}|[eE])")
