"""Sealing: what is chained and signed, by whom, and that the database is verified where it is."""

from __future__ import annotations

from pathlib import Path

import anyio
import psycopg
import pytest

from jobforge_mcp.audit.checker import AuditFault, Checkpoint
from jobforge_mcp.audit.keys import AuditKeys, rotate_key
from jobforge_mcp.audit.ledger import Verified, verify_database
from jobforge_mcp.audit.sealer import Sealer
from jobforge_mcp.policy.keys import KeyFolder, SigningKey
from jobforge_mcp.router.seals import PAGE, SealRouter
from jobforge_mcp.types import TenantId
from tests.audit.conftest import Seal, WriteRows


async def totals(seals: SealRouter, keys: AuditKeys) -> dict[str, tuple[int, int, int]]:
    found = await verify_database(seals, keys)
    return {
        tenant: (total.rows, total.unsealed_rows, total.seals)
        for tenant, total in found.checker.totals.items()
    }


@pytest.mark.requirement("audit.sealed")
async def test_rows_are_sealed_per_tenant_and_verified(
    seal: Seal, seals: SealRouter, keys: AuditKeys, write_rows: WriteRows
) -> None:
    write_rows("acme", 3)
    write_rows("globex", 2)
    first = await seal()
    write_rows("acme", 4)
    second = await seal()
    write_rows("globex", 1)

    assert (first, second) == (5, 4)
    assert await totals(seals, keys) == {"acme": (7, 0, 2), "globex": (3, 1, 1)}


async def test_nothing_new_is_no_seal(
    seal: Seal, sealer: Sealer, seals: SealRouter, write_rows: WriteRows
) -> None:
    write_rows("acme", 1)

    assert await seal() == 1
    assert [await sealer.seal_all() for _ in range(2)] == [0, 0]
    assert len(await seals.read_seals(TenantId("acme"))) == 1


async def test_a_long_log_is_sealed_in_pages(
    seal: Seal, seals: SealRouter, keys: AuditKeys, admin: psycopg.Connection
) -> None:
    count = 2 * PAGE + 5
    with admin.transaction():
        admin.execute("select jobforge.enter_scope('acme', 'tester')")
        admin.execute(
            "select jobforge.record_audit('acme', 'enqueue', 'refused') from generate_series(1, %s)",
            [count],
        )

    assert await seal() == count
    assert await totals(seals, keys) == {"acme": (count, 0, 3)}


async def test_many_sealers_make_one_chain(
    seal: Seal,
    sealer: Sealer,
    seals: SealRouter,
    keys: AuditKeys,
    key: SigningKey,
    write_rows: WriteRows,
) -> None:
    others = [Sealer(seals, key) for _ in range(3)]
    for _ in range(5):
        write_rows("acme", 3)
        async with anyio.create_task_group() as tasks:
            for one in (sealer, *others):
                tasks.start_soon(one.seal_all)
    await seal()

    rows, open_rows, _ = (await totals(seals, keys))["acme"]
    assert (rows, open_rows) == (15, 0)


TAMPERINGS = [
    ("update jobforge.audit_log set actor = 'somebody' where job_type = 'demo.3'", 4),
    ("update jobforge.audit_log set outcome = 'created' where job_type = 'demo.0'", 1),
    ("update jobforge.audit_log set detail = '{}' where job_type = 'demo.9'", 10),
    ("delete from jobforge.audit_log where job_type = 'demo.5'", 6),
    ("delete from jobforge.audit_log where job_type = 'demo.9'", 10),
    ("delete from jobforge.audit_log", 1),
    ("delete from jobforge.audit_seals where seal_no = 1", 1),
    ("update jobforge.audit_seals set signature = sha256('') || sha256('') where seal_no = 2", 6),
    ("update jobforge.audit_seals set key_id = 'mine' where seal_no = 2", 6),
    ("update jobforge.audit_seals set hashes = sha256('x') || substring(hashes from 33)", 1),
    (
        "update jobforge.audit_seals set sealed_at = sealed_at - interval '1 day' where seal_no = 2",
        6,
    ),
    (
        """insert into jobforge.audit_log (tenant_id, id, occurred_at, action, outcome, xact_no)
        select 'acme', gen_random_uuid(), occurred_at, 'enqueue', 'created', xact_no
        from jobforge.audit_log where job_type = 'demo.2'""",
        None,
    ),
]


@pytest.mark.requirement("audit.tampering-found")
@pytest.mark.parametrize(("statement", "row"), TAMPERINGS)
async def test_what_a_superuser_changes_behind_the_guard_is_found_and_named(
    seal: Seal,
    seals: SealRouter,
    keys: AuditKeys,
    admin: psycopg.Connection,
    write_rows: WriteRows,
    statement: str,
    row: int | None,
) -> None:
    write_rows("acme", 5)
    await seal()
    for number in range(5, 10):
        with admin.transaction():
            admin.execute("select jobforge.enter_scope('acme', 'tester')")
            admin.execute(
                "select jobforge.record_audit('acme', 'enqueue', 'refused', null, %s)",
                [f"demo.{number}"],
            )
    await seal()
    await verify_database(seals, keys)

    admin.execute("set session_replication_role = replica")
    admin.execute(statement.encode())

    with pytest.raises(AuditFault) as caught:
        await verify_database(seals, keys)
    assert caught.value.tenant_id == "acme"
    assert caught.value.row in ({3, 4} if row is None else {row})


@pytest.mark.requirement("audit.truncation")
async def test_a_log_cut_off_with_its_seals_is_found_by_a_copy_kept_elsewhere(
    seal: Seal,
    seals: SealRouter,
    keys: AuditKeys,
    admin: psycopg.Connection,
    write_rows: WriteRows,
) -> None:
    write_rows("acme", 3)
    await seal()
    write_rows("acme", 2)
    await seal()
    kept: list[Checkpoint] = (await verify_database(seals, keys)).checkpoints

    admin.execute("set session_replication_role = replica")
    admin.execute("delete from jobforge.audit_seals where seal_no = 2")
    admin.execute(
        "delete from jobforge.audit_log where (xact_no) > (select last_xact_no from jobforge.audit_seals)"
    )

    alone: Verified = await verify_database(seals, keys)  # a log cannot know its own future
    with pytest.raises(AuditFault, match="seal 2 is missing") as caught:
        alone.checker.expect(kept)
    assert caught.value.row == 4


@pytest.mark.requirement("audit.rotation")
async def test_a_running_sealer_takes_the_new_key(
    seals: SealRouter,
    tmp_path: Path,
    key: SigningKey,
    write_rows: WriteRows,
    admin: psycopg.Connection,
) -> None:
    folder = tmp_path / "audit-keys"
    rotated = rotate_key(folder)
    sealer = Sealer(seals, key, reload=KeyFolder(folder).ensure)
    write_rows("acme", 3)

    sealed: list[tuple[str]] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sealer.run, 0.05)
        with anyio.fail_after(60):
            while not sealed:
                await anyio.sleep(0.05)
                sealed = admin.execute("select key_id from jobforge.audit_seals").fetchall()
        tasks.cancel_scope.cancel()

    assert {row[0] for row in sealed} == {rotated.public.key_id}
    assert key.public.key_id in AuditKeys.load([folder]).key_ids
