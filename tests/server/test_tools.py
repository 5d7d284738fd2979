from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from mcp.client import Client
from mcp.types import CallToolResult, ResourceLink, TextContent, TextResourceContents

from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.server.build import INSTRUCTIONS, build_server
from jobforge_mcp.types import Caller, JsonValue, Run
from tests.postgres import ScratchDatabase
from tests.server.stage import Stage, open_stage
from tests.server.tokens import count_tokens

FIVE_SCOPES = [
    Scope.JOBS_LIST, Scope.JOBS_READ, Scope.JOBS_EXECUTE, Scope.JOBS_CANCEL, Scope.JOBS_RETRY,
]  # fmt: skip


def run_of(answer: CallToolResult) -> dict[str, Any]:
    assert answer.structured_content is not None
    return answer.structured_content


def text_of(answer: CallToolResult) -> str:
    assert isinstance(answer.content[0], TextContent)
    return answer.content[0].text


def error_of(answer: CallToolResult) -> dict[str, Any]:
    assert answer.is_error
    return run_of(answer)["error"]


async def start_forever(client: Client) -> str:
    """Return the id of a run that runs."""
    answer = await client.call_tool("execute-job", {"name": "test.forever", "background": True})
    run_id: str = run_of(answer)["runId"]
    with anyio.fail_after(30):
        while run_of(answer)["status"] != "running":
            answer = await client.call_tool("get-job-status", {"runId": run_id, "waitSeconds": 0.1})
    return run_id


async def test_the_tool_list_costs_at_most_1500_tokens_and_the_instructions_150(
    stage: Stage,
) -> None:
    credential = stage.credential(scopes=FIVE_SCOPES)
    async with Client(build_server(stage.parts, credential)) as client:
        tools = (await client.list_tools()).tools

    shown: list[JsonValue] = [
        {"name": tool.name, "description": tool.description, "inputSchema": tool.input_schema}
        for tool in tools
    ]
    assert len(tools) == 6
    assert count_tokens(shown) <= 1_500
    assert count_tokens(INSTRUCTIONS) <= 150


async def test_tool_descriptions_stay_under_60_words(client: Client) -> None:
    tools = (await client.list_tools()).tools

    assert [tool.name for tool in tools if len((tool.description or "").split()) >= 60] == []


async def test_the_tool_list_is_private_and_stable(client: Client) -> None:
    first = await client.list_tools()
    second = await client.list_tools(cache_mode="bypass")

    assert first.cache_scope == "private"
    assert first.tools == second.tools


async def test_one_status_answer_costs_at_most_120_tokens_whatever_the_length_of_the_log(
    client: Client,
) -> None:
    run_id = await start_forever(client)
    looked = await client.call_tool("get-job-status", {"runId": run_id})

    assert count_tokens(run_of(looked)) <= 120
    assert count_tokens(text_of(looked)) <= 120


async def test_a_running_run_tells_neither_times_nor_trace_until_asked(client: Client) -> None:
    run_id = await start_forever(client)
    plain = run_of(await client.call_tool("get-job-status", {"runId": run_id}))
    asked = run_of(
        await client.call_tool(
            "get-job-status", {"runId": run_id, "include": ["input", "logs", "attempts"]}
        )
    )

    assert not {"createdAt", "startedAt", "traceId"} & set(plain)
    assert {"createdAt", "startedAt", "traceId"} <= set(asked)
    assert (asked["input"], asked["logs"], asked["attempts"]) == ({}, [], [])


async def test_an_answer_has_no_nulls(client: Client) -> None:
    answers = [
        await client.call_tool("execute-job", {"name": "test.noop"}),
        await client.call_tool("list-runs", {}),
        await client.call_tool("list-jobs", {"detail": True}),
        await client.call_tool("execute-job", {"name": "test.noop", "dryRun": True}),
    ]

    assert [answer for answer in answers if ":null" in _compact(answer)] == []


