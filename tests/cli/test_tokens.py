"""Tokens and keys on the command line: the token alone on stdout, secrets nowhere."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.cli.conftest import Runner


@pytest.mark.requirement("cli.secrets")
def test_issue_prints_the_token_alone(jobforge: Runner) -> None:
    ran = jobforge("token", "issue", "--tenant", "acme", "--scope", "jobs:read", "--ttl", "15m")

    assert ran.err == ""
    assert ran.out.count("\n") == 1
    assert len(ran.out.strip().split(".")) == 3


@pytest.mark.requirement("cli.secrets")
def test_inspect_shows_what_a_token_says_and_not_the_token(
    jobforge: Runner, environment: pytest.MonkeyPatch
) -> None:
    issued = jobforge(
        "token", "issue", "--tenant", "acme", "--project", "p1", "--scope", "jobs:read"
    )
    token = issued.out.strip()
    environment.setattr("sys.stdin", io.StringIO(token + "\n"))

    seen = jobforge("token", "inspect", "-", "--json")
    people = jobforge("token", "inspect", token)

    assert seen.document["isValid"] is True
    jf = seen.document["claims"]["jf"]
    assert jf.pop("epoch") // 1_000 == seen.document["claims"]["iat"]
    assert jf == {"v": 1, "tenant": "acme", "projects": ["p1"]}
    assert "accepted here" in people.out
    assert token not in seen.out + people.out
    assert token.rsplit(".", 1)[1] not in seen.out + people.out


def test_inspect_says_why_a_token_is_refused(jobforge: Runner, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    issued = jobforge("token", "issue", "--tenant", "a", "--all-scopes", "--folder", elsewhere)

    seen = jobforge("token", "inspect", issued.out.strip(), "--json")

    assert seen.code == 1
    assert seen.document["refusal"] == "unknown_key"


def test_a_token_issued_before_a_rotation_is_good_until_the_old_key_is_retired(
    jobforge: Runner,
) -> None:
    token = jobforge("token", "issue", "--tenant", "acme", "--all-scopes").out.strip()

    assert len(jobforge("token", "keys", "--rotate", "--json").document["keys"]) == 2
    assert jobforge("token", "inspect", token).code == 0
    assert len(jobforge("token", "keys", "--retire", "--json").document["keys"]) == 1
    assert jobforge("token", "inspect", token).code == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--tenant", "acme"], 1),
        (["--tenant", "a b", "--all-scopes"], 1),
        (["--tenant", "acme", "--all-scopes", "--ttl", "25h"], 1),
        (["--tenant", "acme", "--all-scopes", "--ttl", "long"], 1),
        (["--tenant", "acme", "--scope", "jobs:everything"], 2),
        (["--all-scopes"], 2),
    ],
    ids=str,
)
def test_a_token_that_makes_no_sense_is_not_issued(
    jobforge: Runner, arguments: list[str], code: int
) -> None:
    ran = jobforge("token", "issue", *arguments)

    assert ran.code == code
    assert ran.out == ""


def test_an_installation_with_public_keys_only_issues_nothing(
    installed: Runner, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("JOBFORGE_TOKEN_KEYS", str(tmp_path / "keys" / "jwks.json"))

    refused = installed("token", "issue", "--tenant", "acme", "--all-scopes", "--json")

    assert refused.code == 3
    assert installed("runs", "--json").code == 0


@pytest.mark.requirement("cli.secrets")
def test_no_command_prints_the_token_or_a_private_key(installed: Runner, tmp_path: Path) -> None:
    from os import environ

    token = environ["JOBFORGE_TOKEN"]
    private = (tmp_path / "keys" / "signing.pem").read_text().splitlines()[1]
    printed = ""

    for command in (
        ["doctor"],
        ["doctor", "--json"],
        ["jobs"],
        ["runs"],
        ["token", "keys"],
        ["token", "inspect"],
        ["install", "codex", "--print"],
        ["install", "cursor", "--print", "--json"],
        ["migrate", "--check"],
    ):
        ran = installed(*command)
        printed += ran.out + ran.err

    assert token not in printed
    assert private not in printed
