"""What clients do with events and triggers: one method for each verb of the tools, and the three that only people need."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from hashlib import sha256

from anyio.from_thread import BlockingPortal

from jobforge_mcp.definitions.features import EVENTS, TRIGGERS, Feature
from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.policy.permissions import require_scope
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.router.transactional import AsyncConnection, OwnTransaction, SyncConnection
from jobforge_mcp.settings import Settings
from jobforge_mcp.triggers.desk import EventDesk, without_conflict
from jobforge_mcp.types import (
    Caller,
    CallOrigin,
    Event,
    EventFilter,
    FireFilter,
    JsonObject,
    JsonValue,
    NewEvent,
    Registered,
    SubmittedEvent,
    Trigger,
    TriggerDecision,
    TriggerFilter,
    TriggerFire,
    TriggerSpec,
)


class EventVerbs:
    """Submits events and steers triggers as one caller; what `Client.events` is."""

    def __init__(
        self, desk: EventDesk, caller: Caller, *, tool: str, settings: Settings | None = None
    ) -> None:
        """Act through a desk; ``settings`` say whether events and triggers are switched on here."""
        self._desk = desk
        self._caller = caller
        self._tool = tool
        self._settings = settings

    async def submit(
        self,
        event_type: str,
        payload: Mapping[str, JsonValue] | None = None,
        *,
        source: str | None = None,
        subject: str | None = None,
        occurred_at: datetime | None = None,
        idempotency_key: str | None = None,
        trace_id: str | None = None,
        project_id: str | None = None,
        contains_pii: bool = False,
        redaction_hints: JsonObject | None = None,
        attributes: JsonObject | None = None,
        is_plan: bool = False,
        connection: AsyncConnection | None = None,
    ) -> SubmittedEvent:
        """Store an event, and start what its triggers start; see `EventDesk.submit` and `submit_event`."""
        event = NewEvent(
            event_type,
            payload_text(payload),
            source=source,
            subject=subject,
            occurred_at=occurred_at,
            idempotency_key=idempotency_key,
            trace_id=trace_id,
            project_id=project_id,
            contains_pii=contains_pii,
            redaction_hints=redaction_hints,
            attributes=attributes,
        )
        return await self.submit_event(event, is_plan=is_plan, connection=connection)

    async def submit_event(
        self,
        event: NewEvent,
        *,
        is_plan: bool = False,
        connection: AsyncConnection | None = None,
    ) -> SubmittedEvent:
        """Do the same with an event that is made already, such as one of `from_cloudevent`.

        With ``connection``, an open psycopg connection of the application, the event becomes part of the transaction that
        is open on it, and its triggers are asked when that is committed.
        """
        self._require(Scope.EVENTS_SUBMIT, EVENTS)
        origin = CallOrigin(tool=self._tool, trace_id=event.trace_id)
        if connection is None:
            return await self._desk.submit(self._caller, event, origin=origin, is_plan=is_plan)
        event = self._desk.checked(self._caller, event)
        own = OwnTransaction(self._caller, origin, self._desk.router.signer)
        stored = await own.submit_event(event, is_plan=is_plan).send(connection)
        return without_conflict(stored, is_plan=is_plan)

    def submit_event_sync(
        self, event: NewEvent, connection: SyncConnection, *, is_plan: bool = False
    ) -> SubmittedEvent:
        """Do that on a blocking connection, on the thread that owns it."""
        self._require(Scope.EVENTS_SUBMIT, EVENTS)
        origin = CallOrigin(tool=self._tool, trace_id=event.trace_id)
        event = self._desk.checked(self._caller, event)
        own = OwnTransaction(self._caller, origin, self._desk.router.signer)
        stored = own.submit_event(event, is_plan=is_plan).send_sync(connection)
        return without_conflict(stored, is_plan=is_plan)

    async def list(self, wanted: EventFilter | None = None) -> list[Event]:
        """Return events, newest first, with what they hide struck out."""
        self._require(Scope.EVENTS_READ, EVENTS)
        return await self._desk.list(self._caller, wanted or EventFilter())

    async def register_trigger(self, spec: TriggerSpec, *, is_plan: bool = False) -> Registered:
        """Register a trigger, or change the one of this name; nothing fires by that."""
        self._require(Scope.TRIGGERS_WRITE, TRIGGERS)
        return await self._desk.register(self._caller, spec, origin=self._origin, is_plan=is_plan)

    async def list_triggers(self, wanted: TriggerFilter | None = None) -> list[Trigger]:
        """Return triggers, by name."""
        self._require(Scope.EVENTS_READ, TRIGGERS)
        return await self._desk.list_triggers(self._caller, wanted or TriggerFilter())

    async def remove_trigger(self, name: str, *, is_plan: bool = False) -> str:
        """Remove a trigger; its history stays."""
        self._require(Scope.TRIGGERS_WRITE, TRIGGERS)
        return await self._desk.remove(self._caller, name, origin=self._origin, is_plan=is_plan)

    async def pause_trigger(self, name: str) -> str:
        """Let a trigger decide nothing until it is resumed."""
        self._require(Scope.TRIGGERS_WRITE, TRIGGERS)
        return await self._desk.pause(self._caller, name, origin=self._origin)

    async def resume_trigger(self, name: str) -> str:
        """Let a paused trigger decide again."""
        self._require(Scope.TRIGGERS_WRITE, TRIGGERS)
        return await self._desk.resume(self._caller, name, origin=self._origin)

    async def run_trigger(
        self, name: str, *, idempotency_key: str | None = None, is_plan: bool = False
    ) -> TriggerDecision:
        """Fire a trigger now, once for each key."""
        self._require(Scope.TRIGGERS_WRITE, TRIGGERS)
        return await self._desk.run(
            self._caller,
            name,
            idempotency_key=idempotency_key,
            origin=self._origin,
            is_plan=is_plan,
        )

    async def trigger_history(self, wanted: FireFilter | None = None) -> list[TriggerFire]:
        """Return what triggers decided and why, newest first."""
        self._require(Scope.EVENTS_READ, TRIGGERS)
        return await self._desk.history(self._caller, wanted or FireFilter())

    @property
    def _origin(self) -> CallOrigin:
        return CallOrigin(tool=self._tool)

    def _require(self, scope: Scope, feature: Feature) -> None:
        require_scope(self._caller, scope)
        if self._settings is not None:
            feature.require(self._settings, self._caller, feature.name)


def payload_text(payload: Mapping[str, JsonValue] | None) -> str:
    """Write the payload of an event as it is stored."""
    return json.dumps(dict(payload or {}), ensure_ascii=False)


class SyncEventVerbs:
    """`EventVerbs` for code without an event loop: the same verbs, each of which blocks its thread."""

    def __init__(self, portal: BlockingPortal, verbs: EventVerbs) -> None:
        """Act through the loop of a portal."""
        self._portal = portal
        self._verbs = verbs

    def submit_event(
        self,
        event: NewEvent,
        *,
        is_plan: bool = False,
        connection: SyncConnection | None = None,
    ) -> SubmittedEvent:
        """Store an event, and start what its triggers start; with ``connection`` in the transaction that is open there."""
        if connection is not None:
            return self._verbs.submit_event_sync(event, connection, is_plan=is_plan)
        return self._portal.call(partial(self._verbs.submit_event, event, is_plan=is_plan))

    def list(self, wanted: EventFilter | None = None) -> list[Event]:
        """Return events, newest first, with what they hide struck out."""
        return self._portal.call(self._verbs.list, wanted)

    def register_trigger(self, spec: TriggerSpec, *, is_plan: bool = False) -> Registered:
        """Register a trigger, or change the one of this name; nothing fires by that."""
        return self._portal.call(partial(self._verbs.register_trigger, spec, is_plan=is_plan))

    def list_triggers(self, wanted: TriggerFilter | None = None) -> Sequence[Trigger]:
        """Return triggers, by name."""
        return self._portal.call(self._verbs.list_triggers, wanted)

    def remove_trigger(self, name: str) -> str:
        """Remove a trigger; its history stays."""
        return self._portal.call(self._verbs.remove_trigger, name)

    def pause_trigger(self, name: str) -> str:
        """Let a trigger decide nothing until it is resumed."""
        return self._portal.call(self._verbs.pause_trigger, name)

    def resume_trigger(self, name: str) -> str:
        """Let a paused trigger decide again."""
        return self._portal.call(self._verbs.resume_trigger, name)

    def run_trigger(self, name: str, *, idempotency_key: str | None = None) -> TriggerDecision:
        """Fire a trigger now, once for each key."""
        return self._portal.call(
            partial(self._verbs.run_trigger, name, idempotency_key=idempotency_key)
        )

    def trigger_history(self, wanted: FireFilter | None = None) -> Sequence[TriggerFire]:
        """Return what triggers decided and why, newest first."""
        return self._portal.call(self._verbs.trigger_history, wanted)


def from_cloudevent(envelope: Mapping[str, JsonValue]) -> NewEvent:
    """Make an event of a CloudEvent (specification 1.0) in its JSON form.

    Its ``id`` and ``source`` together are what tells it from others, so they become the idempotency key. Attributes without
    a place of their own, extensions among them, are kept beside the payload.

    Raises:
        InvalidInputError: it is no CloudEvent, or its data is not one object.
    """
    wrong = next(
        (name for name in ("specversion", "id", "source", "type") if not _text(envelope, name)),
        None,
    )
    data = envelope.get("data", {})
    if wrong is not None or envelope["specversion"] != "1.0" or not isinstance(data, dict):
        raise InvalidInputError(
            f"this is no CloudEvent 1.0 with one object as its data: see {wrong or 'data'}",
            hint="specversion, id, source and type are needed; encode other data as an object",
        )
    time = _text(envelope, "time")
    trace = _text(envelope, "traceparent")
    known = {"specversion", "id", "source", "type", "subject", "time", "data", "datacontenttype"}
    rest = {name: value for name, value in envelope.items() if name not in known}
    return NewEvent(
        event_type=_text(envelope, "type") or "",
        payload=json.dumps(data, ensure_ascii=False),
        source=_text(envelope, "source"),
        subject=_text(envelope, "subject"),
        occurred_at=None if time is None else _time(time),
        idempotency_key=_key(f"{_text(envelope, 'source')} {_text(envelope, 'id')}"),
        trace_id=None if trace is None else trace.split("-")[1] if trace.count("-") == 3 else trace,
        attributes={"id": envelope["id"], **rest},
    )


def to_cloudevent(event: Event) -> JsonObject:
    """Write an event as a CloudEvent in its JSON form; what it hides stays hidden."""
    attributes: JsonObject = json.loads(event.attributes or "{}")
    written: JsonObject = {
        **{name: value for name, value in attributes.items() if name != "id"},
        "specversion": "1.0",
        "id": attributes.get("id") or str(event.event_id),
        "source": event.source or "jobforge",
        "type": event.event_type,
        "time": event.occurred_at.isoformat(),
        "datacontenttype": "application/json",
        "data": json.loads(event.payload),
    }
    if event.subject is not None:
        written["subject"] = event.subject
    return written


def _text(envelope: Mapping[str, JsonValue], name: str) -> str | None:
    value = envelope.get(name)
    return value if isinstance(value, str) and value else None


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise InvalidInputError(
            "the time of a CloudEvent has an offset, such as 2030-01-31T12:00:00Z"
        ) from None
    return time


def _key(text: str) -> str:
    return text if len(text.encode()) <= 255 else f"sha256-{sha256(text.encode()).hexdigest()}"