@pytest.mark.parametrize(
    "payload",
    ["repeat('[', 400) || repeat(']', 400)", "'{\"number\": 9007199254740993}'"],
    ids=["400 deep", "above 2^53"],
)
async def test_an_input_from_sql_that_passes_our_limits_is_told_as_text(
    payload: str, client: Client, admin: psycopg.Connection
) -> None:
    # not by enqueue_job, which would refuse it
    enqueued = admin.execute(
        f"""select e.job_id::text from jobforge.enter_scope('acme') s,
          lateral jobforge.enqueue_jobs(s, array['test.nobody'], array[{payload}]) e""".encode()
    ).fetchone()
    assert enqueued is not None

    answer = await client.call_tool("get-job-status", {"runId": enqueued[0], "include": ["input"]})

    assert not answer.is_error
    assert isinstance(run_of(answer)["input"], str)


@pytest.mark.parametrize(
    ("scopes", "status"),
    [
        ([Scope.JOBS_EXECUTE], "running"),
        ([Scope.JOBS_EXECUTE, Scope.JOBS_CANCEL], "canceled"),
    ],
    ids=["execute", "execute and cancel"],
)
async def test_only_who_may_cancel_ties_the_run_of_another_call_to_its_own(
    scopes: list[Scope], status: str, stage: Stage, client: Client
) -> None:
    again = {"name": "test.forever", "idempotencyKey": "k"}
    created = await client.call_tool("execute-job", {**again, "background": True})
    server = build_server(stage.parts, stage.credential(scopes=scopes))

    async with Client(server) as other:
        with anyio.move_on_after(2):
            await other.call_tool("execute-job", {**again, "cancelOnDisconnect": True})
        seconds = 1.5 if status == "running" else 40
        looked = await client.call_tool(
            "get-job-status", {"runId": run_of(created)["runId"], "waitSeconds": seconds}
        )

    assert run_of(looked)["status"] == status


async def test_both_halves_of_an_answer_say_what_to_do_next(client: Client) -> None:
    answer = await client.call_tool("execute-job", {"name": "test.forever", "waitSeconds": 0.2})
    run = run_of(answer)

    assert run["next"] in text_of(answer)
    for fact in (run["runId"], run["jobName"], run["status"], str(run["pollAfterMs"])):
        assert fact in text_of(answer)


