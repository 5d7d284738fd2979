"""Acts on the functions in ``sql/`` as the roles that may call them, one short verb each.

A `Queue` takes its sessions from where it was made: all in one transaction that is rolled back (fixture ``queue``), or
each call committed by a login of its own (fixture ``make_queue``), for tests in which several act at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Thread
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any, LiteralString, TypeAlias, TypeVar
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import kwargs_row

from tests.postgres import ScratchDatabase

API = "jobforge_api"
WORKER = "jobforge_worker"
SUPERUSER = "super"
ECHO = "demo.echo"

Connection: TypeAlias = psycopg.Connection[Any]
Row: TypeAlias = SimpleNamespace
Acting: TypeAlias = Callable[[str], AbstractContextManager[Connection]]
T = TypeVar("T")


def within(connection: Connection) -> Acting:
    """Act as any role inside the open transaction of a superuser."""

    @contextmanager
    def act(role: str) -> Generator[Connection]:
        name = sql.SQL("none") if role == SUPERUSER else sql.Identifier(role)
        with connection.transaction():
            connection.execute(sql.SQL("set local role {}").format(name))
            yield connection

    return act


def logged_in(database: ScratchDatabase, opened: ExitStack) -> Acting:
    """Act as each role over a connection of its own that commits."""
    connections: dict[str, Connection] = {}

    @contextmanager
    def act(role: str) -> Generator[Connection]:
        if role not in connections:
            made = database.connect() if role == SUPERUSER else database.connect(role)
            connections[role] = opened.enter_context(made)
        with connections[role].transaction():
            yield connections[role]

    return act


def call(connection: Connection, function: str, *arguments: object, **named: object) -> list[Row]:
    """Select from a function of the schema; ``reason=1`` is its parameter ``p_reason``."""
    placeholders = [sql.Placeholder()] * len(arguments)
    by_name = [sql.SQL("{} => %s").format(sql.Identifier(f"p_{name}")) for name in named]
    query = sql.SQL("select * from jobforge.{}({})").format(
        sql.Identifier(function), sql.SQL(", ").join([*placeholders, *by_name])
    )
    with connection.cursor(row_factory=kwargs_row(SimpleNamespace)) as cursor:
        return cursor.execute(query, [*arguments, *named.values()]).fetchall()


def enter(connection: Connection, tenant: str) -> None:
    """Set the tenant of this transaction."""
    connection.execute("select jobforge.enter_scope(%s, 'tester')", [tenant])


@dataclass(frozen=True, slots=True)
class Queue:
    """Callers and workers of one database."""

    acting: Acting

    # --- callers

    def ask(self, function: str, tenant: str, *arguments: object, **named: object) -> list[Row]:
        """Call a function that belongs to tenants, inside that tenant's scope."""
        with self.acting(API) as connection:
            enter(connection, tenant)
            return call(connection, function, tenant, *arguments, **named)

    def enqueue(
        self, tenant: str = "acme", job_type: str = ECHO, payload: str = "{}", **named: object
    ) -> Row:
        """Enqueue one job."""
        return self.ask("enqueue_job", tenant, job_type, payload, **named)[0]

    def enqueue_many(
        self, count: int, tenant: str = "acme", job_type: str = ECHO, **named: object
    ) -> list[UUID]:
        """Enqueue so many like jobs in one call; lists among ``named`` have an element for each."""
        rows = self.ask("enqueue_jobs", tenant, [job_type] * count, ["{}"] * count, **named)
        return [row.job_id for row in rows]

    def run(self, job_id: UUID, tenant: str = "acme") -> Row:
        """Read one run."""
        return self.ask("get_run", tenant, job_id)[0]

    def status(self, job_id: UUID, tenant: str = "acme") -> str:
        """Read one run's status."""
        return self.run(job_id, tenant).status

    def version(self, job_id: UUID, tenant: str = "acme") -> int:
        """Read one run's version."""
        return self.run(job_id, tenant).version

    def cancel(self, job_id: UUID, tenant: str = "acme", reason: str | None = None) -> Row:
        """Cancel a run."""
        return self.ask("cancel_job", tenant, job_id, reason)[0]

    def retry(self, job_id: UUID, tenant: str = "acme", **named: object) -> Row:
        """Retry a run."""
        return self.ask("retry_job", tenant, job_id, **named)[0]

    def explain(self, job_id: UUID, tenant: str = "acme") -> Row:
        """Ask why a run is not running."""
        return self.ask("explain_run", tenant, job_id)[0]

    def attempts(self, job_id: UUID, tenant: str = "acme") -> list[Row]:
        """List the attempts that did not succeed."""
        return self.ask("list_attempts", tenant, job_id)

    # --- workers

    def work(self, function: str, *arguments: object, **named: object) -> list[Row]:
        """Call a function that belongs to workers."""
        with self.acting(WORKER) as connection:
            return call(connection, function, *arguments, **named)

    def claim(
        self, limit: int = 1, worker: str = "w1", types: Iterable[str] = (ECHO,), **named: object
    ) -> list[Row]:
        """Claim a batch."""
        return self.work("claim_jobs", worker, list(types), limit, **named)

    def tend(self) -> None:
        """Find lanes whose waking was skipped: an enqueue never waits for another that wakes the same one."""
        self.work("tend_lanes")

    def claim_one(self, worker: str = "w1", **named: object) -> Row:
        """Claim exactly one job, which must be there."""
        (claimed,) = self.work("claim_jobs", worker, [ECHO], 1, **named)
        return claimed

    def complete(self, *claimed: Row, result: str = "null") -> list[Row]:
        """Complete claimed jobs."""
        return self.work("complete_jobs", *fences(claimed), [result] * len(claimed))

    def fail(
        self,
        *claimed: Row,
        kind: str = "failed",
        delay_ms: int | None = None,
        manifest: str | None = None,
    ) -> list[Row]:
        """Fail claimed jobs."""
        count = len(claimed)
        error = '{"code": "OOPS", "message": "it broke", "retryable": true}'
        return self.work(
            "fail_jobs",
            *fences(claimed),
            [kind] * count,
            [error] * count,
            [None] * count,
            [delay_ms] * count,
            None if manifest is None else [manifest] * count,
        )

    def release(self, *claimed: Row) -> list[Row]:
        """Give claimed jobs back."""
        return self.work("release_jobs", *fences(claimed))

    def heartbeat(self, *claimed: Row, worker: str = "w1", lease_ms: int = 30_000) -> list[Row]:
        """Extend the leases of claimed jobs."""
        tenants, leases, _, _ = fences(claimed)
        return self.work("heartbeat", worker, tenants, leases, lease_ms)

    def report(
        self,
        claimed: Row,
        done: float | None = None,
        total: float | None = None,
        message: str | None = None,
        logs: str | None = None,
    ) -> Row:
        """Report progress of one claimed job."""
        said = ([done], [total], [message], [logs])
        return self.work("report_progress", *fences([claimed]), *said)[0]

    def reap(self) -> int:
        """Take jobs out of expired leases."""
        return self.work("reap_expired")[0].reap_expired

    def register(self, worker: str = "w1", types: Iterable[str] = (ECHO,)) -> None:
        """Say that a worker lives."""
        self.work("register_worker", worker, "host", 1, "1", list(types), 4)

    # --- the test itself

    def look(self, query: LiteralString, *parameters: object) -> list[Row]:
        """Look into the tables, or arrange them, as nobody but a test may."""
        with (
            self.acting(SUPERUSER) as connection,
            connection.cursor(row_factory=kwargs_row(SimpleNamespace)) as cursor,
        ):
            cursor.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []  # no column, no description

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        shift = timedelta(seconds=seconds)
        self.look("update jobforge_test.clock set shift = shift + %s", shift)

    def now(self) -> datetime:
        """Read the clock."""
        return self.look("select jobforge.now()")[0].now

    def place(self, job_id: UUID) -> list[str]:
        """Name every place a job is in; an open job is in one, a final one in none."""
        rows = self.look(
            """select 'ready' as name from jobforge.ready where job_id = %s
            union all select 'lease' from jobforge.leases where %s = any (job_ids)
            union all select 'waiting' from jobforge.waiting where job_id = %s""",
            job_id,
            job_id,
            job_id,
        )
        return [row.name for row in rows]

    def lose_worker(self, seconds: float = 31) -> int:
        """Let every lease expire and be reaped."""
        self.advance(seconds)
        return self.reap()


