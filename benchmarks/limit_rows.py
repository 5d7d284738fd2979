"""What limits of definitions cost: the same jobs with one on every job, in turn with none, in one run."""

from __future__ import annotations

from benchmarks.contenders import Drain, jobforge, measure_drain
from benchmarks.figures import TINY, Figure, Sizes, median
from benchmarks.stage import Stage

KINDS = {
    "wide": "a concurrency key, one for all",
    "keyed": "a concurrency key, 500 of them with 20 slots",
    "tight": "a concurrency key with as many slots as the worker",
    "rated": "a rate",
}
LEAST = 0.5
MAX_SECONDS = 120


def limits(stage: Stage, sizes: Sizes) -> list[Figure]:
    """Drain of no-op jobs without a limit, and with each kind of limit on every one of them."""
    free: list[Drain] = []
    # a tiny run only shows that it works
    kinds = KINDS if sizes.jobs > TINY.jobs else {"keyed": KINDS["keyed"]}
    held: dict[str, list[Drain]] = {kind: [] for kind in kinds}
    for _ in range(sizes.passes):
        free.append(measure_drain(jobforge(stage), sizes.jobs, 1))
        for kind, found in held.items():
            fill = ("limited", kind)
            found.append(
                measure_drain(jobforge(stage), sizes.jobs, 1, max_seconds=MAX_SECONDS, fill=fill)
            )
    usual = median(drain.per_second for drain in free)
    cost = median(drain.cpu_ms for drain in free)
    figures = [Figure("limits", "drain without limits", usual, "jobs/s")]
    for kind, name in kinds.items():
        rate = median(drain.per_second for drain in held[kind]) / usual
        least = None if kind == "tight" else LEAST
        figures += [
            Figure("limits", f"drain with {name} on every job", rate, "x", least=least),
            Figure(
                "limits",
                f"CPU per job with {name}",
                median(d.cpu_ms for d in held[kind]) / cost,
                "x",
            ),
        ]
    return figures
