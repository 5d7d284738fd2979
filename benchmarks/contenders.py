"""Drives the programs of ``peers/``: calls their commands, starts and stops their workers, reads their counters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString, cast

from benchmarks.processes import cpu_seconds, descendants, machine_cpu_seconds, resident_mb
from benchmarks.stage import Stage

PEERS = Path(__file__).with_name("peers")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jobforge-benchmarks"
PGQUEUER_PACKAGES = ("pgqueuer", "asyncpg", "uvloop")
CALL_SECONDS = 170
STOP_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Contender:
    """One program on one server."""

    name: str
    python: str
    stage: Stage
    concurrency: int = 0

    @property
    def database(self) -> str:
        return f"bench_{self.name}"

    @property
    def command(self) -> list[str]:
        return [self.python, str(PEERS / f"{self.name}_adapter.py")]

    @property
    def environment(self) -> dict[str, str]:
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("JOBFORGE_", "DATABASE_"))},
            "BENCH_DSN": self.stage.url(self.database),
            "BENCH_CONC": str(self.concurrency),
            "PYTHONWARNINGS": "ignore",
        }

    def call(self, *arguments: str | float) -> dict[str, float]:
        """Run one command and return what it says."""
        return cast("dict[str, float]", self._ask(*arguments))

    def meta(self) -> dict[str, str]:
        return cast("dict[str, str]", self._ask("meta"))

    def _ask(self, *arguments: str | float) -> object:
        done = subprocess.run(
            [*self.command, *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=CALL_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{self.name} {arguments[0]} failed: {done.stderr[-2_000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    def prepare(self) -> None:
        """Give it an empty database with its schema."""
        self.stage.fresh_database(self.database)
        self.call("setup")

    def pending(self, query: str) -> int:
        # The text comes from the contender's own program, which is part of this folder.
        (row,) = self.stage.fetch(self.database, cast("LiteralString", query))
        return int(next(iter(row.values())))


class Workers:
    """Worker processes of one contender, seen from outside."""

    def __init__(self, contender: Contender, count: int, folder: Path) -> None:
        self._files = [folder / f"worker{number}" for number in range(count)]
        for file in self._files:
            file.write_bytes(bytes(8))
        self._errors = (folder / "errors").open("w+b")
        self.processes = [
            subprocess.Popen(
                [*contender.command, "worker", str(file)],
                env=contender.environment,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
            )
            for file in self._files
        ]

    def count(self) -> int:
        """Jobs handled so far."""
        return sum(int.from_bytes(file.read_bytes()[:8], sys.byteorder) for file in self._files)

    def latencies(self) -> list[float]:
        """Seconds from sending to start, of the probes."""
        found: list[float] = []
        for file in self._files:
            probes = file.with_name(f"{file.name}.lat")
            if probes.exists():
                found += [float(line) for line in probes.read_text().split()]
        return found

    def cpu(self) -> float:
        return sum(cpu_seconds(process.pid) for process in self.processes)

    def resident_mb(self) -> float:
        pids = [process.pid for process in self.processes]
        return resident_mb(pids + [child for pid in pids for child in descendants(pid)])

    def check(self) -> None:
        """Raise when one of them has ended."""
        if any(process.poll() is not None for process in self.processes):
            raise RuntimeError(f"a worker ended: {self.errors()}")

    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-2_000:]

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._errors.close()


@contextmanager
def running_workers(contender: Contender, count: int) -> Generator[Workers]:
    """Start workers, and stop them whatever happens."""
    with tempfile.TemporaryDirectory(prefix="jobforge-bench-") as folder:
        workers = Workers(contender, count, Path(folder))
        try:
            yield workers
        finally:
            workers.stop()


@dataclass(frozen=True, slots=True)
class Drain:
    """How a backlog of no-op jobs was worked off."""

    per_second: float
    worker_cpu_ms: float
    """CPU of the workers for each job."""
    server_cpu_ms: float
    log_bytes: float
    """Bytes of write-ahead log for each job."""
    commits: float
    """Transactions for each job."""
    resident_mb: float
    foreign_cpu: float
    """Share of the machine that neither workers nor server used meanwhile."""
    surplus: int
    """Jobs that ran more than once."""

    @property
    def cpu_ms(self) -> float:
        return self.worker_cpu_ms + self.server_cpu_ms


def measure_drain(
    contender: Contender,
    jobs: int,
    processes: int,
    *,
    max_seconds: float = 60,
    fill: Sequence[str] = ("bulk",),
) -> Drain:
    """Time from the first handled job to "nothing pending"; the workers' start-up is left out.

    ``fill`` is the command that enqueues the jobs.
    """
    contender.prepare()
    query = contender.meta()["pending_sql"]
    contender.call(*fill, jobs)
    stage = contender.stage
    before = stage.vitals(contender.database)
    with running_workers(contender, processes) as workers:
        deadline = time.monotonic() + max_seconds
        while workers.count() == 0:
            _wait(workers, deadline, 0.001)
        started, head = time.perf_counter(), workers.count()
        worker_cpu, server_cpu, all_cpu = workers.cpu(), stage.server_cpu(), machine_cpu_seconds()
        while workers.count() < jobs or contender.pending(query):
            _wait(workers, deadline, 0.004)
        seconds = time.perf_counter() - started
        worker_cpu, server_cpu = workers.cpu() - worker_cpu, stage.server_cpu() - server_cpu
        all_cpu = machine_cpu_seconds() - all_cpu
        resident, handled = workers.resident_mb(), workers.count()
    time.sleep(0.2)
    after = stage.vitals(contender.database)
    done = handled - head
    return Drain(
        per_second=done / seconds,
        worker_cpu_ms=1_000 * worker_cpu / done,
        server_cpu_ms=1_000 * server_cpu / done,
        log_bytes=(after.log_bytes - before.log_bytes) / handled,
        commits=(after.commits - before.commits) / handled,
        resident_mb=resident,
        foreign_cpu=max(0.0, all_cpu - worker_cpu - server_cpu) / (seconds * (os.cpu_count() or 1)),
        surplus=handled - jobs,
    )


def measure_pickup(contender: Contender, probes: int, *, max_seconds: float = 60) -> list[float]:
    """Seconds from sending to the handler's start, one job at a time on an idle queue."""
    contender.prepare()
    with running_workers(contender, 1) as workers:
        deadline = time.monotonic() + max_seconds
        warm = min(probes, 20)
        contender.call("probe", warm, 0.03)
        while len(workers.latencies()) < warm:
            _wait(workers, deadline, 0.05)
        contender.call("probe", probes, 0.03)
        while len(workers.latencies()) < warm + probes:
            _wait(workers, deadline, 0.05)
        return workers.latencies()[warm:]


def _wait(workers: Workers, deadline: float, seconds: float) -> None:
    workers.check()
    if time.monotonic() > deadline:
        raise RuntimeError(f"the workers took too long: {workers.errors()}")
    time.sleep(seconds)


def jobforge(stage: Stage, concurrency: int = 0) -> Contender:
    return Contender("jobforge", sys.executable, stage, concurrency)


def pgqueuer(stage: Stage, concurrency: int = 0) -> Contender:
    """Install PgQueuer into an environment of its own, once, and return it as a contender."""
    python = CACHE / "pgqueuer" / "bin" / "python"
    if not python.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", str(CACHE / "pgqueuer")], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", *PGQUEUER_PACKAGES], check=True
        )
    return Contender("pgqueuer", str(python), stage, concurrency)