async def test_at_the_cap_a_wait_ends_with_the_run_as_it_stands_and_is_no_error(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    async with (
        open_stage(database, tmp_path, wait_seconds_cap=0.3, wait_seconds_default=0.1) as stage,
        Client(build_server(stage.parts, stage.credential())) as client,
    ):
        with anyio.fail_after(30):
            answer = await client.call_tool(
                "execute-job", {"name": "test.forever", "waitSeconds": 45}
            )

    assert not answer.is_error
    assert run_of(answer)["status"] in {"queued", "running"}  # as far as the workers got by then
    assert run_of(answer)["pollAfterMs"] > 0


async def test_a_run_that_is_not_due_before_the_wait_would_end_is_not_waited_for(
    client: Client,
) -> None:
    given = {"name": "test.noop", "runAt": "2099-01-01T00:00:00Z", "waitSeconds": 45}
    with anyio.fail_after(30):
        answer = await client.call_tool("execute-job", given)
    looked = await client.call_tool("get-job-status", {"runId": run_of(answer)["runId"]})

    for told in (run_of(answer), run_of(looked)):
        assert told["status"] == "queued"
        assert told["runAt"] == "2099-01-01T00:00:00.000Z"
        assert "after runAt" in told["next"]


async def test_a_run_that_is_tried_again_later_says_where_to_read_why(client: Client) -> None:
    created = await client.call_tool("execute-job", {"name": "test.fails"})
    run_id = run_of(created)["runId"]

    await client.call_tool("retry-job", {"runId": run_id, "runAt": "2099-01-01T00:00:00Z"})
    looked = await client.call_tool("get-job-status", {"runId": run_id})

    assert "include attempts" in run_of(looked)["next"]
    assert count_tokens(run_of(looked)) <= 120


async def test_a_quiet_wait_sends_beats_that_grow(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    heard: list[float] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    async with (
        open_stage(database, tmp_path, beat_seconds=0.1) as stage,
        Client(build_server(stage.parts, stage.credential())) as client,
    ):
        await client.call_tool(
            "execute-job", {"name": "test.forever", "waitSeconds": 2}, progress_callback=hear
        )

    assert len(heard) >= 3
    assert heard == sorted(set(heard))
    assert max(heard) < 1


async def test_a_long_poll_ends_when_the_version_passes(client: Client) -> None:
    started = run_of(
        await client.call_tool(
            "execute-job",
            {"name": "test.steps", "input": {"steps": 4, "seconds": 0.4}, "background": True},
        )
    )
    with anyio.fail_after(60):
        changed = run_of(
            await client.call_tool(
                "get-job-status",
                {"runId": started["runId"], "waitSeconds": 40, "sinceVersion": started["version"]},
            )
        )

    assert changed["version"] > started["version"]
    assert changed["status"] == "running"


async def test_several_runs_are_waited_for_together(client: Client) -> None:
    ids = [
        run_of(await client.call_tool("execute-job", {"name": name, "background": True}))["runId"]
        for name in ("test.steps", "test.fails", "test.noop")
    ]
    unknown = "01890a5d-ac96-774b-bcce-b302099a8057"
    answer = await client.call_tool(
        "get-job-status", {"runIds": [*ids, unknown], "waitSeconds": 40}
    )

    runs = run_of(answer)["runs"]
    assert [run["runId"] for run in runs] == ids
    assert [run["status"] for run in runs] == ["succeeded", "failed", "succeeded"]
    assert run_of(answer)["notFound"] == [unknown]


async def test_when_none_of_several_runs_is_found_next_does_not_speak_of_results(
    client: Client,
) -> None:
    unknown = "01890a5d-ac96-774b-bcce-b302099a8057"
    answer = await client.call_tool("get-job-status", {"runIds": [unknown]})

    assert run_of(answer)["runs"] == []
    assert "result" not in run_of(answer)["next"]
    assert "list-runs" in run_of(answer)["next"]


async def test_a_long_result_comes_as_a_link_with_a_preview(client: Client) -> None:
    answer = await client.call_tool(
        "execute-job", {"name": "test.big", "input": {"length": 100_000}}
    )
    run = run_of(answer)
    resource = await client.read_resource(run["resultUri"])

    assert "result" not in run
    assert len(run["resultPreview"]) <= 600
    assert [link.uri for link in answer.content if isinstance(link, ResourceLink)] == [
        run["resultUri"]
    ]
    assert isinstance(resource.contents[0], TextResourceContents)
    assert len(json.loads(resource.contents[0].text)) == 99_999
    assert count_tokens(run) + count_tokens(text_of(answer)) < 8_000


async def test_a_result_of_some_thousand_words_is_told_in_full(client: Client) -> None:
    answer = await client.call_tool(
        "execute-job", {"name": "test.big", "input": {"length": 15_000}}
    )

    assert len(run_of(answer)["result"]) == 15_000
    assert count_tokens(run_of(answer)) < 8_000


async def test_a_job_that_acts_outside_needs_a_key(client: Client) -> None:
    refused = await client.call_tool("execute-job", {"name": "test.email"})
    done = await client.call_tool("execute-job", {"name": "test.email", "idempotencyKey": "k"})

    assert error_of(refused)["code"] == "IDEMPOTENCY_KEY_REQUIRED"
    assert error_of(refused)["hint"]
    assert run_of(done)["result"] == "sent"


async def test_a_dry_run_says_what_would_happen_and_writes_no_run(
    client: Client, admin: psycopg.Connection
) -> None:
    plan = await client.call_tool(
        "execute-job", {"name": "test.echo", "dryRun": True, "idempotencyKey": "k"}
    )
    before = admin.execute("select count(*) from jobforge.jobs").fetchone()
    made = run_of(
        await client.call_tool("execute-job", {"name": "test.echo", "idempotencyKey": "k"})
    )
    again = run_of(
        await client.call_tool(
            "execute-job", {"name": "test.echo", "dryRun": True, "idempotencyKey": "k"}
        )
    )
    conflict = run_of(
        await client.call_tool(
            "execute-job",
            {"name": "test.echo", "dryRun": True, "idempotencyKey": "k", "input": {"text": "b"}},
        )
    )

    assert before == (0,)
    assert run_of(plan)["outcome"] == "created"
    assert (again["outcome"], again["runId"]) == ("replayed", made["runId"])
    assert conflict["outcome"] == "conflict"
    assert admin.execute("select count(*) from jobforge.audit_log").fetchone() == (4,)


@pytest.mark.requirement("tools.rehearsal")
async def test_a_rehearsal_tells_the_handler_and_everybody_who_looks(client: Client) -> None:
    given = {"name": "test.email", "idempotencyKey": "k", "rehearse": True}

    first = await client.call_tool("execute-job", given)
    again = run_of(await client.call_tool("execute-job", given))
    rehearsed = run_of(first)
    seen = run_of(
        await client.call_tool(
            "get-job-status", {"runId": rehearsed["runId"], "include": ["report"]}
        )
    )
    planned = run_of(await client.call_tool("execute-job", {**given, "dryRun": True}))

    assert (rehearsed["result"], rehearsed["rehearsal"]) == ("would send", True)
    assert text_of(first).startswith(f"rehearsal {rehearsed['runId']} of test.email is succeeded")
    assert (again["outcome"], again["runId"]) == ("replayed", rehearsed["runId"])
    assert (seen["rehearsal"], "It was a rehearsal" in seen["report"]) == (True, True)
    assert planned["outcome"] == "replayed"


@pytest.mark.requirement("tools.rehearsal")
async def test_a_rehearsal_and_the_real_thing_never_pass_for_each_other(client: Client) -> None:
    first = {"name": "test.email", "idempotencyKey": "a"}
    other = {"name": "test.email", "idempotencyKey": "b"}
    await client.call_tool("execute-job", {**first, "rehearse": True})
    done = run_of(await client.call_tool("execute-job", other))

    real = await client.call_tool("execute-job", first)
    rehearsal = await client.call_tool("execute-job", {**other, "rehearse": True})

    assert (done["result"], "rehearsal" in done) == ("sent", False)
    assert error_of(real)["code"] == error_of(rehearsal)["code"] == "IDEMPOTENCY_CONFLICT"


async def test_a_job_may_need_a_scope_of_its_own(stage: Stage) -> None:
    async with Client(build_server(stage.parts, stage.credential(scopes=FIVE_SCOPES))) as client:
        listed = run_of(await client.call_tool("list-jobs", {"query": "guarded"}))
        refused = await client.call_tool("execute-job", {"name": "test.guarded"})

    assert listed["jobs"] == []
    assert error_of(refused)["code"] == "POLICY_DENIED"


async def test_lists_are_paged_by_cursor(client: Client) -> None:
    for _ in range(3):
        await client.call_tool("execute-job", {"name": "test.noop"})

    first = run_of(await client.call_tool("list-runs", {"limit": 2}))
    second = run_of(
        await client.call_tool("list-runs", {"limit": 2, "cursor": first["nextCursor"]})
    )
    jobs = run_of(await client.call_tool("list-jobs", {"limit": 1}))
    more = run_of(await client.call_tool("list-jobs", {"limit": 50, "cursor": jobs["nextCursor"]}))

    assert (len(first["runs"]), len(second["runs"])) == (2, 1)
    assert "nextCursor" not in second
    assert jobs["jobs"][0]["name"] not in [job["name"] for job in more["jobs"]]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("test.noop", {}),
        ("test.echo", {"text": "a e5 1e5 ü", "times": 3}),
        ("test.number", {}),
        ("test.steps", {"steps": 2, "seconds": 0.0}),
        ("test.big", {"length": 9_000}),
    ],
)
async def test_an_inline_answer_says_what_a_look_at_the_run_says(
    client: Client, name: str, given: dict[str, Any]
) -> None:
    call = {"name": name, "input": given, "labels": {"team": "a", "b": "c"}, "priority": 1}

    answered = run_of(await client.call_tool("execute-job", call))
    looked = run_of(await client.call_tool("get-job-status", {"runId": answered["runId"]}))

    assert answered.pop("outcome") == "created"
    assert answered == looked


