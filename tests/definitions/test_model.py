"""The decorator: what a function's types become, and which functions are refused."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from jobforge_mcp.definitions.durations import milliseconds
from jobforge_mcp.definitions.loader import load_jobs
from jobforge_mcp.definitions.model import (
    JobDefinition,
    Permission,
    Retry,
    RetryPolicy,
    job,
)
from jobforge_mcp.errors import DefinitionError
from jobforge_mcp.types import Effects, Isolation, JsonValue
from jobforge_mcp.worker.context import JobContext


class Nothing(BaseModel):
    pass


class Greeting(BaseModel):
    name: str = Field(description="Whom to greet.")
    times: int = 1


class Greeted(BaseModel):
    text: str


@pytest.mark.requirement("definitions.one-model")
def test_a_decorated_function_becomes_a_definition() -> None:
    @job(
        name="test.greet",
        version="2",
        title="Greet",
        timeout="90s",
        retry=Retry(max_attempts=5, backoff="2s", multiplier=3, max_backoff=timedelta(minutes=2)),
        tags=["a"],
        labels={"team": "x"},
        scopes=["ops:read"],
        effects="external",
        idempotent=True,
        cost=5,
    )
    async def greet(input: Greeting, job: JobContext) -> Greeted:
        """Greet somebody."""
        return Greeted(text=input.name)

    assert greet.definition == JobDefinition(
        name="test.greet",
        version="2",
        title="Greet",
        description="Greet somebody.",
        input_schema={
            "type": "object",
            "properties": {
                "name": {"type": "string", "description": "Whom to greet."},
                "times": {"type": "integer", "default": 1},
            },
            "required": ["name"],
            "additionalProperties": False,
        },
        output_schema={
            "type": "object",
            "properties": {"text": {"type": "string"}},
            "required": ["text"],
            "additionalProperties": False,
        },
        timeout_ms=90_000,
        retry=RetryPolicy(
            max_attempts=5, backoff_ms=2_000, backoff_multiplier=3, max_backoff_ms=120_000
        ),
        tags=("a",),
        labels={"team": "x"},
        isolation=Isolation.ASYNC,
        permissions=(Permission(scopes=("ops:read",)),),
        effects=Effects.EXTERNAL,
        idempotent=True,
        cost=5,
    )
    assert greet.definition.required_scopes("execute") == {"ops:read"}
    assert greet.is_async


@pytest.mark.requirement("definitions.one-model")
def test_a_definition_is_the_same_in_a_file_and_in_python() -> None:
    @job(name="test.same")
    def same(input: Nothing, job: JobContext) -> None: ...

    text = same.definition.model_dump_json(by_alias=True, exclude_none=True)

    assert JobDefinition.model_validate_json(text) == same.definition
    assert '"timeoutMs":300000' in text
    assert (
        '"retry":{"maxAttempts":3,"backoffMs":1000,"backoffMultiplier":2.0,"maxBackoffMs":60000}'
        in text
    )


def test_def_runs_in_a_process_and_async_def_on_the_loop_unless_told_otherwise() -> None:
    @job(name="test.blocking")
    def blocking(input: Nothing, job: JobContext) -> None: ...

    @job(name="test.threaded", isolation="thread")
    def threaded(input: Nothing, job: JobContext) -> None: ...

    @job(name="test.isolated", isolation=Isolation.PROCESS)
    async def isolated(input: Nothing, job: JobContext) -> None: ...

    assert [bound.isolation for bound in (blocking, threaded, isolated)] == [
        Isolation.PROCESS,
        Isolation.THREAD,
        Isolation.PROCESS,
    ]


def test_any_json_may_be_returned_if_the_type_says_so() -> None:
    @job(name="test.any")
    async def anything(input: Nothing, job: JobContext) -> JsonValue:
        return [1]

    assert anything.definition.output_schema is None


@pytest.mark.parametrize(
    "function",
    [
        "async def f(input, job) -> None: ...",
        "async def f(input: Nothing) -> None: ...",
        "async def f(input: Nothing, job: JobContext, more: int) -> None: ...",
        "async def f(input: Nothing, *, job: JobContext) -> None: ...",
        "async def f(input: dict[str, int], job: JobContext) -> None: ...",
        "async def f(input: Nothing, job: JobContext): ...",
        "async def f(input: Boxed[T], job: JobContext) -> None: ...",
        "async def f(input: Boxed, job: JobContext) -> None: ...",
        "async def f(input: Missing, job: JobContext) -> None: ...",
        "async def f(input: Nothing, job: JobContext) -> Callable[[], int]: ...",
        "class F: ...",
    ],
)
def test_a_function_that_says_too_little_is_refused_with_its_place(
    function: str, tmp_path: Path
) -> None:
    file = tmp_path / "refused.py"
    head = """
