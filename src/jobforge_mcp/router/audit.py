"""The audit log as callers see it: what was done in their own tenant, and writing down what was refused."""

from __future__ import annotations

from datetime import datetime
from typing import LiteralString

from jobforge_mcp.db.pool import Row
from jobforge_mcp.router.errors import translated
from jobforge_mcp.router.scope import SCOPE, scope_arguments
from jobforge_mcp.router.scoped import NO_ORIGIN, ScopedRouter
from jobforge_mcp.types import AuditEntry, AuditFilter, Caller, CallOrigin, JobId

_RECORD_DENIAL: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.record_denial(s.tenant_id, %s::text, %s::text, %s::text, %s::uuid, %s::int) as r"""
_LIST_AUDIT: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.list_audit(s.tenant_id, %s::text, %s::text, %s::text, %s::uuid,
      %s::timestamptz, %s::text, %s::int) as r"""


class AuditRouter(ScopedRouter):
    """The audit functions of the role ``jobforge_api``, over an open `Database`."""

    async def record_denial(
        self,
        caller: Caller,
        action: str,
        reason: str,
        *,
        job_type: str | None = None,
        job_id: JobId | None = None,
        count: int = 1,
        origin: CallOrigin = NO_ORIGIN,
    ) -> None:
        """Write down that a call was refused; ``count`` says how many like it this row stands for.

        Claims do not go along: what is refused because a token was revoked must not be refused its audit row for that.
        """
        arguments = [action, reason, job_type, job_id, count]
        with translated():
            await self._database.fetch(
                _RECORD_DENIAL,
                [*scope_arguments(caller, origin, self.signer, has_claims=False), *arguments],
            )

    async def list_audit(self, caller: Caller, wanted: AuditFilter) -> list[AuditEntry]:
        """Read a page of the tenant's audit log, newest first."""
        arguments = [
            wanted.action,
            wanted.outcome,
            wanted.token_id,
            wanted.job_id,
            wanted.since,
            wanted.before,
            wanted.limit,
        ]
        rows = await self._fetch(caller, _LIST_AUDIT, arguments, is_repeatable=True)
        return [_to_entry(row) for row in rows]


def _to_entry(row: Row) -> AuditEntry:
    occurred_at: datetime = row["occurred_at"]
    return AuditEntry(
        place=row["place"],
        occurred_at=occurred_at,
        action=row["action"],
        outcome=row["outcome"],
        actor=row["actor"],
        token_id=row["token_id"],
        tool=row["tool"],
        trace_id=row["trace_id"],
        job_id=row["job_id"],
        job_type=row["job_type"],
        detail=row["detail"],
    )
