"""An agent says once what is to be done when something happens, and from then on only says that it happened.

The trigger is a row with the agent's rights. An event and the run it starts are one transaction, so neither exists without
the other; repeated with its key the event changes nothing, and what did not fire says why.

    .venv/bin/python examples/agents/event_to_job.py
"""

import json
from typing import Any

import anyio
from _scratch import JOBFORGE, installation
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters


async def ask(agent: Client, tool: str, **arguments: object) -> dict[str, Any]:
    return (await agent.call_tool(tool, arguments)).structured_content or {}


async def main() -> None:
    with installation() as environment:
        server = StdioServerParameters(command=JOBFORGE, env=environment)
        async with Client(server) as agent:
            made = await ask(
                agent,
                "register-trigger",
                name="launch",
                kind="event",
                jobName="demo.countdown",
                eventType="rocket.*",
                match={"$ref": "/event/payload/ready", "equals": True},
                inputMapping={"seconds": {"$ref": "/event/payload/seconds"}},
            )
            print(f"register-trigger: {made['name']} is {made['outcome']}")
            event = {"type": "rocket.fueled", "idempotencyKey": "rocket-7"}
            payload = {"ready": True, "seconds": 1}
            first = await ask(agent, "submit-event", payload=payload, **event)
            again = await ask(agent, "submit-event", payload=payload, **event)
            print(f"submit-event: {first['outcome']}, then {again['outcome']} with the same run")
            assert first["runs"] == again["runs"]
            other = await ask(agent, "submit-event", type="rocket.fueled", payload={"ready": False})
            print(f"not fired: {other['skipped'][0]['decision']}, {other['skipped'][0]['reason']}")
            run_id = first["runs"][0]["runId"]
            run = await ask(agent, "get-job-status", runId=run_id, waitSeconds=30)
            print(f"run: {run['status']}, {json.dumps(run['result'], sort_keys=True)}")


if __name__ == "__main__":
    anyio.run(main)
