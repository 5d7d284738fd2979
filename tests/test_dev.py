"""dev.py, run as people run it: from a folder that has no environment yet."""

from __future__ import annotations

import ast
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = ["setup", "demo", "test", "check", "judge", "fix", "bench", "soak"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what dev.py needs to begin, and nothing else."""
    for name in ("dev.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def dev(
    checkout: Path, *arguments: str, before: str = "pass", search_path: str = os.defpath
) -> subprocess.CompletedProcess[str]:
    """Run dev.py after ``before``, which makes this interpreter look like another."""
    code = f"import runpy, sys; {before}; runpy.run_path('dev.py', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=checkout,
        env={"PATH": search_path},
        capture_output=True,
        text=True,
        check=False,
    )


def fresh_stamp(checkout: Path) -> str:
    """The stamp that a complete set-up of this checkout would leave."""
    ask = [sys.executable, "-c", "import dev; print(dev.fresh_stamp(), end='')"]
    return subprocess.run(ask, cwd=checkout, capture_output=True, text=True, check=True).stdout


def finish_set_up(checkout: Path) -> None:
    """Leave what a complete set-up leaves, as far as dev.py looks at it."""
    programs = checkout / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    (checkout / ".venv" / "dev.stamp").write_text(fresh_stamp(checkout))


@pytest.mark.requirement("dev.explains-itself")
@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--help"], 0), (["no-such"], 2)])
def test_without_a_known_command_it_lists_them_and_touches_nothing(
    checkout: Path, arguments: list[str], code: int
) -> None:
    before = sorted(checkout.iterdir())

    result = dev(checkout, *arguments)

    listed = [line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ")]
    assert (result.returncode, listed) == (code, COMMANDS)
    assert sorted(checkout.iterdir()) == before


@pytest.mark.requirement("dev.old-python")
def test_an_older_python_is_told_which_one_to_use(checkout: Path) -> None:
    result = dev(checkout, "test", before="sys.version_info = (3, 9, 2)")

    assert result.returncode == 2
    assert "is Python 3.9.2, and 3.11 is the oldest that works" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.requirement("dev.old-python")
def test_an_older_python_can_at_least_read_it() -> None:
    ast.parse((ROOT / "dev.py").read_text(encoding="utf-8"), feature_version=(3, 8))


@pytest.mark.requirement("dev.no-ensurepip")
def test_a_python_without_ensurepip_names_the_package_to_install(checkout: Path) -> None:
    result = dev(checkout, "setup", before="sys.modules['ensurepip'] = None", search_path="")

    assert result.returncode == 2
    assert "apt-get install python3-venv" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.requirement("dev.one-set-up-at-a-time")
def test_a_second_set_up_waits_and_then_has_nothing_to_do(checkout: Path) -> None:
    with (checkout / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen(
            [sys.executable, "dev.py", "setup"],
            cwd=checkout,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as second:
            assert second.stderr is not None
            waiting = second.stderr.readline()
            finish_set_up(checkout)
            fcntl.flock(lock, fcntl.LOCK_UN)
            output, errors = second.communicate(timeout=60)

    assert "waiting for another dev.py" in waiting
    assert (second.returncode, output.split(":")[0], errors) == (0, "ready", "")


@pytest.mark.requirement("dev.refresh")
def test_a_changed_project_file_asks_for_a_refresh(checkout: Path) -> None:
    finish_set_up(checkout)
    unchanged = dev(checkout, "setup")
    stamp = fresh_stamp(checkout)

    with (checkout / "pyproject.toml").open("a") as project:
        project.write("\n# one more line\n")

    assert unchanged.stdout.startswith("ready")
    assert fresh_stamp(checkout) != stamp


@pytest.mark.requirement("dev.refresh")
def test_a_moved_checkout_makes_its_environment_anew(checkout: Path) -> None:
    finish_set_up(checkout)

    moved = checkout.rename(checkout.with_name("moved"))
    result = dev(moved, "setup", before="sys.modules['ensurepip'] = None", search_path="")

    assert "cannot make a virtual environment" in result.stderr
