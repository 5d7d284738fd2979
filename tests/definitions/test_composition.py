"""Compositions as data: what may be registered, and what is refused before it could ever run."""

from __future__ import annotations

import json

import pytest

from jobforge_mcp.definitions.composition import count_jobs, jobs_of, parse_composition
from jobforge_mcp.errors import DefinitionError

STEP = {"name": "a", "handler": "demo.echo"}


def nested(depth: int) -> dict[str, object]:
    step: dict[str, object] = {"handler": "demo.echo"}
    for _ in range(depth):
        step = {"map": {"items": [], "do": step}}
    return step


@pytest.mark.parametrize(
    ("definition", "jobs", "count"),
    [
        ({"chain": [STEP]}, ["demo.echo"], 1),
        ({"chain": [STEP, {"name": "b", "chain": [STEP, {"name": "c", "handler": "a.c"}]}]}, ["a.c", "demo.echo"], 3),
        ({"map": {"items": {"$ref": "/input"}, "do": {"handler": "a.a"}}}, ["a.a"], 1),
        ({"switch": {"cases": [{"when": True, "do": {"handler": "a.a"}}], "default": {"chain": [STEP, {**STEP, "name": "b"}]}}},
         ["a.a", "demo.echo"], 2),
        ({"name": "x", "inputSchema": {}, **nested(4)}, ["demo.echo"], 1),
        ({"chain": [STEP], "result": {"x": {"$ref": "/steps/a/result"}}}, ["demo.echo"], 1),
    ],
)  # fmt: skip
def test_a_composition_names_the_jobs_it_may_run(
    definition: object, jobs: list[str], count: int
) -> None:
    composition = parse_composition(json.dumps(definition))

    assert jobs_of(composition) == jobs
    assert count_jobs(composition.root) == count


@pytest.mark.parametrize(
    "definition",
    [
        {},
        {"handler": "a.a"},
        {"chain": []},
        {"chain": [STEP], "map": {"items": [], "do": STEP}},
        {"chain": [STEP, STEP]},
        {"chain": [{"handler": "demo.echo"}]},
        {"chain": [{"name": "A B", "handler": "demo.echo"}]},
        {"chain": [{**STEP, "unknown": 1}]},
        {"chain": [{"name": "a"}]},
        {"chain": [{**STEP, "chain": [STEP]}]},
        {"chain": [{"name": "a", "chain": [STEP], "timeoutMs": 5}]},
        {"chain": [{**STEP, "onFailure": "explode"}]},
        {"chain": [{**STEP, "input": {"x": {"$ref": "/steps/b/result"}}}, {**STEP, "name": "b"}]},
        {"chain": [{**STEP, "input": {"x": {"$ref": "/item"}}}]},
        {"chain": [{**STEP, "input": {"x": {"$ref": "/env/HOME"}}}]},
        {"chain": [{**STEP, "input": {"x": {"$jmespath": "env("}}}]},
        {"chain": [{**STEP, "when": "yes"}]},
        {"chain": [{**STEP, "when": {"$ref": "/steps/b/status", "equals": 1}}]},
        {"chain": [{**STEP, "when": {"not": {"$ref": "/steps/b/status"}}}]},
        {"chain": [{**STEP, "name": f"s{n}"} for n in range(51)]},
        {"map": {"items": [], "do": STEP, "concurrency": 0}},
        {"map": {"items": [], "do": STEP, "maxItems": 1001}},
        {"switch": {"cases": []}},
        {"chain": [STEP], "result": {"$ref": "/steps/z/result"}},
        nested(5),
    ],
)
@pytest.mark.requirement("compositions.data")
def test_what_could_never_run_is_refused(definition: object) -> None:
    with pytest.raises(DefinitionError):
        parse_composition(json.dumps(definition))
