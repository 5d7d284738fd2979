"""Measures of the queue alone: enqueue, bulk, drain, pickup, and the same beside another contender."""

from __future__ import annotations

import time

from benchmarks.contenders import (
    Contender,
    Drain,
    jobforge,
    measure_drain,
    measure_pickup,
    running_workers,
)
from benchmarks.figures import Figure, Sizes, median, percentile
from benchmarks.stage import Stage

PICKUP_P99_MS = 15
IDLE_COMMITS = 1
IDLE_CPU_PERCENT = 0.5


def enqueue(stage: Stage, sizes: Sizes) -> list[Figure]:
    """One job per call and commit, from one caller and from eight of one process."""
    contender = jobforge(stage)
    contender.prepare()
    found: list[Figure] = []
    for callers in (1, 8):
        answer = contender.call("enqueue1", sizes.seconds, callers)
        name = f"enqueue one by one, {callers} caller{'s' if callers > 1 else ''}"
        found.append(Figure("enqueue", name, answer["n"] / answer["s"], "jobs/s"))
    return found


def bulk(stage: Stage, sizes: Sizes) -> list[Figure]:
    """A thousand jobs per call and commit."""
    contender = jobforge(stage)
    contender.prepare()
    answer = contender.call("bulk", sizes.bulk)
    return [Figure("bulk", "enqueue in bulk", answer["n"] / answer["s"], "jobs/s")]


def drain(stage: Stage, sizes: Sizes) -> list[Figure]:
    """No-op jobs through ``jobforge worker`` with its defaults, one process and two."""
    found: list[Figure] = []
    for processes in (1, 2):
        drained = measure_drain(jobforge(stage), sizes.jobs, processes)
        name = f"drain of {sizes.jobs:,} jobs, {processes} process{'es' if processes > 1 else ''}"
        found += [
            Figure("drain", name, drained.per_second, "jobs/s"),
            Figure("drain", f"{name}: CPU per job, workers", drained.worker_cpu_ms, "ms"),
            Figure("drain", f"{name}: CPU per job, server", drained.server_cpu_ms, "ms"),
            Figure("drain", f"{name}: jobs run twice", drained.surplus, "", most=0),
        ]
    return found


def pickup(stage: Stage, sizes: Sizes) -> list[Figure]:
    """From sending to the handler's start in another process, on an idle queue."""
    found = [1_000 * seconds for seconds in measure_pickup(jobforge(stage), sizes.probes)]
    return [
        Figure("pickup", "pickup, p50", median(found), "ms"),
        Figure("pickup", "pickup, p99", percentile(found, 0.99), "ms", most=PICKUP_P99_MS),
    ]


def idle(stage: Stage, sizes: Sizes) -> list[Figure]:
    """What a worker costs that has had work and has none; the counters are let come in first."""
    contender = jobforge(stage)
    contender.prepare()
    with running_workers(contender, 1) as workers:
        contender.call("probe", 2, 0.03)
        while workers.count() < 2:
            workers.check()
            time.sleep(0.05)
        time.sleep(sizes.idle_seconds / 2)
        before, cpu, started = stage.vitals(contender.database), workers.cpu(), time.monotonic()
        time.sleep(sizes.idle_seconds)
        seconds = time.monotonic() - started
        cpu, after = workers.cpu() - cpu, stage.vitals(contender.database)
    commits = (after.commits - before.commits) / seconds
    return [
        Figure("idle", "idle worker: commits", commits, "/s", most=IDLE_COMMITS),
        Figure("idle", "idle worker: CPU", 100 * cpu / seconds, "%", most=IDLE_CPU_PERCENT),
    ]


def compare(ours: Contender, theirs: Contender, sizes: Sizes) -> list[Figure]:
    """Drain and pickup of both, in turn, on the same server; medians of the passes and their ratios."""
    pair = (ours, theirs)
    drains: dict[str, list[Drain]] = {each.name: [] for each in pair}
    pickups: dict[str, list[list[float]]] = {each.name: [] for each in pair}
    for _ in range(sizes.passes):
        for each in pair:
            drains[each.name].append(measure_drain(each, sizes.jobs, 1))
        for each in pair:
            pickups[each.name].append(measure_pickup(each, sizes.probes))
    figures: list[Figure] = []
    rates, loads, tails = ([0.0, 0.0] for _ in range(3))
    for place, each in enumerate(pair):
        done, waits = drains[each.name], pickups[each.name]
        rates[place] = median(d.per_second for d in done)
        loads[place] = median(d.cpu_ms for d in done)
        tails[place] = median(1_000 * percentile(w, 0.99) for w in waits)
        p50 = median(1_000 * median(w) for w in waits)
        figures += [
            _figure(f"{each.name}: drain, 1 process", rates[place], "jobs/s"),
            _figure(
                f"{each.name}: CPU per job, worker", median(d.worker_cpu_ms for d in done), "ms"
            ),
            _figure(
                f"{each.name}: CPU per job, server", median(d.server_cpu_ms for d in done), "ms"
            ),
            _figure(f"{each.name}: log per job", median(d.log_bytes for d in done), "bytes"),
            _figure(f"{each.name}: share of CPU used by others", _foreign(done), ""),
            _figure(f"{each.name}: pickup p50", p50, "ms"),
            _figure(f"{each.name}: pickup p99", tails[place], "ms"),
        ]
    versus = f"{ours.name} / {theirs.name}"
    return [
        *figures,
        Figure("against", f"{versus}: drain rate", rates[0] / rates[1], "x", least=1),
        _figure(f"{versus}: CPU per job", loads[0] / max(loads[1], 1e-9), "x"),
        _figure(f"{versus}: pickup p99", tails[0] / tails[1], "x"),
    ]


def _foreign(done: list[Drain]) -> float:
    return median(each.foreign_cpu for each in done)


def _figure(name: str, value: float, unit: str) -> Figure:
    return Figure("against", name, value, unit)
