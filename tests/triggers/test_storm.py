"""Events under crashes, in the short form of `tests.measure.event_storm`."""

from __future__ import annotations

import pytest

from tests.measure.event_storm import storm
from tests.postgres import ScratchDatabase


@pytest.mark.anyio
@pytest.mark.requirement("events.once")
async def test_no_event_is_missed_and_no_job_doubled_while_everybody_crashes(
    database: ScratchDatabase,
) -> None:
    """Some seconds: three hundred events, repeated until each has its answer."""
    outcome = await storm(database, events=range(300), triggers=20)

    assert (outcome.stored, outcome.unprocessed, outcome.wrong) == (300, 0, 0)
    assert outcome.jobs == 900
    assert outcome.crashes > 0
