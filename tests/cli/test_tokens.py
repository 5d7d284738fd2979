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


def test_a_token_says_on_the_command_line_what_confines_it(jobforge: Runner) -> None:
    issued = jobforge(
        *("token", "issue", "--tenant", "acme", "--scope", "jobs:execute", "--once"),
        *("--job-type", "demo.*", "--deny-type", "demo.sleep", "--event", "order.**"),
        *("--role", "ops", "--limit", "rps=0.5", "--limit", "max_running=2", "--epoch", "7"),
        *("--actor", "user-9"),
    )

    seen = jobforge("token", "inspect", issued.out.strip(), "--json")

    assert seen.document["claims"]["jf"] == {
        "v": 1,
        "tenant": "acme",
        "job_types": ["demo.*"],
        "deny_types": ["demo.sleep"],
        "events": ["order.**"],
        "roles": ["ops"],
        "limits": {"rps": 0.5, "max_running": 2},
        "once": True,
        "epoch": 7,
        "act": {"sub": "user-9"},
    }


@pytest.mark.parametrize("limit", ["rps", "rps=no", "rps=-1", "speed=5", "max_running=1.5"])
def test_a_limit_that_is_none_is_told(jobforge: Runner, limit: str) -> None:
    ran = jobforge("token", "issue", "--tenant", "a", "--all-scopes", "--limit", limit, "--json")

    assert ran.code == 1
    assert ran.document["error"]["code"] == "INVALID_INPUT"


@pytest.mark.requirement("policy.narrowing")
def test_a_token_is_narrowed_on_the_command_line(jobforge: Runner, tmp_path: Path) -> None:
    holder = str(tmp_path / "holder")
    token = jobforge(
        "token", "issue", "--tenant", "acme", "--all-scopes", "--holder", holder
    ).out.strip()

    child = jobforge(
        "token", "narrow", token, "--holder", holder, "--scope", "jobs:read", "--ttl", "5m"
    ).out.strip()
    seen = jobforge("token", "inspect", child, "--json").document
    wider = jobforge("token", "narrow", child, "--holder", holder, "--scope", "jobs:execute")

    assert child.startswith(token + "~")
    assert seen["isValid"] is True
    assert seen["claims"]["scope"] == "jobs:read"
    assert wider.code == 1


@pytest.mark.requirement("policy.revocation")
def test_a_revoked_token_is_refused_from_the_next_command_on(
    installed: Runner, environment: pytest.MonkeyPatch
) -> None:
    lost = installed("token", "issue", "--tenant", "acme", "--all-scopes").out.strip()
    good = installed("token", "check", lost, "--json")

    revoked = installed("token", "revoke", lost, "--reason", "lost", "--json")
    again = installed("token", "revoke", lost, "--json")
    told = installed("token", "check", lost, "--json")
    environment.setenv("JOBFORGE_TOKEN", lost)
    refused = installed("runs", "--json")

    assert good.code == 0
    assert good.document["isGood"] is True
    assert "demo.countdown" in good.document["jobs"]
    assert (revoked.document["outcome"], again.document["outcome"]) == ("revoked", "unchanged")
    assert told.code == 1
    assert "lost" in told.document["refusal"]
    assert refused.document["error"]["code"] == "TOKEN_REVOKED"
    assert lost not in revoked.out + told.out + refused.out


@pytest.mark.requirement("policy.revocation")
def test_all_tokens_of_a_tenant_are_revoked_on_the_command_line(
    installed: Runner, environment: pytest.MonkeyPatch
) -> None:
    assert installed("token", "revoke", "--all", "--tenant", "acme").code == 0

    refused = installed("runs", "--json")
    fresh = installed("token", "issue", "--tenant", "acme", "--all-scopes").out.strip()
    environment.setenv("JOBFORGE_TOKEN", fresh)

    assert refused.document["error"]["code"] == "TOKEN_REVOKED"
    assert installed("runs").code == 0


def test_whoever_only_holds_a_token_revokes_with_a_scope_and_for_its_own_tenant(
    installed: Runner, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = installed("token", "issue", "--tenant", "acme", "--scope", "jobs:read").out.strip()
    environment.setenv("JOBFORGE_TOKEN_KEYS", str(tmp_path / "keys" / "jwks.json"))

    own = installed("token", "revoke", "some-id", "--json")
    foreign = installed("token", "revoke", "some-id", "--tenant", "globex", "--json")
    environment.setenv("JOBFORGE_TOKEN", plain)
    unable = installed("token", "revoke", "some-id", "--json")

    assert own.document["outcome"] == "revoked"
    assert foreign.document["error"]["code"] == "INVALID_INPUT"
    assert unable.document["error"]["code"] == "POLICY_DENIED"


def test_check_says_why_a_job_would_be_refused(installed: Runner) -> None:
    token = installed(
        *("token", "issue", "--tenant", "acme", "--scope", "jobs:execute"),
        *("--job-type", "demo.*", "--project", "p1", "--limit", "budget_units=5"),
    ).out.strip()

    fits = installed(
        "token", "check", token, "--job", "demo.countdown", "--project", "p1", "--json"
    )
    other = installed("token", "check", token, "--job", "connector.http.request", "--json")
    project = installed("token", "check", token, "--project", "p2", "--json")

    assert fits.code == 0
    (left,) = fits.document["limits"]
    assert (left["limit"], left["value"], left["used"], left["left"]) == ("budget_units", 5, 0, 5)
    assert "jobs of this type" in other.document["refusal"]
    assert "confined to projects" in project.document["refusal"]


@pytest.mark.requirement("policy.check-token")
def test_check_says_what_is_left_of_every_limit_and_which_is_used_up(
    installed: Runner, environment: pytest.MonkeyPatch
) -> None:
    token = installed(
        *("token", "issue", "--tenant", "acme", "--scope", "jobs:execute"),
        *("--limit", "budget_jobs=2", "--limit", "max_queued=9", "--limit", "max_depth=3"),
    ).out.strip()
    installed("limit", "set", "--tenant", "acme", "budget_units=100", "period_seconds=3600")
    installed("limit", "set", "--tenant", "acme", "--type", "demo.broken", "max_running=4")
    check = ("token", "check", token, "--job", "demo.broken", "--json")
    environment.setenv("JOBFORGE_TOKEN", token)
    installed("run", "demo.broken", "--background")
    first = installed(*check)
    installed("run", "demo.broken", "--background")

    spent = installed(*check)

    limits = {
        (limit["scope"].split()[0], limit["limit"]): (limit.get("used"), limit.get("left"))
        for limit in first.document["limits"]
    }
    assert first.code == 0
    assert limits == {
        ("tenant", "budget_units"): (1, 99),
        ("token", "budget_jobs"): (1, 1),
        ("token", "max_queued"): (1, 8),
        ("token", "max_depth"): (None, None),
        ("type", "max_running"): (0, 4),
    }
    assert all("resetsAt" in x for x in first.document["limits"] if x["limit"] == "budget_units")
    assert spent.code == 1
    assert "budget_jobs of token" in spent.document["refusal"]
