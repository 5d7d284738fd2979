"""A thousand secrets and a thousand texts of a tenant, planted where they belong and looked for everywhere else.

The server is PostgreSQL as the product ships it, logging to its own file; the calls come over HTTP, good ones and bad ones.
Texts of a tenant may be in the columns that hold its inputs, results, errors and logs. Secrets may be nowhere.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any, LiteralString

import anyio
import httpx2
import psycopg
import pytest
from mcp import MCPError
from mcp.client import Client
from psycopg import sql
from pydantic import BaseModel

from jobforge_mcp import JobContext, PermanentError, job
from jobforge_mcp.db.migrate import migrate
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.embedded import Cluster, ensure_running, scratch_state_directory, stop
from jobforge_mcp.logs import configure_logging
from jobforge_mcp.types import JsonObject, JsonValue
from tests import postgres
from tests.end_to_end.doors import http_client, http_server
from tests.postgres import ScratchDatabase
from tests.server.stage import Stage, open_stage

COUNT, PER_JOB = 1_000, 20
SECRET, TEXT = "cAnary-secret-", "cAnary-text-"
WAYS = ("result", "error", "crash", "log")
COLUMNS = {
    ("jobs", "payload"), ("jobs", "result"), ("jobs", "error"), ("job_attempts", "error"),
    ("job_attempts", "traceback"), ("run_logs", "message"), ("run_progress", "message"),
}  # fmt: skip
"""Where a tenant's texts are kept, and shown to it alone."""


class Leak(BaseModel):
    """What to do with values."""

    values: list[str]
    how: str


@job(name="leak")
async def leak(input: Leak, job: JobContext) -> JsonValue:
    """Do with what is given what a careless handler might."""
    match input.how:
        case "result":
            return [*input.values]
        case "error":
            raise PermanentError(" ".join(input.values), code="TOLD", hint=input.values[0])
        case "crash":
            raise KeyError(*input.values)
        case _:
            for value in input.values:
                job.log(value)
                job.progress(1, message=value)
            raise PermanentError("done", code="TOLD")


@pytest.fixture
def shipped() -> Generator[Cluster]:
    """PostgreSQL with the settings that the product gives it. Takes a second: initdb."""
    state_dir = scratch_state_directory()
    try:
        with ensure_running(state_dir, linger_seconds=1) as cluster:
            migrate(cluster.url("jobforge_admin"))
            yield cluster
    finally:
        stop(state_dir)
        shutil.rmtree(state_dir, ignore_errors=True)


@pytest.fixture
async def stage(
    shipped: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Stage]:
    for number in range(COUNT):
        monkeypatch.setenv(f"JOBFORGE_SECRET_C{number}", f"{SECRET}{number:04}-end")
    where = postgres.Cluster(str(shipped.socket_dir), shipped.version)
    database = ScratchDatabase(where, "jobforge")
    given: dict[str, Any] = {
        "registry": Registry([leak]),
        "secret_references": ("*",),
        "poll_ms": 100,
    }
    async with open_stage(database, tmp_path, **given) as opened:
        yield opened


