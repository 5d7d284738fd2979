"""The group ``jobs``: lists, and jobs as data."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import psycopg
import pytest

from tests.cli.conftest import Runner

DEFINITION = {
    "name": "acme.pause",
    "title": "Counts down",
    "handler": "demo.countdown",
    "input": {"seconds": 0.1},
}


@pytest.fixture(autouse=True)
def registering(environment: pytest.MonkeyPatch) -> None:
    """These commands are for installations where jobs may be registered."""
    environment.setenv("JOBFORGE_REGISTER_JOB_ENABLED", "true")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "definition.json"
    path.write_text(json.dumps(DEFINITION))
    return path


@pytest.mark.requirement("registering.idempotent")
def test_a_job_is_registered_shown_listed_and_removed(installed: Runner, file: Path) -> None:
    planned = installed("jobs", "register", str(file), "--dry-run", "--json")
    made = installed("jobs", "register", str(file), "--json")
    again = installed("jobs", "register", str(file), "--json")
    started = installed("run", "acme.pause", "--background", "--json")
    shown = installed("jobs", "show", "acme.pause", "--json").document
    listed = installed("jobs", "list", "--registered", "--json").document["jobs"]
    would = installed("jobs", "remove", "acme.pause", "--dry-run", "--json").document
    removed = installed("jobs", "remove", "acme.pause")
    refused = installed("run", "acme.pause", "--background", "--json")
    gone = installed("jobs", "list", "--registered")

    assert [ran.document["outcome"] for ran in (planned, made, again)] == [
        "planned",
        "created",
        "unchanged",
    ]
    assert started.code == 0, started
    assert (shown["version"], shown["hash"]) == ("1", made.document["hash"])
    assert shown["definition"] == {**DEFINITION, "version": "1"}
    assert [(one["name"], one["state"]) for one in listed] == [("acme.pause", "listed")]
    assert (would["outcome"], would["runs"]) == ("planned", 1)
    assert removed.out == "job acme.pause is removed, 1 queued runs\n"
    assert refused.document["error"]["code"] == "JOB_REMOVED"
    assert "removed" in gone.out


@pytest.mark.requirement("server.features-off")
def test_commands_say_which_setting_would_switch_them_on(
    installed: Runner, environment: pytest.MonkeyPatch, file: Path
) -> None:
    environment.delenv("JOBFORGE_REGISTER_JOB_ENABLED")
    told = {
        "REGISTER_JOB": installed("jobs", "register", str(file), "--json").document,
        "EVENTS": installed("events", "list", "--json").document,
        "TRIGGERS": installed("triggers", "list", "--json").document,
    }
    login = installed("login", "create", "shop", "--tenant", "acme", "--scope", "events:submit")

    for setting, document in told.items():
        assert document["error"]["code"] == "FEATURE_DISABLED"
        assert f"JOBFORGE_{setting}_ENABLED=true" in document["error"]["hint"]
    assert login.code != 0
    assert "JOBFORGE_EVENTS_ENABLED=true" in login.err


def test_words_that_are_no_command_are_searched_for(installed: Runner) -> None:
    found = installed("jobs", "countdown", "--json")
    named = installed("jobs", "list", "countdown", "--json")
    people = installed("jobs", "--detail")
    shown = installed("jobs", "show", "demo.countdown", "--json").document
    helped = installed("jobs", "--help")

    assert found.document == named.document
    assert "demo.countdown" in [job["name"] for job in found.document["jobs"]]
    assert "demo.broken" in people.out
    assert "seconds" in shown["inputSchema"]["properties"]
    assert "require-approval" in helped.out


@pytest.mark.requirement("registering.approval")
def test_an_operator_has_definitions_wait_for_approval(
    installed: Runner,
    environment: pytest.MonkeyPatch,
    admin: psycopg.Connection,
) -> None:
    on = installed("jobs", "require-approval", "--tenant", "acme", "--on", "--json")
    environment.setattr(sys, "stdin", io.StringIO(json.dumps(DEFINITION)))
    made = installed("jobs", "register", "-", "--json")
    author = installed("jobs", "approve", "acme.pause", "1", "--json")
    issued = installed("token", "issue", "--tenant", "acme", "--all-scopes", "--subject", "other")
    environment.setenv("JOBFORGE_TOKEN", issued.out.strip())
    waiting = installed("jobs", "list", "--registered", "--json").document["jobs"]
    approved = installed("jobs", "approve", "acme.pause", "1", "--json")
    off = installed("jobs", "require-approval", "--tenant", "acme", "--off")
    neither = installed("jobs", "require-approval", "--tenant", "acme", "--json")
    strange = installed("jobs", "require-approval", "--tenant", "a b", "--on", "--json")

    assert on.document == {"tenant": "acme", "isRequired": True, "wasRequired": False}
    assert made.document["outcome"] == "quarantined"
    assert author.document["error"]["code"] == "APPROVER_IS_AUTHOR"
    assert [one["state"] for one in waiting] == ["version 1 quarantined"]
    assert approved.document["outcome"] == "approved"
    assert off.out == "tenant acme: new versions run at once\n"
    assert [ran.document["error"]["code"] for ran in (neither, strange)] == ["INVALID_INPUT"] * 2
    rows = admin.execute(
        "select distinct actor from jobforge.audit_log where action = 'require_approval'"
    )
    assert rows.fetchall() == [("login:jobforge_admin",)]


@pytest.mark.parametrize("text", ["{", "[]", None])
def test_what_is_no_definition_is_refused_in_words(
    installed: Runner, tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "wrong.json"
    if text is not None:
        path.write_text(text)

    ran = installed("jobs", "register", str(path), "--json")

    assert (ran.code, ran.document["error"]["code"]) == (1, "INVALID_INPUT")
