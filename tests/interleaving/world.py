"""A database in which every function finds something to do, and which is put back after each experiment.

All of it belongs to two tenants. Jobs are told apart by the letter in their payload, ``{"w": "head"}``, which new ones made
by acts carry too. The clock stands where it stood when the world was made, so that leases live as long as an exploration.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import LiteralString
from uuid import UUID

import psycopg

from jobforge_mcp.db.context import ContextKey, ContextSigner
from jobforge_mcp.router.scope import split_signature
from tests.sql.acting import ECHO, SUPERUSER, Queue, Row, leave_artifact, leave_event
from tests.sql.test_bundles import bundle
from tests.sql.test_dependencies import fence
from tests.sql.test_dependencies import steps as enqueue_steps

TENANT = "acme"
FREE_TENANT = "globex"
"""A tenant without limits, tokens and pauses."""
KEY = ContextKey("k1", bytes(range(32)))
SIGNER = ContextSigner(KEY)
HOUR_MS = 3_600_000
SLOT = json.dumps({"concurrency": {"limit": 1, "key": "k"}})
RATE = json.dumps({"rateLimit": {"count": 1, "periodMs": 60_000, "key": "r"}})
BOUNCE = json.dumps({"debounce": {"key": "b", "windowMs": 60_000, "maxWaitMs": 600_000}})
REGISTERED = "acme.registered"
PAUSED = "demo.paused"

_KEEP: LiteralString = """
create schema explore;
create function explore.keep() returns void language plpgsql as $$
declare v_table text;
begin
  for v_table in select c.relname from pg_class c where c.relnamespace = 'jobforge'::regnamespace and c.relkind = 'r' loop
    execute format('create table explore.%I as table jobforge.%I', v_table, v_table);
  end loop;
  create table explore.moment as select jobforge.now() as at;
  execute (select E'create function explore.put_back() returns void language plpgsql as $body$ begin\n'
    || string_agg(format(
      E'if exists ((table explore.%1$I except all table jobforge.%1$I) union all (table jobforge.%1$I except all table explore.%1$I)) then\n'
      || E'delete from jobforge.%1$I; insert into jobforge.%1$I overriding system value table explore.%1$I; end if;\n', c.relname), '')
    || 'update jobforge_test.clock set shift = (select at from explore.moment) - clock_timestamp(); end $body$'
  from pg_class c where c.relnamespace = 'jobforge'::regnamespace and c.relkind = 'r');
