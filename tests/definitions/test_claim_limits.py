"""What a definition's limits become for one input."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from jobforge_mcp.definitions.claim_limits import claim_limits
from jobforge_mcp.definitions.model import JobDefinition


def definition(**given: Any) -> JobDefinition:
    return JobDefinition.model_validate({"name": "test.job", **given})


def key_of(template: str | None, payload: object) -> str:
    limit = {"limit": 2} if template is None else {"limit": 2, "key": template}
    said = claim_limits(definition(concurrency=limit), json.dumps(payload))
    assert said is not None
    return json.loads(said)["concurrency"]["key"]


def test_a_definition_without_limits_says_nothing() -> None:
    assert claim_limits(definition(), "{}") is None


def test_everything_that_is_set_is_said() -> None:
    said = claim_limits(
        definition(
            concurrency={"limit": 2, "key": "/customer/id"},
            rateLimit={"count": 10, "periodMs": 1_000, "key": "all"},
            debounce={"windowMs": 500},
        ),
        '{"customer": {"id": 7}}',
    )

    assert json.loads(said or "") == {
        "concurrency": {"limit": 2, "key": "7"},
        "rateLimit": {"count": 10, "periodMs": 1_000, "key": "all"},
        "debounce": {"windowMs": 500, "maxWaitMs": 5_000, "key": ""},
    }


@pytest.mark.parametrize(
    ("template", "payload", "key"),
    [
        (None, {"a": 1}, ""),
        ("word", {"a": 1}, "word"),
        ("/a", {"a": "x"}, "x"),
        ("/a", {"a": True}, "true"),
        ("/a", {"a": {"c": 1, "b": 2}}, '{"b": 2, "c": 1}'),
        ("/a", {"a": None}, ""),
        ("/a/b", {"b": 1}, ""),
        ("/a~1b", {"a/b": "slash"}, "slash"),
    ],
)
def test_a_key_is_a_word_or_a_value_of_the_input(
    template: str | None, payload: object, key: str
) -> None:
    assert key_of(template, payload) == key


def test_a_value_that_no_key_can_hold_is_hashed() -> None:
    key = key_of("/a", {"a": "x" * 10_000})

    assert key.startswith("sha256:")
    assert len(key) < 100


@pytest.mark.parametrize(
    "bad",
    [
        {"concurrency": {"limit": 0}},
        {"concurrency": {"limit": 1, "key": ""}},
        {"concurrency": {"limit": 1, "key": "/a~2"}},
        {"rateLimit": {"count": 1, "periodMs": 10}},
        {"rateLimit": {"count": 1}},
        {"debounce": {"windowMs": 100, "maxWaitMs": 50}},
        {"debounce": {"windowMs": 0}},
    ],
)
def test_limits_that_mean_nothing_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        definition(**bad)
