"""Deliveries of webhooks that become events: what a server asks of the database before and after it checked a signature."""

from __future__ import annotations

from typing import LiteralString
from uuid import UUID

from jobforge_mcp.router.scope import SCOPE
from jobforge_mcp.router.scoped import NO_ORIGIN, ScopedRouter
from jobforge_mcp.types import Caller, CallOrigin, JsonObject

_GET_WEBHOOK: LiteralString = f"""
    select r.config from {SCOPE}, lateral jobforge.get_webhook(s.tenant_id, %s::text) as r(config)"""
_RECEIVE_WEBHOOK: LiteralString = f"""
    select r.* from {SCOPE}, lateral jobforge.receive_webhook(s.tenant_id, %s::text, %s::text, %s::text, %s::jsonb) as r"""


class WebhookRouter(ScopedRouter):
    """The functions about webhooks that are heard, over an open `Database` of role ``jobforge_api``."""

    async def get_webhook(self, caller: Caller, name: str) -> JsonObject | None:
        """Read how deliveries of a webhook are signed; ``None`` if there is none."""
        rows = await self._fetch(caller, _GET_WEBHOOK, [name], is_repeatable=True)
        config: JsonObject | None = rows[0]["config"]
        return config

    async def receive_webhook(
        self,
        caller: Caller,
        name: str,
        delivery_id: str,
        event_type: str,
        payload: str,
        *,
        origin: CallOrigin = NO_ORIGIN,
    ) -> tuple[UUID, str]:
        """Store a delivery as an event, once; return which event, and ``created`` or ``replayed``.

        Raises:
            NotFoundError: the webhook was removed meanwhile.
            InvalidInputError: the event does not fit.
        """
        rows = await self._fetch(
            caller,
            _RECEIVE_WEBHOOK,
            [name, delivery_id, event_type, payload],
            origin=origin,
            is_repeatable=True,
        )
        return rows[0]["event_id"], rows[0]["outcome"]
