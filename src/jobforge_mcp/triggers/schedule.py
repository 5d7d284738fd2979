"""Computes when a schedule is due: five fields of cron, in an IANA time zone, by ``cronsim``.

A schedule whose minute and hour are both written out runs once a day for each, whatever the clocks do, as Debian's cron does
it: a time that the clocks skip is taken at the first moment after the gap, and one that comes twice is taken the first
time. One that begins with ``*`` in the minute or hour follows the time that passes. `docs/triggers.md` has the rule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from jobforge_mcp.errors import InvalidInputError

LONGEST_EXPRESSION = 200

_MINUTE = timedelta(minutes=1)
_DAY = timedelta(days=1)
_BEFORE = timedelta(hours=3)
_AFTER = timedelta(hours=26)
"""How near a change of the clocks an iterator that steps by hours of local time can pass over a time: until midnight."""


class Schedule:
    """One schedule."""

    def __init__(self, cron: str, timezone: str) -> None:
        """Read it.

        Raises:
            InvalidInputError: ``SCHEDULE_INVALID``: it is none, or never due.
        """
        self._cron = " ".join(cron.split())
        fields = self._cron.split(" ")
        if len(self._cron) > LONGEST_EXPRESSION or len(fields) != 5:
            raise _invalid("a schedule has five fields: minute, hour, day, month, weekday")
        self._zone = _zone(timezone)
        self._follows_time = fields[0].startswith("*") or fields[1].startswith("*")
        self.next_after(datetime.now(UTC))

    def next_after(self, moment: datetime) -> datetime:
        """Return the first time after a moment, in UTC."""
        moment = moment.astimezone(UTC)
        found = self._step(moment)
        # At a change the iterator may stand still or go back by what it calls local time: that must never fire twice.
        ahead = moment
        while found <= moment:
            ahead += _MINUTE
            found = self._step(ahead)
        if self._follows_time and self._zone is not UTC:
            for change in _changes(self._zone, moment - _BEFORE, found):
                between = self._first_around(change, moment, found)
                if between is not None:
                    return between
        return found

    def _step(self, moment: datetime) -> datetime:
        try:
            return next(CronSim(self._cron, moment.astimezone(self._zone))).astimezone(UTC)
        except (CronSimError, StopIteration, ValueError, OverflowError):
            raise _invalid("the schedule cannot be read, or is never due") from None

    def _first_around(self, change: datetime, moment: datetime, found: datetime) -> datetime | None:
        """Look at each minute around a change of the clocks: an iterator that steps by hours may have passed over one."""
        minute = max(moment, change - _BEFORE).replace(second=0, microsecond=0)
        while minute < min(found, change + _AFTER):
            if minute > moment and self._step(minute - timedelta(seconds=1)) == minute:
                return minute
            minute += _MINUTE
        return None


def delay_of(tenant_id: str, trigger_name: str, due: datetime, jitter_ms: int) -> timedelta:
    """Return by how much a run starts after its time: at random, but the same for the same time."""
    if jitter_ms <= 0:
        return timedelta()
    text = f"{tenant_id} {trigger_name} {due.timestamp():.0f}"
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return timedelta(milliseconds=number % (jitter_ms + 1))


def _changes(zone: tzinfo, start: datetime, end: datetime) -> Iterator[datetime]:
    """Find the changes of a zone's offset between two moments, to the minute."""
    low = start
    while low < end:
        high = min(low + _DAY, end)
        if low.astimezone(zone).utcoffset() != high.astimezone(zone).utcoffset():
            early, late = low, high
            while late - early > _MINUTE:
                middle = early + (late - early) / 2
                if middle.astimezone(zone).utcoffset() == early.astimezone(zone).utcoffset():
                    early = middle
                else:
                    late = middle
            yield late
        low = high


@lru_cache(maxsize=1_024)
def _zone(name: str) -> tzinfo:
    if name.upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise InvalidInputError(
            "there is no such time zone",
            code="SCHEDULE_INVALID",
            hint="name one of the IANA database, such as Europe/Berlin or UTC",
        ) from None


def _invalid(message: str) -> InvalidInputError:
    return InvalidInputError(
        message, code="SCHEDULE_INVALID", hint="such as 0 9 * * 1-5 for nine o'clock on weekdays"
    )
