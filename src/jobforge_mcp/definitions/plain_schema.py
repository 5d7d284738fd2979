"""Values that plainly fit their schema, told without the library that knows all of JSON Schema.

Most schemas are made of a few keywords, most values are small and fit, and the library takes 6 MB of every process that
loads it. So what is said here is one-sided: a value of which a check says yes fits; of any other the library has to judge,
and it alone says what is wrong. A schema has a check only if each of its keywords is known here and given as JSON Schema
2020-12 wants it, which makes it a valid schema. Keywords that only annotate are let through; those that would have to prove
that something does *not* fit (``not``, ``oneOf``, ``if``) are not known, and neither are patterns that could take more than
linear time.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import TypeAlias, TypeGuard, cast

from jobforge_mcp.types import JsonObject, JsonValue

MAX_VALUES = 100
"""Members and items that are looked at in one value; with more the library, ten times as fast, is worth loading."""

Check: TypeAlias = Callable[[JsonValue, list[int]], bool]
"""Takes a value and, in a list of one, how many more members and items may be looked at."""

# Their very types: true is no integer, though Python says so, and 1.0 is one, of which the library is asked.
_KINDS: Mapping[str, tuple[type, ...]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "null": (type(None),),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}
_EVERY_KIND = frozenset(kind for kinds in _KINDS.values() for kind in kinds)
_TEXTS = frozenset({"title", "description", "format", "$comment"})
_FLAGS = frozenset({"deprecated", "readOnly", "writeOnly"})
_ARRAYS = frozenset({"items", "minItems", "maxItems"})
_OBJECTS = frozenset(
    {"properties", "required", "additionalProperties", "minProperties", "maxProperties"}
)
_NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_STRINGS = frozenset({"minLength", "maxLength", "pattern"})
_LARGEST = 2**53
_REFERENCE = re.compile(r"#/\$defs/([A-Za-z0-9._-]+)")
# Some sets of characters and, last, one that may repeat: both engines read it alike, and none has to go back.
_SET = r"\[(?:[A-Za-z0-9](?:-[A-Za-z0-9])?|[._:])+-?\]"
_REPEATS = r"(?:[*+?]|\{[0-9]{1,3}(?:,[0-9]{0,3})?\})?"
_PATTERN = re.compile(rf"\^((?:{_SET}){{1,8}}{_REPEATS})\$")


def plain_check(schema: JsonObject) -> Check | None:
    """Return what says yes of values that plainly fit; ``None`` for a schema that is not plain, or not valid.

    The check may raise ``RecursionError`` where references lead to each other, and then knows nothing.
    """
    try:
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
        return _Plain(schema).outermost.fits
    except (_NotPlain, ValueError):
        return None


class _NotPlain(Exception):
    """A schema has something that only the library knows."""


class _Shape:
    """What plainly fits one subschema: values of some kinds as they are, of others after a look."""

    __slots__ = ("looks", "simple")

    def __init__(self) -> None:
        self.simple: frozenset[type] = frozenset()
        self.looks: dict[type, Check] = {}

    def fits(self, value: JsonValue, budget: list[int]) -> bool:
        kind = type(value)
        if kind in self.simple:
            return True
        look = self.looks.get(kind)
        return look is not None and look(value, budget)


class _Plain:
    """Makes the shapes of one schema, those behind references once."""

    def __init__(self, schema: JsonObject) -> None:
        definitions = _object(schema.get("$defs", {}))
        self._named = {name: _Shape() for name in definitions}
        for name, definition in definitions.items():
            self._fill(self._named[name], definition)
        rest = {name: value for name, value in schema.items() if name not in ("$defs", "$schema")}
        self.outermost = self._fill(_Shape(), rest)

    def _fill(self, shape: _Shape, schema: JsonValue) -> _Shape:
        if not isinstance(schema, bool):
            left = {
                name: value
                for name, value in _object(schema).items()
                if not _only_annotates(name, value)
            }
            kinds = _kinds(left)
            looks = self._looks(left)
            if left:
                raise _NotPlain
            shape.simple = kinds - {kind for wanted, _ in looks for kind in wanted}
            for kind in kinds - shape.simple:
                shape.looks[kind] = _all([look for wanted, look in looks if kind in wanted])
        elif schema:
            shape.simple = _EVERY_KIND
        return shape

    def _looks(self, left: JsonObject) -> list[tuple[frozenset[type], Check]]:
        """Take what is known out of a schema, and return the checks it makes, each with the kinds that it is about."""
        looks: list[tuple[frozenset[type], Check]] = []
        if not _NUMBERS.isdisjoint(left):
            looks.append((frozenset({int, float}), _numbers(left)))
        if not _STRINGS.isdisjoint(left):
            looks.append((frozenset({str}), _strings(left)))
        if not _ARRAYS.isdisjoint(left):
            looks.append((frozenset({list}), self._array(left)))
        if not _OBJECTS.isdisjoint(left):
            looks.append((frozenset({dict}), self._members(left)))
        if "const" in left:
            looks.append((_EVERY_KIND, _options([left.pop("const")])))
        if "enum" in left:
            looks.append((_EVERY_KIND, _options(left.pop("enum"))))
        if "$ref" in left:
            shape = self._reference(left.pop("$ref"))  # which may have to be filled yet
            looks.append((_EVERY_KIND - shape.simple, shape.fits))
        if "allOf" in left:
            shapes = self._branches(left.pop("allOf"))
            looks += [(_EVERY_KIND - shape.simple, shape.fits) for shape in shapes]
        if "anyOf" in left:
            shapes = self._branches(left.pop("anyOf"))
            simple = frozenset[type]().union(*(shape.simple for shape in shapes))
            looks.append((_EVERY_KIND - simple, _any([shape.fits for shape in shapes])))
        return looks

    def _array(self, left: JsonObject) -> Check:
        each = self._fill(_Shape(), left.pop("items", True))
        least, most = _count(left, "minItems", 0), _count(left, "maxItems", sys.maxsize)

        def fits(value: JsonValue, budget: list[int]) -> bool:
            items = cast("list[JsonValue]", value)
            budget[0] -= len(items)
            if budget[0] < 0 or not least <= len(items) <= most:
                return False
            for item in items:
                if type(item) not in each.simple and not each.fits(item, budget):
                    return False
            return True

        return fits

    def _members(self, left: JsonObject) -> Check:
        properties = _object(left.pop("properties", {}))
        shapes = {name: self._fill(_Shape(), member) for name, member in properties.items()}
        others = self._fill(_Shape(), left.pop("additionalProperties", True))
        least, most = _count(left, "minProperties", 0), _count(left, "maxProperties", sys.maxsize)
        needed = left.pop("required", [])
        if not _is_names(needed):
            raise _NotPlain

        def fits(value: JsonValue, budget: list[int]) -> bool:
            members = cast("JsonObject", value)
            budget[0] -= len(members)
            if budget[0] < 0 or not least <= len(members) <= most:
                return False
            for name in needed:
                if name not in members:
                    return False
            for name, member in members.items():
                shape = shapes.get(name, others)
                if type(member) not in shape.simple and not shape.fits(member, budget):
                    return False
            return True

        return fits

    def _branches(self, branches: JsonValue) -> list[_Shape]:
        if not isinstance(branches, list) or not branches:
            raise _NotPlain
        return [self._fill(_Shape(), branch) for branch in branches]

    def _reference(self, reference: JsonValue) -> _Shape:
        found = _REFERENCE.fullmatch(reference) if isinstance(reference, str) else None
        shape = self._named.get(found[1]) if found is not None else None
        if shape is None:
            raise _NotPlain
        return shape


def _only_annotates(name: str, value: JsonValue) -> bool:
    return (
        name == "default"
        or (name in _TEXTS and isinstance(value, str))
        or (name in _FLAGS and isinstance(value, bool))
        or (name == "examples" and isinstance(value, list))
    )


def _kinds(left: JsonObject) -> frozenset[type]:
    if "type" not in left:
        return _EVERY_KIND
    given = left.pop("type")
    names: JsonValue = [given] if isinstance(given, str) else given
    if not names or not _is_names(names) or not _KINDS.keys() >= set(names):
        raise _NotPlain
    return frozenset(kind for name in names for kind in _KINDS[name])


def _numbers(left: JsonObject) -> Check:
    low, above = (
        _number(left, name, -sys.float_info.max) for name in ("minimum", "exclusiveMinimum")
    )
    high, below = (
        _number(left, name, sys.float_info.max) for name in ("maximum", "exclusiveMaximum")
    )

    def fits(value: JsonValue, _: list[int]) -> bool:
        number = cast("float", value)
        return low <= number <= high and above < number < below

    return fits


def _strings(left: JsonObject) -> Check:
    least, most = _count(left, "minLength", 0), _count(left, "maxLength", sys.maxsize)
    matches = _matcher(left.pop("pattern")) if "pattern" in left else None

    def fits(value: JsonValue, _: list[int]) -> bool:
        text = cast("str", value)
        return least <= len(text) <= most and (matches is None or matches(text) is not None)

    return fits


def _matcher(pattern: JsonValue) -> Callable[[str], object]:
    found = _PATTERN.fullmatch(pattern) if isinstance(pattern, str) else None
    if found is None:
        raise _NotPlain
    try:
        return re.compile(found[1]).fullmatch
    except re.error:
        raise _NotPlain from None


def _options(options: JsonValue) -> Check:
    """Look among texts, booleans and null.

    Numbers are equal in more ways than one: of those, and of lists and objects, the library is asked.
    """
    if not isinstance(options, list) or not options:
        raise _NotPlain
    texts = frozenset(option for option in options if isinstance(option, str))
    rest = [option for option in options if option is None or isinstance(option, bool)]
    return lambda value, _: (
        value in texts if isinstance(value, str) else any(value is option for option in rest)
    )


def _all(checks: list[Check]) -> Check:
    if len(checks) == 1:
        return checks[0]
    return lambda value, budget: all(check(value, budget) for check in checks)


def _any(checks: list[Check]) -> Check:
    return lambda value, budget: any(check(value, budget) for check in checks)


def _object(value: JsonValue) -> JsonObject:
    if not isinstance(value, dict):
        raise _NotPlain
    return value


def _is_names(value: JsonValue) -> TypeGuard[list[str]]:
    """Tell whether it is a list of texts of which none is there twice."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return False
    return len(set(cast("list[str]", value))) == len(value)


def _count(left: JsonObject, name: str, otherwise: int) -> int:
    if name not in left:
        return otherwise
    value = left.pop(name)
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise _NotPlain
    return value


def _number(left: JsonObject, name: str, otherwise: float) -> float:
    if name not in left:
        return otherwise
    value = left.pop(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LARGEST:
        raise _NotPlain
    return value
