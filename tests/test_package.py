"""What the package root exports, and what importing the small modules costs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import jobforge_mcp

KEEPER = Path(__file__).parents[1] / "src" / "jobforge_mcp" / "embedded"


@pytest.mark.requirement("package.public-names")
@pytest.mark.parametrize("name", jobforge_mcp.__all__)
def test_a_public_name_is_importable_from_the_root(name: str) -> None:
    value = getattr(jobforge_mcp, name)

    assert getattr(importlib.import_module(value.__module__), name) is value


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        _ = jobforge_mcp.nothing_of_ours


def test_the_root_lists_its_names_before_they_are_imported() -> None:
    assert set(jobforge_mcp.__all__) <= set(dir(jobforge_mcp))


@pytest.mark.requirement("package.light-start")
@pytest.mark.parametrize(
    "module",
    [
        "jobforge_mcp",
        *(f"jobforge_mcp.embedded.{file.stem}" for file in sorted(KEEPER.glob("[!_]*.py"))),
        "jobforge_mcp.entry",
        "jobforge_mcp.errors",
        "jobforge_mcp.local.bridge",
        "jobforge_mcp.resources",
    ],
)
def test_a_small_module_imports_only_the_standard_library(module: str) -> None:
    ask = f"""
import json, sys
before = set(sys.modules)
import {module}
print(json.dumps(sorted({{name.split(".")[0] for name in set(sys.modules) - before}})))
"""

    answer = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True)

    imported = set(json.loads(answer.stdout))
    assert imported - sys.stdlib_module_names == {"jobforge_mcp"}
