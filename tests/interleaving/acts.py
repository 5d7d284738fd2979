"""Every function that changes anything, called for what the world holds; some in several ways.

The test compares this with the catalogue: whoever adds a function that a login may call says here how it is called, or why it
takes part in no experiment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.interleaving.world import (
    BOUNCE,
    FREE_TENANT,
    HOUR_MS,
    PAUSED,
    RATE,
    REGISTERED,
    SLOT,
    TENANT,
    World,
    marked,
)
from tests.sql.acting import API, ECHO, SUPERUSER, WORKER, Connection, Row, call, enter, fences

SCHEDULER = "jobforge_scheduler"

Arguments = Callable[[World], "list[object]"]


@dataclass(frozen=True, slots=True)
class Act:
    """One call of one function."""

    name: str
    function: str
    role: str
    arguments: Arguments
    named: Mapping[str, object] = field(default_factory=dict[str, object])
    tenant: str = TENANT

    def on(self, connection: Connection, world: World) -> list[Row]:
        """Call it in the open transaction of this connection."""
        given = self.arguments(world)
        if self.role == API:
            enter(connection, self.tenant)
            given = [self.tenant, *given]
        return call(connection, self.function, *given, **self.named)


def of_caller(name: str, function: str, *arguments: object, **named: object) -> Act:
    return Act(name, function, API, lambda _: list(arguments), named)


def of_free_caller(name: str, function: str, *arguments: object) -> Act:
    """Call as the tenant that nothing is said of, whose jobs the short functions enqueue."""
    return Act(name, function, API, lambda _: list(arguments), tenant=FREE_TENANT)


def on_run(function: str, *letters: str, **named: object) -> list[Act]:
    def act(letter: str) -> Act:
        return Act(f"{function} {letter}", function, API, lambda world: [world.ids[letter]], named)

    return [act(letter) for letter in letters]


def of_worker(name: str, function: str, *arguments: object, **named: object) -> Act:
    return Act(name, function, WORKER, lambda _: list(arguments), named)


def enqueueing_plain(name: str, *payloads: str, tenant: str = FREE_TENANT) -> Act:
    """Enqueue with the scope in the call, signed with the key that the world knows."""
    return Act(
        name, "enqueue_plain_jobs", API,
        lambda world: [*world.signed[tenant], ECHO, list(payloads)], tenant=tenant,
    )  # fmt: skip


def enqueueing_leased(name: str, job_type: str, payload: str, tenant: str = FREE_TENANT) -> Act:
    """Enqueue one job for a free slot of the caller's own pool, with the scope in the call."""
    return Act(
        name, "enqueue_leased_job", API,
        lambda world: [*world.signed[tenant], job_type, payload, "w8", HOUR_MS], tenant=tenant,
    )  # fmt: skip


def settling(name: str, function: str, letters: str, *columns: object) -> Act:
    """Settle or report claims; each column is the value of one parallel array."""

    def arguments(world: World) -> list[object]:
        rows = [world.claims[letter] for letter in letters.split()]
        return [*fences(rows), *([column] * len(rows) for column in columns)]

    return Act(name, function, WORKER, arguments)


def of_claim(
    name: str, function: str, letter: str, *arguments: object | Callable[[World], object]
) -> Act:
    """Call about one claim, with its fence first."""

    def given(world: World) -> list[object]:
        return world.fence(letter) + [
            argument(world) if callable(argument) else argument for argument in arguments
        ]

    return Act(name, function, WORKER, given)


def heartbeat(worker: str, letter: str) -> Act:
    def arguments(world: World) -> list[object]:
        tenants, leases, *_ = fences([world.claims[letter]])
        return [worker, tenants, leases, HOUR_MS]

    return Act(f"heartbeat {letter}", "heartbeat", WORKER, arguments)


def enqueueing(name: str, keys: list[str | None], lines: list[str | None], **named: object) -> Act:
    count = len(keys)
    payloads = [marked(f"{name} {place}") for place in range(count)]
    return of_caller(
        name, "enqueue_jobs", [ECHO] * count, payloads, None, keys, lines,
        max_attempts=[2] * count, **named,
    )  # fmt: skip


def bundling(name: str, keys: list[str], lines: list[str | None]) -> Act:
    return of_caller(
        name, "enqueue_bundle", [ECHO] * 2, [marked(f"{name} 0"), marked(f"{name} 1")], None, keys, lines,
        None, None, None, None, None, None, [1] * 2, [0] * 2, [1.0] * 2, [0] * 2, None, None, None, None,
        ["[]", "[1]"], [None] * 2,
    )  # fmt: skip


