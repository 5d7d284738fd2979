"""Limits and budgets: each refuses one past its value, says so, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.sql.acting import API, ECHO, SUPERUSER, Queue, Row, call, refused

Refusal = SimpleNamespace


def limit(queue: Queue, kind: str = "tenant", name: str | None = None, **limits: object) -> None:
    """Set limits of tenant acme as an operator does."""
    queue.look(
        "select jobforge.set_limit('acme', %s, %s, %s)",
        kind,
        name,
        json.dumps(limits),
    )


def ask(
    queue: Queue,
    function: str,
    *arguments: object,
    limits: dict[str, Any] | None = None,
    jti: str = "t1",
    tool: str | None = None,
    **named: object,
) -> list[Row]:
    """Call a function of tenants as the holder of a token with limits."""
    claims = json.dumps({"jti": jti, "limits": limits}) if limits else None
    with queue.acting(API) as connection:
        connection.execute(
            "select jobforge.enter_scope('acme', 'tester', %s, %s, null, %s)", [jti, tool, claims]
        )
        return call(connection, function, "acme", *arguments, **named)


def enqueue(queue: Queue, job_type: str = ECHO, payload: str = "{}", **named: Any) -> UUID:
    return ask(queue, "enqueue_job", job_type, payload, **named)[0].job_id


def refusal(act: Callable[[], object]) -> Refusal:
    """Expect a limit's refusal and return what it says."""
    with pytest.raises(psycopg.Error) as caught:
        act()
    assert caught.value.sqlstate == "JF429", caught.value
    diagnostics = caught.value.diag
    detail = json.loads(diagnostics.message_detail or "{}")
    return Refusal(
        code=detail["code"],
        limit=detail["limit"],
        value=detail["value"],
        used=detail["used"],
        after=detail.get("retryAfterMs"),
        scope=detail["scope"],
        message=diagnostics.message_primary,
        hint=diagnostics.message_hint,
    )


def spawn(
    queue: Queue, parent: Row, key: str, job_type: str = ECHO, cost: int | None = None
) -> Row:
    """Enqueue a child of a claimed run."""
    rest = [None, 2, None, None, "1", 3, 0, 1.0, 0, 1000, cost]
    fence = [parent.tenant_id, parent.lease_id, parent.job_id, parent.epoch]
    return queue.work("enqueue_child", *fence, job_type, "{}", None, key, *rest)[0]


def rows(queue: Queue) -> int:
    return queue.look("select count(*) as count from jobforge.jobs")[0].count


# --- each kind, by whom it was set


@pytest.mark.parametrize("by", ["tenant", "type", "tool", "token"])
@pytest.mark.parametrize(
    ("limits", "code", "after"),
    [
        ({"rps": 0.01, "burst": 3}, "RATE_LIMITED", 100_000),
        ({"max_queued": 3}, "QUEUE_FULL", 1000),
        ({"budget_jobs": 3}, "BUDGET_USED_UP", None),
        ({"budget_units": 3}, "BUDGET_USED_UP", None),
    ],
)
def test_the_fourth_is_refused_where_three_are_allowed(
    queue: Queue, by: str, limits: dict[str, Any], code: str, after: int | None
) -> None:
    names = {"tenant": None, "type": ECHO, "tool": "execute-job"}
    own: dict[str, Any] = {"tool": "execute-job"}
    if by == "token":
        own["limits"] = limits
    else:
        limit(queue, by, names[by], **limits)

    for _ in range(3):
        enqueue(queue, **own)
    said = refusal(lambda: enqueue(queue, **own))

    assert (said.code, said.used) == (code, pytest.approx(4, abs=0.1))
    if after is None:
        assert said.after is None
    else:
        assert 0 < said.after <= after
    assert said.limit in limits
    assert said.limit in said.message
    assert said.scope.startswith(by)
    assert said.hint
    assert rows(queue) == 3


@pytest.mark.parametrize("by", ["tenant", "type", "tool", "token"])
def test_a_limit_binds_nobody_else(queue: Queue, by: str) -> None:
    limits = {"budget_jobs": 1, "rps": 0.001, "burst": 1, "max_queued": 1}
    own: dict[str, Any] = {"tool": "execute-job"}
    if by == "token":
        own["limits"] = limits
    else:
        limit(queue, by, {"type": ECHO, "tool": "execute-job"}.get(by), **limits)
    enqueue(queue, **own)
    refusal(lambda: enqueue(queue, **own))

    queue.enqueue("globex")
    if by == "type":
        enqueue(queue, "other.type", **own)
    if by == "tool":
        enqueue(queue, tool="start-job")
    if by == "token":
        enqueue(queue, limits=limits, jti="t2")
        enqueue(queue)


