"""The server dies in the middle of a job, with kill -9, and the agent's chat is over.

A new chat repeats the call with the same idempotencyKey, as an agent does that does not know what became of the first.
It gets the same run and not a second one, and the new server's workers finish it once the dead one's lease has run out.

    .venv/bin/python examples/agents/resume_after_restart.py
"""

import json
import os
import signal
import uuid
from typing import Any

import anyio
from _scratch import JOBFORGE, installation, jobforge
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters

CALL = {
    "name": "demo.countdown",
    "input": {"seconds": 3},
    "idempotencyKey": f"countdown-{uuid.uuid4()}",
}


async def main() -> None:
    # A lease of 2 s instead of 30 s, so that nobody has to wait for it.
    with installation(JOBFORGE_LEASE_MS="2000") as environment:
        server = StdioServerParameters(command=JOBFORGE, env=environment)
        async with Client(server) as first_chat:
            node = json.loads(jobforge(environment, "node", "status", "--json"))
            answer = await first_chat.call_tool("execute-job", {**CALL, "waitSeconds": 0.5})
            first: dict[str, Any] = answer.structured_content or {}
            print(f"first chat: {first['outcome']}, {first['status']}")
            os.kill(node["pid"], signal.SIGKILL)
            print("the server is killed, with all its workers")
        async with Client(server) as second_chat:
            answer = await second_chat.call_tool("execute-job", {**CALL, "waitSeconds": 30})
            run: dict[str, Any] = answer.structured_content or {}
            is_same = "the same run" if run["runId"] == first["runId"] else "another run"
            print(f"second chat: {run['outcome']}, {is_same}")
            print(f"{run['status']} on attempt {run['attempt']}: {run['result']['message']}")


if __name__ == "__main__":
    anyio.run(main)
