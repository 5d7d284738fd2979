"""What a composition does next, from its definition and how its steps stand."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import cast
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobforge_mcp.definitions.composition import parse_composition
from jobforge_mcp.types import JobId, JsonObject, JsonValue, StepRun
from jobforge_mcp.worker.replay import Done, Failed, Outcome, Pending, Replay

NAMES = UUID(int=7)


class World:
    """Runs of steps, as the database would keep them."""

    def __init__(self, definition: object, input: JsonValue = None) -> None:
        self.composition = parse_composition(json.dumps(definition))
        self.scope: JsonObject = {"input": input, "run": {"id": "r"}}
        self.runs: dict[str, StepRun] = {}
        self.results: dict[str, JsonValue] = {}
        self.inputs: dict[str, JsonValue] = {}
        self.most_open = 0

    def look(self) -> tuple[Outcome, Replay]:
        """Look until no result has to be read any more, and enqueue what is to be enqueued."""
        known: dict[str, JsonValue] = {}
        while True:
            replay = Replay(self.composition, self.runs, known)
            outcome = replay.look(self.scope)
            if not replay.to_read:
                break
            known |= {path: self.results[path] for path in replay.to_read}
        for step in replay.to_enqueue:
            assert step.path not in self.runs
            self.runs[step.path] = self._run(step.path, "open")
            self.inputs[step.path] = step.input
        self.most_open = max(self.most_open, len(self.open))
        return outcome, replay

    @property
    def open(self) -> list[str]:
        return [path for path, run in self.runs.items() if run.status == "open"]

    def end(self, path: str, result: JsonValue = None) -> None:
        self.runs[path] = self._run(path, "succeeded")
        self.results[path] = result

    def fail(self, path: str, code: str = "OOPS") -> None:
        error = json.dumps({"code": code, "message": "it broke"})
        self.runs[path] = self._run(path, "failed", error)

    def _run(self, path: str, status: str, error: str | None = None) -> StepRun:
        return StepRun(
            path, JobId(uuid5(NAMES, path)), status, None, error, datetime(2030, 1, 1, tzinfo=UTC)
        )


CHAIN: JsonObject = {
    "chain": [
        {"name": "fetch", "handler": "a.fetch", "input": {"id": {"$ref": "/input/id"}}},
        {
            "name": "send",
            "handler": "a.send",
            "input": {"body": {"$ref": "/steps/fetch/result/text"}},
        },
    ]
}


def test_a_chain_goes_step_by_step_and_hands_results_on() -> None:
    world = World(CHAIN, {"id": 5})

    outcome, replay = world.look()
    assert (outcome, replay.done, replay.total) == (Pending(), 0, 2)
    assert (world.open, world.inputs) == (["fetch"], {"fetch": {"id": 5}})
    world.end("fetch", {"text": "hello"})
    world.look()
    assert world.inputs["send"] == {"body": "hello"}
    outcome, replay = world.look()
    assert (outcome, list(replay.open), replay.to_enqueue) == (Pending(), ["send"], [])
    world.end("send", "sent")
    outcome, replay = world.look()

    assert (outcome, replay.done, replay.total) == (Done("sent"), 2, 2)


def test_a_failed_step_fails_the_chain_with_its_error() -> None:
    world = World(CHAIN, {"id": 5})
    world.look()
    world.fail("fetch", "GONE")

    outcome, _ = world.look()

    assert isinstance(outcome, Failed)
    assert outcome.error.code == "GONE"
    assert "step fetch (a.fetch) ended failed: it broke" in outcome.error.message


def test_a_step_may_fail_and_the_chain_go_on() -> None:
    first = {"name": "try", "handler": "a.a", "onFailure": "continue"}
    second = {
        "name": "tell",
        "handler": "a.b",
        "input": {"why": {"$ref": "/steps/try/error/code"}},
        "when": {"$ref": "/steps/try/status", "equals": "failed"},
    }
    world = World({"chain": [first, second]})
    world.look()
    world.fail("try")

    world.look()

    assert world.inputs["tell"] == {"why": "OOPS"}


def test_a_step_whose_condition_does_not_hold_is_skipped() -> None:
    world = World(
        {
            "chain": [
                {"name": "a", "handler": "a.a"},
                {"name": "b", "handler": "a.b", "when": {"$ref": "/input/also"}},
            ]
        },
        {"also": False},
    )
    world.look()
    world.end("a", 1)

    assert world.look()[0] == Done(1)


def test_a_map_keeps_its_order_and_its_concurrency() -> None:
    world = World(
        {
            "map": {
                "items": {"$ref": "/input"},
                "do": {"handler": "a.a", "input": {"n": {"$ref": "/item"}}},
                "concurrency": 2,
            }
        },
        [10, 11, 12, 13, 14],
    )
    outcome: Outcome = Pending()
    for _ in range(20):
        outcome, _ = world.look()
        if world.open:
            path = world.open[-1]  # the later ones end first
            world.end(path, 10 + int(path))

    assert outcome == Done([10, 11, 12, 13, 14])
    assert world.most_open == 2


@pytest.mark.parametrize(
    ("policy", "expected"), [("continue", Done([None, 1, 2])), ("stop", "OOPS")]
)
def test_a_map_stops_at_a_failure_or_passes_over_it(policy: str, expected: object) -> None:
    world = World(
        {"map": {"items": [0, 1, 2], "do": {"handler": "a.a"}, "concurrency": 2, "onFailure": policy}}
    )  # fmt: skip
    world.look()
    world.fail("0")
    world.look()
    while world.open:
        world.end(world.open[0], int(world.open[0]))
        world.look()

    outcome, _ = world.look()

    if isinstance(outcome, Failed):
        assert (outcome.error.code, len(world.runs)) == (expected, 2)
    else:
        assert isinstance(outcome, Done)
        assert Done(outcome.value) == expected
        assert outcome.errors[0] == {"index": 0, "code": "OOPS", "message": "step 0 (a.a) ended failed: it broke"}  # fmt: skip


def test_a_map_needs_a_list_that_is_not_too_long() -> None:
    document: JsonObject = {"map": {"items": {"$ref": "/input"}, "do": {"handler": "a.a"}, "maxItems": 2}}  # fmt: skip

    for given_input, code in (("text", "MAP_NEEDS_A_LIST"), ([1, 2, 3], "MAP_TOO_LONG")):
        outcome, _ = World(document, cast("JsonValue", given_input)).look()
        assert isinstance(outcome, Failed)
        assert outcome.error.code == code


def test_an_empty_map_is_done() -> None:
    document: JsonObject = {"map": {"items": [], "do": {"handler": "a.a"}}}

    assert World(document).look()[0] == Done([])


@pytest.mark.parametrize(
    ("kind", "path"), [("a", "case-0"), ("b", "case-1"), ("c", "default"), (None, None)]
)
def test_a_switch_takes_the_first_case_that_holds(kind: str | None, path: str | None) -> None:
    cases = [
        {"when": {"$ref": "/input/kind", "in": ["a"]}, "do": {"handler": "a.a"}},
        {"when": {"$ref": "/input/kind", "in": ["a", "b"]}, "do": {"handler": "a.b"}},
    ]
    switch = {"cases": cases, "default": {"handler": "a.c"}} if kind else {"cases": cases}
    world = World({"switch": switch}, {"kind": kind})

    outcome, _ = world.look()

    assert world.open == ([path] if path else [])
    if path is None:
        assert outcome == Done()
    else:
        world.end(path, 1)
        assert world.look()[0] == Done(1)


def test_compositions_inside_each_other_know_what_is_around_them() -> None:
    each = {
        "chain": [
            {"name": "one", "handler": "a.a", "input": {"n": {"$ref": "/item"}, "base": {"$ref": "/steps/list/result/base"}}},
            {"name": "two", "handler": "a.b", "input": {"n": {"$ref": "/steps/one/result"}, "at": {"$ref": "/index"}}},
        ]
    }  # fmt: skip
    world = World(
        {
            "chain": [
                {"name": "list", "handler": "a.list"},
                {"name": "each", "map": {"items": {"$ref": "/steps/list/result/items"}, "do": each}},
            ],
            "result": {"all": {"$ref": "/steps/each/result"}, "count": {"$jmespath": "length(steps.each.result)"}},
        }
    )  # fmt: skip
    world.look()
    world.end("list", {"items": ["x", "y"], "base": 9})
    world.look()
    assert world.inputs["each/1/one"] == {"n": "y", "base": 9}
    world.end("each/0/one", "X")
    world.end("each/1/one", "Y")
    world.look()
    assert world.inputs["each/1/two"] == {"n": "Y", "at": 1}
    world.end("each/0/two", 0)
    world.end("each/1/two", 1)

    outcome, replay = world.look()

    assert outcome == Done({"all": [0, 1], "count": 2})
    assert (replay.done, replay.total) == (5, 5)


def test_a_pointer_that_leads_nowhere_fails_the_run_with_the_place() -> None:
    world = World(CHAIN, {})

    outcome, _ = world.look()

    assert isinstance(outcome, Failed)
    assert outcome.error.code == "MAPPING_FAILED"
    assert "step fetch" in outcome.error.message


def test_the_result_may_be_made_of_the_result() -> None:
    document: object = {
        "map": {"items": [1], "do": {"handler": "a.a"}},
        "result": {"$ref": "/result/0"},
    }
    world = World(document)
    world.look()
    world.end("0", "only")

    assert world.look()[0] == Done("only")


def test_a_purged_step_is_no_result() -> None:
    world = World(CHAIN, {"id": 1})
    world.look()
    world.runs["fetch"] = StepRun("fetch", world.runs["fetch"].child_id, "purged", None, None, datetime(2030, 1, 1, tzinfo=UTC))  # fmt: skip

    outcome, _ = world.look()

    assert isinstance(outcome, Failed)
    assert outcome.error.code == "STEP_PURGED"


@given(st.data())
def test_whatever_order_steps_end_in_the_result_is_the_same(data: st.DataObject) -> None:
    """And looking again without a change asks for nothing new."""
    world = World(
        {
            "chain": [
                {"name": "n", "map": {
                    "items": {"$ref": "/input"}, "concurrency": 3,
                    "do": {"chain": [
                        {"name": "p", "handler": "a.a", "input": {"n": {"$ref": "/item"}}},
                        {"name": "q", "handler": "a.b", "input": {"n": {"$ref": "/steps/p/result"}}},
                    ]},
                }},
                {"name": "sum", "handler": "a.sum", "input": {"all": {"$ref": "/steps/n/result"}}},
            ]
        },
        [1, 2, 3, 4, 5],
    )  # fmt: skip
    outcome, _ = world.look()
    while world.open:
        _, again = world.look()
        assert again.to_enqueue == []
        path = data.draw(st.sampled_from(sorted(world.open)))
        given_input = world.inputs[path]
        assert isinstance(given_input, dict)
        world.end(path, given_input.get("n", given_input.get("all")))
        outcome, _ = world.look()

    assert outcome == Done([1, 2, 3, 4, 5])
    assert len(world.runs) == 11
