"""The mapping language: templates and conditions over JSON, for compositions and triggers.

A template is JSON that is taken as it stands, except for objects that begin with a word of this language:

``{"$ref": "/input/customer/id"}``
    a JSON Pointer (RFC 6901) into the scope; with ``"$default"`` beside it that value where there is nothing
``{"$jmespath": "items[?price > `10`].name"}``
    a JMESPath expression over the scope; what is not there is null
``{"$literal": …}``
    the value as it stands, whatever its names begin with

A condition is ``true``, ``false``, one of the first two (which holds for a value that JMESPath calls true, optionally
compared by ``"equals"`` or ``"in"``), or ``{"all": […]}``, ``{"any": […]}``, ``{"not": …}`` of conditions.

Nothing here runs code, reads anything but its arguments, or asks the clock: the same template and scope always give the
same value. What an evaluation may cost is counted in steps, not in seconds, so that a busy machine decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, cast

import jmespath
from jmespath import exceptions, functions, visitor

from jobforge_mcp.definitions.json_limits import MAX_BYTES, check_value
from jobforge_mcp.errors import CallerError, InvalidInputError
from jobforge_mcp.types import JsonObject, JsonValue

MAX_NODES = 2_000
"""Values in one template or condition, the objects and lists counted too."""
MAX_DEPTH = 32
"""Objects and lists of a template, or parts of an expression, inside each other."""
MAX_EXPRESSION = 1_000
"""Characters of one pointer or expression."""
MAX_OPENED = 100
"""Brackets and signs of negation in one expression."""
MAX_STEPS = 200_000
"""What one evaluation may cost: a step for each part of an expression at each value, and for what is compared or passed to functions."""

FUNCTIONS = frozenset(
    [
        "abs",
        "avg",
        "ceil",
        "contains",
        "ends_with",
        "floor",
        "join",
        "keys",
        "length",
        "map",
        "max",
        "max_by",
        "merge",
        "min",
        "min_by",
        "not_null",
        "reverse",
        "sort",
        "sort_by",
        "starts_with",
        "sum",
        "to_array",
        "to_number",
        "to_string",
        "type",
        "values",
    ]
)
"""The functions of JMESPath that expressions may call: pure ones, all of them."""

_WORDS = ("$ref", "$jmespath", "$literal")
_CHARACTERS_A_STEP = 64


def evaluate(template: JsonValue, scope: JsonObject) -> JsonValue:
    """Return what a template is in a scope.

    Raises:
        InvalidInputError: ``MAPPING_INVALID`` for a template that `check` refuses; ``MAPPING_FAILED`` when a pointer leads
            nowhere, a function is given what it does not take, or the result or its cost passes a limit.
    """
    check(template)
    budget = _Budget()
    value = _fill(template, scope, budget)
    _check_result(value)
    return value


def matches(condition: JsonValue, scope: JsonObject) -> bool:
    """Tell whether a condition holds in a scope. A pointer that leads nowhere is no match, and no error.

    Raises:
        InvalidInputError: As `evaluate`.
    """
    check_condition(condition)
    return _holds(condition, scope, _Budget())


def check(template: JsonValue) -> None:
    """Refuse a template that could never be evaluated, or is larger than one may be.

    Raises:
        InvalidInputError: ``MAPPING_INVALID``.
    """
    _check_size(template)
    for expression in _expressions(template):
        _check_expression(expression)


def check_condition(condition: JsonValue) -> None:
    """Refuse what is no condition, as `check` does a template.

    Raises:
        InvalidInputError: ``MAPPING_INVALID``.
    """
    _check_size(condition)
    _check_condition(condition)


def parse_pointer(pointer: str) -> list[str]:
    """Split a JSON Pointer into the names it leads through.

    Raises:
        InvalidInputError: ``MAPPING_INVALID``: it is not one.
    """
    if len(pointer) > MAX_EXPRESSION:
        _refuse(f"a pointer has {len(pointer)} characters and the limit is {MAX_EXPRESSION}")
    if pointer and not pointer.startswith("/"):
        _refuse("a pointer must be empty or begin with a slash")
    parts = pointer.split("/")[1:]
    if any("~" in part.replace("~0", "").replace("~1", "") for part in parts):
        _refuse("in a pointer ~ is written ~0, and / inside a name ~1")
    return [part.replace("~1", "/").replace("~0", "~") for part in parts]


def references(template: JsonValue) -> Iterator[list[str]]:
    """Yield the pointers of a template, split into names; what expressions read is not known beforehand."""
    for expression in _expressions(template):
        pointer = expression.get("$ref")
        if isinstance(pointer, str):
            yield parse_pointer(pointer)


def condition_references(condition: JsonValue) -> Iterator[list[str]]:
    """Yield the pointers of a condition, as `references` does those of a template."""
    if isinstance(condition, dict):
        for member in (condition.get("all"), condition.get("any")):
            for inner in member if isinstance(member, list) else ():
                yield from condition_references(inner)
        if "not" in condition:
            yield from condition_references(condition["not"])
        pointer = condition.get("$ref")
        if isinstance(pointer, str):
            yield parse_pointer(pointer)


# --- checking


def _check_size(value: JsonValue) -> None:
    try:
        check_value(value)
    except CallerError as error:
        _refuse(error.message.replace("the input", "the template", 1))
    nodes, level = 0, [value]
    for _ in range(MAX_DEPTH):
        nodes += len(level)
        if nodes > MAX_NODES:
            _refuse(f"the template has more than {MAX_NODES} values")
        level = [member for item in level for member in _members(item)]
        if not level:
            return
    _refuse(f"the template is nested more than {MAX_DEPTH} deep")


def _members(item: JsonValue) -> list[JsonValue]:
    if isinstance(item, dict):
        return list(item.values())
    return item if isinstance(item, list) else []


def _expressions(template: JsonValue) -> Iterator[JsonObject]:
    """Yield the objects of a template that are expressions, and refuse those that only look like it."""
    if isinstance(template, list):
        for member in template:
            yield from _expressions(member)
    elif isinstance(template, dict):
        words = [name for name in template if name.startswith("$")]
        if not words:
            for member in template.values():
                yield from _expressions(member)
        else:
            _check_words(template, words, {"$default"} if "$ref" in template else set())
            if "$literal" not in template:
                yield template


def _check_words(given: JsonObject, words: list[str], also: set[str]) -> None:
    known = [word for word in words if word in _WORDS]
    if len(known) != 1 or set(given) - {known[0]} - also:
        named = ", ".join(sorted(given))[:200]
        _refuse(
            f"an object of the names {named} is no expression",
            hint=f"write one of {', '.join(_WORDS)} alone; put other data with names in $ into $literal",
        )


def _check_expression(expression: JsonObject) -> None:
    pointer, text = expression.get("$ref"), expression.get("$jmespath")
    given = pointer if "$ref" in expression else text
    if not isinstance(given, str):
        _refuse("a pointer or an expression must be text")
    if isinstance(pointer, str):
        parse_pointer(pointer)
    elif isinstance(text, str):
        _check_tree(_parse(text))


def _check_condition(condition: JsonValue) -> None:
    if isinstance(condition, bool):
        return
    if not isinstance(condition, dict):
        _refuse("a condition must be true, false or an object")
    match sorted(condition):
        case ["all" | "any" as word]:
            members = condition[word]
            if not isinstance(members, list):
                _refuse(f"{word} takes a list of conditions")
            for member in members:
                _check_condition(member)
        case ["not"]:
            _check_condition(condition["not"])
        case _:
            words = [name for name in condition if name.startswith("$")]
            if not words or "$literal" in words or {"equals", "in"} <= set(condition):
                _refuse(
                    "a condition is a pointer or an expression, alone or with one of equals and in",
                    hint="or all, any and not of such conditions",
                )
            _check_words(condition, words, {"equals", "in"})
            if not isinstance(condition.get("in", []), list):
                _refuse("in takes a list of values")
            _check_expression(condition)


def _parse(text: str) -> dict[str, Any]:
    """Parse an expression into the tree that the library makes of it."""
    if len(text) > MAX_EXPRESSION:
        _refuse(f"an expression has {len(text)} characters and the limit is {MAX_EXPRESSION}")
    # The parser goes as deep as these stand inside each other: never so deep that it would depend on its caller's stack.
    if sum(map(text.count, "([{!&")) > MAX_OPENED:
        _refuse(f"an expression opens more than {MAX_OPENED} brackets")
    try:
        return cast("dict[str, Any]", jmespath.compile(text).parsed)
    except RecursionError:
        _refuse(f"an expression is nested more than {MAX_DEPTH} deep")
    except (exceptions.JMESPathError, ValueError):
        _refuse(
            f"{text[:100]!r} is no JMESPath expression",
            hint="see https://jmespath.org; literals stand in backticks, texts in single quotes",
        )


def _check_tree(tree: dict[str, Any]) -> None:
    level: list[dict[str, Any]] = [tree]
    for _ in range(MAX_DEPTH):
        for node in level:
            if node["type"] == "function_expression" and node["value"] not in FUNCTIONS:
                _refuse(
                    f"there is no function {str(node['value'])[:50]}",
                    hint=f"functions: {', '.join(sorted(FUNCTIONS))}",
                )
        level = [child for node in level for child in node["children"] if isinstance(child, dict)]
        if not level:
            return
    _refuse(f"an expression is nested more than {MAX_DEPTH} deep")


# --- evaluating


def _fill(template: JsonValue, scope: JsonObject, budget: _Budget) -> JsonValue:
    if isinstance(template, list):
        return [_fill(member, scope, budget) for member in template]
    if not isinstance(template, dict):
        return template
    if "$literal" in template:
        return template["$literal"]
    if "$jmespath" in template or "$ref" in template:
        is_found, value = _look_up(template, scope, budget)
        if not is_found:
            if "$default" in template:
                return template["$default"]
            _fail(
                f"there is nothing at {str(template['$ref'])[:200]}",
                hint="correct the pointer, or give it a $default",
            )
        return value
    return {name: _fill(member, scope, budget) for name, member in template.items()}


def _look_up(expression: JsonObject, scope: JsonObject, budget: _Budget) -> tuple[bool, JsonValue]:
    """Return whether there is anything, and what."""
    if "$ref" in expression:
        return _follow(scope, parse_pointer(cast("str", expression["$ref"])))
    return True, _search(cast("str", expression["$jmespath"]), scope, budget)


def _follow(document: JsonValue, names: list[str]) -> tuple[bool, JsonValue]:
    for name in names:
        if isinstance(document, dict) and name in document:
            document = document[name]
        elif (
            isinstance(document, list)
            and name.isascii()
            and name.isdigit()
            and (name == "0" or not name.startswith("0"))
            and len(name) < 10
            and int(name) < len(document)
        ):
            document = document[int(name)]
        else:
            return False, None
    return True, document


def _holds(condition: JsonValue, scope: JsonObject, budget: _Budget) -> bool:
    if isinstance(condition, bool):
        return condition
    assert isinstance(condition, dict)  # check_condition has refused all else
    if "all" in condition:
        members = cast("list[JsonValue]", condition["all"])
        return all(_holds(member, scope, budget) for member in members)
    if "any" in condition:
        members = cast("list[JsonValue]", condition["any"])
        return any(_holds(member, scope, budget) for member in members)
    if "not" in condition:
        return not _holds(condition["not"], scope, budget)
    is_found, value = _look_up(condition, scope, budget)
    budget.spend(_cost(value))
    if "equals" in condition:
        return is_found and _are_equal(value, condition["equals"])
    if "in" in condition:
        wanted = cast("list[JsonValue]", condition["in"])
        return is_found and any(_are_equal(value, one) for one in wanted)
    return is_found and _is_true(value)


def _are_equal(left: JsonValue, right: JsonValue) -> bool:
    """Compare as JSON does: true is not 1, wherever it stands."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_are_equal, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(
            _are_equal(member, right[name]) for name, member in left.items()
        )
    return left == right


