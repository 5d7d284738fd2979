"""Parse JSON and base64url so that two readers of the same bytes cannot disagree.

Not for inputs of jobs, which ``definitions.json_limits`` parses: these are tokens and keys, small and hostile.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import NoReturn, cast

from jobforge_mcp.types import JsonObject, JsonValue

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")


class NotStrictJsonError(ValueError):
    """The bytes are not one JSON object, or could be read in two ways. Never quotes them."""


def parse_object(content: bytes) -> JsonObject:
    """Parse one object of UTF-8 JSON without duplicate members, NaN and the like.

    Raises:
        NotStrictJsonError: it is anything else.
    """
    try:
        value = cast(
            "JsonValue",
            json.loads(
                content.decode("utf-8", errors="strict"),
                object_pairs_hook=_refuse_duplicates,
                parse_constant=_refuse_constant,
            ),
        )
    except (ValueError, RecursionError):
        raise NotStrictJsonError("not strict JSON") from None
    if not isinstance(value, dict):
        raise NotStrictJsonError("not an object")
    return value


def decode_base64url(text: str) -> bytes:
    """Decode base64url that is written in the one canonical way: no padding, no stray bits.

    Raises:
        NotStrictJsonError: it is written otherwise.
    """
    if not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
        raise NotStrictJsonError("not base64url")
    try:
        content = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise NotStrictJsonError("not base64url") from None
    if base64.urlsafe_b64encode(content).rstrip(b"=").decode() != text:
        raise NotStrictJsonError("not canonical base64url")
    return content


def _refuse_duplicates(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise NotStrictJsonError("a member appears twice")
    return members


def _refuse_constant(_: str) -> NoReturn:
    raise NotStrictJsonError("not a number")
