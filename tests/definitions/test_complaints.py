"""What is said of a definition that does not fit: nothing of Python, of pydantic, or of a regular expression."""

from __future__ import annotations

import pytest

from jobforge_mcp.definitions import intake
from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.types import JsonObject

GIVEN: dict[str, tuple[JsonObject, str]] = {
    "no handler": ({"handler": ""}, "handler: does not have the form of one"),
    "a number for an object": ({"concurrency": 5}, "concurrency: must be an object"),
    "too much": ({"concurrency": {"limit": 10**12}}, "concurrency.limit: must be at most 1000000"),
    "too little": ({"debounce": {"windowMs": -1}}, "debounce.windowMs: must be at least 1"),
    "a member that is missing": ({"rateLimit": {"count": 1}}, "rateLimit.periodMs: is required"),
    "a member that is not known": (
        {"concurrency": {"limit": 1, "keys": "/x"}},
        "concurrency.keys: is not known here",
    ),
    "no steps": ({"chain": []}, "chain: must have a member"),
    "a step of another kind": (
        {"chain": [{"name": "a"}]},
        "chain.0: a step is one of handler, chain, map and switch",
    ),
    "a word of others": ({"effects": "lots"}, "effects: must be 'none', 'internal' or 'external'"),
    "tags that are a word": ({"tags": "a"}, "tags: must be a list"),
    "labels that are a list": ({"labels": []}, "labels: must be an object"),
}


@pytest.mark.parametrize("what", GIVEN)
def test_a_definition_is_refused_in_words_of_json(what: str) -> None:
    members, words = GIVEN[what]

    with pytest.raises(InvalidInputError) as caught:
        intake.read({"name": "acme.x", **members})

    assert caught.value.message == f"the definition does not fit: {words}"
