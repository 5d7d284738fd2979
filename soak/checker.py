"""Compares what callers were told, what handlers did and what the database holds with what was promised.

Each function of `soak.promises` is one promise, named by its numbers in the list of invariants of docs/reliability.md.
Nothing there takes a fault for an excuse; only bounds of time are longer by what the database was out of reach.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from soak.promises import books, claims, planes, runs
from soak.record import Record


@dataclass(frozen=True, slots=True)
class Breach:
    """One promise that did not hold."""

    promise: str
    what: str


PROMISES: dict[str, Callable[[Record], Iterable[str]]] = {
    "no loss": runs.no_loss,
    "no ghosts": runs.no_ghosts,
    "one end": runs.one_end,
    "fence": claims.fence,
    "stale answers": claims.stale_answers,
    "claims": claims.claims,
    "attempts": claims.attempts,
    "one run per key": runs.one_run_per_key,
    "atomic enqueue": runs.atomic_enqueue,
    "order": planes.order,
    "limits": planes.limits,
    "bundles": planes.bundles,
    "chains": planes.chains,
    "events": planes.events,
    "schedules": planes.schedules,
    "not early": claims.not_early,
    "canceled stays canceled": runs.canceled_stays,
    "progress": runs.progress,
    "polls": runs.polls,
    "rescue": claims.rescued,
    "drain": claims.drained,
    "tenancy": books.tenancy,
    "audit": books.audited,
}

LATE = frozenset({"chains", "rescue", "drain"})
"""Promises that can be checked only when everything has come to rest; the others say at every moment what they can."""
EARLY = PROMISES.keys() - LATE


def check(record: Record, names: Collection[str] = tuple(PROMISES)) -> list[Breach]:
    """Check promises, every one unless some are named."""
    return [
        Breach(name, what) for name in PROMISES if name in names for what in PROMISES[name](record)
    ]
