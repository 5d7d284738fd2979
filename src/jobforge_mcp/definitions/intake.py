"""What a definition that somebody registers must pass before anything else looks at it.

Whoever registers may be a model steered by what it read. So the name must be one that nobody takes for another, texts
lose every character that hides, and a schema stays within caps under which compiling it takes milliseconds: its size,
depth, number of subschemas and patterns are counted, references stay inside it, its patterns run in linear time and
their compiled size is bounded. Nothing is ever fetched, and nothing here runs what was given.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import cast

from pydantic import ValidationError

from jobforge_mcp.definitions.model import JobDefinition, complaint
from jobforge_mcp.errors import ConflictError, InvalidInputError, LimitError
from jobforge_mcp.types import JsonObject, JsonValue

MAX_BYTES = 64 * 1024
"""Bytes of JSON text a definition may have."""
MAX_SCHEMA_BYTES = 32 * 1024
MAX_SCHEMA_DEPTH = 16
"""Objects and lists of a schema inside each other, the outermost counted as one."""
MAX_SUBSCHEMAS = 500
"""Objects in a schema."""
MAX_PATTERN_CHARS = 4_096
"""Characters of all patterns of a schema together."""
MAX_TEXT = 512
MAX_TITLE = 100

NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
RESERVED = ("jobforge.",)
"""Names that begin so are the product's own."""

_TEXTS = ("title", "description", "$comment")
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?")
_REPEATED = re.compile(r"\{\s*\d*\s*,?\s*\d{4,}\s*\}")
_HIDDEN = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})
_FOLDED = str.maketrans("01-_", "ol..")


def read(document: JsonObject) -> JobDefinition:
    """Check a definition as it came and return it, its texts cleaned.

    Raises:
        InvalidInputError: ``DEFINITION_INVALID``, with the member that does not fit.
        LimitError: ``DEFINITION_TOO_LARGE``: a cap was passed.
    """
    size = len(json.dumps(document, ensure_ascii=False).encode(errors="replace"))
    if size > MAX_BYTES:
        raise _too_large(f"the definition has {size} bytes of JSON and the limit is {MAX_BYTES}")
    name = document.get("name")
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise _invalid(
            "name: must be 1 to 64 lower-case letters, digits, dots or hyphens, and begin with a letter or digit"
        )
    if name.startswith(RESERVED):
        raise _invalid("name: names that begin with jobforge. are reserved")
    if "pinned" in document:
        raise _invalid("pinned: which versions steps run is noted by register-job itself")
    cleaned = dict(document)
    for member, most in (("title", MAX_TITLE), ("description", MAX_TEXT)):
        text = cleaned.get(member)
        if isinstance(text, str):
            cleaned[member] = clean(text, most)
    for member in ("inputSchema", "outputSchema"):
        schema = cleaned.get(member)
        if isinstance(schema, dict):
            cleaned[member] = _intake_schema(schema, member)
    try:
        return JobDefinition.model_validate(cleaned)
    except ValidationError as error:
        raise _invalid(complaint(error)) from None


def clean(text: str, most: int) -> str:
    """Return a text without escape sequences and characters that hide, as long as it may be."""
    plain = _ANSI.sub("", text)
    shown = "".join(
        character
        for character in plain
        if character == "\n" or unicodedata.category(character) not in _HIDDEN
    )
    return shown if len(shown) <= most else shown[: most - 1].rstrip() + "…"


def refuse_installed(name: str, installed: Iterable[str]) -> None:
    """Refuse the name of a job that is installed, and one that could be taken for it.

    Raises:
        ConflictError: ``NAME_TAKEN`` or ``NAME_CONFUSABLE``.
    """
    for other in installed:
        if name == other:
            raise ConflictError(
                f"{name} is a job that is installed here, and a registered one never stands before it",
                code="NAME_TAKEN",
                hint="choose another name",
            )
        if fold(name) == fold(other) or is_near(name, other):
            raise ConflictError(
                f"the name {name} looks like that of an installed job, {other}",
                code="NAME_CONFUSABLE",
                hint="choose a name that nobody could take for it",
            )


