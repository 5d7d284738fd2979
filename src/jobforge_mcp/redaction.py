"""What a secret looks like, and how it is struck out: the one place for logs, errors, results, audit and the wire.

Two kinds: values that this process resolved, which are known to the letter, and texts that have the shape of a well-known
key. Values are found as they are and as JSON, a URL or base64 would write them; a handler that changes a value otherwise
(reverses it, hashes it, cuts it up) is beyond what any redaction can see.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Final, cast
from urllib.parse import quote, quote_plus

from jobforge_mcp.types import JsonValue

MIN_SECRET_LENGTH: Final = 4
"""Shorter values are not struck out: every other word would go with them. They are refused as secrets instead."""

_SHAPES: Final[tuple[tuple[str, str], ...]] = (
    ("private key", r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----"),
    ("AWS access key", r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b"),
    ("GitHub token", r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{50,255})\b"),
    ("GitLab token", r"\bglpat-[A-Za-z0-9_-]{20,64}"),
    ("Slack token", r"\bxox[abeprs]-[A-Za-z0-9-]{10,255}"),
    ("Slack webhook", r"\bhooks\.slack\.com/services/T[A-Z0-9]{6,}/B[A-Z0-9]{6,}/[A-Za-z0-9]{16,}"),
    ("Google API key", r"\bAIza[A-Za-z0-9_-]{35}"),
    ("Stripe key", r"\b[rs]k_live_[A-Za-z0-9]{16,255}"),
    ("SendGrid key", r"\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"),
    ("OpenAI or Anthropic key", r"\bsk-(?:proj-|ant-)[A-Za-z0-9_-]{20,255}"),
    ("npm token", r"\bnpm_[A-Za-z0-9]{36}\b"),
    ("PyPI token", r"\bpypi-[A-Za-z0-9_-]{50,255}"),
    # Of Standard Webhooks and of Stripe: what signs, and never the public half.
    ("webhook secret", r"\bwhs(?:ec|k)_[A-Za-z0-9+/_-]{24,512}"),
    # A policy token of ours is one of these.
    ("JSON web token", r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}"),
)
_SHAPE: Final = re.compile("|".join(f"({shape})" for _, shape in _SHAPES))
_LONG_WORD: Final = re.compile(r"[A-Za-z0-9_./+-]{15}|-----BEGIN")
"""What every shape holds, and few texts do: it is found in a fifth of the time that thirteen shapes take."""
_PRIVATE_KEY: Final = re.compile(
    r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----.{0,20000}?(?:-----END [A-Z ]{0,32}PRIVATE KEY-----|\Z)",
    re.DOTALL,
)


def shape_of(text: str) -> str | None:
    """Name the kind of well-known key that a text holds, if it holds one."""
    if _LONG_WORD.search(text) is None:
        return None
    found = _SHAPE.search(text)
    return _SHAPES[(found.lastindex or 1) - 1][0] if found else None


def find_shape(value: JsonValue, path: str = "") -> tuple[str, str] | None:
    """Find the first text that holds a well-known key: where, as a JSON Pointer, and of which kind."""
    match value:
        case str():
            kind = shape_of(value)
            return (path or "/", kind) if kind else None
        case dict():
            for name, member in value.items():
                kind = shape_of(name)
                if kind is not None:
                    return f"{path} (a property's name)", kind
                found = find_shape(member, f"{path}/{name.replace('~', '~0').replace('/', '~1')}")
                if found is not None:
                    return found
        case list():
            for place, member in enumerate(value):
                if (found := find_shape(member, f"{path}/{place}")) is not None:
                    return found
        case _:
            pass
    return None


class Redactor:
    """Strikes out values it was told, each by its name."""

    __slots__ = ("_limit", "_names", "_pattern")

    def __init__(self, limit: int = 4_096) -> None:
        """Remember at most so many forms of values; the oldest go first."""
        self._names: dict[str, str] = {}
        self._pattern: re.Pattern[str] | None = None
        self._limit = limit

    def learn(self, name: str, value: str) -> None:
        """Strike this value out from now on."""
        for form in _forms(value):
            self._names.pop(form, None)
            self._names[form] = name
        while len(self._names) > self._limit:
            del self._names[next(iter(self._names))]
        self._pattern = None

    def text(self, text: str, *, mark: str = "[secret {}]") -> str:
        """Return the text without the values."""
        if not self._names:
            return text
        if self._pattern is None:
            # The longest first, so that a value inside another does not leave the rest of it.
            forms = sorted(self._names, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, forms)))
        return self._pattern.sub(lambda found: mark.format(self._names[found.group()]), text)

    def value(self, value: JsonValue, *, mark: str = "[secret {}]") -> JsonValue:
        """Return JSON without the values, wherever in it they are; a number that is one becomes a text."""
        match value:
            case str():
                return self.text(value, mark=mark)
            case dict():
                return {
                    self.text(name, mark=mark): self.value(member, mark=mark)
                    for name, member in value.items()
                }
            case list():
                return [self.value(member, mark=mark) for member in value]
            case bool() | None:
                return value
            case _:
                plain = json.dumps(value)
                struck = self.text(plain, mark=mark)
                return value if struck == plain else struck

    def json_text(self, text: str, *, mark: str = "[secret {}]") -> str:
        """Return JSON text without the values; the very same text if it holds none."""
        if self.text(text, mark=mark) == text:
            return text
        struck = self.value(cast("JsonValue", json.loads(text)), mark=mark)
        return json.dumps(struck, ensure_ascii=False, separators=(",", ":"))


KNOWN = Redactor()
"""Every secret that this process resolved. As process-wide as logging itself, which is what it is for."""


def redact_text(text: str) -> str:
    """Strike out resolved secrets and well-known keys."""
    text = KNOWN.text(text)
    if _SHAPE.search(text) is None:
        return text
    text = _PRIVATE_KEY.sub("[private key]", text)
    return _SHAPE.sub(lambda found: f"[{_SHAPES[(found.lastindex or 1) - 1][0]}]", text)


def redact_event(
    _logger: object, _method: str, event: MutableMapping[str, object]
) -> MutableMapping[str, object]:
    """Strike out of a log line: the processor right before the one that writes JSON."""
    return {name: _redacted(value) for name, value in event.items()}


def redact_line(_logger: object, _method: str, line: Any) -> Any:
    """Strike out of a line that is written already: the processor after the one that writes text."""
    return redact_text(line) if isinstance(line, str) else line


def _redacted(value: object) -> object:
    if isinstance(value, str):
        return redact_text(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        members = cast("Mapping[object, object]", value)
        return {redact_text(str(name)): _redacted(member) for name, member in members.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted(member) for member in cast("list[object]", value)]
    return redact_text(repr(value))


def _forms(value: str) -> Iterator[str]:
    """Write a value as it may come out again."""
    forms = {value, quote(value, safe=""), quote_plus(value), repr(value)[1:-1]}
    forms |= {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    data = value.encode("utf-8", errors="replace")
    if len(data) >= 8:
        forms |= {base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()}
        forms |= {base64.b64encode(data).decode().rstrip("="), data.hex()}
    # A key of several lines may be told line by line.
    forms |= {line.strip() for line in value.splitlines() if len(line.strip()) >= 12}
    yield from (form for form in forms if len(form) >= MIN_SECRET_LENGTH)
