"""The audit commands, as an operator and as the holder of a token run them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psycopg
import pytest

from tests.cli.conftest import Runner


@pytest.fixture
def sealing(
    installed: Runner, environment: pytest.MonkeyPatch, database: object, tmp_path: Path
) -> Runner:
    """Have a key for seals, and the auditor's login."""
    from tests.postgres import ScratchDatabase

    assert isinstance(database, ScratchDatabase)
    environment.setenv("JOBFORGE_AUDIT_KEYS", str(tmp_path / "audit-keys"))
    environment.setenv("JOBFORGE_AUDIT_DATABASE_URL", database.url("jobforge_auditor"))
    return installed


def test_what_a_token_did_is_listed(installed: Runner) -> None:
    assert installed("run", "demo.broken", "--background", "--json").code == 0

    listed = installed("audit", "list", "--json")

    assert listed.code == 0
    (entry,) = listed.document["entries"]
    assert (entry["action"], entry["outcome"], entry["jobName"]) == (
        "enqueue",
        "created",
        "demo.broken",
    )
    assert entry["tokenId"]
    assert "demo.broken" in installed("audit", "list").out


def test_the_log_is_not_listed_without_its_scope(
    installed: Runner, environment: pytest.MonkeyPatch
) -> None:
    issued = installed("token", "issue", "--tenant", "acme", "--scope", "jobs:read")
    environment.setenv("JOBFORGE_TOKEN", issued.out.strip())

    assert installed("audit", "list", "--json").document["error"]["code"] == "POLICY_DENIED"


def test_the_log_is_sealed_exported_and_verified_without_a_database(
    sealing: Runner, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sealing("run", "demo.broken", "--background")
    file = tmp_path / "audit.jsonl"

    assert sealing("audit", "seal", "--json").code == 0
    exported = sealing("audit", "export", str(file), "--json").document
    environment.setenv("DATABASE_URL", "postgresql://nowhere.invalid/none")
    verified = sealing(
        "audit",
        "verify",
        str(file),
        "--public-key",
        str(tmp_path / "audit-keys" / "jwks.json"),
        "--json",
    )

    assert exported == {"rows": 1, "isEndSigned": True}
    assert verified.code == 0
    assert (verified.document["isValid"], verified.document["isWhole"]) == (True, True)
    assert file.stat().st_mode & 0o077 == 0
    assert "acme" in sealing("audit", "verify", str(file)).out


def test_a_changed_row_is_named_and_fails_the_command(
    sealing: Runner, admin: psycopg.Connection, tmp_path: Path
) -> None:
    sealing("run", "demo.broken", "--background")
    file = tmp_path / "audit.jsonl"
    sealing("audit", "export", str(file))
    file.write_text(file.read_text().replace("demo.broken", "demo.better"))

    changed = sealing("audit", "verify", str(file), "--json")
    in_words = sealing("audit", "verify", str(file))

    assert changed.code == 1
    assert changed.document["isValid"] is False
    assert (changed.document["tenantId"], changed.document["row"]) == ("acme", 1)
    assert "row 1 of tenant acme" in in_words.out


def test_the_database_is_verified_and_compared_with_an_earlier_export(
    sealing: Runner, admin: psycopg.Connection, tmp_path: Path
) -> None:
    sealing("run", "demo.broken", "--background")
    earlier = tmp_path / "earlier.jsonl"
    sealing("audit", "seal")
    while sealing("audit", "verify", "--database", "--json").document["tenants"][0]["unsealedRows"]:
        sealing("audit", "seal")
    sealing("audit", "export", str(earlier))
    same = sealing("audit", "verify", "--database", "--against", str(earlier), "--json")

    admin.execute("set session_replication_role = replica")
    admin.execute("delete from jobforge.audit_seals")
    admin.execute("delete from jobforge.audit_log")
    cut = sealing("audit", "verify", "--database", "--against", str(earlier), "--json")

    assert (same.code, same.document["isWhole"]) == (0, True)
    assert (cut.code, cut.document["problem"]) == (1, "seal 1 is missing")


@pytest.mark.parametrize("arguments", [[], ["file", "--database"], ["absent.jsonl"]])
def test_what_is_to_be_verified_has_to_be_said(sealing: Runner, arguments: list[str]) -> None:
    sealing("audit", "seal")

    assert sealing("audit", "verify", *arguments, "--json").code == 1


def test_an_export_overwrites_nothing(sealing: Runner, tmp_path: Path) -> None:
    file = tmp_path / "kept"
    file.write_text("kept")

    assert sealing("audit", "export", str(file), "--json").code == 1
    assert file.read_text() == "kept"


@pytest.mark.requirement("audit.rotation")
def test_what_every_former_key_sealed_is_verified_after_rotations(
    sealing: Runner, tmp_path: Path
) -> None:
    file = tmp_path / "audit.jsonl"
    seen: list[str] = []
    for _ in range(4):
        sealing("run", "demo.broken", "--background")
        deadline = time.monotonic() + 60
        while not sealing("audit", "seal", "--json").document["sealedRows"]:
            assert time.monotonic() < deadline  # other tests' transactions hold the horizon
        rotated = sealing("audit", "keys", "--rotate", "--json")
        seen.append(rotated.document["keyIds"][0])
    sealing("audit", "export", str(file))

    shown = sealing("audit", "keys", "--json")
    verified = sealing("audit", "verify", str(file), "--json")

    assert shown.document["keyIds"][:4] == seen[::-1]
    assert len(shown.document["keyIds"]) == 5
    assert (verified.code, verified.document["tenants"][0]["seals"]) == (0, 4)
    jwks = json.loads((tmp_path / "audit-keys" / "jwks.json").read_text())
    jwks["keys"] = jwks["keys"][:1]
    (tmp_path / "newest.json").write_text(json.dumps(jwks))
    alone = sealing(
        "audit", "verify", str(file), "--public-key", str(tmp_path / "newest.json"), "--json"
    )
    assert (alone.code, alone.document["problem"]) == (
        1,
        "seal 1 is signed by a key that is not known",
    )
