"""An exported log: any single change of it is found with the public key alone, and the first bad row is named."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jobforge_mcp.audit.checker import AuditFault
from jobforge_mcp.audit.keys import AuditKeys
from jobforge_mcp.audit.ledger import Verified, export_log, line_of, verify_file
from jobforge_mcp.errors import SettingsError
from jobforge_mcp.policy.keys import SigningKey
from jobforge_mcp.router.seals import SealRouter

Mutation: TypeAlias = Callable[[random.Random, list[str]], int]
"""Changes the lines, and returns the first line that is not as it was."""

MUTATIONS_PER_KIND = 400


def flip_bit(chance: random.Random, lines: list[str]) -> int:
    number = chance.randrange(len(lines))
    raw = bytearray(lines[number].encode())
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(7)
    lines[number] = raw.decode("latin-1")
    return number


def change_field(chance: random.Random, lines: list[str]) -> int:
    number = chance.choice(
        [n for n, line in enumerate(lines) if line.startswith(('{"row', '{"seal'))]
    )
    document: dict[str, Any] = json.loads(lines[number])
    kind = "row" if "row" in document else "seal"
    fields = document[kind]
    place = chance.choice(list(range(len(fields)) if kind == "row" else fields))
    before = fields[place]
    fields[place] = before + 1 if isinstance(before, int) else f"{before or ''}0"
    lines[number] = line_of(document)
    return number


def swap(chance: random.Random, lines: list[str]) -> int:
    one, other = sorted(chance.sample(range(len(lines)), 2))
    lines[one], lines[other] = lines[other], lines[one]
    return one


def delete(chance: random.Random, lines: list[str]) -> int:
    number = chance.randrange(len(lines))
    del lines[number]
    return number


def insert(chance: random.Random, lines: list[str]) -> int:
    number = chance.randrange(len(lines) + 1)
    lines.insert(number, chance.choice(lines))
    while number and lines[number] == lines[number - 1]:
        number -= 1  # which of two like lines is the new one cannot be told
    return number


def truncate(chance: random.Random, lines: list[str]) -> int:
    text = "".join(lines)
    kept = text[: chance.randrange(len(text))]
    lines[:] = kept.splitlines(keepends=True)
    return max(kept.count("\n"), 0)


def sign_anew(chance: random.Random, lines: list[str]) -> int:
    """Write a seal with the signature of another key, under its id or under that of the true one."""
    from dataclasses import replace

    from jobforge_mcp.audit import chain, ledger
    from jobforge_mcp.policy.keys import thumbprint

    number = chance.choice([n for n, line in enumerate(lines) if line.startswith('{"seal')])
    other = Ed25519PrivateKey.generate()
    seal = ledger.seal_from(json.loads(lines[number])["seal"])
    if chance.random() < 0.5:
        seal = replace(seal, key_id=thumbprint(other.public_key()))
    forged = replace(seal, signature=other.sign(chain.seal_message(seal)))
    lines[number] = line_of({"seal": ledger.seal_document(forged)})
    return number


KINDS: list[Mutation] = [flip_bit, change_field, swap, delete, insert, truncate, sign_anew]


def check(
    lines: list[str], keys: AuditKeys, folder: Path, *, allow_unsigned_end: bool = False
) -> Verified:
    file = folder / "log"
    file.write_bytes("".join(lines).encode("latin-1"))
    return verify_file(file, keys, allow_unsigned_end=allow_unsigned_end)


def rows_before(lines: list[str], number: int) -> tuple[str | None, int]:
    """Tell tenant and place of the last row that stands before a line."""
    tenant, place = None, 0
    for line in lines[:number]:
        if line.startswith('{"row'):
            found = json.loads(line)["row"][0]
            place = place + 1 if found == tenant else 1
            tenant = found
    return tenant, place


async def test_an_export_is_verified_with_the_public_key_alone(
    exported: list[str], keys: AuditKeys, tmp_path: Path
) -> None:
    found = check(exported, keys, tmp_path)

    assert found.is_whole
    assert {t: (n.rows, n.seals) for t, n in found.checker.totals.items()} == {
        "acme": (15, 3),
        "globex": (12, 2),
    }


@pytest.mark.requirement("audit.tampering-found")
@pytest.mark.parametrize("mutate", KINDS)
async def test_every_single_change_is_found_and_the_first_bad_row_is_named(
    exported: list[str], keys: AuditKeys, tmp_path: Path, mutate: Mutation
) -> None:
    for seed in range(MUTATIONS_PER_KIND):
        lines = list(exported)
        number = mutate(random.Random(seed), lines)

        with pytest.raises(AuditFault) as caught:
            check(lines, keys, tmp_path)

        # Named is a row, with its tenant, and nothing before the change is blamed but what a seal of it covers.
        fault = caught.value
        _, place = rows_before(exported, number)
        first = exported[number] if number < len(exported) else ""
        if first.startswith('{"row') and mutate in {flip_bit, change_field}:
            # 1: a row whose tenant was changed begins a log of its own
            assert fault.row in {place + 1, 1}, (seed, fault.problem)
            assert fault.line == number + 1
        assert fault.row >= 1
        assert fault.line is None or fault.line >= number or "seal" in fault.problem


async def test_a_file_without_a_signed_end_is_refused_unless_that_is_accepted(
    seals: SealRouter, exported: list[str], keys: AuditKeys, tmp_path: Path
) -> None:
    lines: list[str] = []
    await export_log(seals, lines.append, None)

    with pytest.raises(AuditFault, match="end is not signed"):
        check(lines, keys, tmp_path)
    assert not check(lines, keys, tmp_path, allow_unsigned_end=True).is_whole


async def test_another_key_accepts_nothing(exported: list[str], tmp_path: Path) -> None:
    strangers = AuditKeys([Ed25519PrivateKey.generate().public_key()])

    with pytest.raises(AuditFault, match="key that is not known") as caught:
        check(exported, strangers, tmp_path)
    assert (caught.value.tenant_id, caught.value.row) == ("acme", 1)


def test_public_keys_are_read_from_a_folder_or_its_file(key: SigningKey, tmp_path: Path) -> None:
    folder = tmp_path / "audit-keys"

    for path in (folder, folder / "jwks.json"):
        assert AuditKeys.load([path]).knows(key.public.key_id)
    with pytest.raises(SettingsError):
        AuditKeys.load([tmp_path / "absent"])
