"""What callers do with events and triggers, each verb in one place: the tools and the clients differ only in their words.

The scopes are asked for by whoever stands above; what a trigger needs besides, the right to start its job, is asked here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeVar

from jobforge_mcp.definitions.catalog import Catalog
from jobforge_mcp.definitions.json_limits import check_key, load_limited
from jobforge_mcp.definitions.model import BoundJob
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import ConflictError, InvalidInputError, NotFoundError
from jobforge_mcp.policy.permissions import may_list, require_job, require_scope, require_type
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.router.events import EventRouter
from jobforge_mcp.router.scope import registrar_caller
from jobforge_mcp.router.scoped import NO_ORIGIN
from jobforge_mcp.triggers.evaluating import (
    evaluate_trigger,
    event_scope,
    job_for,
)
from jobforge_mcp.triggers.specs import check_spec, first_time
from jobforge_mcp.types import (
    Caller,
    CallOrigin,
    Candidate,
    EnqueueOutcome,
    Event,
    EventFilter,
    Fire,
    FireFilter,
    JobAction,
    NewEvent,
    Registered,
    SubmittedEvent,
    Trigger,
    TriggerDecision,
    TriggerFilter,
    TriggerFire,
    TriggerKind,
    TriggerSpec,
)

TRIGGERS_CHANGED: Final = "TRIGGERS_CHANGED"
MOST_TRIES: Final = 10
"""How often an event is evaluated anew because its triggers changed meanwhile; then it is left to maintenance."""

MOST_KEPT: Final = 4_096
"""Kinds of events whose triggers are kept in memory; the one that was longest not submitted goes first."""

AnswerT = TypeVar("AnswerT")


class EventDesk:
    """Submits events, and registers and steers triggers, for callers of one process."""

    def __init__(
        self,
        router: EventRouter,
        registry: Registry,
        *,
        most_depth: int = 20,
        asks_triggers: bool = True,
    ) -> None:
        """Act through these parts; ``most_depth`` is where the loop guard stops a chain of events.

        With ``asks_triggers`` off events are stored, and their triggers are left to a process that has them on.
        """
        self.router = router
        self._asks_triggers = asks_triggers
        self._catalog = Catalog(registry, router.definitions)
        self._most_depth = most_depth
        self._kept: OrderedDict[tuple[str | None, ...], list[Candidate]] = OrderedDict()

    async def submit(
        self,
        caller: Caller,
        event: NewEvent,
        *,
        origin: CallOrigin = NO_ORIGIN,
        is_plan: bool = False,
    ) -> SubmittedEvent:
        """Store an event and start what its triggers start, all in one transaction.

        Raises:
            InvalidInputError: a member of the event does not fit.
            ConflictError: ``IDEMPOTENCY_CONFLICT``: the key was used for another event.
            PolicyDeniedError: the caller may not submit events of this type.
        """
        event = self.checked(caller, event)
        for number in range(MOST_TRIES if self._asks_triggers else 0):
            try:
                fires = await self._evaluate(caller, event, origin, is_again=number > 0)
                return without_conflict(
                    await self._store(caller, event, fires, origin=origin, is_plan=is_plan),
                    is_plan=is_plan,
                )
            except ConflictError as error:
                if error.code != TRIGGERS_CHANGED:
                    raise
        return without_conflict(
            await self._store(caller, event, None, origin=origin, is_plan=is_plan), is_plan=is_plan
        )

    def checked(self, caller: Caller, event: NewEvent) -> NewEvent:
        """Check what the database does not say as well, and fill in the project of a caller that has but one.

        Raises:
            InvalidInputError: the payload is no object, or the key too long.
            PolicyDeniedError: something in it looks like a key.
        """
        payload = load_limited(event.payload)
        if not isinstance(payload, dict):
            raise InvalidInputError("the payload of an event is one object")
        self._catalog.registry.scan(
            {
                "payload": payload,
                "attributes": event.attributes,
                "subject": event.subject,
                "idempotencyKey": event.idempotency_key,
            }
        )
        if event.idempotency_key is not None:
            check_key(event.idempotency_key, "idempotencyKey")
        return replace(event, project_id=event.project_id or _only_project(caller))

    async def list(self, caller: Caller, wanted: EventFilter) -> list[Event]:
        """Read events, newest first."""
        return await self.router.list_events(caller, wanted)

    async def register(
        self,
        caller: Caller,
        spec: TriggerSpec,
        *,
        origin: CallOrigin = NO_ORIGIN,
        is_plan: bool = False,
    ) -> Registered:
        """Register a trigger, or change the one of this name; nothing fires by that.

        Raises:
            InvalidInputError: ``TRIGGER_INVALID`` and its kin.
            NotFoundError: there is no such job.
            PolicyDeniedError: the caller may not start that job itself.
        """
        spec = _with_defaults(replace(spec, project_id=spec.project_id or _only_project(caller)))
        check_spec(spec)
        self._catalog.registry.scan(
            {"input": spec.input, "inputMapping": spec.input_mapping, "match": spec.match}
        )
        require_scope(caller, Scope.JOBS_EXECUTE)
        bound = await self._require_job(caller, spec.job_name)
        if spec.kind is TriggerKind.CRON:
            job_for(self._catalog.registry, caller, bound, spec.input or {})

        async def try_once() -> Registered:
            now = await self.router.now() if spec.kind is TriggerKind.CRON else None
            return await self.router.register_trigger(
                caller,
                spec,
                next_fire_at=None if now is None else first_time(spec, now),
                origin=origin,
                is_plan=is_plan,
            )

        return await _again_if_changed(try_once)

    async def list_triggers(self, caller: Caller, wanted: TriggerFilter) -> list[Trigger]:
        """Read triggers, by name."""
        return await self.router.list_triggers(caller, wanted)

    async def get_trigger(self, caller: Caller, name: str) -> Trigger:
        """Read one trigger.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        found = await self.router.list_triggers(caller, TriggerFilter(name=name, limit=1))
        if not found:
            raise trigger_not_found()
        return found[0]

    async def remove(
        self,
        caller: Caller,
        name: str,
        *,
        origin: CallOrigin = NO_ORIGIN,
        is_plan: bool = False,
    ) -> str:
        """Remove a trigger and keep its history."""
        return await self.router.remove_trigger(caller, name, origin=origin, is_plan=is_plan)

    async def pause(self, caller: Caller, name: str, *, origin: CallOrigin = NO_ORIGIN) -> str:
        """Let a trigger decide nothing until it is resumed."""
        return await self.router.pause_trigger(caller, name, origin=origin)

    async def resume(self, caller: Caller, name: str, *, origin: CallOrigin = NO_ORIGIN) -> str:
        """Let a paused trigger decide again; what was due meanwhile stays undone."""

        async def try_once() -> str:
            trigger = await self.get_trigger(caller, name)
            now = await self.router.now()
            return await self.router.resume_trigger(
                caller,
                name,
                next_fire_at=first_time(trigger.spec, now),
                if_version=trigger.version,
                origin=origin,
            )

        return await _again_if_changed(try_once)

    async def run(
        self,
        caller: Caller,
        name: str,
        *,
        idempotency_key: str | None = None,
        origin: CallOrigin = NO_ORIGIN,
        is_plan: bool = False,
    ) -> TriggerDecision:
        """Fire a trigger now, with the rights of whoever registered it, if the caller may start its job as well.

        Raises:
            InvalidInputError: it takes its input from events.
            PolicyDeniedError: the caller, or the registrar, may not start the job.
        """
        if idempotency_key is not None:
            check_key(idempotency_key, "idempotencyKey")

        async def try_once() -> TriggerDecision:
            trigger = await self.get_trigger(caller, name)
            spec = trigger.spec
            if spec.input_mapping is not None:
                raise InvalidInputError(
                    "this trigger takes its input from events, so it cannot be run without one",
                    code="TRIGGER_INVALID",
                    hint="submit an event that it wants, with dryRun to see what it would do",
                )
            require_scope(caller, Scope.JOBS_EXECUTE)
            bound = await self._require_job(caller, spec.job_name)
            registrar = registrar_caller(caller.tenant_id, trigger.registrar)
            job = job_for(self._catalog.registry, registrar, bound, spec.input or {})
            return await self.router.run_trigger(
                caller,
                Fire(spec.name, trigger.version, job),
                idempotency_key=idempotency_key,
                origin=origin,
                is_plan=is_plan,
            )

        return await _again_if_changed(try_once)

    async def history(self, caller: Caller, wanted: FireFilter) -> list[TriggerFire]:
        """Read what triggers decided and why, newest first."""
        return await self.router.list_trigger_fires(caller, wanted)

    async def _evaluate(
        self, caller: Caller, event: NewEvent, origin: CallOrigin, *, is_again: bool
    ) -> list[Fire]:
        candidates, shown = await self._match(caller, event, origin, is_again=is_again)
        if not candidates:
            return []
        scope = event_scope(event, shown)
        return [
            evaluate_trigger(self._catalog.bound, caller.tenant_id, candidate, scope)
            for candidate in candidates
        ]

    async def _match(
        self, caller: Caller, event: NewEvent, origin: CallOrigin, *, is_again: bool
    ) -> tuple[list[Candidate], str]:
        """Find the triggers that could want an event, most often in memory.

        The database refuses what was worked out for triggers that came, went or changed since: then they are read anew.
        """
        if event.contains_pii or event.redaction_hints is not None:
            return await self.router.match_triggers(caller, event, origin=origin)
        key = (caller.tenant_id, event.event_type, event.source, event.project_id)
        kept = None if is_again else self._kept.get(key)
        if kept is None:
            kept, _ = await self.router.match_triggers(caller, event, origin=origin)
            self._kept[key] = kept
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return kept, event.payload

    async def _store(
        self,
        caller: Caller,
        event: NewEvent,
        fires: list[Fire] | None,
        *,
        origin: CallOrigin,
        is_plan: bool,
    ) -> SubmittedEvent:
        return await self.router.submit_event(
            caller, event, fires, most_depth=self._most_depth, origin=origin, is_plan=is_plan
        )

    async def _require_job(self, caller: Caller, job_name: str) -> BoundJob:
        require_type(caller, job_name)
        bound = await self._catalog.find(caller, job_name, is_visible=may_list(caller))
        require_job(caller, bound, JobAction.EXECUTE)
        return bound


