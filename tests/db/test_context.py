"""Keys that sign scopes, as they are kept and read."""

from __future__ import annotations

import psycopg
import pytest

from jobforge_mcp.db.context import (
    ContextKey,
    ContextSigner,
    create_key,
    enforce_keys,
    ensure_own_key,
    list_keys,
)
from jobforge_mcp.db.pool import Database
from jobforge_mcp.errors import PolicyDeniedError
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.transactional import OwnTransaction
from jobforge_mcp.types import Caller, NewJob, RunFilter
from tests.postgres import ADMIN, ScratchDatabase


def test_a_key_is_read_as_it_was_written() -> None:
    key = ContextKey.generate()

    assert ContextKey.parse(f" {key.text()}\n") == key
    assert key.text() not in repr(key) + repr(ContextSigner(key))


def test_an_installation_of_ones_own_makes_its_key_once(database: ScratchDatabase) -> None:
    made = ensure_own_key(database.url(ADMIN))
    found = ensure_own_key(database.url(ADMIN))

    assert made is not None
    assert found == made
    assert [(key.key_id, key.is_enforced) for key in list_keys(database.url(ADMIN))] == [
        (made.key_id, True)
    ]


def test_a_schema_without_keys_has_none(empty_database: ScratchDatabase) -> None:
    assert ensure_own_key(empty_database.url(ADMIN)) is None


async def test_the_router_is_believed_with_the_key_and_refused_without(
    database: ScratchDatabase, api_database: Database, acme: Caller
) -> None:
    key = create_key(database.url(ADMIN))
    enforce_keys(database.url(ADMIN))
    signing = Router(api_database, signer=ContextSigner(key))

    enqueued = await signing.enqueue_job(acme, NewJob("demo.echo", "{}"))

    assert [run.job_id for run in await signing.list_runs(acme, RunFilter())] == [enqueued.job_id]
    with pytest.raises(PolicyDeniedError, match="not signed"):
        await Router(api_database).list_runs(acme, RunFilter())


async def test_an_applications_own_transaction_is_signed_too(
    database: ScratchDatabase, acme: Caller
) -> None:
    key = create_key(database.url(ADMIN))
    enforce_keys(database.url(ADMIN))
    signer = ContextSigner(key)
    job = NewJob("demo.echo", "{}")

    with database.connect("jobforge_api", autocommit=False) as connection:
        OwnTransaction(acme, signer=signer).enqueue_job(job).send_sync(connection)
    async with await psycopg.AsyncConnection.connect(database.url("jobforge_api")) as connection:
        await OwnTransaction(acme, signer=signer).enqueue_job(job).send(connection)
    with (
        database.connect("jobforge_api", autocommit=False) as connection,
        pytest.raises(PolicyDeniedError, match="not signed"),
    ):
        OwnTransaction(acme).enqueue_job(job).send_sync(connection)
    with database.connect() as admin:
        assert admin.execute("select count(*) from jobforge.jobs").fetchone() == (2,)
