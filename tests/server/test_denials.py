"""Refused writes are in the audit log, and whoever is refused cannot fill it."""

from __future__ import annotations

from pathlib import Path

import httpx2
import psycopg
import pytest
from mcp import Client

from jobforge_mcp.policy.denials import NOBODYS_TENANT, ROWS_A_MINUTE, Denial
from jobforge_mcp.policy.gate import Credential
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.server.build import build_server
from jobforge_mcp.types import CallOrigin
from tests.end_to_end.doors import http_server
from tests.postgres import ScratchDatabase
from tests.server.stage import Stage, open_stage
from tests.server.test_http import MODERN

RUN = "01890a5d-ac96-774b-bcce-b302099a8057"


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


async def test_the_row_names_the_job_type_and_the_run(
    stage: Stage, admin: psycopg.Connection
) -> None:
    credential = stage.credential(scopes={Scope.JOBS_LIST})
    async with Client(build_server(stage.parts, credential)) as client:
        await client.call_tool("execute-job", {"name": "test.noop"})
        await client.call_tool("execute-job", {"name": "No such name"})
        await client.call_tool("cancel-job", {"runId": RUN})

    rows = admin.execute(
        "select action, job_type, job_id::text from jobforge.audit_log order by id"
    ).fetchall()
    assert rows == [("enqueue", "test.noop", None), ("enqueue", None, None), ("cancel", None, RUN)]


def bearer(token: str, tool: str = "execute-job") -> dict[str, str]:
    return {**MODERN, "Mcp-Name": tool, "Authorization": f"Bearer {token}"}


@pytest.mark.requirement("audit.denials")
async def test_what_the_door_refuses_is_written_down_too(
    database: ScratchDatabase, tmp_path: Path, admin: psycopg.Connection
) -> None:
    oauth = {"oauth_issuer": "https://login.example", "resource_url": "https://jobs.example/mcp"}
    async with open_stage(database, tmp_path, has_pool=False, **oauth) as stage:
        lacking = stage.token(scopes={Scope.JOBS_LIST})
        revoked = stage.parts.gate.identify(stage.credential())
        lost = stage.token()
        holder = stage.parts.gate.identify(Credential(lost))
        assert stage.parts.living is not None
        assert holder.token_id is not None
        await stage.parts.living.router.revoke_token(revoked, holder.token_id, origin=CallOrigin())
        async with http_server(stage) as server, httpx2.AsyncClient(base_url=server.url) as http:
            statuses = [
                (await http.post("/mcp", headers=headers, content=b"{")).status_code
                for headers in (
                    bearer(lacking),
                    bearer("not.a.token"),
                    bearer(lost, "list-jobs"),
                    {**bearer(lacking), "Origin": "https://evil.example"},
                    dict(MODERN),
                )
            ]

    rows = admin.execute(
        "select tenant_id, action, tool, token_id, detail->>'reason' from jobforge.audit_log"
        " where outcome = 'refused' order by id"
    ).fetchall()
    assert statuses == [403, 401, 401, 403, 401]
    assert [(*row[:3], row[4]) for row in rows] == [
        ("acme", "enqueue", "execute-job", "INSUFFICIENT_SCOPE"),
        (NOBODYS_TENANT, "authenticate", "execute-job", "TOKEN_INVALID"),
        ("acme", "authenticate", "list-jobs", "TOKEN_REVOKED"),
        (NOBODYS_TENANT, "connect", "execute-job", "FOREIGN_ORIGIN"),
    ]
    assert rows[2][3] == holder.token_id


async def test_what_was_only_counted_is_written_before_the_process_ends(
    stage: Stage, admin: psycopg.Connection
) -> None:
    denials = stage.parts.denials
    assert denials is not None
    caller = stage.parts.gate.identify(stage.credential())
    for _ in range(ROWS_A_MINUTE + 7):
        await denials.record(caller, Denial("enqueue", "POLICY_DENIED"))

    await denials.flush()
    await denials.flush()

    counts = admin.execute(
        "select coalesce((detail->>'count')::int, 1) from jobforge.audit_log"
    ).fetchall()
    assert sorted(row[0] for row in counts) == [*[1] * ROWS_A_MINUTE, 7]


async def test_a_flood_of_refusals_is_few_rows(stage: Stage, admin: psycopg.Connection) -> None:
    credential = stage.credential(scopes={Scope.JOBS_LIST})
    async with Client(build_server(stage.parts, credential)) as client:
        for _ in range(3 * ROWS_A_MINUTE):
            await client.call_tool("execute-job", {"name": "test.noop"})

    assert admin.execute("select count(*) from jobforge.audit_log").fetchone() == (ROWS_A_MINUTE,)
