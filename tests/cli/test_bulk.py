"""cancel and retry by filter, and queue pause, resume, list and stats."""

from __future__ import annotations

import psycopg
import pytest

from tests.cli.conftest import Runner


@pytest.mark.requirement("cli.bulk")
def test_runs_are_counted_and_then_canceled_and_queued_again(installed: Runner) -> None:
    for _ in range(3):
        installed("run", "demo.countdown", "--background", "--json")
    chosen = ("--type", "demo.countdown", "--status", "queued")

    planned = installed("cancel", *chosen, "--dry-run", "--json")
    refused = installed("cancel", *chosen, "--expect", "2", "--json")
    canceled = installed("cancel", *chosen, "--expect", "3", "--reason", "enough", "--json")
    again = installed("retry", "--status", "canceled", "--most", "2", "--json")

    assert planned.document["matched"] == 3
    assert len(planned.document["first"]) == 3
    assert (refused.code, refused.document["error"]["code"]) == (1, "COUNT_CHANGED")
    assert (canceled.document["count"], canceled.document["skipped"]) == (3, [])
    assert again.document["runIds"] == planned.document["first"][:2]
    people = installed("retry", "--status", "canceled", "--dry-run")
    assert "1 run matches" in people.out


@pytest.mark.requirement("cli.bulk")
@pytest.mark.parametrize(
    "arguments",
    [
        ("cancel",),
        ("cancel", "--type", "demo.countdown"),
        ("cancel", "0193b0a0-0000-7000-8000-000000000000", "--type", "demo.countdown"),
        ("cancel", "0193b0a0-0000-7000-8000-000000000000", "--dry-run"),
        ("retry", "--label", "nonsense", "--most", "1"),
        ("retry", "--since", "yesterday", "--most", "1"),
    ],
)
def test_what_is_not_said_plainly_touches_nothing(
    installed: Runner, arguments: tuple[str, ...]
) -> None:
    ran = installed(*arguments, "--json")

    assert (ran.code, ran.document["error"]["code"]) == (1, "INVALID_INPUT")


@pytest.mark.requirement("cli.queue")
def test_a_queue_is_paused_listed_and_resumed(installed: Runner, admin: psycopg.Connection) -> None:
    installed("run", "demo.countdown", "--background", "--json")

    paused = installed("queue", "pause", "--type", "demo.countdown", "--reason", "busy", "--json")
    listed = installed("queue", "list", "--json")
    stats = installed("queue", "stats", "--json")
    resumed = installed("queue", "resume", "--type", "demo.countdown", "--json")
    again = installed("queue", "resume", "--type", "demo.countdown", "--json")

    assert (paused.document["kind"], paused.document["name"]) == ("type", "demo.countdown")
    assert listed.document["pauses"][0]["reason"] == "busy"
    assert stats.document["queues"][0]["queued"] == 1
    assert (resumed.document["outcome"], again.document["outcome"]) == ("resumed", "unchanged")
    assert installed("queue", "pause").out == "the tenant is paused\n"
    assert "the tenant" in installed("queue", "list").out
    assert installed("queue", "resume").out == "resumed\n"
    assert "demo.countdown" in installed("queue", "stats").out
    rows = admin.execute("select count(*) from jobforge.audit_log where action = 'pause'")
    assert rows.fetchone() == (2,)


def test_a_type_and_a_project_are_two_queues(installed: Runner) -> None:
    ran = installed("queue", "pause", "--type", "demo.countdown", "--project", "p1", "--json")

    assert (ran.code, ran.document["error"]["code"]) == (1, "INVALID_INPUT")


def test_a_pattern_is_no_name_of_a_type_that_could_be_paused(installed: Runner) -> None:
    ran = installed("queue", "pause", "--type", "demo.**", "--json")

    assert (ran.code, ran.document["error"]["code"]) == (1, "INVALID_INPUT")
    assert "demo.** is a pattern" in ran.document["error"]["message"]


def test_a_filter_for_what_cannot_be_touched_says_what_can(installed: Runner) -> None:
    ran = installed("cancel", "--status", "succeeded", "--dry-run", "--json")

    assert ran.document["error"]["message"] == "runs that are succeeded cannot be canceled"
    assert "queued, waiting, running" in ran.document["error"]["hint"]
