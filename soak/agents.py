"""Agents of a soak: MCP clients over streamable HTTP or stdio, as a model's host would run them.

Each opens a connection, calls until something breaks, and opens another. A call without an answer is repeated with its
idempotency key; one without a key is made once. Over stdio every connection is a bridge of its own to the one local node.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import anyio
import httpx2
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from soak.history import History
from soak.stage import EVENT

CALL_SECONDS = 20.0
STOP_SECONDS = 40.0
UNKEYED = 0.6
"""Share of the runs that are asked for without an idempotency key, as most models do: only these take the short way."""
FINAL = frozenset({"succeeded", "failed", "dead", "canceled"})


class Agent:
    """One conversation after the other, of one tenant, through one door."""

    def __init__(self, door: str, tenant: str, token: str, history: History, seed: int) -> None:
        """Call through ``http`` or ``stdio``."""
        self._door = door
        self._tenant = tenant
        self._token = token
        self._history = history
        self._chance = random.Random(seed)
        self._unfinished: list[dict[str, Any]] = []
        self._deadline: float | None = None

    def stop(self) -> None:
        """Finish what is at hand, and begin nothing."""
        self._deadline = anyio.current_time() + STOP_SECONDS

    async def run(self) -> None:
        """Converse until told to stop."""
        while self._deadline is None or (
            self._unfinished and anyio.current_time() < self._deadline
        ):
            try:
                async with self._connect() as client:
                    await self._converse(client)
            except Exception as error:  # noqa: BLE001 - whatever the nemesis broke: a host starts its server again
                self._history.note("disconnected", door=self._door, error=_name(error))
                await anyio.sleep(0.3)

    @asynccontextmanager
    async def _connect(self) -> AsyncGenerator[Client]:
        if self._door == "http":
            headers = {"Authorization": f"Bearer {self._token}"}
            async with (
                httpx2.AsyncClient(headers=headers, timeout=CALL_SECONDS) as http,
                Client(streamable_http_client(os.environ["SOAK_URL"], http_client=http)) as client,
            ):
                yield client
            return
        environment = {k: v for k, v in os.environ.items() if k != "JOBFORGE_NODE"}
        server = StdioServerParameters(
            command=str(Path(sys.executable).with_name("jobforge")),
            env={**environment, "JOBFORGE_TOKEN": self._token},
        )
        async with Client(server) as client:
            yield client

    async def _converse(self, client: Client) -> None:
        """Call until the connection breaks; what was not answered comes first on the next one."""
        while self._deadline is None or self._unfinished:
            if not self._unfinished:
                self._unfinished.append(self._next())
            call = self._unfinished[0]
            is_keyed = "idempotencyKey" in call["arguments"]
            if not is_keyed:
                self._unfinished.pop(0)  # whatever comes of it
            with anyio.fail_after(CALL_SECONDS):
                if call["tool"] == "execute-job":
                    is_done = await self._execute(client, call)
                else:
                    is_done = await self._submit(client, call)
            if is_done and is_keyed:
                self._unfinished.pop(0)
            await anyio.sleep(self._chance.random() * 0.2)

    def _next(self) -> dict[str, Any]:
        nonce = uuid4().hex
        if self._chance.random() < 0.2:
            is_big = self._chance.random() < 0.3
            self._history.note("event", tenant=self._tenant, nonce=nonce, big=is_big)
            payload = {"nonce": nonce, "big": is_big}
            return {
                "tool": "submit-event",
                "nonce": nonce,
                "arguments": {"type": EVENT, "payload": payload, "idempotencyKey": nonce},
            }
        is_keyed = self._chance.random() >= UNKEYED
        is_slow = self._chance.random() < 0.3
        name = "soak.asked" if not is_keyed else "soak.slow" if is_slow else "soak.quick"
        self._history.note(
            "enqueue", tenant=self._tenant, nonce=nonce, name=name, sequence=None, via=self._door,
            keyed=is_keyed,
        )  # fmt: skip
        arguments: dict[str, Any] = {
            "name": name,
            "input": {"nonce": nonce, "milliseconds": 400 if is_slow else 0},
            "waitSeconds": self._chance.choice([0, 5]),
        }
        if is_keyed:
            arguments["idempotencyKey"] = nonce
        return {"tool": "execute-job", "nonce": nonce, "arguments": arguments}

    async def _execute(self, client: Client, call: dict[str, Any]) -> bool:
        nonce, request = call["nonce"], uuid4().hex

        async def hear(progress: float, total: float | None, message: str | None) -> None:
            self._history.note("heard", request=request, done=progress)

        answer = await client.call_tool("execute-job", call["arguments"], progress_callback=hear)
        self._history.note("answered", request=request)
        run: dict[str, Any] = answer.structured_content or {}
        if "runId" not in run:
            return self._refused(nonce, run)
        self._history.note("told", nonce=nonce, run=run["runId"], door=self._door)
        self._seen(run)
        if (
            "idempotencyKey" in call["arguments"] and self._chance.random() < 0.2
        ):  # as a model that does not trust its own memory
            again = await client.call_tool("execute-job", call["arguments"])
            run = again.structured_content or {}
            if "runId" not in run:
                return self._refused(nonce, run)
            self._history.note("told", nonce=nonce, run=run["runId"], door=self._door)
            self._seen(run)
        for _ in range(20):
            if run["status"] in FINAL:
                return True
            answer = await client.call_tool(
                "get-job-status", {"runId": run["runId"], "waitSeconds": 3}
            )
            found: dict[str, Any] = answer.structured_content or {}
            if "status" not in found:
                error = found.get("error", {})
                if error.get("code") == "RUN_NOT_FOUND":
                    self._history.note("poll_refused", run=run["runId"], code=error["code"])
                return self._refused(nonce, found)
            run = found
            self._seen(run)
        return True

    async def _submit(self, client: Client, call: dict[str, Any]) -> bool:
        answer = await client.call_tool("submit-event", call["arguments"])
        told: dict[str, Any] = answer.structured_content or {}
        if "eventId" not in told:
            return self._refused(call["nonce"], told)
        self._history.note(
            "event_told", nonce=call["nonce"], event=told["eventId"], door=self._door
        )
        return True

    def _seen(self, run: dict[str, Any]) -> None:
        self._history.note(
            "poll", run=run["runId"], status=run["status"], version=run.get("version", -1)
        )

    def _refused(self, nonce: str, answer: dict[str, Any]) -> bool:
        """Note a refusal, and say whether asking again is of no use."""
        error: dict[str, Any] = answer.get("error", {})
        if error.get("retryable", True):
            self._history.note(
                "unknown", nonce=nonce, error=str(error.get("code")), door=self._door
            )
            return False
        self._history.note("refused", nonce=nonce, code=error.get("code"), door=self._door)
        return True


def _name(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return type(error).__name__


async def main() -> None:
    """Run the agents of one door until SIGTERM."""
    folder, door, seed, *tenants = sys.argv[1:]
    history = History(Path(folder), "caller")
    agents = [
        Agent(door, tenant, os.environ[f"SOAK_TOKEN_{tenant.upper()}"], history, int(seed) + place)
        for place, tenant in enumerate(tenants)
    ]
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async with anyio.create_task_group() as group:
            for agent in agents:
                group.start_soon(agent.run)
            async for _ in signals:
                break
            for agent in agents:
                agent.stop()


if __name__ == "__main__":
    anyio.run(main)
