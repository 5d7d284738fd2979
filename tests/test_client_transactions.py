"""What a client does in the transaction of the application is done when and only when that is committed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psycopg
import pytest

from jobforge_mcp.client import Client, SyncClient
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import ConflictError, NotFoundError, PolicyDeniedError
from jobforge_mcp.maintenance import Maintenance
from jobforge_mcp.policy.keys import KeyFolder
from jobforge_mcp.policy.scopes import ALL_SCOPES
from jobforge_mcp.policy.tokens import Grant, issue_token
from jobforge_mcp.router.events import EventRouter
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.maintenance import MaintenanceRouter
from jobforge_mcp.settings import load_settings
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.types import Caller, JobId, RunStatus, TenantId, TriggerKind, TriggerSpec
from tests.postgres import ScratchDatabase
from tests.server.jobs import JOBS

SPEC = TriggerSpec(
    "greet", TriggerKind.EVENT, event_type="order.*", job_name="test.echo", input={"text": "hi"}
)


@pytest.fixture
def registry() -> Registry:
    return Registry(JOBS)


def make_client(
    database: Database,
    registry: Registry,
    scopes: Iterable[str] = ALL_SCOPES,
    projects: frozenset[str] | None = None,
) -> Client:
    caller = Caller(TenantId("acme"), "agent@acme", frozenset(scopes), projects)
    desk = EventDesk(EventRouter(database), registry)
    return Client(Router(database), registry, caller, desk=desk)


def facts(admin: psycopg.Connection) -> tuple[object, ...]:
    """Count jobs, canceled ones, events, and audit rows of what is done in these tests."""
    row = admin.execute(
        """select (select count(*) from jobforge.jobs), (select count(*) from jobforge.jobs where final_status = 'canceled'),
          (select count(*) from jobforge.events),
          (select count(*) from jobforge.audit_log where action in ('enqueue', 'cancel', 'submit_event'))"""
    ).fetchone()
    assert row is not None
    return row


@pytest.mark.requirement("client.transactional-enqueue")
@pytest.mark.parametrize("is_committed", [True, False])
async def test_enqueue_cancel_and_submit_stand_or_fall_with_the_transaction(
    database: ScratchDatabase,
    api_database: Database,
    worker_database: Database,
    admin: psycopg.Connection,
    registry: Registry,
    is_committed: bool,
) -> None:
    client = make_client(api_database, registry)
    await client.events.register_trigger(SPEC)
    before = await client.enqueue("test.noop")

    url = database.url("jobforge_api")
    async with await psycopg.AsyncConnection.connect(url) as connection:
        made = await client.enqueue("test.noop", connection=connection)
        own = await client.cancel(made.job_id, connection=connection)
        await client.cancel(before.job_id, reason="enough", connection=connection)
        stored = await client.submit_event("order.paid", {"id": 7}, connection=connection)
        seen = await client.get(before.job_id)
        await (connection.commit() if is_committed else connection.rollback())

    assert (own.status, seen.status) == (RunStatus.CANCELED, RunStatus.QUEUED)
    assert not stored.is_processed
    assert facts(admin) == ((2, 2, 1, 5) if is_committed else (1, 0, 0, 1))
    done = await Maintenance(MaintenanceRouter(worker_database), registry).run_once()
    assert done == (1 if is_committed else 0)
    assert facts(admin)[0] == (3 if is_committed else 1)


async def test_the_same_is_refused_in_a_transaction_as_elsewhere(
    database: ScratchDatabase, api_database: Database, registry: Registry
) -> None:
    client = make_client(api_database, registry)
    confined = make_client(api_database, registry, projects=frozenset({"p1"}))
    powerless = make_client(api_database, registry, scopes=["jobs:read"])
    made = await client.enqueue("test.noop")
    url = database.url("jobforge_api")

    async with await psycopg.AsyncConnection.connect(url) as connection:
        with pytest.raises(PolicyDeniedError):
            await powerless.cancel(made.job_id, connection=connection)
        with pytest.raises(PolicyDeniedError):
            await powerless.submit_event("order.paid", connection=connection)
        with pytest.raises(NotFoundError, match=f"^no run {made.job_id} is known$"):
            await confined.cancel(made.job_id, connection=connection)
        await connection.rollback()
        await client.submit_event("order.paid", {}, idempotency_key="k", connection=connection)
        with pytest.raises(ConflictError):
            await client.submit_event(
                "order.paid", {"x": 1}, idempotency_key="k", connection=connection
            )
        await connection.rollback()

    assert (await client.get(made.job_id)).status is RunStatus.QUEUED


@pytest.mark.requirement("client.transactional-enqueue")
@pytest.mark.parametrize("is_committed", [True, False])
def test_the_blocking_client_does_so_too(
    database: ScratchDatabase,
    admin: psycopg.Connection,
    registry: Registry,
    tmp_path: Path,
    is_committed: bool,
) -> None:
    settings = load_settings(
        database_url=database.url("jobforge_api"),
        state_dir=tmp_path,
        token_keys=str(tmp_path),
        events_enabled=True,
    )
    token = issue_token(
        KeyFolder(tmp_path).ensure(),
        Grant("acme", ALL_SCOPES),
        issuer=settings.token_issuer,
        audience=settings.token_audience,
    )

    with (
        SyncClient.connect(settings, token=token, registry=registry) as client,
        psycopg.connect(database.url("jobforge_api")) as connection,
    ):
        made: JobId = client.enqueue("test.noop", connection=connection).job_id
        client.cancel(made, connection=connection)
        client.submit_event("order.paid", {"id": 7}, connection=connection)
        if is_committed:
            connection.commit()
        else:
            connection.rollback()

    assert facts(admin) == ((1, 1, 1, 3) if is_committed else (0, 0, 0, 0))
