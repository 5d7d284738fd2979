"""Those of the fourteen holes that need more than one process, or a whole server, to be proven closed.

The others are in `test_holes`, which also sees to it that the list is whole.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from anyio import to_thread
from mcp.client import Client
from mcp.types import CallToolResult

from jobforge_mcp.db.pool import Database
from jobforge_mcp.maintenance import Maintenance
from jobforge_mcp.policy.gate import Credential, Door
from jobforge_mcp.policy.scopes import ALL_SCOPES
from jobforge_mcp.policy.tokens import Grant, issue_token
from jobforge_mcp.router.maintenance import MaintenanceRouter
from jobforge_mcp.server.build import build_server
from jobforge_mcp.types import JsonValue
from tests.postgres import Clock, ScratchDatabase
from tests.server.conftest import client, stage
from tests.server.stage import Stage, open_stage

__all__ = ["client", "stage"]

SUBMIT = """
import anyio, sys
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.router.events import EventRouter
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.types import Caller, NewEvent, TenantId
from tests.server.jobs import JOBS

async def main():
    agent = Caller(TenantId("acme"), "agent", frozenset({"jobs:execute", "events:submit"}))
    async with Database(sys.argv[1], role="jobforge_api", min_size=1, max_size=1) as database:
        desk = EventDesk(EventRouter(database), Registry(JOBS))
        done = await desk.submit(agent, NewEvent("order.paid", sys.argv[2]))
    print(*(made.decision.value for made in done.decisions))

