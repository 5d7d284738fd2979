"""A server keeps what it read of triggers: what is changed elsewhere counts with the very next event all the same."""

from __future__ import annotations

from dataclasses import replace

import psycopg
import pytest

from jobforge_mcp import JobContext, job
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.model import ConcurrencyLimit
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.router.events import EventRouter
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.types import Caller, SubmittedEvent
from tests.server.jobs import JOBS, Nothing
from tests.triggers.conftest import new_event, on_event

pytestmark = pytest.mark.anyio


@job(name="test.one-by-one", concurrency=ConcurrencyLimit(limit=1))
async def one_by_one(input: Nothing, job: JobContext) -> None:
    """Run alone."""


@pytest.fixture
def registry() -> Registry:
    return Registry([*JOBS, one_by_one])


@pytest.fixture
def elsewhere(api_database: Database, registry: Registry) -> EventDesk:
    """The desk of another server."""
    return EventDesk(EventRouter(api_database), registry)


def decisions(submitted: SubmittedEvent) -> dict[str, str]:
    return {made.trigger_name: made.decision.value for made in submitted.decisions}


@pytest.mark.requirement("events.jobs")
async def test_triggers_that_come_change_and_go_elsewhere_count_with_the_next_event(
    desk: EventDesk, elsewhere: EventDesk, agent: Caller
) -> None:
    await desk.submit(agent, new_event())
    await elsewhere.register(agent, on_event("one"))
    one = await desk.submit(agent, new_event())
    await elsewhere.register(agent, on_event("two"))
    both = await desk.submit(agent, new_event())
    await elsewhere.register(agent, on_event("one", match={"$ref": "/event/payload/wanted"}))
    choosy = await desk.submit(agent, new_event())
    await elsewhere.pause(agent, "two")
    paused = await desk.submit(agent, new_event(payload={"wanted": True}))
    await elsewhere.remove(agent, "one")
    left = await desk.submit(agent, new_event(payload={"wanted": True}))

    assert decisions(one) == {"one": "fired"}
    assert decisions(both) == {"one": "fired", "two": "fired"}
    assert decisions(choosy) == {"one": "no_match", "two": "fired"}
    assert decisions(paused) == {"one": "fired", "two": "disabled"}
    assert decisions(left) == {"two": "disabled"}


@pytest.mark.requirement("events.jobs")
async def test_a_dry_run_sees_a_trigger_that_was_registered_elsewhere(
    desk: EventDesk, elsewhere: EventDesk, agent: Caller
) -> None:
    await desk.submit(agent, new_event())
    await elsewhere.register(agent, on_event())

    planned = await desk.submit(agent, new_event(), is_plan=True)

    assert decisions(planned) == {"bill": "planned"}


@pytest.mark.requirement("events.rules")
async def test_triggers_that_count_and_triggers_that_do_not_decide_about_one_event_together(
    desk: EventDesk, agent: Caller, admin: psycopg.Connection
) -> None:
    await desk.register(agent, on_event("a"))
    await desk.register(agent, on_event("b", max_per_hour=1))
    await desk.register(agent, on_event("c", match={"$ref": "/event/payload/wanted"}))
    await desk.register(agent, on_event("d", is_dry_run=True))
    await desk.register(agent, on_event("e", dedupe_key={"$ref": "/event/type"}))

    first = await desk.submit(agent, new_event())
    second = await desk.submit(agent, new_event())

    usual = {"a": "fired", "c": "no_match", "d": "planned"}
    assert decisions(first) == {**usual, "b": "fired", "e": "fired"}
    assert decisions(second) == {**usual, "b": "rate_limited", "e": "skipped"}
    assert list(decisions(first)) == ["a", "b", "c", "d", "e"]
    kept = admin.execute(
        "select trigger_name, decision from jobforge.trigger_fires where event_id = %s order by 1",
        [second.event_id],
    ).fetchall()
    assert dict(kept) == decisions(second)


@pytest.mark.requirement("events.jobs")
async def test_jobs_of_several_triggers_keep_the_limits_of_their_definitions(
    desk: EventDesk, agent: Caller, admin: psycopg.Connection
) -> None:
    for name in ("one", "two"):
        await desk.register(agent, replace(on_event(name, job_name="test.one-by-one"), input={}))

    submitted = await desk.submit(agent, new_event())

    assert decisions(submitted) == {"one": "fired", "two": "fired"}
    limits = admin.execute("select slot_key, slot_limit from jobforge.jobs").fetchall()
    assert limits == [("slot:test.one-by-one:", 1)] * 2