def test_the_strictest_of_several_limits_wins(queue: Queue) -> None:
    limit(queue, max_queued=5)
    limit(queue, "type", ECHO, max_queued=2)

    own: dict[str, Any] = {"limits": {"max_queued": 3}}
    for _ in range(2):
        enqueue(queue, **own)
    assert refusal(lambda: enqueue(queue, **own)).scope == f"type {ECHO}"
    enqueue(queue, "other.type", **own)
    assert refusal(lambda: enqueue(queue, "other.type", **own)).scope == "token t1"
    for _ in range(2):
        enqueue(queue, "other.type")
    assert refusal(lambda: enqueue(queue, "other.type")).scope == "tenant acme"


def test_payload_and_priority_have_ceilings(queue: Queue) -> None:
    limits = {"max_payload_bytes": 10, "max_priority": 1}
    large = refusal(lambda: enqueue(queue, payload='{"a": "0123456789"}', limits=limits))
    urgent = refusal(lambda: enqueue(queue, priority=0, limits=limits))

    assert (large.code, large.value, large.used) == ("PAYLOAD_TOO_LARGE", 10, 19)
    assert (urgent.code, urgent.value, urgent.used) == ("PRIORITY_TOO_HIGH", 1, 0)
    assert large.after is None
    enqueue(queue, priority=1, limits=limits)
    assert rows(queue) == 1


def test_a_bulk_call_counts_each_job_and_writes_all_or_none(queue: Queue) -> None:
    limit(queue, "type", "a.b", budget_jobs=2)
    limit(queue, budget_jobs=10)
    kinds = ["a.b", "c.d", "a.b", "c.d", "c.d"]

    ask(queue, "enqueue_jobs", kinds, ["{}"] * 5)
    said = refusal(lambda: ask(queue, "enqueue_jobs", ["c.d", "a.b"], ["{}"] * 2))
    ask(queue, "enqueue_jobs", ["c.d"] * 5, ["{}"] * 5)

    assert (said.scope, said.used) == ("type a.b", 3)
    assert rows(queue) == 10
    assert refusal(lambda: enqueue(queue, "c.d")).scope == "tenant acme"


def test_a_call_larger_than_the_burst_never_passes(queue: Queue) -> None:
    limit(queue, rps=100, burst=2)
    said = refusal(lambda: ask(queue, "enqueue_jobs", [ECHO] * 3, ["{}"] * 3))

    assert (said.code, said.limit, said.after) == ("RATE_LIMITED", "burst", None)


def test_declared_cost_is_taken_from_the_budget_of_units(queue: Queue) -> None:
    limit(queue, budget_units=10)
    limit(queue, "type", "report.big", unit_cost=8)

    enqueue(queue, "report.big")
    said = refusal(lambda: enqueue(queue, "report.big"))
    enqueue(queue)
    enqueue(queue)

    assert (said.limit, said.used) == ("budget_units", 16)
    refusal(lambda: enqueue(queue))


# --- time


def test_a_bucket_refills_by_the_clock_and_no_further_than_its_burst(queue: Queue) -> None:
    limit(queue, rps=2, burst=2)
    for _ in range(2):
        enqueue(queue)
    said = refusal(lambda: enqueue(queue))
    assert 0 < said.after <= 500

    queue.advance(0.5)
    enqueue(queue)
    refusal(lambda: enqueue(queue))
    queue.advance(3600)
    for _ in range(2):
        enqueue(queue)
    refusal(lambda: enqueue(queue))


def test_a_budget_with_a_period_is_whole_again_after_it(queue: Queue) -> None:
    limit(queue, budget_jobs=1, period_seconds=60)
    enqueue(queue)
    said = refusal(lambda: enqueue(queue))
    assert 0 < said.after <= 60_000

    queue.advance(61)
    enqueue(queue)
    refusal(lambda: enqueue(queue))


def test_run_seconds_are_charged_for_every_attempt(queue: Queue) -> None:
    limit(queue, budget_run_seconds=10)
    enqueue(queue, backoff_ms=0, max_backoff_ms=0)
    for _ in range(2):
        claimed = queue.claim_one()
        queue.advance(4)
        queue.fail(claimed)
        queue.advance(1)
    enqueue(queue)
    claimed = queue.claim_one()
    queue.advance(4)
    queue.complete(claimed)
    queue.advance(2)

    said = refusal(lambda: enqueue(queue))

    assert (said.code, said.limit) == ("BUDGET_USED_UP", "budget_run_seconds")
    assert said.used == pytest.approx(12, abs=0.5)


