"""Bind ``requirements.py`` to the suite, by reading the tests' source: a partial run must not look like a gap."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requirements import REQUIREMENTS

TESTS = Path(__file__).parent


def marks() -> Iterator[tuple[str, str | None]]:
    """Yield the place of every ``requirement(...)`` mark and each of its ids; None for what is no string literal."""
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.requirement"):
                for argument in node.args or [ast.Constant(None)]:
                    value = argument.value if isinstance(argument, ast.Constant) else None
                    id_ = value if isinstance(value, str) else None
                    yield f"{file.relative_to(TESTS)}:{node.lineno}", id_


@pytest.mark.requirement("dev.requirements")
def test_every_requirement_has_a_test() -> None:
    proven = {id_ for _, id_ in marks()}

    assert sorted(REQUIREMENTS.keys() - proven) == []


@pytest.mark.requirement("dev.requirements")
def test_every_mark_names_a_requirement() -> None:
    unknown = [f"{place}: {id_}" for place, id_ in marks() if id_ not in REQUIREMENTS]

    assert unknown == []


def test_every_requirement_is_a_sentence_with_a_source() -> None:
    odd = [id_ for id_, (source, text) in REQUIREMENTS.items() if not source or text[-1:] != "."]

    assert odd == []
