"""The audit log as the auditor sees it: all tenants, in the order of the chain, and the seals upon it.

Python hashes and signs, because the key must not be where the rows are; these functions hand over rows and take seals.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

from jobforge_mcp.db.pool import Database, Row, Transaction
from jobforge_mcp.router.errors import translated
from jobforge_mcp.types import AuditRow, AuditSeal, TenantId

PAGE = 1_000

_READ_UNSEALED: LiteralString = "select r.* from jobforge.read_unsealed(%s, %s) as r"
_APPEND_SEAL: LiteralString = "select from jobforge.append_seal(%s, %s, %s, %s, %s, %s, %s, %s::bytea, %s::timestamptz, %s, %s::bytea)"
_READ_SEALS: LiteralString = "select r.* from jobforge.read_seals(%s, %s, %s) as r"
_READ_AUDIT: LiteralString = "select r.* from jobforge.read_audit(%s, %s, %s, %s, %s) as r"


class SealRouter:
    """The functions of the role ``jobforge_auditor``, over an open `Database`."""

    def __init__(self, database: Database) -> None:
        """Speak through this pool."""
        self._database = database

    async def list_unsealed(self, after_tenant: str = "") -> list[TenantId]:
        """Name tenants that have rows which can be sealed.

        Raises:
            ConflictError: the database was restored into another cluster, and a new era has to be begun.
        """
        with translated():
            rows = await self._database.fetch(
                "select r.tenant_id from jobforge.list_unsealed(%s) as r",
                [after_tenant],
                is_repeatable=True,
            )
        return [TenantId(row["tenant_id"]) for row in rows]

    @asynccontextmanager
    async def sealing(self) -> AsyncGenerator[Sealing | None]:
        """Hold the right to seal, in one transaction; ``None`` while another process has it."""
        async with self._database.transaction() as transaction:
            (row,) = await transaction.fetch("select jobforge.lock_sealing() as is_ours")
            yield Sealing(transaction) if row["is_ours"] else None

    async def tenants(self) -> list[TenantId]:
        """Name every tenant of the log."""
        rows = await self._database.fetch(
            "select r.tenant_id from jobforge.list_audit_tenants() as r", is_repeatable=True
        )
        return [TenantId(row["tenant_id"]) for row in rows]

    async def read_seals(self, tenant_id: TenantId) -> list[AuditSeal]:
        """Read all seals of a tenant, oldest first."""
        found: list[AuditSeal] = []
        while True:
            after = found[-1].seal_no if found else 0
            rows = await self._database.fetch(
                _READ_SEALS, [tenant_id, after, 100], is_repeatable=True
            )
            found.extend(_to_seal(row) for row in rows)
            if len(rows) < 100:
                return found

    async def read_audit(self, tenant_id: TenantId, after: AuditRow | None) -> list[AuditRow]:
        """Read the next page of a tenant's rows, in the order of the chain."""
        place = (-1, 0, UUID(int=0)) if after is None else (after.era, after.xact_no, after.id)
        rows = await self._database.fetch(
            _READ_AUDIT, [tenant_id, *place, PAGE], is_repeatable=True
        )
        return [_to_row(row) for row in rows]


class Sealing:
    """The open transaction of one who may seal."""

    def __init__(self, transaction: Transaction) -> None:
        """Speak through this transaction."""
        self._transaction = transaction

    async def last_seal(self, tenant_id: TenantId) -> tuple[int, int, bytes] | None:
        """Return number, last row and last hash of a tenant's newest seal."""
        rows = await self._transaction.fetch(
            "select r.* from jobforge.last_seal(%s) as r", [tenant_id]
        )
        if not rows:
            return None
        return rows[0]["seal_no"], rows[0]["last_row"], bytes(rows[0]["last_hash"])

    async def read_unsealed(self, tenant_id: TenantId, limit: int = PAGE) -> list[AuditRow]:
        """Read the next rows to seal, in the order of the chain."""
        return [
            _to_row(row)
            for row in await self._transaction.fetch(_READ_UNSEALED, [tenant_id, limit])
        ]

    async def append_seal(self, seal: AuditSeal) -> None:
        """Add the next seal of a tenant."""
        with translated():
            await self._transaction.execute(
                _APPEND_SEAL,
                [
                    seal.tenant_id,
                    seal.seal_no,
                    seal.first_row,
                    seal.last_row,
                    seal.last_era,
                    seal.last_xact_no,
                    seal.last_id,
                    b"".join(seal.hashes),
                    seal.sealed_at,
                    seal.key_id,
                    seal.signature,
                ],
            )

    async def now(self) -> datetime:
        """Read the database's clock."""
        (row,) = await self._transaction.fetch("select jobforge.now() as now")
        moment: datetime = row["now"]
        return moment


def _to_row(row: Row) -> AuditRow:
    return AuditRow(**row)


def _to_seal(row: Row) -> AuditSeal:
    joined = bytes(row["hashes"])
    hashes = tuple(joined[start : start + 32] for start in range(0, len(joined), 32))
    values: dict[str, Any] = {**row, "hashes": hashes, "signature": bytes(row["signature"])}
    return AuditSeal(**values)
