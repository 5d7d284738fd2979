"""Seals the audit log: chains what can no longer change, and signs where it has come to.

Any number of processes may run a sealer; an advisory lock in the database lets one at a time. A process that dies between
two seals leaves nothing behind: the next round goes on from the last seal. Writers never wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import anyio
import anyio.to_thread
import structlog

from jobforge_mcp.audit.chain import START, chain_hashes, seal_message
from jobforge_mcp.errors import JobForgeError
from jobforge_mcp.policy.keys import SigningKey
from jobforge_mcp.router.seals import PAGE, Sealing, SealRouter
from jobforge_mcp.types import AuditSeal, TenantId

log = structlog.stdlib.get_logger(__name__)


class Sealer:
    """Seals with one key, on one database; ``reload`` finds the key again, which may have been rotated meanwhile."""

    def __init__(
        self, router: SealRouter, key: SigningKey, *, reload: Callable[[], SigningKey] | None = None
    ) -> None:
        self._router = router
        self._reload = reload
        self._use(key)

    def _use(self, key: SigningKey) -> None:
        self._key = key
        self._key_id = key.public.key_id

    async def run(self, seconds: float) -> None:
        """Seal every so many seconds, until cancelled; trouble is logged and waited out."""
        while True:
            try:
                if self._reload is not None:
                    self._use(await anyio.to_thread.run_sync(self._reload))
                await self.seal_all()
            except JobForgeError as error:
                log.warning("audit_not_sealed", code=error.code, reason=error.message)
            except Exception:  # whatever it is, the next round may do better, and serving goes on
                log.exception("audit_not_sealed")
            await anyio.sleep(seconds)

    async def seal_all(self) -> int:
        """Seal all that can be sealed now, and return how many rows that was.

        Raises:
            ConflictError: the database was restored into another cluster, and a new era has to be begun.
        """
        sealed, after = 0, ""
        while tenants := await self._router.list_unsealed(after):
            for tenant_id in tenants:
                sealed += await self._seal_tenant(tenant_id)
            after = tenants[-1]
        return sealed

    async def _seal_tenant(self, tenant_id: TenantId) -> int:
        sealed = 0
        while True:
            async with self._router.sealing() as sealing:
                if sealing is None:  # another process is at it
                    return sealed
                count = await self._seal_page(sealing, tenant_id)
            sealed += count
            if count < PAGE:
                return sealed

    async def _seal_page(self, sealing: Sealing, tenant_id: TenantId) -> int:
        last = await sealing.last_seal(tenant_id)
        rows = await sealing.read_unsealed(tenant_id)
        if not rows:
            return 0
        seal_no, last_row, before = last or (0, 0, START)
        unsigned = AuditSeal(
            tenant_id=tenant_id,
            seal_no=seal_no + 1,
            first_row=last_row + 1,
            last_row=last_row + len(rows),
            last_era=rows[-1].era,
            last_xact_no=rows[-1].xact_no,
            last_id=rows[-1].id,
            hashes=tuple(chain_hashes(before, rows)),
            sealed_at=await sealing.now(),
            key_id=self._key_id,
            signature=b"",
        )
        signature = self._key.key.sign(seal_message(unsigned))
        await sealing.append_seal(replace(unsigned, signature=signature))
        return len(rows)
