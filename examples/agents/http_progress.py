"""An agent on another machine runs a job over streamable HTTP and watches it.

It presents a policy token, which says for whom it acts and what it may do; the tenant is never an argument of a call.
While execute-job waits, the server sends the job's progress as MCP notifications, and the answer is the result.

    .venv/bin/python examples/agents/http_progress.py
"""

import json
from typing import Any

import anyio
import httpx2
from _scratch import http_server, installation, jobforge
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client


async def show(progress: float, total: float | None, message: str | None) -> None:
    print(f"progress: {int(progress)} of {int(total or 0)}, {message}")


async def main() -> None:
    with installation() as environment, http_server(environment) as url:
        scopes = ["--scope", "jobs:execute", "--scope", "jobs:read"]
        token = jobforge(environment, "token", "issue", "--tenant", "acme", *scopes)
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60) as http,
            Client(streamable_http_client(f"{url}/mcp", http_client=http)) as agent,
        ):
            tools = [tool.name for tool in (await agent.list_tools()).tools]
            print(f"tools of this token: {', '.join(tools)}")
            answer = await agent.call_tool(
                "execute-job",
                {"name": "demo.countdown", "input": {"seconds": 2, "steps": 4}},
                progress_callback=show,
            )
            run: dict[str, Any] = answer.structured_content or {}
            print(f"{run['status']}: {json.dumps(run['result'], sort_keys=True)}")


if __name__ == "__main__":
    anyio.run(main)
