"""webhooks add, list and remove."""

from __future__ import annotations

import json

from tests.cli.conftest import Runner


def test_an_operator_adds_lists_and_removes_webhooks(installed: Runner) -> None:
    add = ("webhooks", "add", "erp", "--tenant", "acme", "--url", "https://erp.example/", "--secret", "k")  # fmt: skip

    added = installed(*add, "--json")
    changed = installed(*add, "--job", "shop.**", "--status", "dead", "--labelled", "--json")

    assert (added.document["isNew"], changed.document["isNew"]) == (True, False)
    (listed,) = json.loads(installed("webhooks", "list", "--json").out)
    assert (listed["tenant"], listed["name"], listed["config"]) == (
        "acme",
        "erp",
        {
            "url": "https://erp.example/",
            "secrets": ["k"],
            "scope": "label",
            "includeResult": False,
            "jobs": ["shop.**"],
            "statuses": ["dead"],
        },
    )
    assert "label webhook=erp" in installed("webhooks", "list", "--tenant", "acme").out
    assert installed("webhooks", "remove", "erp", "--tenant", "acme").code == 0
    assert installed("webhooks", "remove", "erp", "--tenant", "acme").code == 1


def test_a_webhook_that_cannot_be_is_refused_in_words(installed: Runner) -> None:
    ran = installed("webhooks", "add", "erp", "--url", "ftp://x", "--secret", "k", "--json")

    assert (ran.code, ran.document["error"]["code"]) == (1, "INVALID_INPUT")
    assert "url" in ran.document["error"]["message"]


def test_an_operator_says_who_is_heard(installed: Runner) -> None:
    hear = ("webhooks", "hear", "hub", "--tenant", "acme", "--secret", "k", "--json", "--scheme")

    heard, refused = installed(*hear, "github"), installed(*hear, "gitlab")

    assert heard.document == {
        "tenant": "acme",
        "name": "hub",
        "path": "/hooks/acme/hub",
        "isNew": True,
    }
    assert (refused.code, refused.document["error"]["code"]) == (1, "INVALID_INPUT")
    (listed,) = json.loads(installed("webhooks", "list", "--json").out)
    assert listed["config"] == {"scheme": "github", "secrets": ["k"]}
    assert "github deliveries" in installed("webhooks", "list").out
    assert installed("webhooks", "remove", "hub", "--tenant", "acme").code == 0


def test_a_secret_itself_is_refused_where_its_name_belongs(installed: Runner) -> None:
    key = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    add = installed("webhooks", "add", "erp", "--url", "https://e.example/", "--secret", key)
    hear = installed("webhooks", "hear", "hub", "--scheme", "stripe", "--secret", key)

    assert (add.code, hear.code) == (1, 1)
    assert "name of a secret" in add.err
    assert key not in add.err + hear.err
    assert "erp" not in installed("webhooks", "list").out


def test_the_list_says_in_words_which_runs_are_told(installed: Runner) -> None:
    add = ("webhooks", "add", "erp", "--url", "https://e.example/", "--secret", "k")
    installed(*add, "--job", "shop.**", "--status", "dead", "--status", "failed")

    assert "job shop.**; status dead, failed" in installed("webhooks", "list").out
