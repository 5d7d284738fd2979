"""The tools' verbs on the command line."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic
from uuid import UUID

import pytest

from tests.cli.conftest import Runner


@pytest.mark.requirement("cli.json")
def test_a_job_is_run_to_its_result(
    installed: Runner, worker_process: subprocess.Popen[str]
) -> None:
    ran = installed("run", "demo.countdown", "--input", '{"seconds": 0.1}', "--json")

    assert ran.code == 0
    assert ran.document["status"] == "succeeded"
    assert ran.document["outcome"] == "created"
    assert ran.document["result"]["message"] == "liftoff"

    shown = installed("status", ran.document["runId"], "--logs", "--input", "--attempts", "--json")
    assert shown.document["input"]["seconds"] == 0.1
    assert shown.document["attempts"] == []

    people = installed("status", ran.document["runId"])
    assert "succeeded" in people.out
    assert "liftoff" in people.out


@pytest.mark.requirement("cli.exit-codes")
def test_a_run_that_failed_ends_the_command_with_one_and_status_with_zero(
    installed: Runner, worker_process: subprocess.Popen[str]
) -> None:
    failed = installed("run", "demo.broken", "--json")
    shown = installed("status", failed.document["runId"], "--json")
    people = installed("status", failed.document["runId"])

    assert failed.code == 1
    assert failed.document["status"] == "failed"
    assert failed.document["error"]["code"] == "NO_INK"
    assert shown.code == 0
    assert "NO_INK: the pen is empty" in people.out


def test_a_job_in_the_background_is_followed_canceled_and_retried(installed: Runner) -> None:
    queued = installed("run", "demo.countdown", "--background", "--key", "k1", "--json")
    again = installed("run", "demo.countdown", "--background", "--key", "k1", "--json")
    run_id = queued.document["runId"]

    listed = installed("runs", "--status", "queued", "--json")
    waited = installed("status", run_id, "--wait", "0.05", "--json")
    canceled = installed("cancel", run_id, "--reason", "not today", "--json")
    retried = installed("retry", run_id, "--reset-attempts", "--json")

    assert UUID(run_id)
    assert again.document["outcome"] == "replayed"
    assert again.document["runId"] == run_id
    assert [row["runId"] for row in listed.document["runs"]] == [run_id]
    assert waited.document["cause"]["cause"] == "no_worker"
    assert canceled.document["status"] == "canceled"
    assert retried.document["status"] == "queued"
    assert {queued.code, again.code, waited.code, canceled.code, retried.code} == {0}


def test_a_person_is_told_why_a_run_does_not_start(installed: Runner) -> None:
    # Slow, because nobody is told before two seconds have passed in vain.
    ran = installed("run", "demo.countdown", "--wait", "2.1")

    assert ran.code == 0
    assert "queued" in ran.out
    assert "still queued:" in ran.err


@pytest.mark.requirement("cli.leaving")
def test_a_person_who_stops_waiting_stops_nothing_and_is_told_the_run(installed: Runner) -> None:
    # Slow, because a signal needs a process of its own, which has to start first.
    command = [sys.executable, "-m", "jobforge_mcp.entry", "run", "demo.countdown"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as waiting:
        deadline = monotonic() + 60
        while not (runs := installed("runs", "--json").document["runs"]):
            assert monotonic() < deadline
        waiting.send_signal(signal.SIGINT)
        _, err = waiting.communicate(timeout=60)

    assert waiting.returncode == 130
    assert f"jobforge status {runs[0]['runId']}" in err
    assert installed("status", runs[0]["runId"], "--json").document["status"] == "queued"


def test_a_dry_run_leaves_nothing(installed: Runner) -> None:
    ran = installed("run", "demo.countdown", "--dry-run", "--json")

    assert ran.document == {"dryRun": True, "jobName": "demo.countdown", "outcome": "created"}
    assert installed("runs", "--json").document == {"runs": []}


def test_input_comes_from_a_file_or_standard_input(
    installed: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "input.json"
    path.write_text('{"seconds": 3}')
    monkeypatch.setattr("sys.stdin", io.StringIO('{"seconds": 4}'))

    for given, seconds in ((f"@{path}", 3), ("-", 4)):
        ran = installed("run", "demo.countdown", "-i", given, "--background", "--json")
        shown = installed("status", ran.document["runId"], "--input", "--json")
        assert shown.document["input"]["seconds"] == seconds


def test_options_of_a_run_are_kept_with_it(installed: Runner) -> None:
    ran = installed(
        *("run", "demo.countdown", "--background", "--json", "--label", "team=red"),
        *("--run-at", "2099-01-01", "--project", "p1", "--priority", "0"),
    )

    document = ran.document
    assert document["labels"] == {"team": "red"}
    assert document["runAt"] == "2099-01-01T00:00:00.000Z"
    assert document["projectId"] == "p1"


def test_jobs_are_found_by_words_and_shown_with_their_schema(installed: Runner) -> None:
    found = installed("jobs", "countdown", "--detail", "--json").document["jobs"]

    assert "demo.countdown" in [job["name"] for job in found]
    assert found[0]["inputSchema"]["type"] == "object"
    assert "demo.countdown" in installed("jobs").out


@pytest.mark.requirement("cli.exit-codes")
@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["run", "demo.nothing"], 1, "JOB_NOT_FOUND"),
        (["run", "demo.countdown", "-i", '{"seconds": "x"}'], 1, "INVALID_INPUT"),
        (["run", "demo.countdown", "-i", "@absent.json"], 1, "INVALID_INPUT"),
        (["run", "demo.countdown", "--run-at", "soon"], 1, "INVALID_INPUT"),
        (["run", "demo.countdown", "--label", "red"], 1, "INVALID_INPUT"),
        (["status", "0199aaaa-0000-7000-8000-000000000000"], 1, "RUN_NOT_FOUND"),
        (["status", "nonsense"], 1, "INVALID_RUN_ID"),
        (["runs", "--before", "nonsense"], 1, "INVALID_RUN_ID"),
        (["install", "emacs"], 1, "UNKNOWN_CLIENT"),
        (["runs", "--limit", "0"], 2, "USAGE"),
        (["runs", "--status", "done"], 2, "USAGE"),
        (["status"], 2, "USAGE"),
        (["dance"], 2, "USAGE"),
    ],
    ids=str,
)
def test_an_error_is_one_document_with_code_sentence_and_exit_code(
    installed: Runner, arguments: list[str], code: int, error: str
) -> None:
    ran = installed(*arguments, "--json")

    assert ran.code == code
    assert ran.document["error"]["code"] == error
    assert ran.document["error"]["message"]
    assert ran.err == ""


@pytest.mark.parametrize(
    ("typed", "help_of"),
    [
        (["dance"], "jobforge --help"),
        (["runs", "--dance"], "jobforge runs --help"),
        (["token", "dance"], "jobforge token --help"),
        (["token", "issue"], "jobforge token issue --help"),
    ],
    ids=str,
)
def test_what_was_typed_wrongly_points_to_help_that_exists(
    installed: Runner, typed: list[str], help_of: str
) -> None:
    assert installed(*typed).err.splitlines()[-1].strip() == help_of


def test_a_reader_who_has_enough_gets_no_traceback(
    installed: Runner, worker_process: subprocess.Popen[str]
) -> None:
    assert worker_process.poll() is None
    reader, writer = os.pipe()
    os.close(reader)

    words = ["run", "demo.countdown", "-i", '{"seconds": 0}', "--json"]
    command = [sys.executable, "-m", "jobforge_mcp.entry", *words]
    ran = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)

    assert "Traceback" not in ran.stderr


def test_an_error_is_said_to_people_on_stderr(installed: Runner) -> None:
    ran = installed("run", "demo.contdown")

    assert ran.out == ""
    assert ran.err.startswith("jobforge: there is no job named 'demo.contdown'\n")
    assert "did you mean demo.countdown" in ran.err


@pytest.mark.requirement("cli.exit-codes")
def test_a_database_that_does_not_answer_is_the_operators_turn(
    installed: Runner, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("DATABASE_URL", "postgresql://u:canary@127.0.0.1:1/db")

    ran = installed("runs", "--json")

    assert ran.code == 3
    assert ran.document["error"]["code"] == "DATABASE_UNAVAILABLE"
    assert "canary" not in ran.out + ran.err


def test_a_setting_that_is_wrong_is_the_operators_turn(
    jobforge: Runner, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("JOBFORGE_PORT", "many")

    assert jobforge("runs", "--json").code == 3
    assert jobforge("runs", "--json").document["error"]["code"] == "SETTINGS"


@pytest.mark.requirement("policy.gate")
def test_commands_are_held_to_the_scopes_of_the_token(
    installed: Runner, environment: pytest.MonkeyPatch
) -> None:
    token = installed("token", "issue", "--tenant", "acme", "--scope", "jobs:read").out.strip()
    environment.setenv("JOBFORGE_TOKEN", token)

    refused = installed("run", "demo.countdown", "--json")

    assert refused.document["error"]["code"] == "POLICY_DENIED"
    assert installed("runs", "--json").code == 0


def test_words_of_strangers_do_not_reach_the_terminal_as_commands(installed: Runner) -> None:
    run_id = installed("run", "demo.countdown", "--background", "--json").document["runId"]
    installed("cancel", run_id, "--reason", "\x1b[2Jgone [red]now[/red]")

    people = installed("status", run_id)

    assert "\x1b" not in people.out
    assert "gone [red]now[/red]" in people.out


@pytest.mark.requirement("evidence.artifacts")
def test_what_a_run_left_is_listed_fetched_and_reported(
    installed: Runner, worker_process: subprocess.Popen[str], tmp_path: Path
) -> None:
    ran = installed("run", "report.generate", "--input", '{"format": "csv"}', "--json")
    run_id = ran.document["runId"]
    target = tmp_path / "fetched.csv"

    listed = installed("artifacts", run_id, "--json")
    people = installed("artifacts", run_id)
    fetched = installed("artifacts", run_id, "report.csv", "--output", str(target), "--json")
    again = installed("artifacts", run_id, "report.csv", "--output", str(target), "--json")
    unknown = installed("artifacts", run_id, "other.csv", "--output", "-", "--json")
    report = installed("status", run_id, "--report")
    document = installed("status", run_id, "--report", "--json")

    (made,) = listed.document["artifacts"]
    assert (made["name"], made["mimeType"]) == ("report.csv", "text/csv")
    assert "report.csv" in people.out
    assert fetched.document == {"name": "report.csv", "output": str(target)}
    assert target.read_text().startswith("runId,jobName,status")
    assert target.stat().st_size == made["size"]
    assert (again.code, again.document["error"]["code"]) == (1, "INVALID_INPUT")
    assert (unknown.code, unknown.document["error"]["code"]) == (1, "ARTIFACT_NOT_FOUND")
    assert report.out.startswith("# Run of `report.generate`: succeeded")
    assert document.document["report"] == report.out
