"""What can be seen of a process from outside: CPU time, resident memory, children. Linux only; elsewhere 0."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, with that of the children it has reaped."""
    fields = _stat(pid)
    return sum(int(field) for field in fields[11:15]) / _TICKS if fields else 0.0


def tree_cpu_seconds(pid: int) -> float:
    """CPU time of a process and of all below it."""
    return sum(cpu_seconds(each) for each in [pid, *descendants(pid)])


def resident_mb(pids: Iterable[int]) -> float:
    """Resident memory of some processes together, in MiB; pages they share are counted once for each."""
    total = 0
    for pid in pids:
        for line in _lines(_PROC / str(pid) / "status"):
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    return total / 1024


def descendants(pid: int) -> list[int]:
    """Every process below one."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir() if _PROC.exists() else ():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def machine_cpu_seconds() -> float:
    """CPU time of everything on this machine, idle time left out."""
    for line in _lines(_PROC / "stat"):
        if line.startswith("cpu "):
            user, nice, system, _, _, *rest = (int(field) for field in line.split()[1:9])
            return (user + nice + system + sum(rest)) / _TICKS
    return 0.0


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; the command before it may hold anything."""
    lines = _lines(_PROC / str(pid) / "stat")
    return lines[0].rpartition(")")[2].split() if lines else []


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
