"""Reads the audit log of a database in its order: to check it there, or to write it into a file.

The file is JSON Lines: a head, each tenant's rows with their hashes and its seals where they were set, and an end that
counts and is signed if the key is at hand. Each line has one form only, and the end's digest is over all lines before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from jobforge_mcp.audit.chain import end_message, moment_text, row_values
from jobforge_mcp.audit.checker import AuditFault, Checker, Checkpoint
from jobforge_mcp.audit.keys import AuditKeys
from jobforge_mcp.policy.keys import SigningKey
from jobforge_mcp.router.seals import SealRouter
from jobforge_mcp.types import AuditRow, AuditSeal, JsonObject, JsonValue, TenantId

FORMAT = "jobforge-audit-1"
_FIELDS = 14
_LONGEST_LINE = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found to be as it was sealed."""

    checker: Checker
    is_whole: bool
    """Whether a signed end says that nothing was cut off; never so for a database, where that takes an earlier export."""

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """Every seal, for comparison with another copy."""
        return list(self.checker.checkpoints.values())


# --- the database


async def verify_database(router: SealRouter, keys: AuditKeys) -> Verified:
    """Check the whole log where it is.

    Raises:
        AuditFault: it is not what was sealed.
    """
    checker = Checker(keys)
    for tenant_id in await router.tenants():
        checker.begin(tenant_id)
        async for item, expected in _items(router, tenant_id):
            if isinstance(item, AuditRow):
                checker.take_row(row_values(item), expected)
            else:
                checker.take_seal(item)
    return Verified(checker, is_whole=False)


async def _items(
    router: SealRouter, tenant_id: TenantId
) -> AsyncGenerator[tuple[AuditRow | AuditSeal, bytes | None]]:
    """Read a tenant's rows with the hashes they were sealed with, each seal after its last row."""
    # Seals first: whatever is sealed meanwhile counts as unsealed, and nothing is missed.
    seals = await router.read_seals(tenant_id)
    pending = iter(seals)
    seal = next(pending, None)
    place = 0
    row: AuditRow | None = None
    while page := await router.read_audit(tenant_id, row):
        for row in page:
            place += 1
            yield row, _hash_of(seal, place)
            while seal is not None and place >= seal.last_row:
                yield seal, None
                seal = next(pending, None)
    while seal is not None:
        yield seal, None
        seal = next(pending, None)


def _hash_of(seal: AuditSeal | None, place: int) -> bytes | None:
    if seal is None or not seal.first_row <= place <= seal.last_row:
        return None
    return seal.hashes[place - seal.first_row]


# --- the file


async def export_log(
    router: SealRouter, write: Callable[[str], object], key: SigningKey | None
) -> int:
    """Write the whole log line by line and return how many rows it has; the end is signed if there is a key."""
    file = _LineWriter(write)
    file.write({"format": FORMAT, "exportedAt": moment_text(datetime.now(UTC))})
    # Only to compute hashes: what is written is what is there, right or wrong, for the verifier to judge.
    totals: dict[str, list[int]] = {}
    for tenant_id in await router.tenants():
        chain = Checker(AuditKeys(()))
        chain.begin(tenant_id)
        total = totals.setdefault(tenant_id, [0, 0])
        async for item, expected in _items(router, tenant_id):
            if isinstance(item, AuditRow):
                values = row_values(item)
                hashed = chain.take_row(values, None)
                file.write({"row": list[JsonValue](values), "hash": (expected or hashed).hex()})
                total[0] += 1
            else:
                file.write({"seal": seal_document(item)})
                total[1] += 1
    counts: list[JsonValue] = [[tenant, rows, seals] for tenant, (rows, seals) in totals.items()]
    file.end(counts, key)
    return sum(rows for rows, _ in totals.values())


class _LineWriter:
    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._digest = hashlib.sha256()
        self._lines = 0

    def write(self, document: JsonObject) -> None:
        line = line_of(document)
        self._digest.update(line.encode())
        self._lines += 1
        self._write(line)

    def end(self, counts: list[JsonValue], key: SigningKey | None) -> None:
        end: JsonObject = {
            "lines": self._lines,
            "tenants": counts,
            "sha256": self._digest.hexdigest(),
        }
        if key is not None:
            key_id = key.public.key_id
            end |= {
                "keyId": key_id,
                "signature": key.key.sign(_end_bytes(end, key_id)).hex(),
            }
        self._write(line_of({"end": end}))


def verify_file(path: Path, keys: AuditKeys, *, allow_unsigned_end: bool = False) -> Verified:
    """Check an exported log with public keys alone.

    Raises:
        AuditFault: it is not what was sealed and exported.
        OSError: the file cannot be read.
    """
    reader = _FileReader(Checker(keys), keys)
    with path.open("rb") as file:
        while raw := file.readline(_LONGEST_LINE):
            try:
                reader.take(raw)
            except AuditFault as fault:
                fault.line = reader.line
                raise
    return reader.finish(allow_unsigned_end=allow_unsigned_end)


