"""The registry: input before it is enqueued and before it runs, output before it is accepted, and what callers are shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, Field, field_validator

from jobforge_mcp.definitions.model import BoundJob, job
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import CallerError, DefinitionError, NotFoundError, PermanentError
from jobforge_mcp.types import JsonValue
from jobforge_mcp.worker.context import JobContext


class Nothing(BaseModel):
    pass


class Order(BaseModel):
    item: str = Field(max_length=10)
    amount: int = Field(default=1, ge=1)
    note: str | None = Field(default=None, alias="orderNote")

    @field_validator("item")
    @classmethod
    def _known(cls, value: str) -> str:
        if value == "unknown":
            raise ValueError("the item must be in stock")
        return value


class Receipt(BaseModel):
    total: int
    paid_by: str = Field(default="card", serialization_alias="paidBy")


@job(
    name="shop.order",
    title="Order",
    description="Orders an item.",
    tags=["shop"],
    labels={"tier": "1"},
)
async def order(input: Order, job: JobContext) -> Receipt:
    return Receipt(total=input.amount)


@job(name="shop.audit", scopes=["ops:read"], tags=["shop", "ops"])
async def audit(input: Nothing, job: JobContext) -> None: ...


@job(name="shop.secret", hidden=True)
async def secret(input: Nothing, job: JobContext) -> JsonValue: ...


@job(name="shop.loose", hidden=True)
async def loose(input: Nothing, job: JobContext) -> dict[str, object]: ...


@pytest.fixture
def registry() -> Registry:
    return Registry([order, audit, secret])


@pytest.mark.requirement("definitions.checked-twice")
def test_what_is_prepared_has_the_defaults_and_keeps_what_was_received(registry: Registry) -> None:
    prepared = registry.prepare("shop.order", {"item": "tea"})

    assert json.loads(prepared.payload) == {"item": "tea", "amount": 1, "orderNote": None}
    assert prepared.received == '{"item":"tea"}'
    assert registry.check_input(order, prepared.payload) == Order(item="tea")


def test_no_input_is_an_empty_object(registry: Registry) -> None:
    assert registry.prepare("shop.audit").payload == "{}"


SECRET = "hunter2-hunter2-hunter2"


@pytest.mark.requirement("definitions.bad-input")
@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        ({}, "INVALID_INPUT", "it needs 'item'"),
        ({"item": SECRET}, "INVALID_INPUT", "item must have at most 10 characters"),
        ({"item": 5}, "INVALID_INPUT", "item must be a string"),
        ({"item": "tea", "amount": "2"}, "INVALID_INPUT", "amount must be an integer"),
        ({"item": "tea", "amount": 0}, "INVALID_INPUT", "amount must be at least 1"),
        ({"item": "tea", "color": SECRET}, "INVALID_INPUT", "it has unknown properties: color"),
        ({"item": "unknown"}, "INVALID_INPUT", "the item must be in stock"),
        ([SECRET], "INVALID_INPUT", "the input must be an object"),
        (SECRET, "INVALID_INPUT", "the input must be an object"),
        ({"item": "a\0"}, "INPUT_NOT_TEXT", "NUL"),
        ({"item": "tea", "amount": float("nan")}, "INPUT_NUMBER_RANGE", "NaN"),
        ({"item": "tea", "amount": 2**53 + 1}, "INPUT_NUMBER_RANGE", "2^53"),
        ({"item": "x" * 2_000_000}, "INPUT_TOO_LARGE", "1048576"),
    ],
)
def test_bad_input_is_refused_without_repeating_it(
    registry: Registry, given: JsonValue, code: str, says: str
) -> None:
    with pytest.raises(CallerError) as refused:
        registry.prepare("shop.order", given)

    assert refused.value.code == code
    assert says in refused.value.message
    assert SECRET not in f"{refused.value.message} {refused.value.hint}"
    assert not refused.value.retryable


@pytest.mark.requirement("definitions.checked-twice")
@pytest.mark.parametrize("payload", ['{"item": 5}', "[]", "not json", '{"item": "a\\u0000"}'])
def test_a_payload_that_does_not_fit_any_more_is_refused_before_the_run(
    registry: Registry, payload: str
) -> None:
    with pytest.raises(CallerError):
        registry.check_input(order, payload)


@pytest.mark.requirement("definitions.output-checked")
@pytest.mark.parametrize(
    "value", [Receipt(total=3), {"total": 3, "paid_by": "card"}, Receipt.model_construct(total=3)]
)
def test_output_is_written_by_its_declared_type(registry: Registry, value: object) -> None:
    assert registry.check_output(order, value) == '{"total":3,"paidBy":"card"}'


@pytest.mark.requirement("definitions.output-checked")
@pytest.mark.parametrize(
    ("bound", "value", "code"),
    [
        (order, {"total": "many"}, "OUTPUT_INVALID"),
        (order, None, "OUTPUT_INVALID"),
        (order, Receipt.model_construct(total="many"), "OUTPUT_INVALID"),
        (audit, 5, "OUTPUT_INVALID"),
        (secret, {"a": object()}, "OUTPUT_INVALID"),
        (secret, "a\0b", "RESULT_NOT_TEXT"),
        (secret, "x" * 17_000_000, "RESULT_TOO_LARGE"),
        (secret, float("inf"), "RESULT_NUMBER_RANGE"),
        (loose, {"a": [None, float("nan")]}, "RESULT_NUMBER_RANGE"),
        (loose, {"a": {"b": (float("-inf"),)}}, "RESULT_NUMBER_RANGE"),
    ],
)
def test_output_that_does_not_fit_fails_the_run_for_good(
    registry: Registry, bound: BoundJob, value: object, code: str
) -> None:
    with pytest.raises(PermanentError) as refused:
        registry.check_output(bound, value)

    assert refused.value.code == code


@pytest.mark.parametrize(
    ("name", "meant"),
    [("shop.ordre", "shop.order"), ("SHOP.ORDER", "shop.order"), ("nothing-like-it", None), ("shop.secre", None)],
)  # fmt: skip
def test_an_unknown_job_is_told_with_what_was_meant(
    registry: Registry, name: str, meant: str | None
) -> None:
    with pytest.raises(NotFoundError) as refused:
        registry.get(name)

    assert refused.value.code == "JOB_NOT_FOUND"
    assert refused.value.hint is not None
    assert (f"did you mean {meant}" in refused.value.hint) == (meant is not None)
    assert "shop.secret" not in refused.value.hint


def test_a_name_of_another_form_is_not_repeated(registry: Registry) -> None:
    with pytest.raises(NotFoundError) as refused:
        registry.get("<script>" * 1_000)

    assert refused.value.message == "there is no job of this name"


@pytest.mark.requirement("definitions.visible")
def test_hidden_jobs_and_jobs_of_other_scopes_are_not_listed(registry: Registry) -> None:
    def names(**filters: Any) -> list[str]:
        return [bound.name for bound in registry.list(**filters)]

    def is_open(bound: BoundJob) -> bool:
        return not bound.permissions

    assert names() == ["shop.audit", "shop.order"]
    assert names(is_visible=is_open) == ["shop.order"]
    assert names(query="ITEM orders") == ["shop.order"]
    assert names(query="no such words") == []
    assert names(tags=["ops", "shop"]) == ["shop.audit"]
    assert names(labels={"tier": "1"}) == ["shop.order"]
    assert names(labels={"tier": "2"}) == []
    assert registry.names() == ["shop.audit", "shop.order", "shop.secret"]


def test_a_name_is_registered_once() -> None:
    with pytest.raises(DefinitionError):
        Registry([order, order])
