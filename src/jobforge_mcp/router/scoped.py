"""What the routers of callers have in common: one statement, in the scope of whoever calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, LiteralString

from jobforge_mcp.db.pool import Database, Row
from jobforge_mcp.router.errors import translated
from jobforge_mcp.router.scope import ScopeSigner, scope_arguments
from jobforge_mcp.types import Caller, CallOrigin

NO_ORIGIN: Final = CallOrigin()


class ScopedRouter:
    """Functions of callers, over an open `Database` of role ``jobforge_api``."""

    def __init__(self, database: Database, *, signer: ScopeSigner | None = None) -> None:
        """Speak through this pool, with scopes signed where the database asks for that."""
        self._database = database
        self.signer = signer

    async def _fetch(
        self,
        caller: Caller,
        query: LiteralString,
        arguments: Sequence[object],
        origin: CallOrigin = NO_ORIGIN,
        *,
        is_repeatable: bool,
    ) -> list[Row]:
        """Run a statement that begins with `SCOPE`; ``is_repeatable`` says that a lost answer may be asked for again."""
        with translated():
            return await self._database.fetch(
                query,
                [*scope_arguments(caller, origin, self.signer), *arguments],
                is_repeatable=is_repeatable,
            )
