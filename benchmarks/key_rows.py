"""What limits cost by how many keys there are, and what they cost those that have none."""

from __future__ import annotations

from benchmarks.contenders import Drain, jobforge, measure_drain
from benchmarks.figures import TINY, Figure, Sizes, median
from benchmarks.stage import Stage

KEYS = (1, 10, 1_000)
KINDS = {"single": "1 at a time", "ten": "as many at a time as a worker has slots"}
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
    """Drain of jobs without limits where nobody has any, where another tenant has, and where their own has others with one."""
    fills = {
        "nobody has a limit": ("bulk",),
        "another tenant has limits": ("beside", "other"),
        "other jobs of their tenant have limits": ("beside", "bench"),
    }
    found: dict[str, list[Drain]] = {name: [] for name in fills}
    for _ in range(sizes.passes):
        for name, fill in fills.items():
            found[name].append(measure_drain(jobforge(stage), sizes.jobs, 1, fill=fill))
    rates = {name: median(each.per_second for each in drains) for name, drains in found.items()}
    loads = {name: median(each.cpu_ms for each in drains) for name, drains in found.items()}
    free, foreign, own = fills
    return [
        Figure("beside", f"drain where {free}", rates[free], "jobs/s"),
        Figure(
            "beside",
            f"the same where {foreign}",
            rates[foreign] / rates[free],
            "x",
            least=LEAST_BESIDE if sizes.jobs > TINY.jobs else None,
        ),
        Figure("beside", f"CPU per job where {foreign}", loads[foreign] / loads[free], "x"),
        Figure("beside", f"the same where {own}", rates[own] / rates[free], "x"),
        Figure("beside", f"CPU per job where {own}", loads[own] / loads[free], "x"),
    ]
