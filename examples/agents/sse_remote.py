"""Two agents of two tenants use one server over SSE, the transport of older clients.

The first runs a job that fails once, is retried, and succeeds; all of that is the server's business.
The second asks for that very runId and learns nothing: what belongs to another tenant answers like what never was.

    .venv/bin/python examples/agents/sse_remote.py
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from _scratch import http_server, installation, jobforge
from mcp.client import Client
from mcp.client.sse import sse_client


@asynccontextmanager
async def agent_of(tenant: str, environment: Mapping[str, str], url: str) -> AsyncGenerator[Client]:
    token = jobforge(environment, "token", "issue", "--tenant", tenant, "--all-scopes")
    headers = {"Authorization": f"Bearer {token}"}
    async with Client(sse_client(f"{url}/sse", headers)) as agent:
        yield agent


async def main() -> None:
    with installation() as environment, http_server(environment) as url:
        async with agent_of("acme", environment, url) as acme:
            answer = await acme.call_tool(
                "execute-job", {"name": "demo.flaky", "input": {"failures": 1}}
            )
            run: dict[str, Any] = answer.structured_content or {}
            print(f"acme: {run['status']} on attempt {run['attempt']}")
        async with agent_of("globex", environment, url) as globex:
            for run_id in (run["runId"], "00000000-0000-7000-8000-000000000000"):
                answer = await globex.call_tool("get-job-status", {"runId": run_id})
                refusal: dict[str, Any] = answer.structured_content or {}
                error = refusal["error"]
                print(f"globex: {error['code']}, {error['message']}")


if __name__ == "__main__":
    anyio.run(main)
