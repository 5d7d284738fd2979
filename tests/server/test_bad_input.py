"""What strangers send: each gets a code, a sentence and a hint, changes nothing, and is repeated nowhere."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import psycopg
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from structlog.testing import capture_logs

from jobforge_mcp.policy.gate import Credential, Door
from jobforge_mcp.server.build import build_server
from tests.end_to_end.doors import http_server
from tests.server.stage import Stage
from tests.server.test_http import MODERN, call

SECRET = "sesame-4711"
DEEP = json.loads("[" * 70 + "1" + "]" * 70)

CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown job": ("execute-job", {"name": f"test.{SECRET}"}, "JOB_NOT_FOUND"),
    "no job": ("execute-job", {}, "INVALID_ARGUMENTS"),
    "unknown argument": ("execute-job", {"name": "test.echo", "inptu": SECRET}, "INVALID_ARGUMENTS"),
    "unknown input": ("execute-job", {"name": "test.echo", "input": {"txt": SECRET}}, "INVALID_INPUT"),
    "wrong type of argument": ("execute-job", {"name": "test.echo", "priority": SECRET}, "INVALID_ARGUMENTS"),
    "a number as text": ("execute-job", {"name": "test.echo", "waitSeconds": "5"}, "INVALID_ARGUMENTS"),
    "wrong type of input": ("execute-job", {"name": "test.echo", "input": {"times": SECRET}}, "INVALID_INPUT"),
    "input as text": ("execute-job", {"name": "test.echo", "input": SECRET}, "INVALID_INPUT"),
    "payload over 1 MiB": ("execute-job", {"name": "test.echo", "input": {"text": SECRET + "x" * 1_100_000}}, "INPUT_TOO_LARGE"),
    "nesting over 64": ("execute-job", {"name": "test.echo", "input": {"text": DEEP}}, "INPUT_TOO_DEEP"),
    "NUL in the input": ("execute-job", {"name": "test.echo", "input": {"text": SECRET + "\0"}}, "INPUT_NOT_TEXT"),
    "NUL in a reason": ("cancel-job", {"runId": "01890a5d-ac96-774b-bcce-b302099a8057", "reason": SECRET + "\0"}, "INPUT_NOT_TEXT"),
    "half a surrogate": ("list-runs", {"traceId": "\ud800"}, "INPUT_NOT_TEXT"),
    "integer above 2^53": ("execute-job", {"name": "test.echo", "input": {"times": 2**53 + 1}}, "INPUT_NUMBER_RANGE"),
    "key over 255 bytes": ("execute-job", {"name": "test.echo", "idempotencyKey": "ü" * 128}, "KEY_TOO_LONG"),
    "empty key": ("execute-job", {"name": "test.echo", "idempotencyKey": ""}, "INVALID_KEY"),
    "long ordering key": ("execute-job", {"name": "test.echo", "orderingKey": "x" * 256}, "KEY_TOO_LONG"),
    "year 10000": ("execute-job", {"name": "test.echo", "runAt": "10000-01-01T00:00:00Z"}, "INVALID_ARGUMENTS"),
    "year 10000 by its offset": ("execute-job", {"name": "test.echo", "runAt": "9999-12-31T23:59:59-12:00"}, "INVALID_ARGUMENTS"),
    "year 10000, planned only": ("execute-job", {"name": "test.echo", "runAt": "9999-12-31T23:59:59-12:00", "dryRun": True}, "INVALID_ARGUMENTS"),
    "time before 1970": ("execute-job", {"name": "test.echo", "runAt": "1969-12-31T23:59:59Z"}, "INVALID_ARGUMENTS"),
    "label that is no text": ("execute-job", {"name": "test.echo", "labels": {SECRET: 1}}, "INVALID_ARGUMENTS"),
    "no runIds": ("get-job-status", {"runIds": []}, "INVALID_ARGUMENTS"),
    "time without offset": ("execute-job", {"name": "test.echo", "runAt": "2026-11-22T10:00:00"}, "INVALID_ARGUMENTS"),
    "time as number": ("execute-job", {"name": "test.echo", "runAt": 1_700_000_000}, "INVALID_ARGUMENTS"),
    "bad project": ("execute-job", {"name": "test.echo", "projectId": "../etc"}, "INVALID_ARGUMENTS"),
    "malformed runId": ("get-job-status", {"runId": SECRET}, "INVALID_RUN_ID"),
    "braced runId": ("get-job-status", {"runId": "{01890a5d-ac96-774b-bcce-b302099a8057}"}, "INVALID_RUN_ID"),
    "unknown runId": ("get-job-status", {"runId": "01890a5d-ac96-774b-bcce-b302099a8057"}, "RUN_NOT_FOUND"),
    "no runId": ("get-job-status", {}, "INVALID_ARGUMENTS"),
    "what is not offered": ("get-job-status", {"runId": "01890a5d-ac96-774b-bcce-b302099a8057", "include": ["everything"]}, "INVALID_ARGUMENTS"),
    "negative wait": ("get-job-status", {"runId": "01890a5d-ac96-774b-bcce-b302099a8057", "waitSeconds": -1}, "INVALID_ARGUMENTS"),
    "bad cursor": ("list-runs", {"cursor": SECRET}, "INVALID_ARGUMENTS"),
    "limit 0": ("list-runs", {"limit": 0}, "INVALID_ARGUMENTS"),
    "unknown status": ("list-runs", {"status": "pending"}, "INVALID_ARGUMENTS"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
async def test_bad_input_gets_a_typed_error_and_changes_nothing(
    case: str, client: Client, admin: psycopg.Connection
) -> None:
    tool, arguments, code = CASES[case]

    with capture_logs() as logs:
        answer = await client.call_tool(tool, arguments)

    assert answer.structured_content is not None
    error = answer.structured_content["error"]
    assert (answer.is_error, error["code"]) == (True, code)
    assert error["message"]
    assert error["hint"]
    assert error["retryable"] is False
    assert SECRET not in str(logs)
    assert admin.execute("select count(*) from jobforge.jobs").fetchone() == (0,)
    assert admin.execute("select count(*) from jobforge.audit_log").fetchone() == (0,)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9007199254740993", "1" * 5_000])
async def test_numbers_that_json_does_not_have_are_refused(
    number: str, stage: Stage, admin: psycopg.Connection
) -> None:
    body = json.dumps(call("execute-job", {"name": "test.echo", "input": {"times": "@"}}))
    headers = {**MODERN, "Authorization": f"Bearer {stage.token()}", "Mcp-Name": "execute-job"}
    async with http_server(stage) as server, httpx2.AsyncClient() as http:
        answer = await http.post(
            f"{server.url}/mcp",
            content=body.replace('"@"', number),
            headers={**headers, "Content-Type": "application/json"},
        )

    # Python's own limit on digits makes the longest one an error of the protocol, before any tool is found.
    told = answer.json()
    is_parse_error = told.get("error", {}).get("code") == -32700
    if not is_parse_error:
        assert told["result"]["structuredContent"]["error"]["code"] == "INPUT_NUMBER_RANGE"
    assert is_parse_error is (len(number) > 4_300)
    assert admin.execute("select count(*) from jobforge.jobs").fetchone() == (0,)


async def test_a_forged_token_rubbish_and_none_are_refused_alike(stage: Stage) -> None:
    good = stage.token()
    forged = good[:-6] + ("AAAAAA" if not good.endswith("AAAAAA") else "BBBBBB")
    messages: list[str] = []
    for token in (forged, "rubbish", None):
        server = build_server(stage.parts, Credential(token, Door.LOCAL))
        async with Client(server) as client:
            with pytest.raises(MCPError) as caught:
                await client.list_tools()
            answer = await client.call_tool("list-jobs", {})
        messages.append(str(caught.value))
        assert (answer.structured_content or {})["error"]["code"] == "TOKEN_INVALID"

    assert len(set(messages)) == 1