class _FileReader:
    """Takes the lines of an export."""

    def __init__(self, checker: Checker, keys: AuditKeys) -> None:
        self._checker = checker
        self._keys = keys
        self._digest = hashlib.sha256()
        self._end: JsonObject | None = None
        self.line = 0

    def take(self, raw: bytes) -> None:
        self.line += 1
        if self._end is not None:
            raise self._checker.fault("something follows the end")
        document = self._parse(raw)
        if self.line == 1:
            if set(document) != {"format", "exportedAt"} or document["format"] != FORMAT:
                raise self._checker.fault("the file does not begin as an export of an audit log")
        elif set(document) == {"row", "hash"}:
            self._take_row(document["row"], document["hash"])
        elif set(document) == {"seal"}:
            self._checker.take_seal(self._seal(document["seal"]))
        elif set(document) == {"end"} and isinstance(document["end"], dict):
            self._end = document["end"]
            return
        else:
            raise self._checker.fault("the line is neither a row nor a seal")
        self._digest.update(raw)

    def finish(self, *, allow_unsigned_end: bool) -> Verified:
        """Compare with what the end says."""
        end = self._end
        if end is None:
            raise self._checker.fault("the file ends early")
        is_signed = "signature" in end
        names = {"lines", "tenants", "sha256"} | (
            {"keyId", "signature"} if is_signed else set[str]()
        )
        try:
            if set(end) != names:
                raise ValueError
            counts = {str(t): (int(r), int(s)) for t, r, s in cast("Any", end["tenants"])}
            self._checker.expect_totals(counts)
            if end["lines"] != self.line - 1 or end["sha256"] != self._digest.hexdigest():
                raise self._checker.fault("lines were changed, added or taken out")
            if is_signed:
                self._check_signature(end)
        except (ValueError, TypeError, OverflowError):
            raise self._checker.fault("the end is malformed") from None
        if not is_signed and not allow_unsigned_end:
            raise self._checker.fault(
                "the end is not signed, so what came after may have been cut off"
            )
        return Verified(self._checker, is_whole=is_signed)

    def _check_signature(self, end: JsonObject) -> None:
        key_id = str(end["keyId"])
        signature = _unhex(end["signature"])
        plain = {name: value for name, value in end.items() if name not in {"keyId", "signature"}}
        if not self._keys.accepts(key_id, signature, _end_bytes(plain, key_id)):
            raise self._checker.fault("the end is not signed by a key that is known")

    def _parse(self, raw: bytes) -> JsonObject:
        try:
            document: object = json.loads(raw)
            if isinstance(document, dict):
                found = cast("JsonObject", document)
                if line_of(found).encode() == raw:
                    return found
        except (ValueError, RecursionError):
            pass
        raise self._checker.fault(
            "the line cannot be read, or is not written as an export writes it"
        )

    def _take_row(self, values: JsonValue, hashed: JsonValue) -> None:
        if not isinstance(values, list) or len(values) != _FIELDS:
            raise self._checker.fault("the row is malformed")
        if not all(value is None or isinstance(value, str) for value in values):
            raise self._checker.fault("the row is malformed")
        try:
            expected = _unhex(hashed)
        except (ValueError, TypeError):
            raise self._checker.fault("the row's hash is malformed") from None
        row = cast("list[str | None]", values)
        self._checker.begin(TenantId(row[0] or ""))
        self._checker.take_row(row, expected)

    def _seal(self, document: JsonValue) -> AuditSeal:
        try:
            seal = seal_from(cast("dict[str, Any]", document))
            if seal_document(seal) == document:
                return seal
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            pass
        raise self._checker.fault("the seal is malformed")


def line_of(document: Mapping[str, JsonValue]) -> str:
    """Write one line in the only form it may have."""
    return json.dumps(document, ensure_ascii=True, separators=(",", ":")) + "\n"


def _end_bytes(end: JsonObject, key_id: str) -> bytes:
    digest = hashlib.sha256(line_of(end).encode()).hexdigest()
    return end_message(cast("int", end["lines"]), digest, key_id)


def seal_document(seal: AuditSeal) -> JsonObject:
    """Write a seal as an export has it; of its hashes only the last, the others stand with their rows."""
    return {
        "tenantId": seal.tenant_id,
        "sealNo": seal.seal_no,
        "firstRow": seal.first_row,
        "lastRow": seal.last_row,
        "lastEra": seal.last_era,
        "lastXactNo": seal.last_xact_no,
        "lastId": str(seal.last_id),
        "hash": seal.hashes[-1].hex(),
        "sealedAt": moment_text(seal.sealed_at),
        "keyId": seal.key_id,
        "signature": seal.signature.hex(),
    }


def seal_from(document: dict[str, Any]) -> AuditSeal:
    """Read a seal of an export."""
    return AuditSeal(
        tenant_id=TenantId(document["tenantId"]),
        seal_no=document["sealNo"],
        first_row=document["firstRow"],
        last_row=document["lastRow"],
        last_era=document["lastEra"],
        last_xact_no=document["lastXactNo"],
        last_id=UUID(document["lastId"]),
        hashes=(_unhex(document["hash"]),),
        sealed_at=datetime.strptime(document["sealedAt"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(
            tzinfo=UTC
        ),
        key_id=document["keyId"],
        signature=_unhex(document["signature"]),
    )


def _unhex(text: object) -> bytes:
    if not isinstance(text, str):
        raise TypeError
    content = bytes.fromhex(text)
    if content.hex() != text:
        raise ValueError
    return content
