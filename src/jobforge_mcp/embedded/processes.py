"""Knows a postmaster when it sees one, and ends one that no keeper owns.

A number in ``postmaster.pid`` proves nothing: it may be another process's by now, or a zombie's. Only a living process
whose command line is a ``postgres`` on this very data directory is ours; nothing else is ever signalled.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from jobforge_mcp.errors import OperatorError

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.01
_PID_FILE_LIMIT = 16_384
_FAST_STOP_SECONDS = 30.0
_HARD_STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class PidFile:
    """What ``postmaster.pid`` claims."""

    pid: int
    data_dir: str
    status: str
    """Empty until the postmaster has got far enough to say ``starting``, ``ready`` or ``stopping``."""


def read_pid_file(data_dir: Path) -> PidFile | None:
    """Read ``postmaster.pid``; nothing when it is absent, cut short or not for this user to read."""
    return _parsed(_pid_file_text(data_dir) or "")


def is_postmaster_of(pid: int, data_dir: Path) -> bool:
    """Tell whether this living process is a ``postgres`` that was started on this data directory."""
    arguments = _arguments(pid)
    if not arguments or Path(arguments[0]).name not in {"postgres", "postmaster"}:
        return False
    return any(flag == "-D" and value == str(data_dir) for flag, value in pairwise(arguments))


def end_orphans(data_dir: Path) -> None:
    """Stop whatever still runs on this data directory, and make a stale ``postmaster.pid`` harmless.

    Only the holder of the keeper's lock may call it.

    Raises:
        OperatorError: something does not end.
    """
    claim = read_pid_file(data_dir)
    if claim is not None and is_postmaster_of(claim.pid, data_dir):
        _stop(claim.pid, lambda: is_postmaster_of(claim.pid, data_dir))
    for pid in list(_inside(data_dir)):
        _stop(pid, lambda pid=pid: _is_inside(pid, data_dir), first=signal.SIGQUIT)
    _disarm_pid_file(data_dir)


def stop_child(child: subprocess.Popen[bytes]) -> None:
    """Stop our own postmaster: fast, then at once, then by force."""
    for number, seconds in (
        (signal.SIGINT, _FAST_STOP_SECONDS),
        (signal.SIGQUIT, _HARD_STOP_SECONDS),
        (signal.SIGKILL, _HARD_STOP_SECONDS),
    ):
        if child.poll() is not None:
            return
        child.send_signal(number)
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            continue


def signal_checked(pid: int, number: signal.Signals, is_meant: Callable[[], bool]) -> bool:
    """Signal a process that is not our child, only if it is the one that is meant.

    Where the kernel has process descriptors, the number cannot pass to another process between check and signal.
    """
    if sys.platform != "linux":
        return is_meant() and _kill(pid, number)
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except OSError:
        return is_meant() and _kill(pid, number)
    try:
        if not is_meant():
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """Give what a child has to call before it starts its program so that it gets a signal when this process dies.

    To be called after a change of user, which clears it. Linux only; elsewhere the next keeper ends the orphan.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return arrange


def _stop(pid: int, is_ours: Callable[[], bool], first: signal.Signals = signal.SIGINT) -> None:
    for number, seconds in (
        (first, _FAST_STOP_SECONDS),
        (signal.SIGQUIT, _HARD_STOP_SECONDS),
        (signal.SIGKILL, _HARD_STOP_SECONDS),
    ):
        if not signal_checked(pid, number, is_ours):
            return
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not is_ours():
                return
            time.sleep(_POLL_SECONDS)
    raise OperatorError(
        f"PostgreSQL process {pid} of an earlier run does not end",
        hint="end it by hand, then try again",
    )


def _disarm_pid_file(data_dir: Path) -> None:
    """Make PostgreSQL look past a stale ``postmaster.pid``.

    It refuses to start when the number in it belongs to any living process, and when the file is cut short. The number
    of its own parent it takes for stale, and goes on to check what removing the file would hide: whether the shared
    memory named further down is still in use.
    """
    path = data_dir / "postmaster.pid"
    text = _pid_file_text(data_dir)
    if text is None:
        return
    # The folder is the account's, and this may be root: whatever lies there under this name is replaced, not written to.
    path.unlink()
    if _parsed(text) is None:
        return
    owner = data_dir.stat()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
        file.write("\n".join([str(os.getpid()), *text.splitlines()[1:]]) + "\n")


def _parsed(text: str) -> PidFile | None:
    lines = text.splitlines()
    try:
        # A standalone backend writes its number as a negative one.
        return PidFile(abs(int(lines[0])), lines[1], lines[7].strip() if len(lines) > 7 else "")
    except (ValueError, IndexError):
        return None


def _pid_file_text(data_dir: Path) -> str | None:
    """Read the file as it is, never through a symbolic link; nothing when there is none."""
    try:
        descriptor = os.open(
            data_dir / "postmaster.pid", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        )
    except FileNotFoundError:
        return None
    except OSError:
        return ""
    with os.fdopen(descriptor, encoding="utf-8", errors="surrogateescape") as file:
        return file.read(_PID_FILE_LIMIT)


def _inside(data_dir: Path) -> Iterator[int]:
    """Find processes of PostgreSQL that work in this data directory: backends whose postmaster was killed."""
    if sys.platform == "linux":
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _is_inside(int(entry.name), data_dir):
                yield int(entry.name)


def _is_inside(pid: int, data_dir: Path) -> bool:
    try:
        directory = Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return False
    arguments = _arguments(pid)
    return (
        directory == data_dir
        and bool(arguments)
        and Path(arguments[0].split(":")[0]).name == "postgres"
    )


def _arguments(pid: int) -> list[str]:
    """Give the command line of a living process; empty for a zombie, which has none, and for one that is gone."""
    if sys.platform == "linux":
        try:
            return (
                Path(f"/proc/{pid}/cmdline")
                .read_bytes()
                .decode(errors="surrogateescape")
                .split("\0")
            )
        except OSError:
            return []
    shown = subprocess.run(
        ["ps", "-ww", "-o", "stat=,command=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    state, _, command = shown.partition(" ")
    if not command or state.startswith("Z"):
        return []
    # The words of a command line are not told apart here: what follows -D up to the next option is one.
    before, _, after = command.strip().partition(" -D ")
    return [before.split(" ")[0], "-D", after.split(" -")[0]]


def _kill(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
