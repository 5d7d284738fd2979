"""retention set and list."""

from __future__ import annotations

from tests.cli.conftest import Runner


def test_an_operator_says_for_how_long_runs_are_kept(installed: Runner) -> None:
    assert installed("retention", "set", "45", "--tenant", "acme").code == 0

    listed = installed("retention", "list", "--json").document

    assert {"tenant": "acme", "retainDays": 45} in listed


def test_a_time_too_short_is_refused_in_words(installed: Runner) -> None:
    refused = installed("retention", "set", "7", "--tenant", "acme", "--json")

    assert refused.code == 1
    assert "30 to 36,500 days" in refused.document["error"]["message"]


def test_a_time_beyond_all_numbers_is_refused_in_words_and_not_as_an_old_schema(
    installed: Runner,
) -> None:
    refused = installed("retention", "set", "99999999999", "--tenant", "acme", "--json")

    assert (refused.code, refused.document["error"]["code"]) == (1, "INVALID_INPUT")
