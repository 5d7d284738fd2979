"""An agent starts a job over stdio and does not wait for it.

The call returns at once with a runId, because the run is a row in Postgres by then and needs neither the call nor the chat.
Later the agent asks for that runId with waitSeconds, which answers as soon as the run has ended: one call, not a hundred.

    .venv/bin/python examples/agents/stdio_poll.py
"""

import json
from typing import Any

import anyio
from _scratch import JOBFORGE, installation
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters


async def main() -> None:
    with installation() as environment:
        server = StdioServerParameters(command=JOBFORGE, env=environment)
        async with Client(server) as agent:
            answer = await agent.call_tool(
                "execute-job",
                {"name": "demo.countdown", "input": {"seconds": 2}, "background": True},
            )
            run: dict[str, Any] = answer.structured_content or {}
            print(f"execute-job: {run['outcome']}, and the agent is free to do other things")
            calls = 0
            while run["status"] in {"queued", "running"}:
                answer = await agent.call_tool(
                    "get-job-status", {"runId": run["runId"], "waitSeconds": 20}
                )
                run = answer.structured_content or {}
                calls += 1
            print(f"get-job-status: {run['status']} after {calls} call")
            print(f"result: {json.dumps(run['result'], sort_keys=True)}")


if __name__ == "__main__":
    anyio.run(main)
