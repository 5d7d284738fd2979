"""Checks rows and seals in their order, and says which row is the first that is not what was sealed.

Needs public keys and nothing else; where the items come from, a file or the database, is the caller's.

What it finds: any change of a row or a seal, rows or seals that were taken out, put in or moved, seals of a key it does not
know. What no log can tell by itself: that its newest seals and all rows after them were taken off together. For that it
needs something kept elsewhere: an earlier export (``expect``), or the signed end of an export.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from jobforge_mcp.audit.chain import START, chain_hash, seal_message
from jobforge_mcp.audit.keys import AuditKeys
from jobforge_mcp.types import AuditSeal, TenantId

TENANT_PLACE = 0
"""Where a row's values name its tenant."""
_ORDER = slice(1, 4)


class AuditFault(Exception):
    """The log is not what was sealed; tells which row is the first that shows it."""

    def __init__(
        self, problem: str, *, tenant_id: str | None, row: int, line: int | None = None
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.tenant_id = tenant_id
        self.row = row
        """Place of the row in its tenant's log, from 1."""
        self.line = line
        """Line of the export that showed it."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a seal says, for comparison with another copy of the log."""

    tenant_id: TenantId
    seal_no: int
    last_row: int
    last_hash: bytes


@dataclass(slots=True)
class TenantTotal:
    """What was checked of one tenant."""

    rows: int = 0
    sealed_rows: int = 0
    seals: int = 0
    sealed_at: datetime | None = None

    @property
    def unsealed_rows(self) -> int:
        """Rows after the last seal: chained to it, but not signed yet."""
        return self.rows - self.sealed_rows


class Checker:
    """Takes rows and seals in order, tenant after tenant; raises `AuditFault` at the first that is wrong."""

    def __init__(self, keys: AuditKeys) -> None:
        self._keys = keys
        self.totals: dict[TenantId, TenantTotal] = {}
        self.checkpoints: dict[tuple[str, int], Checkpoint] = {}
        self._tenant: TenantId | None = None
        self._hash = START
        self._last_order: list[str | None] = []

    @property
    def place(self) -> tuple[TenantId | None, int]:
        """Tenant and place of the row that comes next."""
        if self._tenant is None:
            return None, 1
        return self._tenant, self.totals[self._tenant].rows + 1

    def fault(self, problem: str) -> AuditFault:
        """Describe what is wrong with what comes next."""
        tenant_id, row = self.place
        return AuditFault(problem, tenant_id=tenant_id, row=row)

    def begin(self, tenant_id: TenantId) -> None:
        """Go on to a tenant, unless it is the one already being checked."""
        if tenant_id == self._tenant:
            return
        if tenant_id in self.totals:
            raise self.fault("rows of a tenant are not together")
        self._tenant, self._hash, self._last_order = tenant_id, START, []
        self.totals[tenant_id] = TenantTotal()

    def take_row(self, values: Sequence[str | None], expected: bytes | None) -> bytes:
        """Check a row against the hash it had, if that is known, and return the hash it has."""
        assert self._tenant is not None
        if values[TENANT_PLACE] != self._tenant:
            raise self.fault("the row is another tenant's")
        hashed = chain_hash(self._hash, values)
        if expected is not None and hashed != expected:
            raise self.fault("the row is not the one that was written here")
        self._hash = hashed
        self._last_order = list(values[_ORDER])
        self.totals[self._tenant].rows += 1
        return hashed

    def take_seal(self, seal: AuditSeal) -> None:
        """Check a seal of the rows that came before it."""
        total = self._total_of(seal)
        first = total.sealed_rows + 1
        if seal.seal_no != total.seals + 1:
            raise self._seal_fault(first, f"seal {total.seals + 1} is missing")
        if seal.first_row != first or seal.last_row > total.rows:
            raise self.fault("rows that were sealed are missing")
        if seal.last_row < total.rows:
            raise self._seal_fault(
                seal.last_row + 1, "there are rows that this seal does not cover"
            )
        if not self._keys.knows(seal.key_id):
            raise self._seal_fault(
                first, f"seal {seal.seal_no} is signed by a key that is not known"
            )
        end = [str(seal.last_era), str(seal.last_xact_no), str(seal.last_id)]
        is_signed = self._keys.accepts(seal.key_id, seal.signature, seal_message(seal))
        if not is_signed or seal.hashes[-1] != self._hash or end != self._last_order:
            raise self._seal_fault(first, f"seal {seal.seal_no} does not fit what was sealed")
        total.seals, total.sealed_rows, total.sealed_at = (
            seal.seal_no,
            seal.last_row,
            seal.sealed_at,
        )
        point = Checkpoint(seal.tenant_id, seal.seal_no, seal.last_row, self._hash)
        self.checkpoints[seal.tenant_id, seal.seal_no] = point

    def expect(self, kept: Iterable[Checkpoint]) -> None:
        """Compare with checkpoints that were kept elsewhere: each must be in this log as it was.

        Raises:
            AuditFault: one is missing or different, so the log was cut or written anew.
        """
        for point in kept:
            found = self.checkpoints.get((point.tenant_id, point.seal_no))
            if found == point:
                continue
            rows = self.totals[point.tenant_id].sealed_rows if point.tenant_id in self.totals else 0
            problem = "is missing" if found is None else "is not the one that was kept elsewhere"
            row = min(rows, point.last_row) + 1 if found is None else point.last_row
            raise AuditFault(f"seal {point.seal_no} {problem}", tenant_id=point.tenant_id, row=row)

    def expect_totals(self, counts: Mapping[str, tuple[int, int]]) -> None:
        """Compare with the numbers of rows and seals that each tenant should have."""
        for tenant_id, (rows, seals) in counts.items():
            total = self.totals.get(TenantId(tenant_id), TenantTotal())
            if total.rows < rows:
                raise AuditFault("rows are missing", tenant_id=tenant_id, row=total.rows + 1)
            if total.rows > rows:
                raise AuditFault("rows were added", tenant_id=tenant_id, row=rows + 1)
            if total.seals != seals:
                raise AuditFault(
                    "a seal is missing", tenant_id=tenant_id, row=total.sealed_rows + 1
                )
        for tenant_id in self.totals:
            if tenant_id not in counts:
                raise AuditFault("the tenant was added", tenant_id=tenant_id, row=1)

    def _total_of(self, seal: AuditSeal) -> TenantTotal:
        if self._tenant != seal.tenant_id:
            if seal.tenant_id not in self.totals:
                raise AuditFault(
                    "rows that were sealed are missing", tenant_id=seal.tenant_id, row=1
                )
            raise self.fault("a seal stands among the rows of another tenant")
        return self.totals[seal.tenant_id]

    def _seal_fault(self, row: int, problem: str) -> AuditFault:
        return AuditFault(problem, tenant_id=self._tenant, row=row)