# --- what counts


def test_room_in_the_queue_comes_back_when_runs_start_or_end(queue: Queue) -> None:
    limit(queue, max_queued=2)
    first = enqueue(queue)
    enqueue(queue)
    refusal(lambda: enqueue(queue))

    queue.cancel(first)
    enqueue(queue)
    refusal(lambda: enqueue(queue))
    claimed = queue.claim_one()
    enqueue(queue)
    refusal(lambda: enqueue(queue))
    queue.release(claimed)
    assert refusal(lambda: enqueue(queue)).used == 4


def test_runs_that_wait_for_their_turn_are_queued(queue: Queue) -> None:
    for by, name in (("tenant", None), ("type", ECHO)):
        limit(queue, by, name, max_queued=2)
    enqueue(queue, ordering_key="k")
    enqueue(queue, ordering_key="k")

    refusal(lambda: enqueue(queue))


@pytest.mark.parametrize("by", ["tenant", "token"])
def test_a_replay_passes_a_full_queue_and_costs_nothing(queue: Queue, by: str) -> None:
    limits: dict[str, Any] = {"max_queued": 1, "budget_jobs": 1, "budget_units": 1}
    own: dict[str, Any] = {"limits": limits} if by == "token" else {}
    if by == "tenant":
        limit(queue, **limits)
    first = enqueue(queue, idempotency_key="k", **own)

    for _ in range(3):
        assert enqueue(queue, idempotency_key="k", **own) == first
    refusal(lambda: enqueue(queue, idempotency_key="other", **own))
    (usage,) = queue.look("select jobs, units from jobforge.limit_usage")
    assert (usage.jobs, usage.units) == (1, 1)


def test_a_plan_is_refused_like_the_call_and_takes_nothing(queue: Queue) -> None:
    limits = {"max_queued": 1, "budget_jobs": 1}
    plan = lambda: ask(queue, "enqueue_jobs", [ECHO], ["{}"], is_plan=True, limits=limits)  # noqa: E731
    for _ in range(3):
        plan()
    enqueue(queue, limits=limits)

    refusal(plan)


def test_a_retry_counts_as_a_new_job(queue: Queue) -> None:
    limit(queue, max_queued=1, budget_jobs=3)
    first = enqueue(queue)
    queue.cancel(first)
    second = enqueue(queue)

    assert refusal(lambda: queue.retry(first)).code == "QUEUE_FULL"
    queue.cancel(second)
    queue.retry(first)
    queue.cancel(first)
    assert refusal(lambda: queue.retry(first)).code == "BUDGET_USED_UP"


def test_a_cancel_takes_from_the_rate_alone(queue: Queue) -> None:
    limits = {"rps": 0.001, "burst": 2, "budget_jobs": 1}
    first = enqueue(queue, limits=limits)
    ask(queue, "cancel_job", first, limits=limits)

    assert refusal(lambda: ask(queue, "cancel_job", first, limits=limits)).code == "RATE_LIMITED"


# --- running at once


@pytest.mark.parametrize("by", ["tenant", "type", "tool", "token"])
def test_a_claim_takes_no_more_than_may_run_at_once(queue: Queue, by: str) -> None:
    own: dict[str, Any] = {"tool": "execute-job"}
    if by == "token":
        own["limits"] = {"max_running": 2}
    else:
        limit(queue, by, {"type": ECHO, "tool": "execute-job"}.get(by), max_running=2)
    for _ in range(5):
        enqueue(queue, **own)

    claimed = queue.claim(10)
    assert len(claimed) == 2
    assert queue.claim(10) == []
    queue.complete(claimed[0])
    again = queue.claim(10)
    assert len(again) == 1
    queue.fail(claimed[1])
    assert len(queue.claim(10)) == 1


def test_others_are_claimed_while_one_is_at_its_limit(queue: Queue) -> None:
    limit(queue, "type", ECHO, max_running=1)
    for tenant in ("acme", "globex"):
        for _ in range(3):
            queue.enqueue(tenant)
    queue.enqueue("acme", "other.type")

    claimed = queue.claim(10, types=[ECHO, "other.type"])

    assert sorted((row.tenant_id, row.job_type) for row in claimed) == [
        ("acme", ECHO),
        ("acme", "other.type"),
        *[("globex", ECHO)] * 3,
    ]