async def test_an_inline_call_costs_two_flushed_commits(
    client: Client, admin: psycopg.Connection
) -> None:
    await client.call_tool("execute-job", {"name": "test.noop"})
    before = _flushes(admin)
    for _ in range(20):
        await client.call_tool("execute-job", {"name": "test.noop"})
    after = _flushes(admin)

    assert (after - before) / 20 <= 2.5  # the pool's own housekeeping may add one now and then


async def test_without_a_pool_a_run_is_queued_and_next_says_why(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    async with (
        open_stage(database, tmp_path, has_pool=False) as stage,
        Client(build_server(stage.parts, stage.credential())) as client,
    ):
        answer = await client.call_tool("execute-job", {"name": "test.noop", "waitSeconds": 0.2})

    assert (answer.is_error, run_of(answer)["status"]) == (False, "queued")
    assert "worker" in run_of(answer)["next"]


async def test_what_breaks_inside_is_told_as_internal_with_a_trace_and_nothing_else(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(caller: Caller, job_id: object) -> Run:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(stage.parts.router, "get_run", broken)
    async with Client(build_server(stage.parts, stage.credential())) as client:
        answer = await client.call_tool(
            "get-job-status", {"runId": "01890a5d-ac96-774b-bcce-b302099a8057"}
        )

    assert error_of(answer)["code"] == "INTERNAL"
    assert "trace" in error_of(answer)["message"]
    assert "hunter2" not in _compact(answer)


async def test_the_trace_of_the_client_is_the_trace_of_the_run(client: Client) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = await client.call_tool(
        "execute-job",
        {"name": "test.noop"},
        meta={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"},
    )
    found = run_of(await client.call_tool("list-runs", {"traceId": trace}))

    assert run_of(answer)["traceId"] == trace
    assert [run["runId"] for run in found["runs"]] == [run_of(answer)["runId"]]


def _compact(answer: CallToolResult) -> str:
    return json.dumps(answer.structured_content, separators=(",", ":")) + text_of(answer)


def _flushes(admin: psycopg.Connection) -> int:
    """Count flushed commits: those of the database that are not asynchronous, by the WAL's own statistics."""
    admin.execute("select pg_stat_force_next_flush()")
    row = (
        admin.execute("select wal_sync from pg_stat_wal").fetchone()
        if _has_wal_sync(admin)
        else None
    )
    if row is None:
        row = admin.execute(
            "select sum(fsyncs)::bigint from pg_stat_io where object = 'wal'"
        ).fetchone()
    assert row is not None
    return int(row[0] or 0)


def _has_wal_sync(admin: psycopg.Connection) -> bool:
    found = admin.execute(
        "select 1 from pg_attribute where attrelid = 'pg_stat_wal'::regclass and attname = 'wal_sync'"
    ).fetchone()
    return found is not None


async def test_no_output_schema_refers_to_the_schema_that_anything_fits(client: Client) -> None:
    tools = (await client.list_tools()).tools

    assert [tool.name for tool in tools if "JsonValue" in json.dumps(tool.output_schema)] == []
