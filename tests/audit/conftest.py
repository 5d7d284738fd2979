"""A log with rows of two tenants, a key to seal it with, and its export."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import anyio
import psycopg
import pytest

from jobforge_mcp.audit.keys import AuditKeys
from jobforge_mcp.audit.ledger import export_log
from jobforge_mcp.audit.sealer import Sealer
from jobforge_mcp.db.pool import Database
from jobforge_mcp.policy.keys import KeyFolder, SigningKey
from jobforge_mcp.router.seals import SealRouter
from tests.postgres import ScratchDatabase

UNSEALED = """
    select (select count(*) from jobforge.audit_log)
      - (select coalesce(sum(last_row - first_row + 1), 0) from jobforge.audit_seals)"""


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return KeyFolder(tmp_path / "audit-keys").ensure()


@pytest.fixture
def keys(key: SigningKey) -> AuditKeys:
    return AuditKeys([key.key.public_key()])


@pytest.fixture
async def seals(database: ScratchDatabase) -> AsyncGenerator[SealRouter]:
    url = database.url("jobforge_auditor")
    async with Database(url, role="jobforge_auditor", max_size=4) as opened:
        yield SealRouter(opened)


@pytest.fixture
def sealer(seals: SealRouter, key: SigningKey) -> Sealer:
    return Sealer(seals, key)


WriteRows = Callable[[str, int], None]


@pytest.fixture
def write_rows(admin: psycopg.Connection) -> WriteRows:
    """Write audit rows of a tenant, each in a transaction of its own."""

    def write(tenant: str, count: int) -> None:
        for number in range(count):
            with admin.transaction():
                admin.execute(
                    "select jobforge.enter_scope(%s, 'tester', 'token-1', 'test')", [tenant]
                )
                admin.execute(
                    "select jobforge.record_audit(%s, 'enqueue', 'refused', null, %s, '{\"reason\": \"scope\"}')",
                    [tenant, f"demo.{number}"],
                )

    return write


Seal = Callable[[], Awaitable[int]]


@pytest.fixture
def seal(sealer: Sealer, admin: psycopg.Connection) -> Seal:
    """Seal every row; a transaction of another test on this server may hold that up for a moment."""

    async def seal_rest() -> int:
        sealed = 0
        with anyio.fail_after(60):
            while True:
                sealed += await sealer.seal_all()
                if admin.execute(UNSEALED).fetchone() == (0,):
                    return sealed
                await anyio.sleep(0.01)

    return seal_rest


@pytest.fixture
async def exported(
    seal: Seal, seals: SealRouter, key: SigningKey, write_rows: WriteRows
) -> list[str]:
    """The lines of an export: two tenants, several seals, a few rows that are not sealed yet."""
    for tenant, counts in (("acme", (7, 5, 1)), ("globex", (3, 9))):
        for count in counts:
            write_rows(tenant, count)
            await seal()
    write_rows("acme", 2)
    lines: list[str] = []
    await export_log(seals, lines.append, key)
    return lines