from __future__ import annotations
from typing import Callable, Generic, TypeVar
from pydantic import BaseModel
from jobforge_mcp import JobContext, job
T = TypeVar("T")
class Nothing(BaseModel): ...
class Boxed(BaseModel, Generic[T]):
    value: T
@job(name="test.refused")
"""
    file.write_text(head.lstrip() + function)

    with pytest.raises(DefinitionError) as refused:
        load_jobs([file])

    assert f"{file}:" in refused.value.message or function.startswith("class")
    assert "test.refused" in refused.value.message


async def fine(input: Nothing, job: JobContext) -> None: ...
def blocking(input: Nothing, job: JobContext) -> None: ...


@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        ("name", {"name": "Bad Name"}),
        ("long name", {"name": "x" * 101}),
        ("timeout in words", {"timeout": "soon"}),
        ("no timeout", {"timeout": 0}),
        ("timeout of days", {"timeout": "8d"}),
        ("endless timeout", {"timeout": float("nan")}),
        ("no attempts", {"retry": Retry(max_attempts=0)}),
        ("shrinking backoff", {"retry": Retry(multiplier=0.5)}),
        ("negative backoff", {"retry": Retry(backoff=-1)}),
        ("tag of two words", {"tags": ["two words"]}),
        ("scope of no form", {"scopes": ["everything"]}),
        ("hidden characters", {"description": "hidden \u202e text"}),
        ("async in a thread", {"isolation": "thread"}),
        ("isolation", {"isolation": "vacuum"}),
        ("memory without a child", {"memory_mb": 64}),
        ("CPU without a child", {"cpu_seconds": 1}),
        ("memory below nothing", {"isolation": "process", "memory_mb": -1}),
    ],
)
def test_an_argument_that_does_not_fit_is_refused(what: str, arguments: dict[str, Any]) -> None:
    whole: dict[str, Any] = {"name": "test.refused", **arguments}

    with pytest.raises(DefinitionError, match=re.escape(__file__)):
        job(**whole)(fine)


def test_a_blocking_handler_cannot_run_on_the_loop() -> None:
    with pytest.raises(DefinitionError, match="needs async def"):
        job(name="test.refused", isolation="async")(blocking)


@pytest.mark.parametrize("field", ["extra", "concurrency", "rateLimit"])
def test_a_field_that_nothing_would_honour_is_refused(field: str) -> None:
    with pytest.raises(ValidationError):
        JobDefinition.model_validate({"name": "a", "inputSchema": {}, field: 1})


@pytest.mark.parametrize(
    ("duration", "expected"),
    [("250ms", 250), ("30s", 30_000), ("1.5 m", 90_000), ("2h", 7_200_000), ("1d", 86_400_000),
     (2, 2_000), (0.5, 500), (timedelta(minutes=1), 60_000)],
)  # fmt: skip
def test_durations_are_read_as_people_write_them(
    duration: str | float | timedelta, expected: int
) -> None:
    assert milliseconds(duration) == expected