def taken(name: str) -> ConflictError:
    """Return the refusal of a name whose definition is not shown to who wants to register it."""
    return ConflictError(f"the name {name} is taken", code="NAME_TAKEN", hint="choose another name")


def fold(name: str) -> str:
    """Return a name with look-alike characters and separators folded, as ``jobforge.name_key`` does."""
    folded = name.casefold().translate(_FOLDED)
    return folded.replace("rn", "m").replace("vv", "w").replace("cl", "d")


def is_near(name: str, other: str) -> bool:
    """Whether one character was added, left out, replaced or exchanged with its neighbour, other than a digit."""
    longer, shorter = (name, other) if len(name) >= len(other) else (other, name)
    if len(longer) - len(shorter) > 1 or len(longer) < 5:
        return False
    if re.sub(r"[0-9]", "", name) == re.sub(r"[0-9]", "", other):
        return False
    start = next(
        (at for at, (a, b) in enumerate(zip(longer, shorter, strict=False)) if a != b), len(shorter)
    )
    rest, other_rest = longer[start:], shorter[start:]
    return (
        rest[1:] == other_rest
        or rest[1:] == other_rest[1:]
        or (
            len(rest) == len(other_rest)
            and len(rest) > 1
            and rest[:2] == other_rest[1::-1]
            and rest[2:] == other_rest[2:]
        )
    )


def _intake_schema(schema: JsonObject, member: str) -> JsonObject:
    size = len(json.dumps(schema, ensure_ascii=False).encode(errors="replace"))
    if size > MAX_SCHEMA_BYTES:
        raise _too_large(f"{member} has {size} bytes and the limit is {MAX_SCHEMA_BYTES}")
    _check_depth(schema, member)
    objects, patterns = 0, 0
    for owner in _objects(schema):
        objects += 1
        pattern = owner.get("pattern")
        named = owner.get("patternProperties")
        written = [pattern] if isinstance(pattern, str) else []
        written += list(named) if isinstance(named, dict) else []
        for text in written:
            patterns += len(text)
            if _REPEATED.search(text):
                raise _too_large(f"{member} has a pattern that repeats 1,000 times or more")
    if objects > MAX_SUBSCHEMAS:
        raise _too_large(f"{member} has {objects} subschemas and the limit is {MAX_SUBSCHEMAS}")
    if patterns > MAX_PATTERN_CHARS:
        raise _too_large(
            f"the patterns of {member} have {patterns} characters and the limit is {MAX_PATTERN_CHARS}"
        )
    return cast("JsonObject", _clean_schema(schema, member))


def _check_depth(schema: JsonObject, member: str) -> None:
    level: list[JsonValue] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [inner for item in level for inner in _inner(item)]
        if not any(isinstance(item, dict | list) for item in level):
            return
    raise _too_large(f"{member} is nested more than {MAX_SCHEMA_DEPTH} deep")


def _inner(value: JsonValue) -> Iterable[JsonValue]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _objects(value: JsonValue) -> Iterator[JsonObject]:
    if isinstance(value, dict):
        yield value
    for inner in _inner(value):
        yield from _objects(inner)


def _clean_schema(value: JsonValue, member: str, name: str | None = None) -> JsonValue:
    """Clean the texts of a schema, and refuse characters that hide anywhere else in it."""
    if isinstance(value, str):
        if name in _TEXTS:
            return clean(value, MAX_TEXT)
        if clean(value, len(value) + 1) != value:
            raise _invalid(f"{member}: holds characters that do not show")
        return value
    if isinstance(value, list):
        return [_clean_schema(item, member) for item in value]
    if isinstance(value, dict):
        for key in value:
            _clean_schema(key, member)
        return {key: _clean_schema(item, member, key) for key, item in value.items()}
    return value


def _invalid(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"the definition does not fit: {why}",
        code="DEFINITION_INVALID",
        hint="nothing was registered; jobforge://jobs/{name} of a job shows what a definition looks like",
    )


def _too_large(why: str) -> LimitError:
    return LimitError(
        why, code="DEFINITION_TOO_LARGE", hint="nothing was registered; make the definition smaller"
    )
