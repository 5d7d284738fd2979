from __future__ import annotations

from mcp.client import Client


async def test_a_job_is_executed_inline_and_its_result_comes_back(client: Client) -> None:
    answer = await client.call_tool("execute-job", {"name": "test.echo", "input": {"text": "hi"}})

    run = answer.structured_content or {}
    assert (answer.is_error, run["status"], run["result"]) == (False, "succeeded", {"said": "hi"})
