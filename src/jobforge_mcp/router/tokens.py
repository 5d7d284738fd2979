"""What is remembered of policy tokens: one method for each SQL function that revokes or looks.

Whether a token is still good is asked by the database itself in every call of its holder; nothing here takes part in that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import LiteralString

from jobforge_mcp.router.scope import SCOPE, stated_limits
from jobforge_mcp.router.scoped import ScopedRouter
from jobforge_mcp.types import Caller, CallOrigin, LimitLeft, Limits, TokenState

_REVOKE_TOKEN: LiteralString = (
    f"select r.outcome from {SCOPE}, "
    "lateral jobforge.revoke_token(s.tenant_id, %s, %s::text, %s::timestamptz) as r(outcome)"
)
_REVOKE_TENANT_TOKENS: LiteralString = (
    f"select r.epoch from {SCOPE}, "
    "lateral jobforge.revoke_tenant_tokens(s.tenant_id, %s::text) as r(epoch)"
)
_CHECK_TOKEN: LiteralString = (
    f"select r.* from {SCOPE}, lateral jobforge.check_token(s.tenant_id, %s::text[]) as r"
)

_LIMITS_LEFT: LiteralString = f"""
    select r.kind, r.name, r.limit_name, r.value::float8, r.used::float8, r.remaining::float8, r.resets_at
    from {SCOPE}, lateral jobforge.limits_left(s.tenant_id, %s::text, %s::jsonb, %s::text[], %s::text) as r"""


class TokenRouter(ScopedRouter):
    """The functions about tokens, over an open `Database` of role ``jobforge_api``."""

    async def revoke_token(
        self,
        caller: Caller,
        token_id: str,
        *,
        reason: str | None = None,
        expires_at: datetime | None = None,
        origin: CallOrigin,
    ) -> bool:
        """Revoke one token by its id, and say whether it was not before.

        ``expires_at`` is when it ends anyway, so that its row can be forgotten; a day from now without it.
        """
        rows = await self._fetch(
            caller, _REVOKE_TOKEN, [token_id, reason, expires_at], origin, is_repeatable=True
        )
        return rows[0]["outcome"] == "revoked"

    async def revoke_tenant_tokens(
        self, caller: Caller, *, reason: str | None = None, origin: CallOrigin
    ) -> int:
        """Revoke every token of the caller's tenant that was issued until now; return the new epoch."""
        rows = await self._fetch(
            caller, _REVOKE_TENANT_TOKENS, [reason], origin, is_repeatable=True
        )
        epoch: int = rows[0]["epoch"]
        return epoch

    async def check_token(
        self, caller: Caller, token_ids: Sequence[str], *, origin: CallOrigin
    ) -> TokenState:
        """Look what happened to a token and its links, of which the outermost comes first."""
        rows = await self._fetch(
            caller, _CHECK_TOKEN, [list(token_ids)], origin, is_repeatable=True
        )
        return TokenState(**rows[0])

    async def limits_left(
        self,
        caller: Caller,
        *,
        token_id: str | None = None,
        token_limits: Limits | None = None,
        job_type: str | None = None,
        tool: str | None = None,
        origin: CallOrigin,
    ) -> list[LimitLeft]:
        """Say what is left of each limit that a call with this token, for this job type, by this tool, is held to."""
        stated = None if token_limits is None else json.dumps(stated_limits(token_limits))
        arguments = [token_id, stated, None if job_type is None else [job_type], tool]
        rows = await self._fetch(caller, _LIMITS_LEFT, arguments, origin, is_repeatable=True)
        return [LimitLeft(**row) for row in rows]
