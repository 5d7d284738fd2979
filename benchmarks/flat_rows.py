"""Measures of staying flat: under a transaction that stays open, with many tenants, and behind a large backlog.

What is compared is compared in one run, on one server, with the same worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg

from benchmarks.contenders import Contender, Workers, jobforge, running_workers
from benchmarks.figures import Figure, Sizes, median
from benchmarks.stage import Stage

MAX_SECONDS = 120.0


def horizon(stage: Stage, sizes: Sizes) -> list[Figure]:
    """Rounds of enqueue and drain, free, and while an old transaction keeps every dead row readable."""
    free, free_cpu = _rounds(jobforge(stage), sizes, is_held=False)
    held, held_cpu = _rounds(jobforge(stage), sizes, is_held=True)
    usual = median(free)
    return [
        Figure("horizon", "enqueue and drain, free, median round", usual, "jobs/s"),
        Figure("horizon", "CPU of the server per job, free", median(free_cpu), "ms"),
        *(
            figure
            for number, (rate, cpu) in enumerate(zip(held, held_cpu, strict=True), 1)
            for figure in (
                Figure("horizon", f"under a held horizon, round {number}", rate, "jobs/s"),
                Figure("horizon", f"CPU of the server per job, round {number}", cpu, "ms"),
            )
        ),
        Figure("horizon", "held horizon: last round / first", held[-1] / held[0], "x", least=0.85),
        Figure("horizon", "held horizon: worst round / free", min(held) / usual, "x", least=0.8),
    ]


def newcomer(stage: Stage, sizes: Sizes) -> list[Figure]:
    """The last of ten jobs of a tenant that comes when others have much to do."""
    figures: list[Figure] = []
    for name, tenants, each, most in (
        ("one tenant with 100,000 jobs", 1, 5 * sizes.jobs, 50),
        (
            "1,000 tenants with 100 jobs each",
            min(1_000, sizes.jobs),
            max(1, sizes.jobs // 200),
            300,
        ),
    ):
        waits: list[float] = []
        for _ in range(sizes.passes):
            contender = jobforge(stage)
            contender.prepare()
            contender.call("tenants", tenants, each)
            with running_workers(contender, 1) as workers:
                _until(workers, lambda workers=workers: workers.count() > 0)
                contender.call("newcomer", 10)
                _until(workers, lambda workers=workers: len(workers.latencies()) == 10)
                waits.append(1_000 * max(workers.latencies()))
        figures.append(
            Figure("newcomer", f"last of 10 jobs behind {name}", median(waits), "ms", most=most)
        )
    return figures


def crowd(stage: Stage, sizes: Sizes) -> list[Figure]:
    """Drain of one tenant alone, and among 999 that are awake and have nothing."""
    alone: list[float] = []
    among: list[float] = []
    for _ in range(sizes.passes):
        for rates, others in ((alone, 0), (among, min(999, sizes.jobs))):
            contender = jobforge(stage)
            contender.prepare()
            if others:
                contender.call("tenants", others, 1)
            with running_workers(contender, 1) as workers:
                if others:
                    _until(workers, lambda w=workers, n=others: w.count() == n)
                rates.append(_round(contender, workers, sizes.jobs))
    return [
        Figure("crowd", "enqueue and drain of one tenant", median(alone), "jobs/s"),
        Figure(
            "crowd", "the same among 999 awake and empty ones", median(among) / median(alone), "x",
            least=0.7,
        ),
    ]  # fmt: skip


def backlog(stage: Stage, sizes: Sizes) -> list[Figure]:
    """Drain with nothing else, with a million rows of the future, and out of a million that are due."""
    rows = 50 * sizes.jobs
    rates: dict[str, list[float]] = {"empty": [], "future": [], "ready": []}
    for _ in range(sizes.passes):
        for kind, found in rates.items():
            contender = jobforge(stage)
            contender.prepare()
            if kind != "empty":
                _clone(contender, rows, is_future=kind == "future")
            with running_workers(contender, 1) as workers:
                if kind == "ready":
                    _until(workers, lambda w=workers: w.count() > 0)
                    began, head = time.perf_counter(), workers.count()
                    _until(workers, lambda w=workers, h=head: w.count() >= h + sizes.jobs)
                    found.append((workers.count() - head) / (time.perf_counter() - began))
                else:
                    contender.call("bulk", sizes.jobs)
                    _until(workers, lambda w=workers: w.count() > 0)
                    began, head = time.perf_counter(), workers.count()
                    _until(workers, lambda w=workers: w.count() >= sizes.jobs)
                    found.append((workers.count() - head) / (time.perf_counter() - began))
    empty = median(rates["empty"])
    figures = [
        Figure(
            "backlog", f"{rows:,} {kind} rows: drain / that of an empty queue",
            median(rates[kind]) / empty, "x", least=0.9,
        )
        for kind in ("future", "ready")
    ]  # fmt: skip
    return [Figure("backlog", "drain of an empty queue", empty, "jobs/s"), *figures]


def _clone(contender: Contender, rows: int, *, is_future: bool) -> None:
    """Make a backlog of one job by SQL: a million calls would take minutes."""
    contender.call("backlog", 1, int(is_future))
    with psycopg.connect(contender.stage.url(contender.database), autocommit=True) as connection:
        connection.execute(
            """
            with template as (select j.* from jobforge.jobs j limit 1), copies as (
              insert into jobforge.jobs (tenant_id, id, job_type, job_version, payload, priority, max_attempts, timeout_ms, backoff_ms,
                max_backoff_ms, backoff_multiplier, run_at, created_at)
              select t.tenant_id, jobforge.new_id(), t.job_type, t.job_version, t.payload, t.priority, t.max_attempts, t.timeout_ms,
                t.backoff_ms, t.max_backoff_ms, t.backoff_multiplier, t.run_at, t.created_at
              from template t cross join generate_series(1, %s)
              returning tenant_id, id, job_type, priority, run_at)
            insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no)
            select c.tenant_id, c.job_type, c.priority, c.run_at, c.id, 0, 0 from copies c""",
            [rows],
        )
        connection.execute("vacuum analyze jobforge.jobs")
        connection.execute("vacuum analyze jobforge.ready")
        connection.execute("checkpoint")


def _rounds(
    contender: Contender, sizes: Sizes, *, is_held: bool
) -> tuple[list[float], list[float]]:
    """Return the rates of the rounds, and what a job of each cost the server."""
    rates: list[float] = []
    costs: list[float] = []
    contender.prepare()
    with running_workers(contender, 1) as workers:
        _round(contender, workers, sizes.round_jobs)
        with _old_transaction(contender.stage.url(contender.database), is_held=is_held):
            for _ in range(sizes.rounds):
                before = contender.stage.server_cpu()
                rates.append(_round(contender, workers, sizes.round_jobs))
                costs.append(1_000 * (contender.stage.server_cpu() - before) / sizes.round_jobs)
    return rates, costs


def _round(contender: Contender, workers: Workers, jobs: int) -> float:
    """Jobs a second while they are enqueued and run, from the first that ran to the last."""
    done = workers.count()
    with ThreadPoolExecutor(1) as background:
        enqueueing = background.submit(contender.call, "bulk", jobs)
        _until(workers, lambda: workers.count() > done)
        head, began = workers.count(), time.perf_counter()
        _until(workers, lambda: workers.count() >= done + jobs)
        rate = (done + jobs - head) / (time.perf_counter() - began)
        enqueueing.result()
    return rate


@contextmanager
def _old_transaction(url: str, *, is_held: bool) -> Generator[None]:
    if not is_held:
        yield
        return
    with psycopg.connect(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("select count(*) from jobforge.ready")
        yield


def _until(workers: Workers, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + MAX_SECONDS
    while not is_so():
        workers.check()
        if time.monotonic() > deadline:
            raise RuntimeError("the workers did not get there in time")
        time.sleep(0.002)
