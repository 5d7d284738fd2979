from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp.types import TextResourceContents

from jobforge_mcp.client import Client as JobForge
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.catalog import Catalog
from jobforge_mcp.definitions.features import FEATURES, fires_triggers
from jobforge_mcp.definitions.installed import load_registry
from jobforge_mcp.errors import PolicyDeniedError
from jobforge_mcp.maintenance import Maintenance
from jobforge_mcp.policy.gate import LOCAL_CALLER, Gate
from jobforge_mcp.policy.scopes import ALL_SCOPES, Scope
from jobforge_mcp.router.maintenance import MaintenanceRouter
from jobforge_mcp.server.about import describe_features, describe_local_features
from jobforge_mcp.server.build import build_server
from jobforge_mcp.settings import Settings, load_settings
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.types import Caller, JsonObject, TenantId
from tests.postgres import ScratchDatabase
from tests.server.stage import Stage, open_stage

OUTSIDE = """
from pydantic import BaseModel
from jobforge_mcp import JobContext, job

class Nothing(BaseModel):
    pass

@job(name="shop.charge", effects="external")
async def charge(input: Nothing, job: JobContext) -> None:
    return None
"""
REGISTERED: JsonObject = {
    "name": "shop.thrice",
    "handler": "test.echo",
    "input": {"text": "x", "times": 3},
}
WEATHER = {
    "name": "shop.weather",
    "handler": "connector.http.request",
    "input": {"url": "https://weather.example/"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a job that acts outside, and one composed over the connector."""
    made = tmp_path / "definitions"
    made.mkdir()
    (made / "charge.py").write_text(OUTSIDE)
    (made / "weather.json").write_text(json.dumps(WEATHER))
    return made


@pytest.mark.requirement("server.features")
@pytest.mark.parametrize(
    ("switched_on", "expected"),
    [
        ({}, set[str]()),
        ({"action_jobs_enabled": True}, {"shop.charge"}),
        ({"http_connector_enabled": True}, {"shop.weather", "connector.http.request"}),
    ],
)
def test_a_job_that_acts_outside_is_off_until_its_setting_is_on(
    switched_on: dict[str, object], expected: set[str], folder: Path
) -> None:
    registry = load_registry(load_settings(jobs=str(folder), state_dir=folder, **switched_on))

    outside = {"shop.charge", "shop.weather", "connector.http.request"}
    assert outside & set(registry.names()) == expected
    assert outside & {bound.name for bound in registry.list()} == expected
    assert "demo.countdown" in registry.names()
    for name in outside - expected:
        with pytest.raises(PolicyDeniedError) as caught:
            registry.prepare(name, {})
        setting = "ACTION_JOBS" if name == "shop.charge" else "HTTP_CONNECTOR"
        assert caught.value.code == "FEATURE_DISABLED"
        assert f"JOBFORGE_{setting}_ENABLED=true" in (caught.value.hint or "")


@pytest.mark.requirement("policy.rates-switch")
def test_rates_are_on_unless_they_are_switched_off_visibly() -> None:
    on, off = load_settings(), load_settings(rate_limits_enabled=False)

    assert describe_features(on)["rateLimits"] == "on"
    assert describe_features(off)["rateLimits"] == "off: unset JOBFORGE_RATE_LIMITS_ENABLED"
    assert Gate.from_settings(on).caller_of(None).is_rated
    assert not Gate.from_settings(off).caller_of(None).is_rated


@pytest.mark.requirement("server.features-off")
def test_every_feature_is_off_for_a_server_of_which_nothing_was_said() -> None:
    configured = load_settings(database_url="postgresql://db/jobs")
    holder = Caller(TenantId("acme"), "agent", frozenset(), token_id="t1")

    assert not any(feature.is_on(configured) for feature in FEATURES)
    assert not any(feature.is_on_for(configured, LOCAL_CALLER) for feature in FEATURES)
    assert not any(feature.is_on_for(load_settings(), holder) for feature in FEATURES)
    assert not fires_triggers(configured)


@pytest.mark.requirement("server.features-off")
def test_the_local_tenant_has_what_only_it_can_use_unless_a_setting_says_no() -> None:
    untold, told = load_settings(), load_settings(triggers_enabled=False)

    def has(settings: Settings) -> set[str]:
        return {feature.name for feature in FEATURES if feature.is_on_for(settings, LOCAL_CALLER)}

    assert has(untold) == {"registerJob", "events", "triggers"}
    assert has(told) == {"registerJob", "events"}
    assert (fires_triggers(untold), fires_triggers(told)) == (True, False)
    assert "registerJob, events, triggers are on for the local tenant" in str(
        describe_local_features(untold)
    )
    assert describe_features(told)["triggers"] == (
        "off: set JOBFORGE_TRIGGERS_ENABLED=true to switch it on"
    )
    assert "the local tenant alone" in str(describe_features(told)["events"])
    assert describe_local_features(load_settings(database_url="postgresql://db/jobs")) is None


@pytest.mark.requirement("server.features-off")
async def test_every_door_says_which_setting_would_switch_it_on(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    off: dict[str, object] = {"events_enabled": None, "triggers_enabled": None}
    calls: dict[str, tuple[JsonObject, str]] = {
        "register-job": (REGISTERED, "REGISTER_JOB"),
        "remove-job": ({"name": "shop.thrice"}, "REGISTER_JOB"),
        "execute-bundle": ({"requests": [{"id": "a", "jobName": "test.echo"}]}, "BUNDLES"),
        "submit-event": ({"type": "x"}, "EVENTS"),
        "list-events": ({}, "EVENTS"),
        "register-trigger": (
            {"name": "x", "kind": "event", "jobName": "test.echo", "eventType": "x"},
            "TRIGGERS",
        ),
        "list-triggers": ({}, "TRIGGERS"),
        "remove-trigger": ({"name": "x"}, "TRIGGERS"),
    }
    async with (
        open_stage(database, tmp_path, has_pool=False, **off) as stage,
        Client(build_server(stage.parts, stage.credential())) as agent,
    ):
        listed = {tool.name for tool in (await agent.list_tools()).tools}
        told = {name: await agent.call_tool(name, given) for name, (given, _) in calls.items()}
        caller = stage.parts.gate.caller_of(stage.token())
        client = JobForge(
            stage.parts.router,
            stage.parts.registry,
            caller,
            desk=stage.parts.desk,
            settings=stage.settings,
        )
        with pytest.raises(PolicyDeniedError) as of_events:
            await client.submit_event("x")
        with pytest.raises(PolicyDeniedError) as of_triggers:
            await client.events.pause_trigger("x")
        with pytest.raises(PolicyDeniedError) as of_registering:
            await client.register_job(REGISTERED)

    assert not calls.keys() & listed
    for name, answer in told.items():
        assert answer.structured_content is not None
        error = answer.structured_content["error"]
        assert error["code"] == "FEATURE_DISABLED", (name, error)
        assert f"JOBFORGE_{calls[name][1]}_ENABLED=true" in error["hint"]
    assert [
        (caught.value.code, f"JOBFORGE_{setting}_ENABLED" in (caught.value.hint or ""))
        for caught, setting in (
            (of_events, "EVENTS"),
            (of_triggers, "TRIGGERS"),
            (of_registering, "REGISTER_JOB"),
        )
    ] == [("FEATURE_DISABLED", True)] * 3


@pytest.mark.requirement("server.features-off")
async def test_with_triggers_off_an_event_is_stored_and_starts_nothing_before_somebody_has_them_on(
    database: ScratchDatabase, tmp_path: Path, admin: psycopg.Connection[Any]
) -> None:
    trigger = {"name": "x", "kind": "event", "jobName": "test.noop", "eventType": "x"}
    event = {"type": "x"}
    async with open_stage(database, tmp_path, has_pool=False) as stage:
        async with Client(build_server(stage.parts, stage.credential())) as agent:
            made = await agent.call_tool("register-trigger", trigger)
        desk = EventDesk(stage.parts.desk.router, stage.parts.registry, asks_triggers=False)
        parts = replace(stage.parts, desk=desk)
        async with Client(build_server(parts, stage.credential())) as agent:
            stored = await agent.call_tool("submit-event", event)
        jobs = admin.execute("select count(*) from jobforge.jobs").fetchone()
        async with Database(database.url("jobforge_worker"), role="jobforge_worker") as opened:
            done = await Maintenance(MaintenanceRouter(opened), stage.parts.registry).run_once()
    later = admin.execute("select count(*) from jobforge.jobs").fetchone()

    assert (made.structured_content or {})["outcome"] == "created"
    assert stored.structured_content is not None
    assert "runs" not in stored.structured_content or not stored.structured_content["runs"]
    assert (jobs, done, later) == ((0,), 1, (1,))


@pytest.mark.requirement("server.features")
async def test_an_agent_is_told_what_would_switch_a_job_on(
    folder: Path, database: ScratchDatabase, tmp_path: Path
) -> None:
    async with open_stage(database, tmp_path, has_pool=False) as stage:
        settings = load_settings(jobs=str(folder), state_dir=tmp_path)
        registry = load_registry(settings)
        catalog = Catalog(registry, stage.parts.router.definitions)
        parts = replace(stage.parts, registry=registry, catalog=catalog)
        async with Client(build_server(parts, stage.credential())) as client:
            listed = await client.call_tool("list-jobs", {"query": "http"})
            refused = await client.call_tool(
                "execute-job",
                {
                    "name": "connector.http.request",
                    "input": {"url": "https://a.example"},
                    "idempotencyKey": "k",
                },
            )
            runs = await client.call_tool("list-runs", {})
            uris = [resource.uri for resource in (await client.list_resources()).resources]
            with pytest.raises(MCPError):
                await client.read_resource("jobforge://jobs/shop.charge")

    assert (listed.structured_content or {})["jobs"] == []
    assert refused.is_error
    assert (refused.structured_content or {})["error"] == {
        "code": "FEATURE_DISABLED",
        "message": "connector.http.request is switched off on this installation, for every caller",
        "hint": "whoever operates it can set JOBFORGE_HTTP_CONNECTOR_ENABLED=true for servers and workers",
        "retryable": False,
    }
    assert (runs.structured_content or {})["runs"] == []
    assert "jobforge://jobs/shop.charge" not in uris


async def read(stage: Stage, scopes: frozenset[Scope]) -> tuple[list[str], dict[str, Any]]:
    async with Client(build_server(stage.parts, stage.credential("acme", scopes))) as client:
        listed = [resource.uri for resource in (await client.list_resources()).resources]
        answer = await client.read_resource("jobforge://server")
    assert isinstance(answer.contents[0], TextResourceContents)
    return listed, json.loads(answer.contents[0].text)


@pytest.mark.requirement("server.about")
async def test_the_server_says_what_it_allows_and_no_secret(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    overrides: dict[str, object] = {
        "oauth_issuer": "https://login.example",
        "resource_url": "https://jobs.example/mcp",
        "http_connector_enabled": True,
        "token": "eyJtoken",
        "admin_database_url": "postgresql://owner:hunter2@db/jobs",
    }
    async with open_stage(database, tmp_path, has_pool=False, **overrides) as stage:
        listed, about = await read(stage, ALL_SCOPES)

    assert "jobforge://server" in listed
    assert about.pop("version")
    assert about == {
        "features": {
            "httpConnector": "on",
            "webhookConnector": "off: set JOBFORGE_WEBHOOK_CONNECTOR_ENABLED=true to switch it on",
            "actionJobs": "off: set JOBFORGE_ACTION_JOBS_ENABLED=true to switch it on",
            "registerJob": "off: set JOBFORGE_REGISTER_JOB_ENABLED=true to switch it on",
            "events": "on",
            "webhooks": "off: set JOBFORGE_WEBHOOKS_ENABLED=true to switch it on",
            "triggers": "on",
            "bundles": "off: set JOBFORGE_BUNDLES_ENABLED=true to switch it on",
            "rateLimits": "on",
        },
        "limits": {
            "waitSecondsDefault": 20.0,
            "waitSecondsCap": 45.0,
            "maxPayloadBytes": 1_048_576,
            "maxPayloadDepth": 64,
        },
        "auth": {
            "http": {
                "mode": "oauth",
                "issuer": "https://login.example",
                "resource": "https://jobs.example/mcp",
            },
            "local": "token",
        },
        "database": "external",
        "runsJobs": True,
    }


@pytest.mark.requirement("server.about")
async def test_only_who_may_list_jobs_is_told_about_the_server(stage: Stage) -> None:
    credential = stage.credential("acme", [Scope.JOBS_CANCEL])
    async with Client(build_server(stage.parts, credential)) as client:
        listed = await client.list_resources()
        with pytest.raises(MCPError) as caught:
            await client.read_resource("jobforge://server")

    assert [resource.uri for resource in listed.resources] == ["jobforge://token"]
    assert caught.value.error.data["code"] == "POLICY_DENIED"