async def plant(client: Client) -> list[str]:
    """Run jobs that are given all secrets and all texts; return what was answered."""
    answers: list[str] = []
    ids: list[str] = []
    for start in range(0, COUNT, PER_JOB):
        numbers = range(start, start + PER_JOB)
        values = [v for n in numbers for v in (f"secret://c{n}", f"{TEXT}{n:04}-end")]
        given = {"values": values, "how": WAYS[start // PER_JOB % len(WAYS)]}
        call = {"name": "leak", "input": given, "background": True, "labels": {"n": str(start)}}
        run: JsonObject = (await client.call_tool("execute-job", call)).structured_content or {}
        ids.append(str(run["runId"]))
    for run_id in ids:
        look = {"runId": run_id, "waitSeconds": 40, "include": ["logs", "attempts"]}
        told = await client.call_tool("get-job-status", look)
        answers.append(json.dumps(told.structured_content))
    return answers


async def stumble(client: Client, url: str) -> None:
    """Make calls that are refused, each with texts in them."""
    text = f"{TEXT}bad-end"
    again = {"name": "leak", "idempotencyKey": "k", "background": True}
    calls: list[tuple[str, JsonObject]] = [
        ("execute-job", {"name": "leak", "input": {"values": text, "how": 7}}),
        ("execute-job", {"name": "leak", "input": {"values": [], "how": "x", text: text}}),
        ("execute-job", {**again, "input": {"values": [text], "how": "result"}}),
        ("execute-job", {**again, "input": {"values": [text, text], "how": "result"}}),
        ("execute-job", {"name": "leak", "input": text}),
        ("get-job-status", {"runId": text}),
        ("list-runs", {"cursor": text}),
    ]
    for tool, arguments in calls:
        with suppress(MCPError):
            await client.call_tool(tool, arguments)
    async with httpx2.AsyncClient() as http:
        for token in (f"{SECRET}token-end", f"a.{SECRET}.b"):
            headers = {"Authorization": f"Bearer {token}"}
            await http.post(f"{url}/mcp", headers=headers, content=f'{{"x": "{text}"}}')


def stumble_in_sql(shipped: Cluster) -> None:
    """Fail in Postgres itself, with texts as parameters of what fails."""
    text = f"{TEXT}sql-end"
    failing: list[tuple[LiteralString, list[str]]] = [
        ("select jobforge.enqueue_job('acme', 'leak', %s::text::jsonb)", [f'{{"x": {text}}}']),
        ("select jobforge.enqueue_job('acme', 'leak', jsonb_build_object('x', %s::text), p_idempotency_key => 'k')", [text]),
        ("select jobforge.enqueue_job('acme', 'leak', jsonb_build_object('x', repeat(%s::text, 90000)))", [text]),
        ("select jobforge.enqueue_job('acme', 'leak', p_labels => jsonb_build_array(%s::text))", [text]),
        ("select jobforge.enqueue_job('globex', 'leak', jsonb_build_object('x', %s::text))", [text]),
        ("select * from jobforge.jobs where payload::text = %s", [text]),
    ]  # fmt: skip
    with psycopg.connect(shipped.url("jobforge_api"), autocommit=True) as connection:
        for query, parameters in failing:
            with suppress(psycopg.Error), connection.transaction():
                connection.execute("select jobforge.enter_scope('acme', 'tester')")
                connection.execute(query, parameters)


def columns_with(shipped: Cluster, what: str) -> set[tuple[str, str]]:
    """Name the columns of every table that hold a text anywhere."""
    found: set[tuple[str, str]] = set()
    with psycopg.connect(shipped.url("jobforge_superuser"), autocommit=True) as connection:
        columns = connection.execute(
            """select c.relname, a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid
            where c.relnamespace = 'jobforge'::regnamespace and c.relkind = 'r' and a.attnum > 0
              and not a.attisdropped"""
        ).fetchall()
        for table, column in columns:
            query = sql.SQL("select from jobforge.{} t where t.{}::text like %s limit 1").format(
                sql.Identifier(table), sql.Identifier(column)
            )
            if connection.execute(query, [f"%{what}%"]).rowcount:
                found.add((table, column))
    return found


def said_by(environment: dict[str, str], *arguments: str) -> str:
    """Run a command as an operator would, and return all that it says."""
    command = [sys.executable, "-m", "jobforge_mcp.entry", *arguments]
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.stdout, ended.stderr
    return ended.stdout + ended.stderr


@pytest.mark.requirement("secrets.canaries")
async def test_a_thousand_secrets_and_texts_are_found_nowhere_but_where_they_belong(
    stage: Stage, shipped: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Takes some seconds: fifty jobs that fail in many ways, and everything is read afterwards."""
    configure_logging("debug", "json")
    async with (
        await psycopg.AsyncConnection.connect(shipped.url("jobforge_api"), autocommit=True) as ear,
        http_server(stage) as server,
        httpx2.AsyncClient(base_url=server.url) as http,
    ):
        for channel in ("jobforge_ready", "jobforge_runs"):
            await ear.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
        async with http_client(server.url, stage.token()) as client:
            answers = await plant(client)
            await stumble(client, server.url)
        await anyio.to_thread.run_sync(stumble_in_sql, shipped)
        pages = [(await http.get(path)).text for path in ("/metrics", "/ready", "/health")]
        heard = [note.payload async for note in ear.notifies(timeout=0.5)]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("JOBFORGE_")},
        "DATABASE_URL": shipped.url("jobforge_api"),
        "JOBFORGE_WORKER_DATABASE_URL": shipped.url("jobforge_worker"),
        "JOBFORGE_ADMIN_DATABASE_URL": shipped.url("jobforge_admin"),
        "JOBFORGE_AUDIT_DATABASE_URL": shipped.url("jobforge_auditor"),
        "JOBFORGE_AUDIT_KEYS": str(tmp_path / "audit-keys"),
        "JOBFORGE_STATE_DIR": str(tmp_path / "state"),
    }
    exported = tmp_path / "audit.jsonl"
    said = [
        said_by(environment, "doctor", "--json"),
        said_by(environment, "audit", "seal", "--json"),
        said_by(environment, "audit", "export", str(exported), "--json"),
    ]
    logs = [path.read_text(errors="replace") for path in shipped.state_dir.glob("*.log*")]
    elsewhere = {
        "postgres' log": "\n".join(logs),
        "notifications": "\n".join(heard),
        "metrics and health": "\n".join(pages),
        "this process's logs": "".join(capfd.readouterr()),
        "doctor and audit": "\n".join(said),
        "the exported audit log": exported.read_text(),
    }

    assert {name for name, text in elsewhere.items() if SECRET in text} == set()
    assert {name for name, text in elsewhere.items() if TEXT in text} == set()
    assert [answer for answer in answers if SECRET in answer] == []
    assert columns_with(shipped, SECRET) == set()
    assert columns_with(shipped, TEXT) - COLUMNS == set()
    # all of it happened, or its absence would prove nothing
    assert {("jobs", "payload"), ("jobs", "result"), ("job_attempts", "error")} <= columns_with(
        shipped, TEXT
    )
    assert columns_with(shipped, "[secret c0]")
    assert {json.loads(answer)["status"] for answer in answers} >= {
        "succeeded",
        "failed",
    }
    assert all(name == "notifications" or text for name, text in elsewhere.items())
    assert "enqueue" in elsewhere["the exported audit log"]
    assert "JF409" in elsewhere["postgres' log"] or "ERROR" in elsewhere["postgres' log"]
