"""Events make jobs: once, in the same transaction, and the answer says for each trigger why or why not."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import anyio
import psycopg
import pytest
from psycopg import sql

from jobforge_mcp.db.pool import Database
from jobforge_mcp.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    PolicyDeniedError,
)
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.tokens import TokenRouter
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.types import (
    Caller,
    CallOrigin,
    EventFilter,
    FireFilter,
    JobId,
    JsonObject,
    Limits,
    SubmittedEvent,
    TriggerFilter,
)
from tests.postgres import Clock
from tests.triggers.conftest import new_event, on_event

pytestmark = pytest.mark.anyio


def decisions(submitted: SubmittedEvent) -> dict[str, str]:
    return {made.trigger_name: made.decision.value for made in submitted.decisions}


def job_count(admin: psycopg.Connection) -> int:
    row = admin.execute("select count(*) from jobforge.jobs").fetchone()
    assert row is not None
    return row[0]


@pytest.mark.requirement("events.jobs")
async def test_an_event_starts_the_jobs_that_want_it_and_says_which(
    desk: EventDesk, router: Router, agent: Caller
) -> None:
    mapping = {"text": {"$ref": "/event/payload/word"}}
    await desk.register(agent, on_event("one", input_mapping=mapping))
    await desk.register(agent, on_event("two", "order.*"))
    await desk.register(agent, on_event("other", "user.created"))

    submitted = await desk.submit(agent, new_event(payload={"word": "hi"}, trace_id="t1"))

    assert decisions(submitted) == {"one": "fired", "two": "fired"}
    assert submitted.is_processed
    job_ids = [made.job_id for made in submitted.decisions if made.job_id is not None]
    payload = json.loads(await router.get_payload(agent, job_ids[0]))
    assert payload["text"] == "hi"
    runs = await router.get_runs(agent, job_ids)
    assert {run.trace_id for run in runs} == {"t1"}
    assert {run.created_by for run in runs} == {agent.subject}


@pytest.mark.requirement("events.once")
async def test_a_repeated_event_is_stored_once_and_answers_what_the_first_did(
    desk: EventDesk, agent: Caller, admin: psycopg.Connection
) -> None:
    await desk.register(agent, on_event())

    first = await desk.submit(agent, new_event(idempotency_key="k"))
    again = await desk.submit(agent, new_event(idempotency_key="k"))

    assert (first.outcome.value, again.outcome.value) == ("created", "replayed")
    assert again.event_id == first.event_id
    assert again.decisions == first.decisions
    assert job_count(admin) == 1
    with pytest.raises(ConflictError) as caught:
        await desk.submit(agent, new_event(payload={"a": 1}, idempotency_key="k"))
    assert caught.value.code == "IDEMPOTENCY_CONFLICT"


@pytest.mark.requirement("events.once")
async def test_many_who_submit_one_event_at_once_start_its_jobs_once(
    desk: EventDesk, agent: Caller, admin: psycopg.Connection
) -> None:
    await desk.register(agent, on_event())
    answers: list[SubmittedEvent] = []

    async def submit() -> None:
        answers.append(await desk.submit(agent, new_event(idempotency_key="k")))

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(submit)

    assert sorted(answer.outcome.value for answer in answers) == ["created"] + ["replayed"] * 7
    assert len({answer.event_id for answer in answers}) == 1
    assert job_count(admin) == 1


@pytest.mark.requirement("events.rules")
async def test_a_rule_that_fails_loses_neither_the_event_nor_the_other_rules(
    desk: EventDesk, agent: Caller
) -> None:
    bad_map = {"text": {"$ref": "/event/payload/missing"}}
    await desk.register(agent, on_event("a-broken", input_mapping=bad_map))
    await desk.register(agent, on_event("b-unfit", input={"text": 7}))
    await desk.register(agent, on_event("c-good"))

    submitted = await desk.submit(agent, new_event())

    assert decisions(submitted) == {"a-broken": "error", "b-unfit": "error", "c-good": "fired"}
    (stored,) = await desk.list(agent, EventFilter())
    assert (stored.event_id, stored.fired) == (submitted.event_id, 1)
    fires = await desk.history(agent, FireFilter(trigger_name="a-broken"))
    assert [fire.decision.value for fire in fires] == ["error"]
    assert (fires[0].reason or "").startswith("MAPPING_FAILED")


@pytest.mark.requirement("events.rules")
async def test_why_a_trigger_did_not_fire_is_in_its_history(
    desk: EventDesk, agent: Caller, clock: Clock
) -> None:
    holds = {"$ref": "/event/payload/big", "equals": True}
    await desk.register(agent, on_event("a-match", match=holds))
    await desk.register(agent, on_event("b-off", is_enabled=False))
    await desk.register(agent, on_event("c-trial", is_dry_run=True))
    await desk.register(agent, on_event("d-cool", cooldown_ms=60_000))
    await desk.register(agent, on_event("e-hour", max_per_hour=2))
    await desk.register(agent, on_event("f-key", dedupe_key={"$ref": "/event/payload/id"}))
    await desk.register(agent, on_event("g-paused"))
    await desk.pause(agent, "g-paused")

    first = await desk.submit(agent, new_event(payload={"id": "1", "big": True}))
    second = await desk.submit(agent, new_event(payload={"id": "1"}))
    clock.advance(timedelta(seconds=61))
    third = await desk.submit(agent, new_event(payload={"id": "2"}))
    clock.advance(timedelta(hours=1))
    await desk.resume(agent, "g-paused")
    fourth = await desk.submit(agent, new_event(payload={"id": "2"}))

    assert [list(decisions(answer).values()) for answer in (first, second, third, fourth)] == [
        ["fired", "disabled", "planned", "fired", "fired", "fired", "disabled"],
        ["no_match", "disabled", "planned", "cooldown", "fired", "skipped", "disabled"],
        ["no_match", "disabled", "planned", "fired", "rate_limited", "fired", "disabled"],
        ["no_match", "disabled", "planned", "fired", "fired", "skipped", "fired"],
    ]
    assert all(made.reason for made in second.decisions if made.decision.value != "fired")
    history = await desk.history(agent, FireFilter(trigger_name="f-key"))
    assert [fire.decision.value for fire in history] == ["skipped", "fired", "skipped", "fired"]


@pytest.mark.requirement("events.loop")
async def test_a_circle_of_events_and_jobs_comes_to_an_end(
    desk: EventDesk, agent: Caller, admin: psycopg.Connection
) -> None:
    await desk.register(agent, on_event())
    trace: str | None = None
    answers: list[SubmittedEvent] = []

    for _ in range(23):
        submitted = await desk.submit(agent, new_event(trace_id=trace))
        trace = trace or str(submitted.event_id)
        answers.append(submitted)

    assert [answer.depth for answer in answers[:3]] == [0, 1, 2]
    assert job_count(admin) == 20
    assert answers[-1].decisions[0].decision.value == "skipped"
    assert "loop guard" in (answers[-1].decisions[0].reason or "")
    fresh = await desk.submit(agent, new_event())
    assert decisions(fresh) == {"bill": "fired"}


@pytest.mark.requirement("events.pii")
async def test_what_an_event_hides_is_shown_nowhere(
    desk: EventDesk, router: Router, agent: Caller, admin: psycopg.Connection
) -> None:
    mapping = {"text": {"$jmespath": "join(' ', [event.payload.mail, event.payload.city])"}}
    await desk.register(agent, on_event("mapped", input_mapping=mapping))
    await desk.register(agent, on_event("keyed", dedupe_key={"$ref": "/event/payload/mail"}))
    payload: JsonObject = {
        "mail": "secret@x.y",
        "city": "Bonn",
        "deep": [{"iban": "secret2"}, {"iban": "ok"}],
    }
    hints = {"redactFields": ["mail", "/deep/0/iban"], "retentionDays": 7}

    submitted = await desk.submit(
        agent, new_event(payload=payload, contains_pii=True, redaction_hints=hints)
    )

    assert decisions(submitted) == {"keyed": "fired", "mapped": "fired"}
    (stored,) = await desk.list(agent, EventFilter())
    assert json.loads(stored.payload) == {
        "mail": "[redacted]",
        "city": "Bonn",
        "deep": [{"iban": "[redacted]"}, {"iban": "ok"}],
    }
    assert stored.is_redacted
    mapped = next(made for made in submitted.decisions if made.trigger_name == "mapped")
    assert mapped.job_id is not None
    run_input = json.loads(await router.get_payload(agent, JobId(mapped.job_id)))
    assert run_input["text"] == "[redacted] Bonn"
    for table in ("jobs", "trigger_fires", "audit_log", "idempotency_keys"):
        query = sql.SQL("select t::text from jobforge.{} t").format(sql.Identifier(table))
        rows = admin.execute(query).fetchall()
        assert rows
        assert "secret" not in str(rows)


@pytest.mark.requirement("events.pii")
async def test_personal_data_that_nobody_located_is_hidden_whole(
    desk: EventDesk, agent: Caller
) -> None:
    await desk.submit(agent, new_event(payload={"name": "Ann"}, contains_pii=True))

    (stored,) = await desk.list(agent, EventFilter())

    assert (stored.payload, stored.is_redacted, stored.contains_pii) == ("{}", True, True)


@pytest.mark.requirement("triggers.rights")
async def test_a_trigger_acts_with_the_rights_of_its_registrar_and_no_others(
    desk: EventDesk, agent: Caller, api_database: Database
) -> None:
    narrow = replace(agent, token_id="tok-1", job_types=("test.*",), subject="narrow")
    await desk.register(narrow, on_event("kept"))
    tight = replace(agent, token_id="tok-2", limits=Limits(budget_jobs=1), subject="tight")
    await desk.register(tight, on_event("tight"))
    with pytest.raises(PolicyDeniedError):
        await desk.register(replace(narrow, job_types=("other.*",)), on_event("refused"))
    with pytest.raises(PolicyDeniedError):
        await desk.register(replace(agent, scopes=frozenset({"triggers:write"})), on_event("no"))
    with pytest.raises(PolicyDeniedError):
        await desk.register(replace(narrow, is_single_use=True), on_event("once"))

    first = await desk.submit(agent, new_event())
    second = await desk.submit(agent, new_event())
    tokens = TokenRouter(api_database)
    await tokens.revoke_token(agent, "tok-1", origin=CallOrigin())
    third = await desk.submit(agent, new_event())

    assert decisions(first) == {"kept": "fired", "tight": "fired"}
    assert decisions(second) == {"kept": "fired", "tight": "rate_limited"}
    assert decisions(third) == {"kept": "disabled", "tight": "rate_limited"}
    (kept,) = await desk.list_triggers(agent, TriggerFilter(name="kept"))
    assert not kept.spec.is_enabled
    assert "revoked" in (kept.disabled_reason or "")
    assert (await desk.register(agent, on_event("kept"))).outcome == "updated"
    assert decisions(await desk.submit(agent, new_event()))["kept"] == "fired"


@pytest.mark.requirement("triggers.rights")
async def test_revoking_all_tokens_of_a_tenant_stops_their_triggers(
    desk: EventDesk, agent: Caller, api_database: Database
) -> None:
    await desk.register(replace(agent, token_id="tok-1", epoch=1_000), on_event())

    await TokenRouter(api_database).revoke_tenant_tokens(agent, origin=CallOrigin())
    submitted = await desk.submit(agent, new_event())

    assert decisions(submitted) == {"bill": "disabled"}


@pytest.mark.requirement("triggers.rights")
async def test_a_trigger_of_one_project_sees_no_event_of_another(
    desk: EventDesk, agent: Caller
) -> None:
    await desk.register(replace(agent, projects=frozenset({"p1"})), on_event("confined"))
    await desk.register(agent, on_event("pinned", project_id="p2"))
    await desk.register(replace(agent, events=("user.**",)), on_event("blind"))

    p1 = await desk.submit(agent, new_event(project_id="p1"))
    p2 = await desk.submit(agent, new_event(project_id="p2"))
    none = await desk.submit(agent, new_event())

    assert [decisions(answer) for answer in (p1, p2, none)] == [
        {"confined": "fired"},
        {"pinned": "fired"},
        {},
    ]


@pytest.mark.requirement("events.patterns")
async def test_a_token_submits_and_sees_only_events_that_its_patterns_admit(
    desk: EventDesk, agent: Caller
) -> None:
    await desk.submit(agent, new_event("user.created"))
    narrow = replace(agent, events=("order.*",))

    await desk.submit(narrow, new_event())

    assert [event.event_type for event in await desk.list(narrow, EventFilter())] == ["order.paid"]
    with pytest.raises(PolicyDeniedError):
        await desk.submit(narrow, new_event("user.created"))
    confined = replace(agent, projects=frozenset({"p1"}))
    assert await desk.list(confined, EventFilter()) == []
    with pytest.raises(PolicyDeniedError):
        await desk.submit(confined, new_event(project_id="p2"))


async def test_another_tenants_triggers_and_events_do_not_exist(
    desk: EventDesk, agent: Caller, stranger: Caller
) -> None:
    await desk.register(agent, on_event())
    await desk.submit(agent, new_event())

    submitted = await desk.submit(stranger, new_event())

    assert submitted.decisions == ()
    assert await desk.list_triggers(stranger, TriggerFilter()) == []
    assert len(await desk.list(stranger, EventFilter())) == 1
    for verb in (desk.remove, desk.pause, desk.resume, desk.run):
        with pytest.raises(NotFoundError) as caught:
            await verb(stranger, "bill")
        assert caught.value.code == "TRIGGER_NOT_FOUND"


async def test_registering_again_changes_a_trigger_and_fires_nothing(
    desk: EventDesk, agent: Caller, admin: psycopg.Connection
) -> None:
    created = await desk.register(agent, on_event())
    same = await desk.register(agent, on_event())
    changed = await desk.register(agent, on_event(cooldown_ms=1))

    assert [one.outcome for one in (created, same, changed)] == ["created", "unchanged", "updated"]
    assert [one.version for one in (created, same, changed)] == [1, 1, 2]
    assert job_count(admin) == 0
    planned = await desk.register(agent, on_event("planned"), is_plan=True)
    assert planned.outcome == "created"
    assert await desk.list_triggers(agent, TriggerFilter(name="planned")) == []
    assert await desk.remove(agent, "bill") == "removed"
    assert await desk.list_triggers(agent, TriggerFilter()) == []


async def test_a_dry_run_says_what_would_happen_and_does_nothing(
    desk: EventDesk, agent: Caller, admin: psycopg.Connection
) -> None:
    await desk.register(agent, on_event())

    planned = await desk.submit(agent, new_event(), is_plan=True)

    assert decisions(planned) == {"bill": "planned"}
    assert planned.event_id is None
    assert job_count(admin) == 0
    assert await desk.list(agent, EventFilter()) == []
    assert await desk.history(agent, FireFilter()) == []


async def test_a_trigger_is_run_by_hand_once_for_a_key_also_while_it_is_paused(
    desk: EventDesk, agent: Caller, admin: psycopg.Connection
) -> None:
    await desk.register(agent, on_event(cooldown_ms=60_000))
    await desk.pause(agent, "bill")

    first = await desk.run(agent, "bill", idempotency_key="k")
    again = await desk.run(agent, "bill", idempotency_key="k")
    other = await desk.run(agent, "bill")

    assert {made.decision.value for made in (first, again, other)} == {"fired"}
    assert first.job_id == again.job_id != other.job_id
    assert job_count(admin) == 2


@pytest.mark.parametrize(
    "broken",
    [
        {"name": "Bad Name"},
        {"event_type": "order.**.x"},
        {"match": {"$ref": 7}},
        {"input_mapping": {"$jmespath": "["}},
        {"cooldown_ms": -1},
        {"cron": "* * * * *"},
        {"event_source": "*****"},
    ],
)
async def test_what_is_no_trigger_is_refused_in_words(
    desk: EventDesk, agent: Caller, broken: dict[str, object]
) -> None:
    with pytest.raises(InvalidInputError):
        await desk.register(agent, replace(on_event(), **broken))


async def test_sources_are_matched_by_stars_and_by_nothing_else(
    desk: EventDesk, agent: Caller
) -> None:
    await desk.register(agent, on_event("a", event_source="/apps/*/eu"))
    await desk.register(agent, on_event("b", event_source="100%_x"))

    answers = [
        await desk.submit(agent, new_event(source=source))
        for source in ("/apps/shop/eu", "/apps/eu", "100%_x", "1000yx", None)
    ]

    assert [decisions(answer) for answer in answers] == [{"a": "fired"}, {}, {"b": "fired"}, {}, {}]
