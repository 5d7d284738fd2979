"""Refused writes are in the audit log, and whoever is refused cannot fill it."""

from __future__ import annotations

import psycopg
import pytest
from mcp import Client

from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.server.build import build_server
from jobforge_mcp.server.denials import ROWS_A_MINUTE
from tests.server.stage import Stage


@pytest.mark.requirement("audit.denials")
async def test_a_refused_write_is_written_down(stage: Stage, admin: psycopg.Connection) -> None:
    credential = stage.credential(scopes={Scope.JOBS_LIST})
    async with Client(build_server(stage.parts, credential)) as client:
        await client.call_tool("execute-job", {"name": "test.noop"})
        await client.call_tool("list-runs", {})

    rows = admin.execute(
        "select tenant_id, action, outcome, tool, token_id is not null, trace_id is not null, detail from jobforge.audit_log"
    ).fetchall()
    assert rows == [
        ("acme", "enqueue", "refused", "execute-job", True, True, {"reason": "POLICY_DENIED"})
    ]


async def test_a_flood_of_refusals_is_few_rows(stage: Stage, admin: psycopg.Connection) -> None:
    credential = stage.credential(scopes={Scope.JOBS_LIST})
    async with Client(build_server(stage.parts, credential)) as client:
        for _ in range(3 * ROWS_A_MINUTE):
            await client.call_tool("execute-job", {"name": "test.noop"})

    assert admin.execute("select count(*) from jobforge.audit_log").fetchone() == (ROWS_A_MINUTE,)
