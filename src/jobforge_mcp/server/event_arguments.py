"""The arguments of the tools about events and triggers; see `jobforge_mcp.server.arguments` for what holds for all."""

from __future__ import annotations

from typing import Annotated, Literal, cast
from uuid import UUID

from pydantic import BeforeValidator, Field, WithJsonSchema

from jobforge_mcp.server.arguments import (
    Arguments,
    Limit,
    Name,
    Project,
    RunAt,
    Short,
    Time,
    parse_uuid,
)
from jobforge_mcp.types import JsonObject, JsonValue, TriggerKind, TriggerSpec

_Object = Annotated[dict[str, object] | None, WithJsonSchema({"type": "object"})]
_Any = Annotated[object, WithJsonSchema({})]
_Cursor = Annotated[UUID | None, BeforeValidator(parse_uuid), WithJsonSchema({"type": "string"})]


class SubmitEvent(Arguments):
    """What happened."""

    type: Annotated[Name, Field(min_length=1, description="dotted, such as order.paid")]
    payload: _Object = None
    source: Annotated[Short | None, Field(min_length=1)] = None
    subject: Annotated[Short | None, Field(min_length=1)] = None
    occurred_at: RunAt | None = None
    idempotency_key: Annotated[
        str | None, Field(description="your own id of this event: repeated it changes nothing")
    ] = None
    trace_id: Annotated[Short | None, Field(min_length=1)] = None
    project_id: Project = None
    contains_pii: Annotated[
        bool | None,
        Field(description="personal data: payload is hidden unless redactFields says where"),
    ] = None
    redact_fields: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=500)]] | None,
        Field(max_length=100, description="names or JSON pointers to hide"),
    ] = None
    retention_days: Annotated[int | None, Field(ge=1, le=90)] = None
    dry_run: bool | None = None


class ListEvents(Arguments):
    """Which events to list."""

    type: Annotated[Name | None, Field(description="or a pattern: order.*")] = None
    source: Short | None = None
    trace_id: Short | None = None
    project_id: Name | None = None
    since: Time | None = None
    cursor: _Cursor = None
    limit: Limit | None = None


class RegisterTrigger(Arguments):
    """A trigger as it is to be."""

    name: Annotated[str, Field(max_length=64)]
    kind: Literal["cron", "event"]
    job_name: Name
    input: _Object = None
    cron: Annotated[Short | None, Field(description="five fields")] = None
    timezone: Annotated[Name | None, Field(description="IANA; default UTC")] = None
    catch_up: Annotated[
        Literal["none", "one", "all"] | None, Field(description="missed times; default one")
    ] = None
    overlap: Annotated[
        Literal["skip", "queue", "cancel-previous"] | None, Field(description="default skip")
    ] = None
    jitter_ms: int | None = None
    event_type: Annotated[Name | None, Field(description="or a pattern: order.*, order.**")] = None
    event_source: Annotated[Short | None, Field(description="* is anything")] = None
    match: Annotated[
        _Any, Field(description='condition: {"$ref":"/event/payload/x","equals":1}')
    ] = None
    input_mapping: Annotated[
        _Any,
        Field(description='template: {"id":{"$ref":"/event/payload/id"}}; default the payload'),
    ] = None
    dedupe_key: Annotated[_Any, Field(description="template; one run a key")] = None
    cooldown_ms: int | None = None
    max_per_hour: int | None = None
    project_id: Project = None
    enabled: bool | None = None
    trial: Annotated[bool | None, Field(description="decide and record, start nothing")] = None
    dry_run: Annotated[bool | None, Field(description="register nothing")] = None

    def spec(self) -> TriggerSpec:
        """Return the trigger that was asked for."""
        return TriggerSpec(
            name=self.name,
            kind=TriggerKind(self.kind),
            job_name=self.job_name,
            project_id=self.project_id,
            input=cast("JsonObject | None", self.input),
            is_enabled=self.enabled is not False,
            is_dry_run=bool(self.trial),
            cron=self.cron,
            timezone=self.timezone,
            catch_up=self.catch_up,
            overlap=self.overlap,
            jitter_ms=self.jitter_ms,
            event_type=self.event_type,
            event_source=self.event_source,
            match=cast("JsonValue", self.match),
            input_mapping=cast("JsonValue", self.input_mapping),
            dedupe_key=cast("JsonValue", self.dedupe_key),
            cooldown_ms=self.cooldown_ms,
            max_per_hour=self.max_per_hour,
        )


class ListTriggers(Arguments):
    """Which triggers to list."""

    name: Annotated[str | None, Field(max_length=64)] = None
    kind: Literal["cron", "event"] | None = None
    history: Annotated[
        bool | None, Field(description="last decisions with reasons: why it did not fire")
    ] = None
    cursor: Short | None = None
    limit: Limit | None = None


class RemoveTrigger(Arguments):
    """Which trigger to remove."""

    name: Annotated[str, Field(max_length=64)]
    dry_run: bool | None = None
