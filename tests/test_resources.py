"""The files beside the code are found in a wheel as in a checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jobforge_mcp.resources import job_definitions_folder, sql_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, unpacked as an installer would."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


def files(folder: Path) -> dict[str, bytes]:
    """The content of a folder by relative path, without what Python caches."""
    found = (path for path in folder.rglob("*") if path.is_file())
    kept = (path for path in found if "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


def test_a_checkout_finds_its_own_folders() -> None:
    assert sql_folder() == ROOT / "sql"
    assert job_definitions_folder() == ROOT / "job_definitions"


@pytest.mark.requirement("package.resources")
@pytest.mark.parametrize("name", ["sql", "job_definitions"])
def test_a_wheel_finds_the_same_files_inside_the_package(unpacked_wheel: Path, name: str) -> None:
    ask = f"import jobforge_mcp.resources as r; print(r.{name}_folder())"

    answer = subprocess.run(
        [sys.executable, "-c", ask],
        env={"PYTHONPATH": str(unpacked_wheel)},
        cwd=unpacked_wheel,
        check=True,
        capture_output=True,
        text=True,
    )

    found = Path(answer.stdout.strip())
    assert found == unpacked_wheel / "jobforge_mcp" / f"_{name}"
    assert files(found) == files(ROOT / name)


def test_an_incomplete_installation_says_what_is_missing(unpacked_wheel: Path) -> None:
    ask = """
import pathlib, shutil, sys
import jobforge_mcp.resources as resources
shutil.rmtree(resources.sql_folder())
try:
    resources.sql_folder()
except resources.OperatorError as error:
    print(error.message, error.hint)
"""
    incomplete = unpacked_wheel.with_name("incomplete")
    subprocess.run(["cp", "-r", str(unpacked_wheel), str(incomplete)], check=True)

    answer = subprocess.run(
        [sys.executable, "-c", ask],
        env={"PYTHONPATH": str(incomplete)},
        cwd=incomplete,
        check=True,
        capture_output=True,
        text=True,
    )

    assert "has no sql" in answer.stdout
    assert "install jobforge-mcp again" in answer.stdout