def trigger_not_found() -> NotFoundError:
    """Make the one answer for a trigger that does not exist, or not for this caller."""
    return NotFoundError(
        "no trigger of this name is known",
        code="TRIGGER_NOT_FOUND",
        hint="list-triggers shows those this token may see",
    )


async def _again_if_changed(try_once: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
    """Repeat what was overtaken by a change of the trigger, or by its next time."""
    for _ in range(MOST_TRIES):
        try:
            return await try_once()
        except ConflictError as error:
            if error.code != TRIGGERS_CHANGED:
                raise
    return await try_once()


def without_conflict(submitted: SubmittedEvent, *, is_plan: bool) -> SubmittedEvent:
    """Refuse a key that was used for another event.

    Raises:
        ConflictError: ``IDEMPOTENCY_CONFLICT``.
    """
    if submitted.outcome is EnqueueOutcome.CONFLICT and not is_plan:
        raise ConflictError(
            "this idempotencyKey was used before for another event, so nothing was stored",
            code="IDEMPOTENCY_CONFLICT",
            hint="use a new key for a new event, or repeat the first one unchanged",
        )
    return submitted


def _with_defaults(spec: TriggerSpec) -> TriggerSpec:
    if spec.kind is not TriggerKind.CRON:
        return spec
    return replace(
        spec,
        cron=None if spec.cron is None else " ".join(spec.cron.split()),
        timezone=spec.timezone or "UTC",
        catch_up=spec.catch_up or "one",
        catch_up_most=spec.catch_up_most or 10,
        overlap=spec.overlap or "skip",
        jitter_ms=spec.jitter_ms or 0,
    )


def _only_project(caller: Caller) -> str | None:
    """A caller confined to one project means that one."""
    projects = caller.projects
    return next(iter(projects)) if projects is not None and len(projects) == 1 else None
