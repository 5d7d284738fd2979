from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp.types import TextResourceContents

from jobforge_mcp.definitions.catalog import Catalog
from jobforge_mcp.definitions.features import FEATURES
from jobforge_mcp.definitions.installed import load_registry
from jobforge_mcp.errors import PolicyDeniedError
from jobforge_mcp.policy.gate import Gate
from jobforge_mcp.policy.scopes import ALL_SCOPES, Scope
from jobforge_mcp.server.about import describe_features
from jobforge_mcp.server.build import build_server
from jobforge_mcp.settings import Settings, load_settings
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


def test_everything_that_acts_outside_is_off_by_default() -> None:
    outside = [feature for feature in FEATURES if feature.name not in ("events", "triggers")]
    assert not any(feature.is_on(Settings()) for feature in outside)


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

    assert listed.resources == []
    assert caught.value.error.data["code"] == "POLICY_DENIED"
