"""How far a worker got in each lane, so that its next claim need not read what it has claimed before.

A claimed row stays in the index, dead, until nobody could still see it; one transaction that stays open for an hour keeps
an hour of them, and a look from the left edge reads them all. Where much was taken from a lane, a claim therefore starts
behind the last row that was taken. Only a hint: rows that came in behind it (an enqueue that was long in committing) are
found by a full look, which is taken at least once a second, or less often when it takes long.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from jobforge_mcp.types import ClaimedJob, ClaimStart, JobId

Place: TypeAlias = tuple[str, str, int]
"""Tenant, lane and priority."""

WORTH_IT = 500
"""Rows taken from a place since it was last clean, below which the dead are cheaper read than named."""

MOST_PLACES = 64
"""Named in one claim: each look compares itself with all of them."""

FULL_LOOK_SECONDS = 1.0

FULL_LOOK_SHARE = 50
"""A full look that took long is not taken again for so many times as long: it costs at most a fiftieth of the time."""

FORGET_SECONDS = 30.0
"""Rows taken so long ago are hardly dead rows any more: the place counts anew."""


@dataclass(slots=True)
class _Reached:
    run_at: datetime
    job_id: JobId
    taken: int
    since: float


FROM_THE_EDGE = ClaimStart()


class Frontier:
    """What one worker remembers of its claims."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._places: dict[Place, _Reached] = {}
        self._full_look_at = 0.0
        self._earliest_full_look_at = 0.0

    @property
    def is_full_look_due(self) -> bool:
        """Whether the next claim should look from the left edge."""
        return time.monotonic() >= self._full_look_at

    def start(self) -> ClaimStart:
        """Say where the next claim starts; nothing to name is a full look."""
        if not self._places or self.is_full_look_due:
            return FROM_THE_EDGE
        worth = [(p, r) for p, r in self._places.items() if r.taken >= WORTH_IT]
        if not worth:
            return FROM_THE_EDGE
        if len(worth) > MOST_PLACES:
            worth = sorted(worth, key=lambda pair: -pair[1].taken)[:MOST_PLACES]
        places, reached = zip(*worth, strict=True)
        tenants, types, priorities = zip(*places, strict=True)
        return ClaimStart(
            list(tenants),
            list(types),
            list(priorities),
            [each.run_at for each in reached],
            [each.job_id for each in reached],
        )

    def looked(self, start: ClaimStart, claimed: Sequence[ClaimedJob], began: float) -> None:
        """Learn from a claim that started there and began at this monotonic time."""
        now = time.monotonic()
        if not start.tenants:
            self._earliest_full_look_at = now + FULL_LOOK_SHARE * (now - began)
            self._full_look_at = max(now + FULL_LOOK_SECONDS, self._earliest_full_look_at)
        elif not claimed:
            # Nothing is left behind the frontier: before going to sleep, see what is in front of it.
            self._full_look_at = self._earliest_full_look_at
        for place, (taken, run_at, job_id) in _taken(claimed).items():
            reached = self._places.get(place)
            if reached is None or (
                now - reached.since > FORGET_SECONDS and reached.taken < WORTH_IT
            ):
                self._places[place] = _Reached(run_at, job_id, taken, now)
                continue
            reached.taken += taken
            if not start.tenants or (run_at, job_id) > (reached.run_at, reached.job_id):
                reached.run_at, reached.job_id = run_at, job_id
        if len(self._places) > 4 * MOST_PLACES:
            self._forget(now)

    def _forget(self, now: float) -> None:
        self._places = {
            place: reached
            for place, reached in self._places.items()
            if reached.taken >= WORTH_IT or now - reached.since <= FORGET_SECONDS
        }


def _taken(claimed: Sequence[ClaimedJob]) -> dict[Place, tuple[int, datetime, JobId]]:
    """Say of each place how many rows were taken from it, and which was the last."""
    found: dict[Place, tuple[int, datetime, JobId]] = {}
    for job in claimed:
        run_at = job.run_at
        if job.is_suspect or run_at is None:
            continue
        (tenant_id, _, job_id, _), lane = job.fence, job.lane_type or job.job_type
        before = found.get(place := (tenant_id, lane, job.priority))
        if before is None:
            found[place] = (1, run_at, job_id)
            continue
        taken, last, last_id = before
        # compared as numbers: comparing UUIDs is Python
        if run_at > last or (run_at == last and job_id.int > last_id.int):
            last, last_id = run_at, job_id
        found[place] = (taken + 1, last, last_id)
    return found
