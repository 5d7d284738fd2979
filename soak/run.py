"""``python3 dev.py soak``: break everything at random for some minutes, let it heal, and check every promise.

Ends with 0 only if no promise was broken. With ``--mutant`` a bug is planted first, and 0 means that it was caught.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import anyio

from jobforge_mcp.db.migrate import migrate
from jobforge_mcp.embedded import scratch_state_directory
from soak.checker import Breach, check, read_record
from soak.crew import LEASE_SECONDS, Crew
from soak.history import History
from soak.mutants import MUTANTS, Mutant
from soak.nemesis import Nemesis
from soak.proxy import Proxy
from soak.server import Server, free_port

HERE = Path(__file__).parent
DRAIN_SECONDS = 120.0
MUTANT_MINUTES = 0.4
MUTANT_DRAIN_SECONDS = 45.0
TENANTS = [["acme", "globex"], ["initech", "umbrella"]]
SHOWN = 20


@dataclass
class Summary:
    """What one soak came to."""

    seconds: float
    seed: int
    jobs: int = 0
    claims: int = 0
    statuses: dict[str, int] = field(default_factory=dict[str, int])
    faults: dict[str, int] = field(default_factory=dict[str, int])
    workers_killed_by_jobs: int = 0
    drain_seconds: float = 0
    is_drained: bool = False
    breaches: dict[str, int] = field(default_factory=dict[str, int])


async def soak(
    folder: Path, options: argparse.Namespace, mutant: Mutant | None
) -> tuple[Summary, list[Breach]]:
    """Run one soak in a folder of its own."""
    chance = random.Random(options.seed)
    history = History(folder / "history", "conductor")
    server = Server(folder)
    server.start()
    server.wait_until_ready()
    migrate(server.url())
    server.execute((HERE / "observe.sql").read_text())  # pyright: ignore[reportArgumentType] - a file of ours
    if mutant is not None:
        mutant.plant(server)
    proxy = Proxy(free_port(), server.port)
    crew = Crew(folder / "history", _environment(folder, server, proxy), workers=options.workers)
    nemesis = Nemesis(server, proxy, crew, history, chance, mutant.faults if mutant else {})
    summary = Summary(options.minutes * 60, options.seed)
    try:
        async with anyio.create_task_group() as group:
            await group.start(proxy.run)
            crew.keep()
            crew.start_callers(options.seed, TENANTS)
            group.start_soon(_keep, crew)
            await _until_busy(server)
            await nemesis.run(summary.seconds, options.pause)
            await anyio.to_thread.run_sync(crew.stop_callers)
            summary.drain_seconds, summary.is_drained = await _drain(
                server, DRAIN_SECONDS if mutant is None else MUTANT_DRAIN_SECONDS
            )
            group.cancel_scope.cancel()
        await anyio.to_thread.run_sync(crew.stop)
        record = read_record(server, folder / "history")
        breaches = check(record)
    finally:
        crew.stop()
        server.stop()
    summary.jobs = len(record.jobs)
    summary.claims = sum(job["epoch"] for job in record.jobs.values())
    summary.statuses = dict(Counter(str(job["final_status"]) for job in record.jobs.values()))
    summary.faults = dict(nemesis.counts)
    summary.workers_killed_by_jobs = crew.deaths
    summary.breaches = dict(Counter(breach.promise for breach in breaches))
    return summary, breaches


async def _until_busy(server: Server) -> None:
    """Wait until jobs come in and are run: a fault before that would only be a bad start."""
    with anyio.fail_after(60):
        while server.fetch("select count(*) as n from soak.ends")[0]["n"] < 20:  # noqa: ASYNC110 - the database tells nobody
            await anyio.sleep(0.2)


async def _keep(crew: Crew) -> None:
    while True:
        crew.keep()
        await anyio.sleep(0.2)


async def _drain(server: Server, seconds: float) -> tuple[float, bool]:
    """Wait until every place is empty."""
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        await anyio.sleep(0.5)
        left = server.fetch(
            "select (select count(*) from jobforge.ready) + (select count(*) from jobforge.leases)"
            " + (select count(*) from jobforge.waiting) as n"
        )
        if left[0]["n"] == 0:
            return time.monotonic() - began, True
    return time.monotonic() - began, False


def _environment(folder: Path, server: Server, proxy: Proxy) -> dict[str, str]:
    return {
        "DATABASE_URL": server.url("jobforge_api", port=proxy.port),
        "JOBFORGE_WORKER_DATABASE_URL": server.url("jobforge_worker", port=proxy.port),
        "JOBFORGE_STATE_DIR": str(folder / "state"),
        "JOBFORGE_JOBS": str(HERE / "jobs.py"),
        "JOBFORGE_LEASE_MS": str(int(LEASE_SECONDS * 1_000)),
        "JOBFORGE_HEARTBEAT_MS": "700",
        "JOBFORGE_POLL_MS": "200",
        "JOBFORGE_DRAIN_GRACE_SECONDS": "3",
        "JOBFORGE_LOG_LEVEL": "error",
        "JOBFORGE_NODE": "off",
        "SOAK_HISTORY": str(folder / "history"),
        "PYTHONPATH": str(HERE.parent),
        "PYTHONWARNINGS": "ignore",
    }


def main(arguments: list[str]) -> int:
    """Run one soak, or one for each mutant."""
    parser = argparse.ArgumentParser(prog="python3 dev.py soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument(
        "--seed", type=int, default=None, help="of the faults; a new one each time if absent"
    )
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--pause", type=float, default=0.8, help="seconds between two faults")
    parser.add_argument("--keep", type=Path, help="write summary and histories here")
    parser.add_argument(
        "--mutant", choices=[*MUTANTS, "all"], help="plant this bug, which must be caught"
    )
    options = parser.parse_args(arguments)
    options.seed = (
        options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    )
    if options.mutant is None:
        return _one(options, None)
    options.minutes = MUTANT_MINUTES
    names = list(MUTANTS) if options.mutant == "all" else [options.mutant]
    results = {name: _one(options, MUTANTS[name]) for name in names}
    missed = [name for name, code in results.items() if code != 0]
    print(f"{len(names) - len(missed)} of {len(names)} planted bugs were caught")
    for name in missed:
        print(f"  missed: {name}: {MUTANTS[name].what}")
    return 1 if missed else 0


def _one(options: argparse.Namespace, mutant: Mutant | None) -> int:
    folder = scratch_state_directory()
    try:
        summary, breaches = anyio.run(soak, folder, options, mutant)
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / "summary.json").write_text(json.dumps(asdict(summary), indent=2) + "\n")
            shutil.copytree(folder / "history", options.keep / "history", dirs_exist_ok=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if mutant is not None:
        is_caught = bool(breaches)
        by = ", ".join(summary.breaches) or "nothing"
        print(
            f"{'caught' if is_caught else 'MISSED'}: {mutant.what} (by {by}; {summary.jobs} jobs)"
        )
        return 0 if is_caught else 1
    _show(summary, breaches)
    return 1 if breaches else 0


def _show(summary: Summary, breaches: list[Breach]) -> None:
    print(f"soak of {summary.seconds:.0f} s, seed {summary.seed}")
    print(f"  {summary.jobs:,} jobs, {summary.claims:,} claims, ended: {summary.statuses}")
    print(f"  {sum(summary.faults.values())} faults: {summary.faults}")
    print(f"  {summary.workers_killed_by_jobs} workers ended by themselves (jobs that kill them)")
    print(f"  drained in {summary.drain_seconds:.1f} s: {'yes' if summary.is_drained else 'NO'}")
    print(f"  {len(breaches)} breaches: {summary.breaches}")
    for breach in breaches[:SHOWN]:
        print(f"    {breach.promise}: {breach.what}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
