"""An agent has a report made on every weekday morning in Berlin, without staying for it.

The schedule is a row: whatever process runs jobs makes one run for each of its times, also on the days on which clocks
change, and what was missed is caught up once. The agent looks when it is due next, and has the first one made now.

    .venv/bin/python examples/agents/scheduled_report.py
"""

from typing import Any

import anyio
from _scratch import JOBFORGE, installation, jobforge
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters


async def ask(agent: Client, tool: str, **arguments: object) -> dict[str, Any]:
    return (await agent.call_tool(tool, arguments)).structured_content or {}


async def main() -> None:
    with installation() as environment:
        server = StdioServerParameters(command=JOBFORGE, env=environment)
        async with Client(server) as agent:
            schedule = {
                "name": "morning-report",
                "kind": "cron",
                "cron": "0 9 * * 1-5",
                "timezone": "Europe/Berlin",
                "catchUp": "one",
                "jobName": "demo.countdown",
                "input": {"seconds": 1},
            }
            planned = await ask(agent, "register-trigger", **schedule, dryRun=True)
            print(f"dry run: would be {planned['outcome']}")
            made = await ask(agent, "register-trigger", **schedule)
            print(f"register-trigger: {made['outcome']}, {len(made['nextTimes'])} next times told")
            print(jobforge(environment, "triggers", "run", "morning-report").partition(": run")[0])
            (row,) = (await ask(agent, "list-triggers", name="morning-report", history=True))[
                "triggers"
            ]
            run_id = row["history"][0]["runId"]
            run = await ask(agent, "get-job-status", runId=run_id, waitSeconds=30)
            print(f"run: {run['status']}, {run['result']['message']}")


if __name__ == "__main__":
    anyio.run(main)
