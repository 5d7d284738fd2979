"""What is hashed and what is signed: the one definition that sealer, export and verifier share.

A row's hash is ``SHA-256(hash before ‖ canonical row)``, beginning with 32 zero bytes. The canonical row is a JSON array of
texts and nulls in a fixed order, so that no two different rows have the same bytes. A seal is signed over a JSON array that
names tenant, number, rows and the last hash, behind a prefix of its own, so that no other signature can stand for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from jobforge_mcp.types import AuditRow, AuditSeal

START = bytes(32)
"""What the first row of a tenant is chained to."""

_ROW = b"jobforge audit row 1\n"
_SEAL = b"jobforge audit seal 1\n"
_END = b"jobforge audit end 1\n"


def row_values(row: AuditRow) -> list[str | None]:
    """List a row's fields as the texts that are hashed and exported."""
    return [
        row.tenant_id,
        str(row.era),
        str(row.xact_no),
        str(row.id),
        moment_text(row.occurred_at),
        row.action,
        row.outcome,
        row.actor,
        row.token_id,
        row.tool,
        row.trace_id,
        None if row.job_id is None else str(row.job_id),
        row.job_type,
        row.detail,
    ]


def chain_hash(before: bytes, values: Iterable[str | None]) -> bytes:
    """Return the hash of a row that follows one with this hash."""
    return hashlib.sha256(before + _ROW + _canonical(list(values))).digest()


def chain_hashes(before: bytes, rows: Iterable[AuditRow]) -> Iterator[bytes]:
    """Chain rows one after another."""
    for row in rows:
        before = chain_hash(before, row_values(row))
        yield before


def seal_message(seal: AuditSeal) -> bytes:
    """Return the bytes that a seal's signature is over."""
    return _SEAL + _canonical(
        [
            seal.tenant_id,
            seal.seal_no,
            seal.first_row,
            seal.last_row,
            seal.last_era,
            seal.last_xact_no,
            str(seal.last_id),
            seal.hashes[-1].hex(),
            moment_text(seal.sealed_at),
            seal.key_id,
        ]
    )


def end_message(lines: int, digest: str, key_id: str) -> bytes:
    """Return the bytes that the signature at the end of an export is over."""
    return _END + _canonical([lines, digest, key_id])


def moment_text(moment: datetime) -> str:
    """Write a time to the microsecond, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _canonical(values: list[str | None] | list[str | int]) -> bytes:
    return json.dumps(values, ensure_ascii=True, separators=(",", ":")).encode()