anyio.run(main)
"""


def content(told: CallToolResult) -> dict[str, Any]:
    assert told.structured_content is not None
    return told.structured_content


async def call(client: Client, tool: str, **arguments: JsonValue) -> dict[str, Any]:
    told = await client.call_tool(tool, arguments)
    assert not told.is_error, told.structured_content
    return content(told)


def submitted_by_a_process(database: ScratchDatabase, payload: str) -> str:
    """Submit an event from a process that lives for nothing else; say what its triggers decided."""
    root = Path(__file__).parent.parent
    url = database.url("jobforge_api")
    done = subprocess.run(
        [sys.executable, "-c", SUBMIT, url, payload],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


def set_limit(admin: psycopg.Connection[Any], kind: str, name: str, limits: str) -> None:
    admin.execute("select jobforge.set_limit('acme', %s, %s, %s)", [kind, name, limits])


# 10. There was a table of triggers that nothing filled and nothing fired.
async def test_hole_10_a_schedule_that_an_agent_registers_fires_and_its_run_ends(
    client: Client, stage: Stage, worker_database: Database, clock: Clock
) -> None:
    registered = await call(
        client,
        "register-trigger",
        name="hourly",
        kind="cron",
        jobName="test.echo",
        cron="0 * * * *",
        input={"text": "tick"},
    )
    upkeep = Maintenance(MaintenanceRouter(worker_database), stage.parts.registry)

    early = await upkeep.run_once()
    clock.advance(timedelta(hours=1))
    fired = await upkeep.run_once()
    runs = (await call(client, "list-runs", name="test.echo"))["runs"]
    ended = await call(client, "get-job-status", runId=runs[0]["runId"], waitSeconds=40)

    assert registered["outcome"] == "created"
    assert (early, fired, len(runs)) == (0, 1, 1)
    assert (ended["status"], ended["result"]) == ("succeeded", {"said": "tick"})


# 11. Cooldowns and the memory of what had been seen lived in one process.
@pytest.mark.parametrize(
    ("rule", "payloads", "expected"),
    [
        ({"cooldownMs": 3_600_000}, ['{"o": 1}', '{"o": 2}'], ["fired", "cooldown"]),
        (
            {"dedupeKey": {"$ref": "/event/payload/o"}},
            ['{"o": "a"}', '{"o": "b"}', '{"o": "a"}'],
            ["fired", "fired", "skipped"],
        ),
        ({"maxPerHour": 1}, ['{"o": 1}', '{"o": 2}'], ["fired", "rate_limited"]),
    ],
    ids=["cooldown", "dedupe", "per hour"],
)
async def test_hole_11_what_a_trigger_remembers_is_known_to_every_process(
    client: Client,
    database: ScratchDatabase,
    admin: psycopg.Connection[Any],
    rule: dict[str, JsonValue],
    payloads: Sequence[str],
    expected: list[str],
) -> None:
    await call(
        client,
        "register-trigger",
        name="bill",
        kind="event",
        jobName="test.echo",
        eventType="order.*",
        input={"text": "paid"},
        **rule,
    )

    decided = [
        await to_thread.run_sync(submitted_by_a_process, database, payload) for payload in payloads
    ]

    made = admin.execute("select count(*) from jobforge.jobs").fetchone()
    assert decided == expected
    assert made == (expected.count("fired"),)


# 12. A limit of a tool could be set and was never asked.
async def test_hole_12_a_limit_of_a_tool_holds_that_tool_and_no_other(
    client: Client, admin: psycopg.Connection[Any]
) -> None:
    set_limit(admin, "tool", "execute-job", '{"budget_jobs": 2}')
    set_limit(admin, "tool", "cancel-job", '{"rps": 0.001, "burst": 1}')
    run = {"name": "test.forever", "waitSeconds": 0}

    runs = [(await call(client, "execute-job", **run))["runId"] for _ in range(2)]
    third = await client.call_tool("execute-job", run)
    await call(client, "cancel-job", runId=runs[0])
    second_cancel = await client.call_tool("cancel-job", {"runId": runs[1]})
    ended = await call(client, "get-job-status", runId=runs[0], waitSeconds=40)
    again = await call(client, "retry-job", runId=runs[0])

    made = admin.execute("select count(*) from jobforge.jobs").fetchone()
    refused = [content(answer)["error"] for answer in (third, second_cancel)]
    assert [error["code"] for error in refused] == ["BUDGET_USED_UP", "RATE_LIMITED"]
    assert all(error["message"].count("tool ") == 1 for error in refused)
    assert (made, ended["status"]) == ((2,), "canceled")
    assert again["runId"] == runs[0]


# 13. Bundles answered with ids that were made up, and looked at the length of a token.
async def test_hole_13_every_id_of_a_bundle_is_a_run_that_ends_and_each_request_is_asked_of_the_token(
    database: ScratchDatabase, tmp_path: Path, admin: psycopg.Connection[Any]
) -> None:
    requests: list[JsonValue] = [
        {"id": "one", "name": "test.echo", "input": {"text": "1"}},
        {"id": "two", "name": "test.echo", "input": {"text": "2"}, "dependsOn": ["one"]},
        {"id": "denied", "name": "test.noop"},
    ]
    async with open_stage(database, tmp_path, bundles_enabled=True) as stage:
        grant = Grant("acme", ALL_SCOPES, deny_types=["test.noop"])
        settings = stage.settings
        token = issue_token(
            stage.keys.ensure(),
            grant,
            issuer=settings.token_issuer,
            audience=settings.token_audience,
        )
        credential = Credential(token, Door.LOCAL)
        forged = Credential("x" * len(token), Door.LOCAL)
        async with Client(build_server(stage.parts, credential)) as client:
            made = await call(client, "execute-bundle", requests=requests)
            ids = [item["runId"] for item in made["items"][:2]]
            results = [
                (await call(client, "get-job-status", runId=run_id, waitSeconds=40))["result"]
                for run_id in ids
            ]
        async with Client(build_server(stage.parts, forged)) as client:
            refused = await client.call_tool("execute-bundle", {"requests": requests})

    stored = admin.execute("select id::text from jobforge.jobs order by id").fetchall()
    assert [item["outcome"] for item in made["items"]] == ["created", "created", "refused"]
    assert made["items"][2]["code"] == "POLICY_DENIED"
    assert sorted(ids) == [row[0] for row in stored]
    assert results == [{"said": "1"}, {"said": "2"}]
    assert refused.is_error