def test_runs_of_a_full_token_do_not_stand_before_those_of_another(queue: Queue) -> None:
    for _ in range(20):
        enqueue(queue, limits={"max_running": 1}, jti="greedy", priority=0)
    other = enqueue(queue, limits={"max_running": 1}, jti="modest")

    first = queue.claim(1)
    second = queue.claim(1)

    assert len(first) == 1
    assert [row.job_id for row in second] == [other]
    assert queue.claim(1) == []


def test_a_limited_tenant_takes_turns_with_others(queue: Queue) -> None:
    limit(queue, max_running=50)
    for tenant in ("acme", "globex"):
        for _ in range(4):
            queue.enqueue(tenant)
    queue.advance(seconds=1)  # neither is new any more

    last = ""
    order: list[str] = []
    for _ in range(8):
        (claimed,) = queue.claim(1, after_tenant=last)
        last = claimed.tenant_id
        order.append(last)

    assert order == ["acme", "globex"] * 4


def test_a_narrowed_token_has_its_own_ceiling_on_the_same_count(queue: Queue) -> None:
    for most in (1, 3, 3, 3):
        enqueue(queue, limits={"max_running": most})

    claimed = queue.claim(10)

    assert len(claimed) == 3
    queue.complete(*claimed)
    assert len(queue.claim(10)) == 1


def test_a_job_is_not_handed_over_past_the_limit_when_it_is_enqueued(queue: Queue) -> None:
    limit(queue, max_running=1)
    for _ in range(2):
        (made,) = ask(queue, "enqueue_jobs", [ECHO], ["{}"], worker_id="w1")
        assert (made.status, made.lease_id) == ("queued", None)

    assert len(queue.claim(5)) == 1


def test_a_suspect_waits_for_room_too(queue: Queue) -> None:
    for _ in range(3):
        enqueue(queue)
    queue.claim(2)
    assert queue.lose_worker() == 2  # together: both are suspects now
    limit(queue, max_running=1)

    assert len(queue.claim(5, worker="w2")) == 1
    assert queue.claim(5, worker="w3") == []


def test_a_run_that_waits_for_room_says_so(queue: Queue) -> None:
    limit(queue, max_running=1)
    queue.register()
    for _ in range(2):
        enqueue(queue)
    queue.claim(5)
    (waiting,) = queue.look("select job_id from jobforge.ready")

    cause = queue.explain(waiting.job_id)

    assert cause.cause == "limit_reached"
    assert cause.message == "At most 1 runs of tenant acme may run at once, and as many do."


# --- children


def test_children_are_bound_by_the_limits_of_the_token_of_their_parent(queue: Queue) -> None:
    limits = {"max_children": 2, "max_depth": 1, "max_priority": 1, "budget_jobs": 4}
    enqueue(queue, limits=limits)
    parent = queue.claim_one()

    for key in ("a", "b", "a"):
        child = spawn(queue, parent, key)
    assert refusal(lambda: spawn(queue, parent, "c")).code == "TOO_MANY_CHILDREN"
    assert child.outcome == "replayed"
    grown = queue.claim_one("w2")
    said = refusal(lambda: spawn(queue, grown, "d"))
    assert (said.code, said.value, said.used) == ("TOO_DEEP", 1, 2)
    enqueue(queue, limits=limits)
    assert refusal(lambda: enqueue(queue, limits=limits)).used == 5


def test_an_operator_bounds_the_children_of_everybody(queue: Queue) -> None:
    limit(queue, max_children=1, max_depth=2)
    enqueue(queue)
    for generation in ("first", "second"):
        parent = queue.claim_one()
        spawn(queue, parent, generation)
        assert refusal(lambda parent=parent: spawn(queue, parent, "b")).code == "TOO_MANY_CHILDREN"

    last = queue.claim_one()
    assert refusal(lambda: spawn(queue, last, "third")).code == "TOO_DEEP"


def test_children_are_counted_in_the_queue_and_the_budget_but_not_in_the_rate(queue: Queue) -> None:
    limits = {"rps": 0.001, "burst": 1, "max_queued": 2, "max_payload_bytes": 1}
    limits["max_payload_bytes"] = 100
    enqueue(queue, limits=limits)
    parent = queue.claim_one()
    spawn(queue, parent, "a")
    spawn(queue, parent, "b")

    assert refusal(lambda: spawn(queue, parent, "c")).code == "QUEUE_FULL"