ERROR = '{"code": "OOPS", "message": "it broke", "retryable": true}'
NEW_DEFINITION = json.dumps({"name": REGISTERED, "handler": ECHO, "description": "second"})
FIRES = json.dumps(
    [{"trigger": "settled", "version": 1, "decision": "fire", "payload": marked("fired")}]
)
NO_FIRE = json.dumps({"version": 1, "payload": marked("by hand")})

ACTS: list[Act] = [
    # --- callers
    of_caller("enqueue_job", "enqueue_job", ECHO, marked("new"), idempotency_key="k1"),
    of_caller("enqueue two", "enqueue_jobs", [ECHO] * 2, [marked("plain 0"), marked("plain 1")]),
    enqueueing_plain("enqueue plain", marked("plain 2")),
    enqueueing_plain("enqueue plain two", marked("plain 3"), marked("plain 4")),
    enqueueing_leased("enqueue leased", "demo.fresh", marked("plain 5")),
    enqueueing_leased("enqueue leased, if nothing waits", ECHO, marked("plain 6")),
    enqueueing_plain("enqueue plain, counted", marked("plain 7"), tenant=TENANT),
    enqueueing_leased("enqueue leased, counted", "demo.fresh", marked("plain 8"), TENANT),
    enqueueing("enqueue keyed", ["key", "k1"], ["o1", "o5"], project_ids=["p1", None]),
    enqueueing("enqueue crossed", ["k1", "key"], ["o5", "o1"], project_ids=[None, "p1"]),
    enqueueing("enqueue slots", [None] * 2, ["o2", None], claim_limits=[SLOT, RATE]),
    enqueueing("enqueue bounced", [None], [None], claim_limits=[BOUNCE]),
    bundling("enqueue_bundle", ["b1", "b2"], ["o1", "o5"]),
    bundling("enqueue_bundle crossed", ["b2", "b1"], ["o5", "o1"]),
    *on_run("cancel_job", "turn", "next", "first", "second", "whole", "step", "slot", "parked", "head", "one", "pair1"),
    Act("cancel_job other", "cancel_job", API, lambda world: [world.ids["other"]], tenant=FREE_TENANT),
    *on_run("retry_job", "failed", "canceled"),
    *on_run("retry_job", "done", force=True),
    of_caller("cancel_runs", "cancel_runs", expected=10_000, statuses=["queued", "running"]),
    of_caller("retry_runs", "retry_runs", expected=10_000, statuses=["failed", "canceled"]),
    of_caller("pause_queue type", "pause_queue", "type", ECHO),
    of_caller("pause_queue project", "pause_queue", "project", "p1"),
    of_free_caller("pause_queue free", "pause_queue", "type", "demo.fresh"),
    of_caller("resume_queue", "resume_queue", "type", PAUSED),
    of_caller("register_definition", "register_definition", NEW_DEFINITION, ECHO),
    of_caller("approve_definition", "approve_definition", REGISTERED),
    of_caller("remove_definition", "remove_definition", REGISTERED),
    of_caller("register_trigger", "register_trigger", "settled", "event", ECHO, event_type="order.paid", cooldown_ms=1),
    of_caller("remove_trigger", "remove_trigger", "settled"),
    of_caller("pause_trigger", "pause_trigger", "settled"),
    of_caller("resume_trigger", "resume_trigger", "settled"),
    of_caller("run_trigger", "run_trigger", "settled", NO_FIRE, idempotency_key="manual"),
    of_caller("submit_event", "submit_event", "order.paid", marked("event"), project_id="settled", source="shop", idempotency_key="e1", fires=FIRES),
    of_caller("receive_webhook", "receive_webhook", "hub", "d1", "order.paid", marked("hook")),
    of_caller("revoke_token", "revoke_token", "t-1"),
    of_caller("revoke_tenant_tokens", "revoke_tenant_tokens"),
    of_caller("record_denial", "record_denial", "execute-job", "scope"),
    # --- workers
    of_worker("claim_jobs", "claim_jobs", "w2", [ECHO], 20),
    of_worker("claim_jobs reaping", "claim_jobs", "w7", [ECHO, PAUSED], 3, reap=True),
    settling("complete one", "complete_jobs", "first", "null"),
    settling("complete slots", "complete_jobs", "slot turn", "null"),
    settling("complete lost", "complete_jobs", "pair2 pair1", "null"),
    settling("complete whole", "complete_jobs", "whole", "null"),
    settling("fail for good", "fail_jobs", "turn slot", "permanent", ERROR, None, None),
    settling("fail first", "fail_jobs", "first", "permanent", ERROR, None, None),
    settling("fail whole", "fail_jobs", "whole", "permanent", ERROR, None, None),
    settling("fail rated", "fail_jobs", "rated slot", "failed", ERROR, None, None),
    settling("release_jobs", "release_jobs", "slot rated turn"),
    settling("report_progress", "report_progress", "slot turn", 1.0, 2.0, "so far", '[["info", "said"]]'),
    heartbeat("w1", "turn"),
    heartbeat("w6", "pair1"),
    of_worker("reap_expired", "reap_expired"),
    of_worker("tend_lanes", "tend_lanes"),
    of_worker("look_for_work", "look_for_work", "w1", [ECHO], None, 1_000, 1_000, 5_000, True),
    of_claim(
        "enqueue_child", "enqueue_child", "turn", ECHO, marked("child"), "{}", "c1", "o5", 2, None, None, "1", 1, 0, 1.0, 0, 60_000
    ),
    of_claim(
        "enqueue_steps", "enqueue_steps", "whole", ["step", "other"], [ECHO] * 2, [marked("step"), marked("other")], ["{}"] * 2,
        [None] * 2, ["1"] * 2, [1] * 2, [0] * 2, [1.0] * 2, [0] * 2, [60_000] * 2, [None] * 2, [None] * 2,
    ),
    of_claim("wait_for_steps", "wait_for_steps", "whole", lambda world: [world.ids["step"]], 0),
    of_claim("announce_artifact", "announce_artifact", "turn", "1" * 64, 3, "directory"),
    of_claim("record_artifact", "record_artifact", "turn", "one.txt", "text/plain", 3, "0" * 64, "directory", None, None),
    of_claim("submit_run_event", "submit_run_event", "turn", "order.paid", marked("run event"), "run:1"),
    of_worker("register_worker", "register_worker", "w1", "host", 1, "1", [ECHO], 4),
    of_worker("tell_installed_jobs", "tell_installed_jobs", [ECHO], [1], [None]),
    of_worker("forget_worker", "forget_worker", "w1"),
    of_worker("await_wakeup", "await_wakeup", "w1", "ready", 1_000),
    of_worker("keep_environment", "keep_environment", "w1", "{}"),
    # --- upkeep
    Act("claim_events", "claim_events", SCHEDULER, lambda _: []),
    Act("process_event", "process_event", SCHEDULER, lambda world: [TENANT, world.event_id, FIRES]),
    Act("fire_due_triggers", "fire_due_triggers", SCHEDULER, lambda world: [json.dumps(world.due)]),
    of_worker("purge_finished", "purge_finished"),
    of_worker("purge_events", "purge_events"),
    of_worker("purge_artifacts", "purge_artifacts"),
    # --- operators
    Act("set_limit", "set_limit", SUPERUSER, lambda _: [TENANT, "type", ECHO, '{"max_running": 1}']),
    Act("set_limit free", "set_limit", SUPERUSER, lambda _: [FREE_TENANT, "tenant", None, '{"budget_jobs": 10, "period_seconds": 86400}']),
    Act("remove_limit", "remove_limit", SUPERUSER, lambda _: [TENANT, "type", ECHO]),
    Act("set_retention", "set_retention", SUPERUSER, lambda _: [TENANT, 31]),
]  # fmt: skip

EXCUSED = {
    "enter_scope": "sets the scope of a transaction; every act of a caller begins with it",
    "append_seal": "one sealer at a time calls it, under the lock of lock_sealing",
    "lock_sealing": "tries one lock of the sealer alone and waits for nobody",
    "list_unsealed": "reads, though it is marked volatile for its snapshot",
    "read_unsealed": "the same",
    "read_runs": "reads in a scope of its own",
    "list_steps": "reads in the fence of a claim",
    "list_step_definitions": "the same",
    "due_triggers": "reads what is due; fire_due_triggers decides",
}
"""Volatile functions that change no row, or nothing that two could change at once."""

PASSING_OVER = {
    "claim_jobs", "reap_expired", "tend_lanes", "look_for_work", "claim_events", "fire_due_triggers", "purge_finished", "purge_events",
    "purge_artifacts", "cancel_runs", "retry_runs", "await_wakeup", "wait_for_steps",
}  # fmt: skip
"""Functions that pass over what others hold (`skip locked`), or do a limited part: what they did not see is left to the next call, so
that an outcome is not one of the two serial ones by right."""
