"""What limits cost by how many keys there are, and what they cost those that have none."""

from __future__ import annotations

from benchmarks.contenders import Drain, jobforge, measure_drain
from benchmarks.figures import TINY, Figure, Sizes, median
from benchmarks.stage import Stage

KEYS = (1, 10, 1_000)
KINDS = {"single": "1 at a time", "ten": "as many at a time as a worker has slots"}
TENANTS = {"other": "another tenant's job", "bench": "another job of their tenant"}
LEAST_BESIDE = 0.9
MAX_SECONDS = 120


def keys(stage: Stage, sizes: Sizes) -> list[Figure]:
    """Drain of jobs under a concurrency key, beside a drain of as many without: few keys hold a worker up, many do not."""
    jobs = max(sizes.jobs // 4, TINY.jobs)
    usual = measure_drain(jobforge(stage), jobs, 1).per_second
    figures = [Figure("keys", f"drain of {jobs:,} jobs without a key", usual, "jobs/s")]
    for kind, words in KINDS.items():
        for count in KEYS:
            fill = ("limited", f"{kind}:{count}")
            # one after the other takes as long as a settle and a claim: a tenth of the jobs shows it
            some = jobs // 10 if (kind, count) == ("single", 1) else jobs
            drain = measure_drain(jobforge(stage), some, 1, max_seconds=MAX_SECONDS, fill=fill)
            name = f"{count:,} key{'s' if count > 1 else ''}, {words}"
            figures += [
                Figure("keys", f"drain with {name}", drain.per_second, "jobs/s"),
                Figure("keys", f"drain with {name}, beside none", drain.per_second / usual, "x"),
            ]
    return figures


def beside(stage: Stage, sizes: Sizes) -> list[Figure]:
    """Drain of jobs without limits after one job of another type: one with a limit, in turn with one without."""
    figures: list[Figure] = []
    for tenant, whose in TENANTS.items():
        found: dict[str, list[Drain]] = {"free": [], "wide": []}
        for _ in range(sizes.passes):
            for kind, drains in found.items():
                fill = ("beside", kind, tenant)
                drains.append(measure_drain(jobforge(stage), sizes.jobs, 1, fill=fill))
        rates = [median(drain.per_second for drain in drains) for drains in found.values()]
        loads = [median(drain.cpu_ms for drain in drains) for drains in found.values()]
        least = LEAST_BESIDE if tenant == "other" and sizes.jobs > TINY.jobs else None
        rate = rates[1] / rates[0]
        figures += [
            Figure("beside", f"drain beside {whose} without a limit", rates[0], "jobs/s"),
            Figure("beside", f"the same beside {whose} with one", rate, "x", least=least),
            Figure("beside", f"CPU per job beside {whose} with one", loads[1] / loads[0], "x"),
        ]
    return figures
