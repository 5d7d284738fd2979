"""Asks the database whether a token is still good, for calls that would not ask it anything else.

A write is refused in its own transaction, and so is a read of runs. What is answered from memory, such as ``list-jobs`` and
``tools/list``, asks here: the answer is kept for a few seconds, so that a revoked token sees no more than that. Whether
the database answers is not known while it is away: then nothing is answered from memory either.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from jobforge_mcp.errors import PolicyDeniedError
from jobforge_mcp.router.tokens import TokenRouter
from jobforge_mcp.types import Caller, CallOrigin

KEPT_SECONDS: Final = 4.0
"""How long an answer is believed, counted from before it was asked for: with the time of the question itself, five at most."""

_MOST_KEPT: Final = 4_096
_ORIGIN: Final = CallOrigin(tool="gate")

_Key = tuple[str, str, tuple[str, ...], int | None]


class LivingTokens:
    """Which tokens were good a moment ago, for one process; ``router`` is what it asks."""

    def __init__(self, router: TokenRouter, clock: Callable[[], float] = time.monotonic) -> None:
        self.router = router
        self._clock = clock
        self._known: dict[_Key, tuple[float, PolicyDeniedError | None]] = {}

    async def require(self, caller: Caller) -> None:
        """Refuse a caller whose token was revoked; costs nothing where there is no token.

        Raises:
            PolicyDeniedError: ``TOKEN_REVOKED``.
            DatabaseUnavailableError: the database cannot be asked.
        """
        if caller.token_id is None:
            return
        key = (caller.tenant_id, caller.token_id, caller.links, caller.epoch)
        known = self._known.get(key)
        if known is None or self._clock() >= known[0]:
            known = await self._ask(key, caller)
        if known[1] is not None:
            # A new one each time: the one that is kept must not collect the tracebacks of all who meet it.
            raise PolicyDeniedError(known[1].message, code=known[1].code, hint=known[1].hint)

    async def _ask(self, key: _Key, caller: Caller) -> tuple[float, PolicyDeniedError | None]:
        until = self._clock() + KEPT_SECONDS
        refused: PolicyDeniedError | None = None
        try:
            await self.router.check_token(caller, [key[1], *caller.links], origin=_ORIGIN)
        except PolicyDeniedError as error:
            refused = error.with_traceback(None)
        self._known.pop(key, None)
        if len(self._known) >= _MOST_KEPT:
            # The oldest: only verified tokens are asked about, so nobody can flush this cheaply.
            del self._known[next(iter(self._known))]
        self._known[key] = (until, refused)
        return self._known[key]
