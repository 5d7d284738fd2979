"""What a child process started, wherever it went: found by parentage, so that leaving the process group is no way out.

Linux only, where ``child.py`` makes the child adopt whoever loses its parent; elsewhere there is the process group alone. What
was left behind by a child that is dead already has no parent to be found by.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

_ROUNDS = 100
"""Looks at the table of processes before we stop looking for new ones: each finds only what was started since the last."""


def find_descendants(root: int) -> dict[int, str]:
    """Return what descends from a process, each with the moment it was started."""
    parents: dict[int, int] = {}
    started: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(entry.name)], started[int(entry.name)] = int(fields[1]), fields[19]
    found: set[int] = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: started[pid] for pid in found - {root}}


def kill_descendants(root: int, known: dict[int, str]) -> None:
    """Kill what descends from a process, and of those who were known to before whoever still lives; the process stays.

    Each is stopped before the next look: what goes on starting others would otherwise outrun us.
    """
    _send(root, signal.SIGSTOP)
    stopped: dict[int, str] = {}
    for _ in range(_ROUNDS):
        new = {pid: at for pid, at in find_descendants(root).items() if pid not in stopped}
        if not new:
            break
        for pid in new:
            _send(pid, signal.SIGSTOP)
        stopped |= new
    for pid, started_at in {**known, **stopped}.items():
        if pid in stopped or _started_at(pid) == started_at:
            _send(pid, signal.SIGKILL)


def _started_at(pid: int) -> str | None:
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
