"""An agent registers a job without writing code, and runs it at once.

The job is data: a name, a schema and a chain of jobs that are installed. It is stored in Postgres, so every server knows it
from then on, and each run keeps the version it began with.

    .venv/bin/python examples/agents/register_and_run.py
"""

import json
from typing import Any

import anyio
from _scratch import JOBFORGE, installation
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters

JOB: dict[str, Any] = {
    "name": "launch.twice",
    "description": "Counts down twice, the second time as long as the first.",
    "inputSchema": {
        "type": "object",
        "properties": {"seconds": {"type": "integer", "minimum": 1, "maximum": 5}},
        "required": ["seconds"],
    },
    "chain": [
        {
            "name": name,
            "handler": "demo.countdown",
            "input": {"seconds": {"$ref": "/input/seconds"}},
        }
        for name in ("first", "second")
    ],
}


async def main() -> None:
    with installation() as environment:
        server = StdioServerParameters(command=JOBFORGE, env=environment)
        async with Client(server) as agent:
            for _ in range(2):
                answer = await agent.call_tool("register-job", JOB)
                made: dict[str, Any] = answer.structured_content or {}
                print(
                    f"register-job: {made['name']} version {made['version']} is {made['outcome']}"
                )
            answer = await agent.call_tool(
                "execute-job", {"name": "launch.twice", "input": {"seconds": 1}, "waitSeconds": 40}
            )
            run: dict[str, Any] = answer.structured_content or {}
            print(f"execute-job: {run['status']}, {json.dumps(run.get('result'), sort_keys=True)}")


if __name__ == "__main__":
    anyio.run(main)
