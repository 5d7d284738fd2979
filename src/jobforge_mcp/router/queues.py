"""What is paused: one method for each SQL function about whole queues."""

from __future__ import annotations

from typing import LiteralString

from jobforge_mcp.db.pool import Row
from jobforge_mcp.router.scope import SCOPE
from jobforge_mcp.router.scoped import NO_ORIGIN, ScopedRouter
from jobforge_mcp.types import Caller, CallOrigin, Pause, PauseKind

_PAUSE_QUEUE: LiteralString = (
    f"select r.* from {SCOPE}, "
    "lateral jobforge.pause_queue(s.tenant_id, %s::text, %s::text, %s::text) as r"
)
_RESUME_QUEUE: LiteralString = (
    f"select r.outcome from {SCOPE}, "
    "lateral jobforge.resume_queue(s.tenant_id, %s::text, %s::text) as r(outcome)"
)
_LIST_PAUSES: LiteralString = (
    f"select r.* from {SCOPE}, lateral jobforge.list_pauses(s.tenant_id) as r"
)


class QueueRouter(ScopedRouter):
    """The functions about queues, over an open `Database` of role ``jobforge_api``."""

    async def pause_queue(
        self,
        caller: Caller,
        kind: PauseKind,
        name: str | None = None,
        *,
        reason: str | None = None,
        origin: CallOrigin = NO_ORIGIN,
    ) -> Pause:
        """Let nothing of the tenant, of a type or of a project start; one that is paused already stays as it is.

        Raises:
            InvalidInputError: this cannot be paused.
            PolicyDeniedError: the caller is confined to other projects.
        """
        rows = await self._fetch(
            caller, _PAUSE_QUEUE, [kind.value, name, reason], origin, is_repeatable=True
        )
        return _to_pause(rows[0])

    async def resume_queue(
        self,
        caller: Caller,
        kind: PauseKind,
        name: str | None = None,
        *,
        origin: CallOrigin = NO_ORIGIN,
    ) -> bool:
        """Let a paused queue start jobs again, and say whether it was paused.

        Raises:
            InvalidInputError: this cannot be paused.
            PolicyDeniedError: the caller is confined to other projects.
        """
        rows = await self._fetch(
            caller, _RESUME_QUEUE, [kind.value, name], origin, is_repeatable=True
        )
        return rows[0]["outcome"] == "resumed"

    async def list_pauses(self, caller: Caller) -> list[Pause]:
        """Read what is paused."""
        return [
            _to_pause(row)
            for row in await self._fetch(caller, _LIST_PAUSES, [], NO_ORIGIN, is_repeatable=True)
        ]


def _to_pause(row: Row) -> Pause:
    return Pause(
        kind=PauseKind(row["kind"]),
        name=row["name"] or None,
        reason=row["reason"],
        paused_by=row["paused_by"],
        paused_at=row["paused_at"],
    )
