"""context-key: signing switched on, keys changed, and switched off, with a server at work all along."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.cli.conftest import Runner
from tests.postgres import ScratchDatabase

ENTER = "select from jobforge.enter_scope('acme') s(t), lateral jobforge.list_runs(s.t)"


def set_key(installed: Runner, environment: pytest.MonkeyPatch) -> str:
    """Make a key and serve with it."""
    made = installed("context-key", "create", "--json").document
    environment.setenv("JOBFORGE_CONTEXT_KEY", made["key"])
    return made["keyId"]


def finding(installed: Runner) -> dict[str, str]:
    found = installed("doctor", "--json").document["findings"]
    return next(finding for finding in found if finding["check"] == "scope signing")


@pytest.mark.requirement("cli.context-key")
def test_signing_is_switched_on_without_a_moment_in_which_calls_fail(
    installed: Runner, environment: pytest.MonkeyPatch, database: ScratchDatabase
) -> None:
    assert finding(installed)["state"] == "warning"
    set_key(installed, environment)
    assert installed("run", "demo.countdown", "--background", "--json").code == 0
    environment.delenv("JOBFORGE_CONTEXT_KEY")
    assert installed("runs", "--json").code == 0

    assert installed("context-key", "enforce").code == 0
    refused = installed("runs", "--json")
    assert refused.code != 0
    assert "not signed" in refused.document["error"]["message"]
    with (
        database.connect("jobforge_api") as connection,
        pytest.raises(psycopg.Error, match="not signed"),
    ):
        connection.execute(ENTER)


@pytest.mark.requirement("cli.context-key")
def test_a_key_is_changed_while_both_are_good(
    installed: Runner, environment: pytest.MonkeyPatch
) -> None:
    old = set_key(installed, environment)
    installed("context-key", "enforce")
    assert installed("runs", "--json").code == 0
    assert finding(installed)["state"] == "ok"

    new = installed("context-key", "create", "--json").document
    assert installed("runs", "--json").code == 0
    assert installed("context-key", "create").code == 1  # two at most
    environment.setenv("JOBFORGE_CONTEXT_KEY", new["key"])
    assert installed("runs", "--json").code == 0
    assert installed("context-key", "remove", old).code == 0
    assert installed("runs", "--json").code == 0
    listed: Any = installed("context-key", "list", "--json").document
    assert [(key["keyId"], key["isEnforced"]) for key in listed] == [(new["keyId"], True)]


def test_the_last_key_is_removed_only_when_that_is_meant(
    installed: Runner, environment: pytest.MonkeyPatch
) -> None:
    key_id = set_key(installed, environment)
    installed("context-key", "enforce")
    environment.delenv("JOBFORGE_CONTEXT_KEY")

    assert installed("context-key", "remove", key_id).code == 1
    assert installed("runs", "--json").code != 0
    assert installed("context-key", "remove", key_id, "--last").code == 0
    assert installed("runs", "--json").code == 0


def test_enforcing_needs_a_key_and_removing_one_that_is_there(installed: Runner) -> None:
    assert installed("context-key", "enforce").code == 1
    assert installed("context-key", "remove", "nothing").code == 1


def test_the_secret_is_printed_once_and_alone(installed: Runner) -> None:
    made = installed("context-key", "create")

    assert made.out.startswith("jfck1.")
    assert made.out.count("\n") == 1
    secret = made.out.strip().rpartition(".")[2]
    assert secret not in made.err
    assert secret not in installed("context-key", "list").out
    assert secret not in installed("doctor").out


@pytest.mark.parametrize("text", ["x", "jfck1.a.b", "jfck1.k1." + "A" * 42, "jfck2.k1." + "A" * 43])
def test_what_is_no_key_is_refused_without_being_repeated(
    installed: Runner, environment: pytest.MonkeyPatch, text: str
) -> None:
    environment.setenv("JOBFORGE_CONTEXT_KEY", text)

    ran = installed("runs", "--json")

    assert ran.code == 3
    assert ran.document["error"]["code"] == "SETTINGS"
    assert text == "x" or text not in ran.out + ran.err


def test_a_login_that_does_not_migrate_makes_no_key(
    installed: Runner, environment: pytest.MonkeyPatch, database: ScratchDatabase
) -> None:
    environment.setenv("JOBFORGE_ADMIN_DATABASE_URL", database.url("jobforge_api"))

    ran = installed("context-key", "create", "--json")

    assert ran.document["error"]["code"] == "SETTINGS"


def test_the_doctor_says_when_this_process_signs_in_vain(
    installed: Runner, environment: pytest.MonkeyPatch
) -> None:
    set_key(installed, environment)
    installed("context-key", "enforce")
    environment.delenv("JOBFORGE_CONTEXT_KEY")

    assert finding(installed)["state"] == "failed"
