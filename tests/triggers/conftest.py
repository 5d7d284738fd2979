"""A desk, the registry it works with, and events and triggers that need few words."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest

from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.router.events import EventRouter
from jobforge_mcp.router.maintenance import MaintenanceRouter
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.types import (
    Caller,
    JsonObject,
    NewEvent,
    Registered,
    SubmittedEvent,
    TriggerKind,
    TriggerSpec,
)
from tests.conftest import CallerMaker
from tests.server.jobs import JOBS

EVERY_SCOPE = ("jobs:execute", "jobs:read", "events:submit", "events:read", "triggers:write")

Submit: TypeAlias = Callable[..., Awaitable[SubmittedEvent]]
Register: TypeAlias = Callable[..., Awaitable[Registered]]


def new_event(event_type: str = "order.paid", payload: JsonObject | None = None, **more: object) -> NewEvent:  # fmt: skip
    """Make an event of a payload."""
    return NewEvent(event_type, json.dumps(payload or {}), **more)  # pyright: ignore[reportArgumentType]  # named by the test


def on_event(name: str = "bill", event_type: str = "order.paid", **more: object) -> TriggerSpec:
    """Make a trigger that says what an event says."""
    spec: dict[str, object] = {"input": {"text": "fixed"}, "job_name": "test.echo", **more}
    return TriggerSpec(name, TriggerKind.EVENT, event_type=event_type, **spec)  # pyright: ignore[reportArgumentType]  # named by the test


@pytest.fixture
def registry() -> Registry:
    return Registry(JOBS)


@pytest.fixture
def desk(api_database: Database, registry: Registry) -> EventDesk:
    return EventDesk(EventRouter(api_database), registry)


@pytest.fixture
def maintenance(worker_database: Database) -> MaintenanceRouter:
    return MaintenanceRouter(worker_database)


@pytest.fixture
def agent(make_caller: CallerMaker) -> Caller:
    """Someone of tenant acme who may do everything with events."""
    return make_caller("acme", scopes=EVERY_SCOPE)


@pytest.fixture
def stranger(make_caller: CallerMaker) -> Caller:
    return make_caller("globex", scopes=EVERY_SCOPE)
