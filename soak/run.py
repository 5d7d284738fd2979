"""``python3 dev.py soak``: break everything at random for some minutes, let it heal, and check every promise.

Ends with 0 only if no promise was broken. With ``--mutant`` a bug is planted first, and 0 means that it was caught.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Collection, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import anyio
import psycopg

from jobforge_mcp.db.context import ContextKey, ContextSigner, create_key, enforce_keys
from jobforge_mcp.db.migrate import migrate
from jobforge_mcp.embedded import scratch_state_directory
from soak.checker import EARLY, PROMISES, Breach, check
from soak.clock import speed_up, start_schedules, stop_schedules
from soak.crew import GRACE_SECONDS, LEASE_SECONDS, Crew
from soak.drain import describe, drain
from soak.history import History, read_histories
from soak.impostor import impersonate
from soak.mutants import CHOSEN, MUTANTS, Mutant
from soak.nemesis import Nemesis
from soak.phases import Phases
from soak.promises.claims import rescue_seconds
from soak.proxy import Proxy
from soak.record import Record, read_record
from soak.server import Server, Snapshot, free_port
from soak.stage import CATCH_UPS, CHAIN, enqueue_last, issue_tokens, prepare

HERE = Path(__file__).parent
DRAIN_SECONDS = 240.0
LONG_MINUTES = 5.0
"""From so many minutes on there is a rolling restart, a migration and a failover."""
MUTANT_DRAIN_SECONDS, MUTANT_STILL_SECONDS = 25.0, 8.0
"""What a planted bug gets to drain, and how long nothing may move until it is seen that it never will."""
BUSY_SECONDS, AGENTS_SECONDS = 180.0, 60.0
"""What jobs and agents get to start, on a machine that does much else."""
TENANTS = [["acme", "globex"], ["initech", "umbrella"]]
_MUTANT_DOORS = {"http": ["acme", "initech"]}
SCHEDULED = ["acme", "initech"]
DOORS = {"http": ["acme", "initech"], "stdio": ["globex", "umbrella"]}
ENOUGH_ANSWERS = 80
"""Answers to agents among which one must have been of a job that began where it was asked for."""
SHOWN = 20
WATCH_SECONDS = 1.0
"""Between two looks whether a planted bug has shown itself."""
END, KILL = signal.SIGTERM, signal.SIGKILL


@dataclass
class Summary:
    """What one soak came to."""

    seconds: float
    seed: int
    jobs: int = 0
    claims: int = 0
    events: int = 0
    times: int = 0
    """Times of schedules that were decided."""
    schedules: int = 0
    """Schedules of which at least one time was."""
    bundles: int = 0
    chains: int = 0
    """Chains of registered jobs that succeeded."""
    unkeyed: int = 0
    """Jobs that were enqueued without an idempotency key, one by one or in bulk."""
    inline: int = 0
    """Those of them that were inserted already leased to the pool of a server or node."""
    answers: dict[str, int] = field(default_factory=dict[str, int])
    """Runs and events that agents were told, by door."""
    statuses: dict[str, int] = field(default_factory=dict[str, int])
    faults: dict[str, int] = field(default_factory=dict[str, int])
    phases: list[str] = field(default_factory=list[str])
    workers_killed_by_jobs: int = 0
    stale_answers: int = 0
    """Answers to a worker that had lost what it spoke of: each refused."""
    rescues: int = 0
    rescue_p99_seconds: float = 0
    left: dict[str, int] = field(default_factory=dict[str, int])
    """What was open when the callers had stopped, by place and kind."""
    drain_seconds: float = 0
    is_drained: bool = False
    breaches: dict[str, int] = field(default_factory=dict[str, int])


async def lay_out(server: Server) -> None:
    """Give a server that runs all that a soak needs to find in it."""
    migrate(server.url())
    server.execute((HERE / "observe.sql").read_text())  # pyright: ignore[reportArgumentType] - a file of ours
    await prepare(server.url("jobforge_api"), HERE / "jobs.py", _tenants(), SCHEDULED)
    speed_up(server)


async def soak(
    folder: Path, options: argparse.Namespace, mutant: Mutant | None, template: Path | None = None
) -> tuple[Summary, list[Breach]]:
    """Run one soak in a folder of its own; with a mutant it ends as soon as that is caught."""
    chance = random.Random(options.seed)
    history = History(folder / "history", "conductor")
    server = Server(folder, template)
    server.start()
    server.wait_until_ready()
    if template is None:
        await lay_out(server)
    key = create_key(server.url())
    enforce_keys(server.url())  # as an installation that is set up to the end does
    start_schedules(server)
    if mutant is not None and not options.unplanted:
        mutant.plant(server)
    proxy, port = Proxy(free_port(), server.port), free_port()
    environment = _environment(folder, server, proxy, port, key)
    if mutant is not None:
        environment |= {
            "SOAK_POISONS": str(mutant.poisons),
            "SOAK_TIMEOUT": mutant.timeout,
            "SOAK_LOAD": str(mutant.load),
        }
        if not options.unplanted:
            environment |= mutant.change_sources(folder / "mutated")
    tokens = issue_tokens(folder / "keys", _tenants())
    environment |= {f"SOAK_TOKEN_{tenant.upper()}": token for tenant, token in tokens.items()}
    crew = Crew(folder / "history", environment, history, workers=options.workers)
    nemesis = Nemesis(server, proxy, crew, history, chance, mutant.faults if mutant else {})
    phases = Phases(server, proxy, crew, history, folder).plan if options.long else ()
    summary = Summary(options.minutes * 60, options.seed)
    bounds = (
        (DRAIN_SECONDS, DRAIN_SECONDS)
        if mutant is None
        else (MUTANT_DRAIN_SECONDS, MUTANT_STILL_SECONDS)
    )
    breaches: list[Breach] = []
    fallen: list[str] = []
    try:
        async with anyio.create_task_group() as proxying:
            await proxying.start(proxy.run)
            async with anyio.create_task_group() as group:
                crew.keep()
                crew.start_callers(options.seed, TENANTS)
                doors = DOORS if mutant is None else _MUTANT_DOORS if mutant.needs_agents else {}
                if doors:
                    crew.start_agents(port, options.seed, doors)
                group.start_soon(_keep, crew)
                group.start_soon(impersonate, server, history)
                await _until_busy(server, folder, doors)
                with anyio.CancelScope() as busy:
                    if mutant is not None:
                        watched = EARLY if options.unplanted else mutant.by & EARLY
                        group.start_soon(_watch, server, folder, watched, busy, breaches)
                    await nemesis.run(summary.seconds, options.pause, phases)
                    fallen = crew.fallen()
                    await anyio.to_thread.run_sync(crew.stop_callers)
                    stop_schedules(server)
                    wait = partial(drain, server, history, *bounds, is_told=options.verbose)
                    drained = await wait()
                    summary.left, summary.drain_seconds = dict(drained.left), drained.seconds
                    if drained.is_whole and (mutant is None or "no loss" in mutant.by):
                        await _lose_one_alone(server, folder, key)
                        drained = await wait()
                        summary.drain_seconds += drained.seconds
                    summary.is_drained = drained.is_whole
                group.cancel_scope.cancel()
            # While the proxy still serves: without a database none of them ends soon.
            await anyio.to_thread.run_sync(crew.stop, KILL if breaches else END)
            proxying.cancel_scope.cancel()
        if not breaches:
            # Who took an event and was killed keeps it for half a minute: a short drain does not wait for that.
            left_out = {"events"} if mutant is not None and not summary.is_drained else set[str]()
            breaches = _checked(server, folder, PROMISES.keys() - left_out, summary)
            if mutant is None:
                breaches += _idle(summary)
                breaches += [Breach("idle", f"{name} ended by itself") for name in fallen]
    finally:
        crew.stop(KILL)
        server.stop(signal.SIGQUIT)
    summary.faults = dict(nemesis.counts)
    summary.phases = [name for _, name, _ in phases]
    summary.workers_killed_by_jobs = crew.deaths
    summary.breaches = dict(Counter(breach.promise for breach in breaches))
    return summary, breaches


def _checked(
    server: Server,
    folder: Path,
    names: Collection[str] = tuple(PROMISES),
    summary: Summary | None = None,
    *,
    is_at_rest: bool = True,
) -> list[Breach]:
    snapshot = Snapshot(server)
    try:
        record = read_record(snapshot, folder / "history", is_at_rest=is_at_rest)
        if summary is not None:
            _sum_up(summary, record)
        return check(record, names)
    finally:
        snapshot.close()


async def _watch(
    server: Server,
    folder: Path,
    names: Set[str],
    busy: anyio.CancelScope,
    breaches: list[Breach],
) -> None:
    """Look again and again whether a bug has shown itself, and end everything when it has."""
    look = partial(_checked, server, folder, names, is_at_rest=False)
    while names:
        await anyio.sleep(WATCH_SECONDS)
        with suppress(psycopg.Error):  # it was just broken
            found = await anyio.to_thread.run_sync(look)
            if found:
                breaches += found
                busy.cancel()
                return


def _tenants() -> list[str]:
    return [tenant for group in TENANTS for tenant in group]


def _sum_up(summary: Summary, record: Record) -> None:
    summary.jobs = len(record.jobs)
    summary.claims = sum(job["epoch"] for job in record.jobs.values())
    summary.events = len(record.events_told)
    decided = record.rows(
        "select count(*) as times, count(distinct (f.tenant_id, f.trigger_name)) as schedules"
        " from jobforge.trigger_fires f where f.kind = 'cron'"
    )[0]
    summary.times, summary.schedules = decided["times"], decided["schedules"]
    summary.bundles = len(record.bundles)
    summary.chains = sum(
        job["job_type"] == CHAIN and job["final_status"] == "succeeded"
        for job in record.jobs.values()
    )
    unkeyed = [
        job
        for job in record.jobs.values()
        if job["nonce"] in record.enqueues and not record.enqueues[job["nonce"]].get("keyed", True)
    ]
    summary.unkeyed = len(unkeyed)
    summary.inline = sum(
        record.claims[job["id"]][0]["claimed_at"] == job["created_at"]
        for job in unkeyed
        if job["id"] in record.claims
    )
    summary.answers = dict(record.doors)
    summary.statuses = dict(Counter(str(job["final_status"]) for job in record.jobs.values()))
    summary.stale_answers = sum(len(line["answers"]) for line in record.impostor)
    rescues = rescue_seconds(record)
    summary.rescues = len(rescues)
    summary.rescue_p99_seconds = round(rescues[int(len(rescues) * 0.99)], 2) if rescues else 0


def _idle(summary: Summary) -> list[Breach]:
    """Tell what never happened, so that nothing was checked of it."""
    seen = {
        "events": summary.events,
        "times of schedules": summary.times,
        "bundles": summary.bundles,
        "chains": summary.chains,
        "jobs without an idempotency key": summary.unkeyed,
        "answers over HTTP": summary.answers.get("http", 0),
        "answers over stdio": summary.answers.get("stdio", 0),
        "answers to a worker that had lost its jobs": summary.stale_answers,
    }
    breaches = [
        Breach("idle", f"there were no {name}") for name, count in seen.items() if not count
    ]
    if not summary.inline and sum(summary.answers.values()) >= ENOUGH_ANSWERS:
        breaches.append(Breach("idle", "no job was inserted already leased"))
    if summary.schedules < len(SCHEDULED) * len(CATCH_UPS):
        breaches.append(Breach("idle", f"only {summary.schedules} schedules decided anything"))
    return breaches


async def _until_busy(server: Server, folder: Path, doors: Collection[str]) -> None:
    """Wait until jobs come in and are run, and agents are answered: a fault before that would only be a bad start."""
    with anyio.fail_after(BUSY_SECONDS):
        while server.fetch("select count(*) as n from soak.ends")[0]["n"] < 20:  # noqa: ASYNC110 - the database tells nobody
            await anyio.sleep(0.2)
    with anyio.move_on_after(AGENTS_SECONDS):
        while not _answered(folder).issuperset(doors):  # noqa: ASYNC110 - files tell nobody
            await anyio.sleep(0.5)


def _answered(folder: Path) -> set[str]:
    """Return the doors at which an agent was told something."""
    lines = read_histories(folder / "history", "caller")
    return {line["door"] for line in lines if line["what"] == "told" and "door" in line}


async def _keep(crew: Crew) -> None:
    while True:
        crew.keep()
        await anyio.sleep(0.2)


async def _lose_one_alone(server: Server, folder: Path, key: ContextKey) -> None:
    """Let the last job of all be lost with its worker, as often as it may be."""
    history = History(folder / "history", "caller")
    url = server.url("jobforge_api")
    await enqueue_last(url, HERE / "jobs.py", TENANTS[0][0], history, ContextSigner(key))


def _environment(
    folder: Path, server: Server, proxy: Proxy, port: int, key: ContextKey
) -> dict[str, str]:
    return {
        "DATABASE_URL": server.url("jobforge_api", port=proxy.port),
        "JOBFORGE_WORKER_DATABASE_URL": server.url("jobforge_worker", port=proxy.port),
        "JOBFORGE_STATE_DIR": str(folder / "state"),
        "JOBFORGE_TOKEN_KEYS": str(folder / "keys"),
        "JOBFORGE_CONTEXT_KEY": key.text(),
        "JOBFORGE_JOBS": str(HERE / "jobs.py"),
        "JOBFORGE_LEASE_MS": str(int(LEASE_SECONDS * 1_000)),
        "JOBFORGE_HEARTBEAT_MS": "700",
        "JOBFORGE_POLL_MS": "200",
        "JOBFORGE_DRAIN_GRACE_SECONDS": f"{GRACE_SECONDS:g}",
        "JOBFORGE_WORKER_CONCURRENCY": "4",
        "JOBFORGE_LOG_LEVEL": "error",
        "JOBFORGE_NODE": "off",
        "JOBFORGE_EVENTS_ENABLED": "true",
        "JOBFORGE_TRIGGERS_ENABLED": "true",
        "JOBFORGE_REGISTER_JOB_ENABLED": "true",
        "SOAK_HISTORY": str(folder / "history"),
        "SOAK_URL": f"http://127.0.0.1:{port}/mcp",
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
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.6, help="seconds between two faults")
    parser.add_argument(
        "--long",
        action="store_true",
        help="a rolling restart, a migration and a failover as well; by itself from 5 minutes on",
    )
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="tell how a bug was caught, and every five seconds of the drain what is left",
    )
    parser.add_argument("--keep", type=Path, help="write summary and histories here")
    parser.add_argument(
        "--mutant",
        choices=[*MUTANTS, "all", "some"],
        action="append",
        help="plant this bug, which must be caught; some: those that CI plants",
    )
    parser.add_argument(
        "--unplanted",
        action="store_true",
        help="do all that is done for a bug but plant it: nothing may be found then",
    )
    options = parser.parse_args(arguments)
    options.long = options.long or options.minutes >= LONG_MINUTES
    options.seed = (
        options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    )
    if options.mutant is None:
        return _one(options)
    names = [name for given in options.mutant for name in _named(given)]
    return _examine(options, names)


def _named(given: str) -> list[str]:
    groups: dict[str, list[str]] = {"all": list(MUTANTS), "some": [*CHOSEN]}
    return groups.get(given, [given])


def _examine(options: argparse.Namespace, names: list[str]) -> int:
    """Plant one bug after the other, each in a copy of one cluster."""
    missed: list[str] = []
    template = scratch_state_directory()
    try:
        server = Server(template)
        server.start()
        server.wait_until_ready()
        anyio.run(lay_out, server)
        server.stop()
        for name in names:
            options.minutes, options.long = MUTANTS[name].seconds / 60, False
            if not _is_caught(options, name, template):
                missed.append(name)
    finally:
        shutil.rmtree(template, ignore_errors=True)
    print(f"{len(names) - len(missed)} of {len(names)} planted bugs were caught", flush=True)
    for name in missed:
        print(f"  missed: {name}: {MUTANTS[name].what}")
    return 1 if missed else 0


def _is_caught(options: argparse.Namespace, name: str, template: Path) -> bool:
    mutant = MUTANTS[name]
    began = time.monotonic()
    summary, breaches = _in_scratch(options, mutant, template)
    is_caught = bool(mutant.by & summary.breaches.keys())
    if options.unplanted:
        is_caught = not summary.breaches
    by = ", ".join(summary.breaches) or "nothing"
    took = time.monotonic() - began
    verdict = "quiet" if options.unplanted else "caught"
    print(f"{verdict if is_caught else 'MISSED'} in {took:.0f} s: {name}: {mutant.what} (by {by})")
    for breach in breaches[:SHOWN] if options.verbose else []:
        print(f"    {breach.promise}: {breach.what}")
    sys.stdout.flush()
    return is_caught


def _one(options: argparse.Namespace) -> int:
    summary, breaches = _in_scratch(options, None, None)
    _show(summary, breaches)
    return 1 if breaches else 0


def _in_scratch(
    options: argparse.Namespace, mutant: Mutant | None, template: Path | None
) -> tuple[Summary, list[Breach]]:
    folder = scratch_state_directory()
    try:
        summary, breaches = anyio.run(soak, folder, options, mutant, template)
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / "summary.json").write_text(json.dumps(asdict(summary), indent=2) + "\n")
    finally:
        if (
            options.keep is not None and (folder / "history").exists()
        ):  # most of all if the check has failed
            shutil.copytree(folder / "history", options.keep / "history", dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    return summary, breaches


def _show(summary: Summary, breaches: list[Breach]) -> None:
    print(f"soak of {summary.seconds:.0f} s, seed {summary.seed}")
    print(f"  {summary.jobs:,} jobs, {summary.claims:,} claims, ended: {summary.statuses}")
    print(
        f"  {summary.events:,} events, {summary.times:,} times of schedules, {summary.bundles:,} bundles,"
        f" {summary.chains:,} chains"
    )
    print(
        f"  {summary.unkeyed:,} jobs without an idempotency key, {summary.inline:,} of them inserted already leased"
    )
    print(f"  answers to agents by door: {summary.answers}")
    print(f"  {sum(summary.faults.values())} faults: {summary.faults}")
    if summary.phases:
        print(f"  and one {', one '.join(summary.phases)}")
    print(f"  {summary.workers_killed_by_jobs} workers ended by themselves (jobs that kill them)")
    print(f"  {summary.stale_answers:,} answers to a worker that had lost its jobs")
    print(
        f"  {summary.rescues} leases taken apart after their end, p99 {summary.rescue_p99_seconds} s later"
    )
    print(f"  left when all was mended: {describe(summary.left)}")
    print(f"  drained in {summary.drain_seconds:.1f} s: {'yes' if summary.is_drained else 'NO'}")
    print(f"  {len(breaches)} breaches: {summary.breaches}")
    for breach in breaches[:SHOWN]:
        print(f"    {breach.promise}: {breach.what}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
