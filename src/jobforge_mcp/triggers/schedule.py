"""Computes when a schedule is due: five fields of cron, in an IANA time zone, by ``cronsim``.

A schedule with a fixed hour and minute runs once a day whatever the clocks do, as Debian's cron does it: a time that the
clocks skip in spring is taken at the first moment after the gap, and one that comes twice in autumn is taken the first
time. Schedules with ``*`` in the minute or hour field follow the time that passes. `docs/triggers.md` has the rule.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from jobforge_mcp.errors import InvalidInputError

MOST_FIELDS = 200
"""Characters of an expression."""


class Schedule:
    """One schedule."""

    def __init__(self, cron: str, timezone: str) -> None:
        """Read it.

        Raises:
            InvalidInputError: ``SCHEDULE_INVALID``: it is none, or never due.
        """
        self._cron = " ".join(cron.split())
        if len(self._cron) > MOST_FIELDS or len(self._cron.split(" ")) != 5:
            raise _invalid("a schedule has five fields: minute, hour, day, month, weekday")
        self._zone = _zone(timezone)
        self.next_after(datetime.now(UTC))

    def next_after(self, moment: datetime) -> datetime:
        """Return the first time after a moment, in UTC."""
        try:
            found = next(CronSim(self._cron, moment.astimezone(self._zone)))
        except (CronSimError, StopIteration, ValueError, OverflowError):
            raise _invalid("the schedule cannot be read, or is never due") from None
        due = found.astimezone(UTC)
        # the iterator steps by local time: at a change it may stand still or go back, which must never fire twice
        while due <= moment.astimezone(UTC):
            moment = moment + timedelta(minutes=1)
            found = next(CronSim(self._cron, moment.astimezone(self._zone)))
            due = found.astimezone(UTC)
        return due


def delay_of(tenant_id: str, trigger_name: str, due: datetime, jitter_ms: int) -> timedelta:
    """Return by how much a run starts after its time: at random, but the same for the same time."""
    if jitter_ms <= 0:
        return timedelta()
    text = f"{tenant_id} {trigger_name} {due.timestamp():.0f}"
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return timedelta(milliseconds=number % (jitter_ms + 1))


@lru_cache(maxsize=1_024)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidInputError(
            "there is no such time zone",
            code="SCHEDULE_INVALID",
            hint="name one of the IANA database, such as Europe/Berlin or UTC",
        ) from None


def _invalid(message: str) -> InvalidInputError:
    return InvalidInputError(
        message, code="SCHEDULE_INVALID", hint="such as 0 9 * * 1-5 for nine o'clock on weekdays"
    )