def fences(
    claimed: Iterable[Row],
) -> tuple[list[str], list[UUID], list[UUID], list[int]]:
    """Tell the four arrays that every call about claimed jobs begins with."""
    rows = list(claimed)
    return (
        [row.tenant_id for row in rows],
        [row.lease_id for row in rows],
        [row.job_id for row in rows],
        [row.epoch for row in rows],
    )


def leave_artifact(
    queue: Queue,
    claimed: Row,
    name: str = "report.md",
    content: bytes = b"hello",
    *,
    store: str = "table",
    keep_ms: int | None = None,
) -> None:
    """Record an artifact of a claimed job; what lies outside is announced first."""
    fence = [row[0] for row in fences([claimed])]
    digest = hashlib.sha256(content).hexdigest()
    size = len(content)
    if store != "table":
        queue.work("announce_artifact", *fence, digest, size, store)
    kept = content if store == "table" else None
    queue.work("record_artifact", *fence, name, "text/plain", size, digest, store, kept, keep_ms)


@contextmanager
def refused(sqlstate: str) -> Generator[None]:
    """Expect the database to refuse what is in this block."""
    with pytest.raises(psycopg.Error) as caught:
        yield
    assert caught.value.sqlstate == sqlstate, caught.value


def meanwhile(work: Callable[[], T]) -> Future[T]:
    """Start work in a thread; its result or its error is in the future."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  # whoever asks for the result gets it
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def wait_until_blocked(queue: Queue, connection: Connection) -> None:
    """Wait until a connection waits for a lock: then what it was told is in flight."""
    deadline = monotonic() + 60
    pid = connection.info.backend_pid
    while monotonic() < deadline:
        if queue.look("select 1 as one from pg_locks where pid = %s and not granted", pid):
            return
        sleep(0.002)
    raise AssertionError("the connection does not wait for a lock")


def leave_event(queue: Queue, tenant: str, mark: str) -> UUID:
    """Submit an event that a trigger was asked about, everything named by the mark; its id."""
    queue.ask("register_trigger", tenant, mark, "event", ECHO, mark, event_type="order.paid")
    decided = [{"trigger": mark, "version": 1, "decision": "no_match", "reason": mark}]
    submitted = queue.ask(
        "submit_event",
        tenant,
        "order.paid",
        json.dumps({"mark": mark}),
        source=mark,
        subject=mark,
        idempotency_key=mark,
        trace_id=mark,
        project_id=mark,
        fires=json.dumps(decided),
    )
    return submitted[0].event_id
