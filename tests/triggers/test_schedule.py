"""When a schedule is due, also on the days on which clocks change: proven against a look at every minute."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.triggers.schedule import Schedule, delay_of

CHANGES = [
    ("Europe/Berlin", datetime(2027, 3, 28, tzinfo=UTC), datetime(2027, 10, 31, tzinfo=UTC)),
    ("America/New_York", datetime(2027, 3, 14, tzinfo=UTC), datetime(2027, 11, 7, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2027, 10, 2, tzinfo=UTC), datetime(2027, 4, 3, tzinfo=UTC)),
    ("America/Santiago", datetime(2027, 9, 5, tzinfo=UTC), datetime(2027, 4, 4, tzinfo=UTC)),
    ("Africa/Casablanca", datetime(2027, 3, 14, tzinfo=UTC), datetime(2027, 2, 7, tzinfo=UTC)),
    ("Asia/Kathmandu", datetime(2027, 3, 28, tzinfo=UTC), datetime(2027, 10, 31, tzinfo=UTC)),
]
"""Zones with a day on which their clocks go forward, and one on which they go back; the last has none."""


def minutes(start: datetime, end: datetime) -> Iterator[datetime]:
    while start < end:
        yield start
        start += timedelta(minutes=1)


def due_times(cron: str, zone: str, start: datetime, end: datetime) -> list[datetime]:
    schedule, found = Schedule(cron, zone), list[datetime]()
    moment = schedule.next_after(start - timedelta(seconds=1))
    while moment < end:
        found.append(moment)
        moment = schedule.next_after(moment)
    return found


@pytest.mark.requirement("triggers.dst")
@pytest.mark.parametrize("zone, forward, back", CHANGES)  # noqa: PT006
@pytest.mark.parametrize(
    ("cron", "every", "hours"),
    [
        ("* * * * *", 1, range(24)),
        ("*/15 * * * *", 15, range(24)),
        ("*/15 2 * * *", 15, range(2, 3)),
        ("*/10 1-3 * * *", 10, range(1, 4)),
        ("0 * * * *", 60, range(24)),
        ("30 */2 * * *", 0, range(0, 24, 2)),
        ("30 */6 * * *", 0, range(0, 24, 6)),
    ],
)
def test_what_begins_with_a_star_follows_the_time_that_passes(
    zone: str, forward: datetime, back: datetime, cron: str, every: int, hours: range
) -> None:
    for day in (forward, back):
        start, end = day - timedelta(days=1), day + timedelta(days=2)
        local = ZoneInfo(zone)
        expected = [
            minute
            for minute in minutes(start, end)
            if (wall := minute.astimezone(local)).hour in hours
            and (wall.minute % every == 0 if every else wall.minute == 30)
        ]

        assert due_times(cron, zone, start, end) == expected


@pytest.mark.requirement("triggers.dst")
@pytest.mark.parametrize("zone, forward, back", CHANGES)  # noqa: PT006
@pytest.mark.parametrize("hour", [0, 1, 2, 3])
@pytest.mark.parametrize("minute", [0, 15, 30, 45])
def test_what_names_hour_and_minute_is_due_once_a_day_whatever_the_clocks_do(
    zone: str, forward: datetime, back: datetime, hour: int, minute: int
) -> None:
    local = ZoneInfo(zone)
    for day in (forward, back):
        start, end = day - timedelta(days=3), day + timedelta(days=4)

        found = due_times(f"{minute} {hour} * * *", zone, start, end)

        days = [at.astimezone(local).date() for at in found]
        assert len(days) == len(set(days))
        assert [later - earlier for earlier, later in pairwise(days)] == [timedelta(days=1)] * (
            len(days) - 1
        )
        for at in found:
            wall = at.astimezone(local)
            if (wall.hour, wall.minute) != (hour, minute):
                # skipped by the clocks: the first moment after the gap, where the offset just changed
                before = (at - timedelta(minutes=1)).astimezone(local)
                assert before.utcoffset() != wall.utcoffset()
            else:
                assert wall.fold == 0


def test_the_two_changes_of_lord_howe_are_of_half_an_hour() -> None:
    gap = datetime(2027, 10, 2, tzinfo=UTC)
    twice = datetime(2027, 4, 3, tzinfo=UTC)

    skipped = due_times("15 2 * * *", "Australia/Lord_Howe", gap, gap + timedelta(days=1))
    doubled = due_times("45 1 * * *", "Australia/Lord_Howe", twice, twice + timedelta(days=1))

    assert [at.isoformat() for at in skipped] == ["2027-10-02T15:30:00+00:00"]  # 02:30 there
    assert [at.isoformat() for at in doubled] == ["2027-04-03T14:45:00+00:00"]  # the first 01:45


@pytest.mark.parametrize(
    ("cron", "zone"),
    [
        ("* * * *", "UTC"),
        ("* * * * * *", "UTC"),
        ("60 * * * *", "UTC"),
        ("0 0 30 2 *", "UTC"),
        ("nope", "UTC"),
        ("0 9 * * *", "Mars/Olympus"),
        ("0 9 * * *", "../../etc/passwd"),
        ("0 9 * * " + "1," * 200 + "1", "UTC"),
    ],
)
def test_what_is_no_schedule_is_refused(cron: str, zone: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Schedule(cron, zone)

    assert caught.value.code == "SCHEDULE_INVALID"


def test_jitter_is_the_same_for_the_same_time_and_within_its_bound() -> None:
    at = datetime(2027, 1, 1, tzinfo=UTC)
    delays = {delay_of("acme", "report", at + timedelta(days=day), 60_000) for day in range(50)}

    assert delay_of("acme", "report", at, 60_000) == delay_of("acme", "report", at, 60_000)
    assert len(delays) > 40
    assert all(timedelta() <= delay <= timedelta(minutes=1) for delay in delays)
    assert delay_of("acme", "report", at, 0) == timedelta()
