"""Finds what a program left behind: processes that still know its folder."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from jobforge_mcp import embedded


@contextmanager
def folder_for_state() -> Generator[Path]:
    """Make a folder in which state directories may lie, also those of root's PostgreSQL."""
    folder = embedded.scratch_state_directory()
    yield folder
    shutil.rmtree(folder)


def processes_around(folder: Path) -> list[str]:
    """Return the command lines of processes that have the folder in them or in their environment; Linux knows."""
    needle = bytes(folder)
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        # It may be gone by now, or somebody else's.
        with contextlib.suppress(OSError):
            arguments = (process / "cmdline").read_bytes()
            if needle in arguments or needle in (process / "environ").read_bytes():
                found.append(arguments.replace(b"\0", b" ").decode(errors="replace"))
    return found
