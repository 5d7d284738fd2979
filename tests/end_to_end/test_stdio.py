"""What only a process of its own can show: signals, the end of input, a clean standard output, the other era."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from subprocess import PIPE
from typing import Any
from uuid import UUID

import anyio
import pytest
from anyio.abc import Process
from mcp.client import Client
from mcp.client.stdio import stdio_client

from jobforge_mcp.types import JobId
from tests.end_to_end.doors import REPOSITORY, stdio_parameters
from tests.postgres import ScratchDatabase
from tests.server.stage import Stage, open_stage

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}


@pytest.fixture
async def stage(database: ScratchDatabase, tmp_path: Any) -> AsyncGenerator[Stage]:
    async with open_stage(database, tmp_path, has_pool=False) as opened:
        yield opened


class Chat:
    """A client that writes and reads lines, and sees everything the server writes."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._read = b""
        self.lines: list[dict[str, Any]] = []

    async def send(self, *messages: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        for message in messages:
            await self.process.stdin.send(json.dumps(message).encode() + b"\n")

    async def hear(self, request: int) -> dict[str, Any]:
        """Return the answer to a request."""
        assert self.process.stdout is not None
        with anyio.fail_after(60):
            while True:
                while b"\n" in self._read:
                    line, _, self._read = self._read.partition(b"\n")
                    self.lines.append(json.loads(line))
                    if self.lines[-1].get("id") == request:
                        return self.lines[-1]
                self._read += await self.process.stdout.receive()


@asynccontextmanager
async def chat(database: ScratchDatabase, stage: Stage) -> AsyncGenerator[Chat]:
    parameters = stdio_parameters(database, stage, stage.token())
    process = await anyio.open_process(
        [sys.executable, *parameters.args],
        cwd=REPOSITORY,
        env={**os.environ, **(parameters.env or {})},
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    async with process:
        try:
            opened = Chat(process)
            await opened.send(INITIALIZE)
            await opened.hear(0)
            await opened.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
            yield opened
        finally:
            if process.returncode is None:
                process.kill()


def execute(request: int, name: str, **arguments: object) -> dict[str, Any]:
    return {
        "jsonrpc": "2.0",
        "id": request,
        "method": "tools/call",
        "params": {"name": "execute-job", "arguments": {"name": name, **arguments}},
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_waiting_calls_answer_and_ends_the_process_in_order(
    number: signal.Signals, database: ScratchDatabase, stage: Stage
) -> None:
    async with chat(database, stage) as client:
        await client.send(execute(1, "test.noop"), execute(2, "test.forever"))
        await client.hear(1)
        client.process.send_signal(number)
        waited = await client.hear(2)
        with anyio.fail_after(60):
            code = await client.process.wait()

    run_id = JobId(UUID(waited["result"]["structuredContent"]["runId"]))
    run = await stage.parts.router.get_run(stage.parts.gate.identify(stage.credential()), run_id)
    assert code == 0
    assert waited["result"]["structuredContent"]["status"] in {"queued", "running"}
    # Released without spending an attempt, so that another worker can have it at once.
    assert (run.status, run.attempt_no) == ("queued", 0)


async def test_the_end_of_input_ends_the_process(database: ScratchDatabase, stage: Stage) -> None:
    async with chat(database, stage) as client:
        assert client.process.stdin is not None
        await client.process.stdin.aclose()
        with anyio.fail_after(60):
            code = await client.process.wait()

    assert code == 0


async def test_standard_output_carries_nothing_but_the_protocol(
    database: ScratchDatabase, stage: Stage
) -> None:
    async with chat(database, stage) as client:
        await client.send(execute(1, "test.prints"), execute(2, "test.environment"))
        printed = await client.hear(1) if client.lines[-1].get("id") != 1 else client.lines[-1]
        environment = next((line for line in client.lines if line.get("id") == 2), None)
        environment = environment or await client.hear(2)

    assert printed["result"]["structuredContent"]["result"] == "printed"
    assert environment["result"]["structuredContent"]["result"] is False
    assert all(line["jsonrpc"] == "2.0" for line in client.lines)


async def test_a_cancelled_notification_detaches_and_the_job_goes_on(
    database: ScratchDatabase, stage: Stage
) -> None:
    async with chat(database, stage) as client:
        await client.send(
            execute(1, "test.noop"), execute(2, "test.steps", input={"steps": 3, "seconds": 1})
        )
        await client.hear(1)
        await client.send(
            {
                "jsonrpc": "2.0",
                "method": "notifications/cancelled",
                "params": {"requestId": 2, "reason": "bored"},
            }
        )
        listing = {"name": "list-runs", "arguments": {"name": "test.steps"}}
        await client.send({"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": listing})
        runs = (await client.hear(3))["result"]["structuredContent"]["runs"]
        look = {"runId": runs[0]["runId"], "waitSeconds": 40}
        call = {"name": "get-job-status", "arguments": look}
        await client.send({"jsonrpc": "2.0", "id": 4, "method": "tools/call", "params": call})
        ended = await client.hear(4)

    assert ended["result"]["structuredContent"]["status"] == "succeeded"


async def test_a_client_of_2026_is_served_by_the_same_process(
    database: ScratchDatabase, stage: Stage
) -> None:
    transport = stdio_client(stdio_parameters(database, stage, stage.token()))
    async with Client(transport, mode="2026-07-28") as client:
        answer = await client.call_tool("execute-job", {"name": "test.noop"})

    assert (answer.structured_content or {})["status"] == "succeeded"