# --- operators


def test_limits_are_set_listed_changed_and_removed_with_an_audit_row_each(queue: Queue) -> None:
    limit(queue, max_queued=5, rps=2)
    limit(queue, max_queued=7, rps=None)
    limit(queue, "type", ECHO, budget_jobs=3)
    enqueue(queue)

    listed = queue.look("select * from jobforge.list_limits('acme')")
    assert [(row.kind, row.name, row.limits) for row in listed] == [
        ("tenant", "", {"max_queued": 7}),
        ("type", ECHO, {"budget_jobs": 3}),
    ]
    assert listed[1].used["jobs"] == 1
    queue.look("select jobforge.remove_limit('acme', 'type', %s)", ECHO)
    queue.look("select jobforge.remove_limit('acme', 'type', 'unknown')")
    audit = queue.look("select action from jobforge.audit_log where action like '%%_limit'")
    assert [row.action for row in audit] == [*["set_limit"] * 3, "remove_limit"]
    for _ in range(5):
        enqueue(queue)


@pytest.mark.parametrize(
    "limits",
    ['{"nonsense": 1}', "{}", "[]", '{"max_queued": null}', '{"period_seconds": 5}'],
)
def test_a_limit_that_is_none_is_refused(queue: Queue, limits: str) -> None:
    with refused("JF400"):
        queue.look("select jobforge.set_limit('acme', 'tenant', null, %s)", limits)