end $$;
"""


@dataclass
class World:
    """What acts name: claims by the letter of their job, ids by theirs."""

    queue: Queue
    claims: dict[str, Row] = field(default_factory=dict[str, Row])
    ids: dict[str, UUID] = field(default_factory=dict[str, UUID])
    event_id: UUID | None = None
    due: list[dict[str, object]] = field(default_factory=list[dict[str, object]])
    signed: dict[str, list[object]] = field(default_factory=dict[str, "list[object]"])
    """Scope and signature of each tenant, as the short functions take them: good at the moment where the clock stands."""

    def fence(self, letter: str) -> list[object]:
        """Name the living claim of a job, as a worker does in calls about one job."""
        return fence(self.claims[letter])

    def put_back(self) -> None:
        """Undo everything since :func:`settle_in`."""
        self.queue.look("set session_replication_role = replica")
        self.queue.look("select explore.put_back()")

    def sweep(self) -> None:
        """Clear away the rows that were put back, which every look would pass."""
        with self.queue.acting(SUPERUSER) as connection:
            url = connection.info.dsn
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("vacuum")


def define(queue: Queue, text: LiteralString) -> None:
    """Run statements that hold percent signs."""
    with queue.acting(SUPERUSER) as connection:
        connection.execute(text)


def marked(letter: str) -> str:
    return json.dumps({"w": letter})


def settle_in(queue: Queue) -> World:
    """Arrange the world and remember it."""
    world = World(queue)
    queue.look(
        """insert into jobforge.context_keys (key_id, slot, inner_pad, outer_pad, is_enforced, created_at)
        values (%s, 1, %s, %s, false, jobforge.now())""",
        KEY.key_id,
        *KEY.pads(),
    )

    def add(letter: str, job_type: str = ECHO, **named: object) -> None:
        row = queue.enqueue(TENANT, job_type, marked(letter), max_attempts=2, backoff_ms=0, **named)
        world.ids[letter] = row.job_id

    def add_limited(letter: str, limits: str, **named: object) -> None:
        rows = queue.ask(
            "enqueue_jobs", TENANT, [ECHO], [marked(letter)], claim_limits=[limits],
            max_attempts=[2], backoff_ms=[0], **named,
        )  # fmt: skip
        world.ids[letter] = rows[0].job_id

    def claim(*letters: str, worker: str, lease_ms: int = HOUR_MS) -> None:
        rows = queue.claim(100, worker, lease_ms=lease_ms)
        kept = [row for row in rows if row.job_id in {world.ids[letter] for letter in letters}]
        assert len(kept) == len(letters), (letters, rows)
        queue.release(*[row for row in rows if row not in kept])
        world.claims |= {json.loads(row.payload)["w"]: row for row in kept}

    # what ended, and can be retried or purged; some of it long ago
    for letter in ("done", "failed", "dead", "canceled", "old"):
        add(letter, ordering_key="o3" if letter == "failed" else None)
        claim(letter, worker="w0")
        row = world.claims.pop(letter)
        if letter in {"done", "old"}:
            queue.complete(row, result='"kept"')
        elif letter == "canceled":
            queue.cancel(row.job_id)
            queue.fail(row, kind="canceled")
        else:
            queue.fail(row, kind="permanent")
    old_id = queue.look("select jobforge.lowest_id(jobforge.now() - interval '400 days') as id")[
        0
    ].id
    queue.look(
        "update jobforge.jobs set id = %s, finished_at = finished_at - interval '399 days' where id = %s",
        old_id,
        world.ids["old"],
    )

    # what workers hold: two jobs of one lease with lines behind them, a composition, the first of a bundle
    add("turn", ordering_key="o1")
    add("next", ordering_key="o1")
    add("third", ordering_key="o1")
    add_limited("slot", SLOT, ordering_keys=["o2"])
    add_limited("parked", SLOT)
    add_limited("rated", RATE)
    add_limited("later", RATE)
    first, second = bundle(
        queue, [[], [1]], payloads=[marked("first"), marked("second")], ordering_keys=[None, "o1"]
    )
    world.ids |= {"first": first.job_id, "second": second.job_id}
    claim("turn", "slot", "rated", worker="w1")
    claim("first", worker="w3")
    add("whole")
    claim("whole", worker="w4")
    world.ids |= enqueue_steps(queue, world.claims["whole"], "step")
    queue.look(
        'update jobforge.jobs set payload = \'{"w": "step"}\' where id = %s', world.ids["step"]
    )
    leave_artifact(queue, world.claims["turn"], name="one.txt", content=b"one")
    queue.work("announce_artifact", *world.fence("turn"), "0" * 64, 3, "directory")
    queue.look(
        "update jobforge.artifact_objects set announced_at = announced_at - interval '2 hours'"
    )

    # what lost workers hold: one job alone, two together
    add("alone")
    claim("alone", worker="w5", lease_ms=100)
    add("pair1", ordering_key="o4")
    add("pair2")
    claim("pair1", "pair2", worker="w6", lease_ms=100)
    queue.advance(1)

    # what waits to be claimed
    for letter in ("one", "two", "three"):
        add(letter, idempotency_key="key" if letter == "one" else None, project_id="p1")
    add("head", ordering_key="o5")
    add("future", run_at=queue.now().replace(year=2100))
    add_limited("bounced", BOUNCE)
    queue.ask("pause_queue", TENANT, "type", PAUSED, "tests")
    queue.look("insert into jobforge.lanes (tenant_id, job_type, seen_at, woken_at) values ('acme', 'demo.gone', "
        "jobforge.now() - interval '1 hour', jobforge.now() - interval '1 hour')")  # fmt: skip
    add("standing", job_type=PAUSED)

    # what stands around: definitions, triggers, events, tokens, limits, workers, another tenant
    definition = json.dumps({"name": REGISTERED, "handler": ECHO, "description": "first"})
    queue.ask("register_definition", TENANT, definition, ECHO)
    add("registered", job_type=REGISTERED)
    world.event_id = leave_event(queue, TENANT, "settled")
    pending = queue.ask(
        "submit_event", TENANT, "order.paid", marked("pending"), source="shop", project_id="settled"
    )
    world.event_id = pending[0].event_id
    queue.ask("register_trigger", TENANT, "clockwork", "cron", ECHO, cron="* * * * *", timezone="UTC", catch_up="all", overlap="queue", jitter_ms=0,
        next_fire_at=queue.now() + timedelta(seconds=1))  # fmt: skip
    queue.advance(2)
    world.due = [
        {
            "tenant": TENANT, "trigger": "clockwork", "version": row.version, "due": row.next_fire_at.isoformat(),
            "next": queue.now().replace(year=2100).isoformat(),
            "times": [{"at": row.next_fire_at.isoformat(), "decision": "fire", "payload": marked("cron")}],
        }
        for row in queue.work("due_triggers")
    ]  # fmt: skip
    hub = json.dumps({"scheme": "github", "secrets": ["hub"]})
    queue.look("select jobforge.set_incoming_webhook('acme', 'hub', %s)", hub)
    queue.look("select jobforge.set_limit('acme', 'tenant', null, %s)", '{"budget_jobs": 1000000, "period_seconds": 86400}')  # fmt: skip
    queue.look("select jobforge.set_limit('acme', 'type', %s, %s)", ECHO, '{"max_running": 50, "max_queued": 100000}')  # fmt: skip
    world.ids["other"] = queue.enqueue(FREE_TENANT, ECHO, marked("other")).job_id
    queue.register("w1")
    define(queue, _KEEP)
    queue.look("select explore.keep()")
    said = ("agent", None, None, None, None)
    for tenant in (TENANT, FREE_TENANT):
        world.signed[tenant] = [*said, *split_signature(SIGNER.sign(tenant, *said))]
    world.put_back()
    return world
