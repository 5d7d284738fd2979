from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobforge_mcp import errors
from tests.server.tool_reference import PAGE, current, render

SOURCE = Path(__file__).parents[2] / "src/jobforge_mcp"
RAISED = re.compile(r"""(?:code=|RunError\(\s*)f?"((?:\{[^}]+\}|[A-Z])[A-Z_]*)\"""")


def test_the_reference_of_the_tools_is_up_to_date() -> None:
    assert current() == render(), "run: python -m tests.server.tool_reference"


def _codes() -> set[str]:
    """Every code that is written in the source or belongs to a class of errors."""
    found = {code for path in SOURCE.rglob("*.py") for code in RAISED.findall(path.read_text())}
    spelled = {
        code.replace("{what.upper()}", what) for code in found for what in ("INPUT", "RESULT")
    }
    classes = {
        member.default_code
        for member in vars(errors).values()
        if isinstance(member, type) and issubclass(member, errors.JobForgeError)
    }
    return spelled | classes


@pytest.mark.parametrize("code", sorted(_codes()))
def test_every_error_code_is_listed(code: str) -> None:
    assert f"`{code}`" in PAGE.read_text()