@pytest.mark.parametrize(
    ("kind", "name", "limits"),
    [
        ("token", "t1", '{"max_queued": 1}'),
        ("tenant", "x", '{"max_queued": 1}'),
        ("type", None, '{"max_queued": 1}'),
        ("tenant", None, '{"max_queued": -1}'),
        ("tenant", None, '{"rps": 0}'),
        ("tenant", None, '{"rps": "NaN"}'),
        ("tenant", None, '{"burst": 4}'),
        ("tenant", None, '{"unit_cost": 4}'),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(
    queue: Queue, kind: str, name: str | None, limits: str
) -> None:
    with refused("23514"):
        queue.look("select jobforge.set_limit('acme', %s, %s, %s)", kind, name, limits)


def test_whoever_may_act_as_the_owner_sets_limits(queue: Queue) -> None:
    with queue.acting("jobforge_owner") as connection:
        call(connection, "set_limit", "acme", "tenant", None, '{"max_queued": 0}')

    refusal(lambda: enqueue(queue))


def test_counters_of_tokens_are_forgotten_a_week_after_their_last_use(queue: Queue) -> None:
    limits = {"rps": 1, "max_running": 1, "budget_jobs": 9}
    limit(queue, budget_jobs=9)
    enqueue(queue, limits=limits, jti="open")
    queue.cancel(enqueue(queue, limits=limits, jti="ended"))
    queue.advance(8 * 86400)
    with queue.acting(SUPERUSER) as connection:
        connection.execute("set local role jobforge_sys")
        connection.execute("select jobforge.forget_usage()")

    left = queue.look("select counter from jobforge.limit_usage order by 1")
    assert [row.counter for row in left] == ["tenant:", "token:open"]
    left = queue.look("select counter from jobforge.running_limits")
    assert [row.counter for row in left] == ["token:open"]


def test_without_limits_nothing_is_counted(queue: Queue) -> None:
    queue.enqueue_many(3)
    queue.claim(3)

    rows = queue.look(
        """select counter from jobforge.limit_usage
        union all select counter from jobforge.limited_jobs
        union all select counter from jobforge.running_limits"""
    )
    assert rows == []


# --- what a definition declares


@pytest.mark.requirement("policy.cost")
def test_a_run_uses_as_many_units_as_its_definition_declares(queue: Queue) -> None:
    limit(queue, budget_units=10)

    ask(queue, "enqueue_jobs", [ECHO], ["{}"], costs=[4])
    ask(queue, "enqueue_jobs", [ECHO] * 2, ["{}"] * 2, costs=[4, None])
    said = refusal(lambda: ask(queue, "enqueue_jobs", [ECHO], ["{}"], costs=[2]))

    assert (said.limit, said.used) == ("budget_units", 11)


def test_the_price_of_an_operator_comes_before_that_of_the_definition(queue: Queue) -> None:
    limit(queue, budget_units=10)
    limit(queue, "type", ECHO, unit_cost=7)

    ask(queue, "enqueue_jobs", [ECHO], ["{}"], costs=[1])

    assert refusal(lambda: ask(queue, "enqueue_jobs", [ECHO], ["{}"], costs=[1])).used == 14


def test_a_retry_and_a_child_cost_what_their_definitions_declare(queue: Queue) -> None:
    limit(queue, budget_units=10)
    (row,) = ask(queue, "enqueue_jobs", [ECHO], ["{}"], costs=[4])
    queue.cancel(row.job_id)

    queue.retry(row.job_id)
    parent = queue.claim_one()

    said = refusal(lambda: spawn(queue, parent, "a", cost=3))
    assert (said.limit, said.used) == ("budget_units", 11)


@pytest.mark.parametrize("cost", [0, -5])
def test_a_cost_gives_nothing_back(queue: Queue, cost: int) -> None:
    limit(queue, budget_units=2_000_000)

    with refused("JF400"):
        ask(queue, "enqueue_jobs", [ECHO], ["{}"], costs=[cost])

    assert rows(queue) == 0
    (used,) = queue.look("select jobs, units from jobforge.limit_usage")
    assert (used.jobs, used.units) == (0, 0)


def test_a_limit_without_its_counter_cannot_be(queue: Queue) -> None:
    limit(queue, max_queued=1)

    forget = "set constraints all immediate; delete from jobforge.limit_usage"
    with pytest.raises(psycopg.errors.ForeignKeyViolation), queue.acting(SUPERUSER) as connection:
        connection.execute(forget)


def test_a_period_that_is_over_begins_anew_for_whoever_has_no_key(queue: Queue) -> None:
    limit(queue, budget_jobs=2, period_seconds=60)
    for _ in range(2):
        enqueue(queue)
    said = refusal(lambda: enqueue(queue))

    queue.advance(61)
    enqueue(queue)

    (used,) = queue.look("select jobs from jobforge.limit_usage")
    assert (said.used, used.jobs) == (3, 1)
    assert 0 < said.after <= 60_000


def test_a_key_made_before_is_not_counted_again(queue: Queue) -> None:
    limit(queue, budget_jobs=1, budget_units=1)

    first = enqueue(queue, idempotency_key="k")

    assert enqueue(queue, idempotency_key="k") == first
    assert refusal(lambda: enqueue(queue, idempotency_key="other")).used == 2
    (used,) = queue.look("select jobs, units, open_ceiling from jobforge.limit_usage")
    assert (used.jobs, used.units) == (1, 1)


def test_a_narrowed_token_is_held_to_its_own_limits_on_the_counter_it_shares(queue: Queue) -> None:
    for _ in range(2):
        enqueue(queue, limits={"budget_jobs": 9})

    said = refusal(lambda: enqueue(queue, limits={"budget_jobs": 2}))
    enqueue(queue, limits={"budget_jobs": 9})

    assert (said.value, said.used) == (2, 3)
    assert rows(queue) == 3


def test_jobs_of_one_type_in_one_call_are_counted_together(queue: Queue) -> None:
    limit(queue, budget_jobs=5, max_payload_bytes=10)
    limit(queue, "type", ECHO, budget_jobs=4)
    ask(queue, "enqueue_jobs", [ECHO] * 3, ["{}"] * 3)

    said = refusal(lambda: ask(queue, "enqueue_jobs", [ECHO] * 2, ["{}"] * 2))
    long = refusal(lambda: ask(queue, "enqueue_jobs", [ECHO] * 2, ["{}", '"0123456789"']))

    assert (said.scope, said.value, said.used) == (f"type {ECHO}", 4, 5)
    assert (long.code, long.used) == ("PAYLOAD_TOO_LARGE", 12)
    assert rows(queue) == 3


@pytest.mark.requirement("policy.rates-switch")
def test_a_process_without_rates_is_held_to_every_other_limit(queue: Queue) -> None:
    limit(queue, rps=0.001, burst=1, budget_jobs=3)
    unrated = json.dumps({"rates": False})

    def act() -> None:
        with queue.acting(API) as connection:
            connection.execute(
                "select jobforge.enter_scope('acme', 'tester', null, null, null, %s)", [unrated]
            )
            call(connection, "enqueue_job", "acme", ECHO, "{}")

    for _ in range(3):
        act()

    assert refusal(act).code == "BUDGET_USED_UP"
    assert refusal(lambda: enqueue(queue)).code == "BUDGET_USED_UP"