def _is_true(value: JsonValue) -> bool:
    """Tell what JMESPath calls true: all but null, false, and empty text, lists and objects. Zero is true."""
    return not (value is None or value is False or value in ("", [], {}))


def _search(text: str, scope: JsonObject, budget: _Budget) -> JsonValue:
    tree = _parse(text)
    _check_tree(tree)
    try:
        value = cast("JsonValue", _Interpreter(budget).visit(tree, scope))
    except exceptions.JMESPathError as error:
        _fail(f"{text[:100]!r} failed: {type(error).__name__}")
    except (ArithmeticError, TypeError, ValueError, RecursionError) as error:
        _fail(f"{text[:100]!r} failed: {type(error).__name__}")
    # An expression is made of references to one value: small as it is in memory, written out it could be endless.
    budget.spend(_cost(value))
    return value


def _cost(value: object) -> int:
    """Count the values and texts that something would be, written out; stops where no budget could pay for it."""
    cost, pending = 0, [value]
    while pending and cost <= MAX_STEPS:
        item = pending.pop()
        cost += 1
        if isinstance(item, str):
            cost += len(item) // _CHARACTERS_A_STEP
        elif isinstance(item, dict):
            names = cast("dict[str, object]", item)
            cost += sum(len(name) // _CHARACTERS_A_STEP for name in names)
            pending.extend(names.values())
        elif isinstance(item, list):
            pending.extend(cast("list[object]", item))
    return cost


class _Budget:
    """The steps that are left of one evaluation."""

    def __init__(self) -> None:
        self._left = MAX_STEPS

    def spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            _fail(
                f"it takes more than {MAX_STEPS} steps",
                hint="take a smaller part of the data, or let a job do the work",
            )


class _Interpreter(visitor.TreeInterpreter):
    """The library's interpreter, paying for every step it takes."""

    def __init__(self, budget: _Budget) -> None:
        super().__init__(visitor.Options(custom_functions=_Functions(budget)))
        self._budget = budget

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        self._budget.spend(1)
        return super().visit(node, *args, **kwargs)

    def visit_comparator(self, node: Any, value: Any) -> Any:
        sides = [self.visit(child, value) for child in node["children"]]
        self._budget.spend(_cost(sides))
        known: Any = [{"type": "literal", "children": [], "value": side} for side in sides]
        comparison: Any = {**node, "children": known}
        return super().visit_comparator(comparison, value)

    def visit_flatten(self, node: Any, value: Any) -> Any:
        flat = super().visit_flatten(node, value)
        self._budget.spend(len(flat or ()))
        return flat

    def visit_slice(self, node: Any, value: Any) -> Any:
        part = super().visit_slice(node, value)
        self._budget.spend(len(part or ()))
        return part


class _Functions(functions.Functions):
    """The library's functions, those of the list alone, paying for what they are given."""

    def __init__(self, budget: _Budget) -> None:
        self._budget = budget

    def call_function(self, function_name: str, resolved_args: Iterable[Any]) -> Any:
        if function_name not in FUNCTIONS:
            raise exceptions.UnknownFunctionError(function_name)
        given = list(resolved_args)
        self._budget.spend(_cost(given))
        return super().call_function(function_name, given)


def _check_result(value: JsonValue) -> None:
    try:
        check_value(value)
    except CallerError as error:
        _fail(error.message.replace("the input", "the value", 1))
    if _bytes(value) > MAX_BYTES:
        _fail(f"the value is larger than {MAX_BYTES} bytes")


def _bytes(value: JsonValue) -> int:
    """Measure roughly, and no further than it matters."""
    size, pending = 0, [value]
    while pending and size <= MAX_BYTES:
        item = pending.pop()
        if isinstance(item, str):
            size += len(item) + 2
        elif isinstance(item, dict):
            size += sum(len(name) + 4 for name in item)
            pending.extend(item.values())
        elif isinstance(item, list):
            size += len(item)
            pending.extend(item)
        else:
            size += 4
    return size


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise InvalidInputError(f"the mapping is wrong: {message}", code="MAPPING_INVALID", hint=hint)


def _fail(message: str, hint: str | None = None) -> NoReturn:
    raise InvalidInputError(
        f"the mapping gives no value: {message}", code="MAPPING_FAILED", hint=hint
    )
