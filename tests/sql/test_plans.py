"""Query plans with a hundred thousand ready rows, whatever the statistics say of them: indexes, no scans.

Slower than a second: the rows have to be there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from tests.postgres import DatabaseMaker
from tests.sql.acting import ECHO, Queue, within

ROWS = 100_000
BIG: dict[str, LiteralString] = {
    "jobs": "",
    "ready": "",
    "idempotency_keys": """
        select tenant_id, '', job_type, id::text, id, '\\x00', created_at, created_at + interval '30 days'""",
    "run_progress": "select tenant_id, id, 1",
    "job_attempts": "select tenant_id, id, 0, 1, 'failed', 'w', created_at, created_at",
    "job_dependencies": "select tenant_id, id, jobforge.new_id(), 'cancel', false",
    "composition_steps": "select tenant_id, id, 'steps/a', jobforge.new_id(), created_at",
    "waiting": "select tenant_id, jobforge.new_id(), 'turn', 'k' || priority, row_number() over (), 0, 0",
}
"""Tables that hold a row for each job; the columns of those beside the first two."""


NO_STATISTICS = "none"  # nobody looked at the tables yet
EMPTIED = "emptied"  # somebody looked when all rows were gone and their pages still there: a row costs nothing
FEW = "few"  # somebody looked when each tenant had one
UNSEEN = "unseen"  # somebody looks now, and sees the pages of rows that are not committed


@pytest.fixture(scope="module", params=[NO_STATISTICS, EMPTIED, FEW, UNSEEN])
def crowded(
    request: pytest.FixtureRequest, databases: DatabaseMaker, template: None
) -> Iterator[psycopg.Connection]:
    database = databases.create_migrated()
    if request.param in {EMPTIED, FEW}:
        with database.connect() as admin:
            keep_statistics(admin, is_emptied=request.param == EMPTIED)
    with database.connect(autocommit=False) as connection:
        connection.execute(
            """with made as (
              insert into jobforge.jobs (tenant_id, id, job_type, job_version, payload, priority,
                max_attempts, timeout_ms, backoff_ms, max_backoff_ms, backoff_multiplier, run_at,
                created_at)
              select 'acme', jobforge.new_id(), %s, '1', '{}', n %% 4, 3, 300000, 1, 1, 1,
                jobforge.now() + (n - 50000) * interval '1 second', jobforge.now()
              from generate_series(1, %s) n
              returning *)
            insert into jobforge.ready
              (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no)
            select tenant_id, job_type, priority, run_at, id, 0, 0 from made""",
            [ECHO, ROWS],
        )
        connection.execute(
            "insert into jobforge.lanes (tenant_id, job_type, seen_at) values ('acme', %s, now())",
            [ECHO],
        )
        for table, columns in BIG.items():
            if columns:
                connection.execute(
                    sql.SQL("insert into jobforge.{} {} from jobforge.jobs").format(
                        sql.Identifier(table), sql.SQL(columns)
                    )
                )
        if request.param == UNSEEN:
            with database.connect() as admin:
                admin.execute("analyze")
        yield connection
        connection.rollback()
    databases.drop(database)


def keep_statistics(admin: psycopg.Connection, *, is_emptied: bool) -> None:
    """Gather statistics of tables that hold a row for each of some tenants, or held them a moment ago."""
    queue = Queue(within(admin))
    for tenant in [f"tenant-{number}" for number in range(20)]:
        queue.enqueue(tenant, idempotency_key="k")
        queue.claim(1, tenant_ids=[tenant])
        queue.enqueue(tenant)
    if is_emptied:
        for table in ("leases", *BIG):
            admin.execute(sql.SQL("delete from jobforge.{}").format(sql.Identifier(table)))
    admin.execute("analyze")


Explain = Callable[[Callable[[], object]], list[dict[str, Any]]]


@pytest.fixture
def explain(crowded: psycopg.Connection) -> Iterator[Explain]:
    """Collect the plans of all statements, however deep in functions, that an act runs."""
    plans: list[dict[str, Any]] = []

    def keep(diagnostic: psycopg.errors.Diagnostic) -> None:
        message = diagnostic.message_primary or ""
        if "plan:" in message:
            plans.append(json.loads(message.split("plan:", 1)[1]))

    def run(act: Callable[[], object]) -> list[dict[str, Any]]:
        plans.clear()
        act()
        return list(plans)

    with crowded.transaction(force_rollback=True):
        crowded.execute("load 'auto_explain'")
        for setting, value in {
            "auto_explain.log_min_duration": "0",
            "auto_explain.log_nested_statements": "on",
            "auto_explain.log_format": "json",
            "auto_explain.log_level": "notice",
            "auto_explain.log_analyze": "on",
            "auto_explain.log_timing": "off",
            "auto_explain.log_buffers": "on",
            "client_min_messages": "notice",
        }.items():
            crowded.execute("select set_config(%s, %s, true)", [setting, value])
        crowded.add_notice_handler(keep)
        yield run
        crowded.remove_notice_handler(keep)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def offences(plans: list[dict[str, Any]], most_rows: int = 1000) -> list[str]:
    """Name what reads a big table whole, or far more of it than is needed."""
    assert plans != []
    found: list[str] = []
    for plan in plans:
        for node in nodes(plan["Plan"]):
            if node.get("Relation Name") not in BIG:
                continue
            read = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node[
                "Actual Loops"
            ]
            pages = node["Shared Hit Blocks"] + node["Shared Read Blocks"]
            is_scan = node["Node Type"] == "Seq Scan" and node["Actual Loops"]
            if is_scan or read > most_rows or pages > 10 * most_rows + 20:
                found.append(f"{node['Node Type']} of {node['Relation Name']}: {read}, {pages}")
    return found


@pytest.mark.requirement("sql.bounded-plans")
def test_a_claim_reads_no_more_than_it_takes(crowded: psycopg.Connection, explain: Explain) -> None:
    queue = Queue(within(crowded))

    plans = explain(lambda: queue.claim(50))

    assert offences(plans, 200) == []


@pytest.mark.parametrize("rows", ["none", "one", "a thousand"])
def test_a_claim_among_a_thousand_awake_tenants_probes_each_once(
    crowded: psycopg.Connection, explain: Explain, rows: str
) -> None:
    queue = Queue(within(crowded))
    crowded.execute(
        """insert into jobforge.lanes (tenant_id, job_type, seen_at)
        select 't-' || n, %s, now() from generate_series(1, 999) n""",
        [ECHO],
    )
    if rows == "none":
        crowded.execute(
            "update jobforge.lanes set job_type = 'demo.other' where tenant_id = 'acme'"
        )
    if rows == "a thousand":
        crowded.execute(
            """insert into jobforge.ready (tenant_id, job_type, priority, run_at, job_id, epoch, attempt_no)
            select tenant_id, job_type, 0, now(), jobforge.new_id(), 0, 0 from jobforge.lanes where tenant_id <> 'acme'"""
        )

    plans = explain(lambda: queue.claim(10))

    assert offences(plans) == []


def test_a_claim_reads_few_of_many_suspects(crowded: psycopg.Connection, explain: Explain) -> None:
    queue = Queue(within(crowded))
    for tenant in ("initech", "umbrella"):
        queue.enqueue(tenant)
    queue.look(
        "update jobforge.ready set is_suspect = true where tenant_id <> 'acme' or priority = 3"
    )

    for number in range(4):  # the oldest of each lane, and then the next
        plans = explain(lambda number=number: queue.claim(1, f"w{number}"))
        assert offences(plans, 100) == []

    leases = queue.look("select cardinality(job_ids) as jobs from jobforge.leases where is_suspect")
    assert [row.jobs for row in leases] == [1] * 4


def test_settles_find_their_jobs_by_key(crowded: psycopg.Connection, explain: Explain) -> None:
    queue = Queue(within(crowded))
    claimed = queue.claim(30)

    for settle in (queue.complete, queue.fail, queue.release):
        plans = explain(lambda settle=settle: settle(*[claimed.pop() for _ in range(10)]))
        assert offences(plans, 100) == []


def test_callers_find_their_run_by_key(crowded: psycopg.Connection, explain: Explain) -> None:
    queue = Queue(within(crowded))
    job = queue.enqueue(idempotency_key="k")

    for act in (
        lambda: queue.run(job.job_id),
        lambda: queue.enqueue(idempotency_key="k"),
        lambda: queue.enqueue(ordering_key="o"),
        lambda: queue.cancel(job.job_id),
        lambda: queue.retry(job.job_id),
    ):
        assert offences(explain(act), 20) == []


def test_a_page_of_runs_is_found_by_their_ids(
    crowded: psycopg.Connection, explain: Explain
) -> None:
    queue = Queue(within(crowded))
    queue.enqueue()

    for trace_id in (None, "t"):
        page = explain(
            lambda trace_id=trace_id: queue.ask("list_runs", "acme", limit=20, trace_id=trace_id)
        )
        # before PostgreSQL 17 a list of ids may be compared with every row between the first and the last of them
        newer = crowded.info.server_version >= 170_000
        assert [found for found in offences(page, 20) if newer or " of jobs" in found] == []


def test_keys_are_found_by_key(crowded: psycopg.Connection, explain: Explain) -> None:
    queue = Queue(within(crowded))
    keys = [f"k{number}" for number in range(10)]

    for act in (
        lambda: queue.enqueue(idempotency_key="k0"),
        lambda: queue.enqueue_many(10, idempotency_keys=keys),
        lambda: queue.enqueue_many(10, idempotency_keys=keys),
        lambda: queue.enqueue_many(10, ordering_keys=keys),
    ):
        assert offences(explain(act), 40) == []


def test_an_end_looks_at_nothing_but_what_waits_for_it(
    crowded: psycopg.Connection, explain: Explain
) -> None:
    queue = Queue(within(crowded))
    claimed = queue.claim(30)

    for act in (
        lambda: queue.complete(claimed.pop()),
        lambda: queue.complete(*[claimed.pop() for _ in range(5)]),
        lambda: queue.fail(*[claimed.pop() for _ in range(5)], kind="permanent"),
        lambda: queue.cancel(claimed[0].job_id),
        lambda: queue.cancel(queue.enqueue().job_id),
        lambda: queue.ask("list_runs", "acme", status="running", limit=20),
    ):
        assert offences(explain(act), 100) == []


def test_limits_look_at_the_jobs_that_come_and_go(
    crowded: psycopg.Connection, explain: Explain
) -> None:
    queue = Queue(within(crowded))
    limits = json.dumps({"concurrency": {"limit": 5, "key": "k"}})
    limited = "demo.limited"
    queue.enqueue_many(20, job_type=limited, claim_limits=[limits] * 20)

    assert offences(explain(lambda: queue.claim(20, types=[limited])), 100) == []
    (held,) = queue.look("select * from jobforge.leases where cardinality(job_ids) = 5")
    claimed = [
        SimpleNamespace(
            tenant_id=held.tenant_id, lease_id=held.lease_id, job_id=job_id, epoch=epoch
        )
        for job_id, epoch in zip(held.job_ids, held.epochs, strict=True)
    ]
    for act in (
        lambda: queue.complete(claimed.pop()),
        lambda: queue.fail(*[claimed.pop() for _ in range(3)]),
        lambda: queue.cancel(claimed[0].job_id),
    ):
        assert offences(explain(act), 100) == []


def test_explaining_counts_at_most_ten_thousand(
    crowded: psycopg.Connection, explain: Explain
) -> None:
    queue = Queue(within(crowded))
    job = queue.enqueue(priority=3)
    queue.register()

    assert offences(explain(lambda: queue.explain(job.job_id)), 10_100) == []


def test_a_worker_tends_lanes_without_reading_their_rows(
    crowded: psycopg.Connection, explain: Explain
) -> None:
    queue = Queue(within(crowded))

    assert offences(explain(lambda: queue.work("tend_lanes")), 100) == []


def test_an_idle_worker_asks_when_something_is_due_without_reading_it(
    crowded: psycopg.Connection, explain: Explain
) -> None:
    queue = Queue(within(crowded))
    queue.claim(10)
    arguments = ["w1", [ECHO], None, 1_000, 1_000, 5_000, False]

    assert offences(explain(lambda: queue.work("look_for_work", *arguments)), 100) == []


def test_a_heartbeat_reads_none_of_it(crowded: psycopg.Connection, explain: Explain) -> None:
    queue = Queue(within(crowded))
    claimed = queue.claim(10)

    assert offences(explain(lambda: queue.heartbeat(*claimed)), 0) == []
    assert offences(explain(lambda: queue.report(claimed[0], 1)), 10) == []
