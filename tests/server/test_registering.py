"""Jobs registered as data, over a real MCP client: any replica runs them at once, and nobody gains a right by them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Collection
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from mcp.client import Client
from mcp.types import CallToolResult, TextResourceContents

from jobforge_mcp import JobContext, job
from jobforge_mcp.definitions.model import Permission
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.policy.gate import Credential, Door
from jobforge_mcp.policy.scopes import ALL_SCOPES, Scope
from jobforge_mcp.policy.tokens import Grant, issue_token
from jobforge_mcp.server.build import build_server
from jobforge_mcp.types import GuardedCall
from tests.postgres import ScratchDatabase
from tests.server.jobs import JOBS, Words
from tests.server.stage import Stage, open_stage

HELLO: dict[str, Any] = {
    "name": "acme.hello",
    "title": "Say hello",
    "description": "Greets somebody.",
    "handler": "test.echo",
    "input": {"times": 2},
    "inputSchema": {
        "type": "object",
        "properties": {"text": {"type": "string", "default": "hi "}},
        "additionalProperties": False,
    },
    "tags": ["greeting"],
    "labels": {"team": "door"},
}


@pytest.fixture
async def stage(database: ScratchDatabase, tmp_path: Path) -> AsyncGenerator[Stage]:
    async with open_stage(database, tmp_path, register_job_enabled=True) as opened:
        yield opened


@pytest.fixture
async def client(stage: Stage) -> AsyncGenerator[Client]:
    async with Client(build_server(stage.parts, stage.credential())) as connected:
        yield connected


def told(answer: CallToolResult) -> dict[str, Any]:
    assert answer.structured_content is not None
    assert not answer.is_error, answer.structured_content
    return answer.structured_content


def error_of(answer: CallToolResult) -> dict[str, Any]:
    assert answer.is_error, answer.structured_content
    assert answer.structured_content is not None
    return answer.structured_content["error"]


async def register(client: Client, **changes: object) -> CallToolResult:
    return await client.call_tool("register-job", {**HELLO, **changes})


def agent(
    stage: Stage, subject: str, scopes: Collection[Scope] = ALL_SCOPES, **limits: Any
) -> Credential:
    grant = Grant("acme", scopes, (), subject=subject, lifetime=timedelta(hours=1), **limits)
    token = issue_token(
        stage.keys.ensure(),
        grant,
        issuer=stage.settings.token_issuer,
        audience=stage.settings.token_audience,
    )
    return Credential(token, Door.LOCAL)


@pytest.mark.requirement("registering.runs")
async def test_a_registered_job_runs_at_once_on_every_replica(
    stage: Stage, database: ScratchDatabase, tmp_path: Path
) -> None:
    async with (
        open_stage(database, tmp_path, register_job_enabled=True) as other,
        Client(build_server(stage.parts, stage.credential())) as here,
        Client(build_server(other.parts, stage.credential())) as there,
    ):
        registered = told(await register(here))
        answer = told(
            await there.call_tool("execute-job", {"name": "acme.hello", "input": {"text": "a"}})
        )
        changed = told(await register(here, input={"times": 3}))
        again = told(await there.call_tool("execute-job", {"name": "acme.hello", "input": {}}))

    assert (registered["outcome"], registered["version"]) == ("created", "1")
    assert (answer["jobName"], answer["jobVersion"], answer["status"]) == (
        "acme.hello",
        "1",
        "succeeded",
    )
    assert answer["result"] == {"said": "aa"}
    assert (changed["version"], again["jobVersion"]) == ("2", "2")
    assert again["result"] == {"said": "hi hi hi "}


@pytest.mark.requirement("registering.runs")
async def test_a_server_without_a_pool_leaves_it_to_the_workers_of_its_handler(
    stage: Stage, database: ScratchDatabase, tmp_path: Path
) -> None:
    async with (
        open_stage(database, tmp_path, has_pool=False, register_job_enabled=True) as other,
        Client(build_server(other.parts, stage.credential())) as client,
    ):
        told(await register(client))
        answer = told(await client.call_tool("execute-job", {"name": "acme.hello"}))

    assert answer["result"] == {"said": "hi hi "}


@pytest.mark.requirement("registering.runs")
async def test_a_chain_a_map_and_a_switch_run_at_once(client: Client) -> None:
    base = {key: HELLO[key] for key in ("title", "inputSchema")}
    chain = {
        **base,
        "name": "acme.chain",
        "chain": [
            {"name": "a", "handler": "test.echo", "input": {"text": {"$ref": "/input/text"}}},
            {
                "name": "b",
                "handler": "test.echo",
                "input": {"text": {"$ref": "/steps/a/result/said"}, "times": 2},
            },
        ],
    }
    each = {
        **base,
        "name": "acme.each",
        "map": {
            "items": {"$jmespath": "[input.text, input.text]"},
            "do": {"handler": "test.echo", "input": {"text": {"$ref": "/item"}}},
        },
    }
    choice = {
        **base,
        "name": "acme.choice",
        "switch": {
            "cases": [{"when": False, "do": {"handler": "test.dies"}}],
            "default": {"handler": "test.echo", "input": {"text": "other"}},
        },
    }
    results: list[object] = []
    for definition in (chain, each, choice):
        told(await client.call_tool("register-job", definition))
        answer = await client.call_tool(
            "execute-job", {"name": definition["name"], "input": {"text": "x"}, "waitSeconds": 40}
        )
        results.append(told(answer)["result"])
    unknown = await client.call_tool(
        "register-job",
        {**chain, "name": "acme.other", "chain": [{"name": "a", "handler": "no.such"}]},
    )

    assert results == [{"said": "xx"}, [{"said": "x"}, {"said": "x"}], {"said": "other"}]
    assert error_of(unknown)["code"] == "JOB_NOT_FOUND"


@pytest.mark.requirement("registering.idempotent")
async def test_the_same_definition_again_changes_nothing(client: Client) -> None:
    first = told(await register(client))
    second = told(await register(client, labels={"team": "door"}))
    planned = told(await register(client, cost=5, dryRun=True))
    third = told(await register(client, timeoutMs=1_000))
    listed = told(await client.call_tool("list-jobs", {"query": "greets", "detail": True}))

    assert [first["outcome"], second["outcome"], planned["outcome"], third["outcome"]] == [
        "created",
        "unchanged",
        "planned",
        "created",
    ]
    assert first["hash"] == second["hash"] != third["hash"]
    assert (planned["version"], third["version"]) == ("2", "2")
    (found,) = listed["jobs"]
    assert (found["version"], found["timeoutMs"], found["cost"]) == ("2", 1_000, 1)


async def test_a_template_makes_the_whole_input_of_the_handler(client: Client) -> None:
    told(
        await register(
            client,
            input={"text": {"$jmespath": "join('-', input.words)"}, "times": 1},
            inputSchema={
                "type": "object",
                "properties": {"words": {"type": "array", "items": {"type": "string"}}},
                "required": ["words"],
                "additionalProperties": False,
            },
        )
    )

    answer = await client.call_tool(
        "execute-job", {"name": "acme.hello", "input": {"words": ["a", "b"]}}
    )
    refused = await client.call_tool("execute-job", {"name": "acme.hello", "input": {"text": "x"}})

    assert told(answer)["result"] == {"said": "a-b"}
    assert error_of(refused)["code"] == "INVALID_INPUT"


@pytest.mark.requirement("registering.removed")
async def test_a_removed_job_is_refused_until_it_is_registered_again(client: Client) -> None:
    told(await register(client))
    later = {"name": "acme.hello", "runAt": "2999-01-01T00:00:00Z"}
    waiting = told(await client.call_tool("execute-job", later))
    planned = told(await client.call_tool("remove-job", {"name": "acme.hello", "dryRun": True}))
    removed = told(await client.call_tool("remove-job", {"name": "acme.hello"}))
    refused = await client.call_tool("execute-job", {"name": "acme.hello"})
    listed = told(await client.call_tool("list-jobs", {"query": "greets"}))
    kept = told(await client.call_tool("get-job-status", {"runId": waiting["runId"]}))
    again = told(await client.call_tool("remove-job", {"name": "acme.hello"}))
    back = told(await register(client))
    ran = told(await client.call_tool("execute-job", {"name": "acme.hello"}))

    assert (planned["outcome"], planned["queuedRuns"]) == ("planned", 1)
    assert (removed["outcome"], removed["queuedRuns"]) == ("removed", 1)
    assert error_of(refused)["code"] == "JOB_REMOVED"
    assert listed["jobs"] == []
    assert kept["status"] == "queued"
    assert (again["outcome"], back["outcome"], ran["status"]) == (
        "unchanged",
        "created",
        "succeeded",
    )


@pytest.mark.requirement("registering.found")
async def test_it_is_found_by_text_tag_and_label_among_the_installed_ones(client: Client) -> None:
    told(await register(client))
    for number in range(5):
        told(await register(client, name=f"acme.copy-{number}", description=f"Copy {number}."))
    found: list[list[str]] = []
    for wanted in (
        {"query": "greets SOMEBODY"},
        {"tags": ["greeting"]},
        {"labels": {"team": "door"}},
    ):
        listed = told(await client.call_tool("list-jobs", wanted))
        found.append([job["name"] for job in listed["jobs"]])
    names: list[str] = []
    cursor: str | None = None
    while True:
        page = {"limit": 3} if cursor is None else {"limit": 3, "cursor": cursor}
        listed = told(await client.call_tool("list-jobs", page))
        names += [job["name"] for job in listed["jobs"]]
        cursor = listed.get("nextCursor")
        if cursor is None:
            break

    copies = [f"acme.copy-{number}" for number in range(5)]
    assert found == [["acme.hello"], [*copies, "acme.hello"], [*copies, "acme.hello"]]
    assert names == sorted(names)
    assert {"acme.hello", *copies, "test.echo"} <= set(names)
    assert len(names) == len(set(names))


async def test_its_resource_shows_the_definition(client: Client) -> None:
    told(await register(client))

    resource = await client.read_resource("jobforge://jobs/acme.hello")
    listed = await client.list_resources()

    assert isinstance(resource.contents[0], TextResourceContents)
    shown = json.loads(resource.contents[0].text)
    assert (shown["name"], shown["inputSchema"]) == ("acme.hello", HELLO["inputSchema"])
    assert "jobforge://jobs/acme.hello" in [str(found.uri) for found in listed.resources]


@pytest.mark.requirement("registering.approval")
async def test_a_quarantined_version_runs_once_somebody_else_approved_it(
    stage: Stage, database: ScratchDatabase
) -> None:
    from jobforge_mcp import registering
    from jobforge_mcp.types import CallOrigin

    with database.connect() as connection:
        connection.execute("select jobforge.require_approval('acme', true)")
    author = stage.parts.gate.identify(agent(stage, "author"))
    other = stage.parts.gate.identify(agent(stage, "other"))
    async with Client(build_server(stage.parts, agent(stage, "author"))) as client:
        first = told(await register(client))
        refused = await client.call_tool("execute-job", {"name": "acme.hello"})
        listed = told(await client.call_tool("list-jobs", {"query": "greets"}))
        with pytest.raises(Exception, match="may not approve it") as by_author:
            await registering.approve(
                stage.parts.catalog, author, "acme.hello", origin=CallOrigin("test")
            )
        approved = await registering.approve(
            stage.parts.catalog, other, "acme.hello", origin=CallOrigin("test")
        )
        ran = told(await client.call_tool("execute-job", {"name": "acme.hello"}))
        second = told(await register(client, input={"times": 9}))
        still = told(await client.call_tool("execute-job", {"name": "acme.hello"}))

    assert (first["outcome"], second["outcome"]) == ("quarantined", "quarantined")
    assert error_of(refused)["code"] == "JOB_QUARANTINED"
    assert listed["jobs"] == []
    assert by_author.value.code == "APPROVER_IS_AUTHOR"  # type: ignore[attr-defined]  # a JobForgeError
    assert approved.outcome == "approved"
    assert (ran["result"], still["result"]) == ({"said": "hi hi "}, {"said": "hi hi "})


@pytest.mark.requirement("registering.rights")
async def test_whoever_registers_must_be_allowed_to_run_what_it_uses(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    asked: list[GuardedCall] = []

    def guard(call: GuardedCall) -> bool:
        asked.append(call)
        return call.caller.subject != "stranger"

    @job(
        name="pay.out",
        effects="external",
        guard=guard,
        permissions=[Permission(roles=("cashier",))],
    )
    async def pay_out(input: Words, job: JobContext) -> str:
        return input.text

    registry = Registry([*JOBS, pay_out])
    async with open_stage(
        database, tmp_path, registry=registry, register_job_enabled=True, action_jobs_enabled=True
    ) as stage:
        codes: dict[str, str] = {}
        callers = {
            "cashier": agent(stage, "cashier", roles=("cashier",)),
            "nobody": agent(stage, "nobody"),
            "stranger": agent(stage, "stranger", roles=("cashier",)),
            "inside": agent(
                stage, "inside", ALL_SCOPES - {Scope.ACTION_EXECUTE}, roles=("cashier",)
            ),
        }
        wanted: dict[str, Any] = {"handler": "pay.out", "input": {}, "name": "acme.pay"}
        for who, credential in callers.items():
            async with Client(build_server(stage.parts, credential)) as client:
                answer = await register(client, **wanted)
                codes[who] = error_of(answer)["code"] if answer.is_error else "ok"
        runs: dict[str, str] = {}
        for who, credential in callers.items():
            async with Client(build_server(stage.parts, credential)) as client:
                answer = await client.call_tool(
                    "execute-job", {"name": "acme.pay", "idempotencyKey": who}
                )
                runs[who] = error_of(answer)["code"] if answer.is_error else "ok"
        async with Client(build_server(stage.parts, callers["cashier"])) as client:
            without_key = await client.call_tool("execute-job", {"name": "acme.pay"})
            listed = told(
                await client.call_tool("list-jobs", {"query": "acme.pay", "detail": True})
            )
            weaker = await register(client, **{**wanted, "effects": "none", "name": "acme.weak"})

    denied = {"nobody": "POLICY_DENIED", "stranger": "POLICY_DENIED", "inside": "POLICY_DENIED"}
    assert codes == {"cashier": "ok", **denied}
    assert runs == {"cashier": "ok", **denied}
    assert error_of(without_key)["code"] == "IDEMPOTENCY_KEY_REQUIRED"
    assert listed["jobs"][0]["effects"] == "external"
    assert error_of(weaker)["code"] == "DEFINITION_INVALID"


@pytest.mark.requirement("secrets.scan-of-arguments")
@pytest.mark.parametrize(
    "member",
    [
        {"description": "with AKIA" + "Q" * 16},
        {"input": {"text": "glpat-" + "c" * 20}},
        {"labels": {"k": "AKIA" + "Q" * 16}},
    ],
    ids=["description", "input", "label"],
)
async def test_a_definition_that_holds_an_obvious_key_is_not_stored(
    client: Client, member: dict[str, Any]
) -> None:
    answer = await client.call_tool("register-job", {**HELLO, **member})

    assert error_of(answer)["code"] == "SECRET_IN_INPUT"
    assert "Q" * 16 not in str(answer.structured_content)


@pytest.mark.requirement("registering.names")
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("test.echo", "NAME_TAKEN"),
        ("test-echo", "NAME_CONFUSABLE"),
        ("test.ech0", "NAME_CONFUSABLE"),
        ("test.ehco", "NAME_CONFUSABLE"),
        ("test.echos", "NAME_CONFUSABLE"),
        ("jobforge.composition", "DEFINITION_INVALID"),
        ("Acme.Hello", "DEFINITION_INVALID"),
        ("acme_hello", "DEFINITION_INVALID"),
        ("acme.hеllo", "DEFINITION_INVALID"),
        ("acme.hello\u200b", "DEFINITION_INVALID"),
        ("-acme", "DEFINITION_INVALID"),
        ("a" * 65, "DEFINITION_INVALID"),
    ],
)
async def test_a_name_that_could_be_taken_for_another_is_refused(
    client: Client, name: str, code: str
) -> None:
    assert error_of(await register(client, name=name))["code"] == code


@pytest.mark.requirement("registering.names")
async def test_a_name_that_looks_like_another_registered_one_is_refused(stage: Stage) -> None:
    async with Client(build_server(stage.parts, agent(stage, "one"))) as client:
        told(await register(client))
        told(await register(client, name="acme.hello-2", input={}))
        own = await register(client, name="acme.hallo", input={})
        folded = await register(client, name="acme.he1lo")
    async with Client(build_server(stage.parts, agent(stage, "two"))) as client:
        near = await register(client, name="acme.helo")
        version = await register(client, input={"times": 7})

    assert told(own)["outcome"] == "created"
    assert error_of(folded)["code"] == "NAME_CONFUSABLE"
    assert error_of(near)["code"] == "NAME_CONFUSABLE"
    assert told(version)["version"] == "2"


@pytest.mark.requirement("registering.texts")
async def test_texts_lose_what_hides_and_are_cut(client: Client) -> None:
    hidden = "Greets\x1b[31m\u202e you\u200b\U000e0041." + "x" * 600
    told(await register(client, description=hidden, title="a\x07b"))

    listed = told(await client.call_tool("list-jobs", {"query": "greets", "detail": True}))

    (found,) = listed["jobs"]
    assert found["description"].startswith("Greets you.xxx")
    assert (len(found["description"]), found["title"]) == (512, "ab")


async def test_it_is_off_unless_the_operator_switched_it_on(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    async with (
        open_stage(database, tmp_path) as stage,
        Client(build_server(stage.parts, stage.credential())) as client,
    ):
        names = {tool.name for tool in (await client.list_tools()).tools}
        refused = [await register(client), await client.call_tool("remove-job", {"name": "x"})]

    assert not {"register-job", "remove-job"} & names
    assert [error_of(answer)["code"] for answer in refused] == ["FEATURE_DISABLED"] * 2


async def test_a_token_confined_to_types_neither_registers_nor_sees_others(stage: Stage) -> None:
    async with Client(build_server(stage.parts, stage.credential())) as client:
        told(await register(client))
    confined = agent(stage, "confined", job_types=("beta.**", "test.echo"))
    async with Client(build_server(stage.parts, confined)) as client:
        codes = [
            error_of(await register(client))["code"],
            error_of(await client.call_tool("remove-job", {"name": "acme.hello"}))["code"],
            error_of(await client.call_tool("execute-job", {"name": "acme.hello"}))["code"],
        ]
        own = told(await register(client, name="beta.hello"))
        listed = told(await client.call_tool("list-jobs", {}))

    assert codes == ["POLICY_DENIED"] * 3
    assert own["outcome"] == "created"
    assert [found["name"] for found in listed["jobs"]] == ["beta.hello", "test.echo"]


async def test_nothing_of_another_tenant_is_known(stage: Stage) -> None:
    async with Client(build_server(stage.parts, stage.credential())) as client:
        told(await register(client))
    async with Client(build_server(stage.parts, stage.credential("globex"))) as client:
        unknown = await client.call_tool("execute-job", {"name": "acme.hallo"})
        foreign = await client.call_tool("execute-job", {"name": "acme.hello"})
        removed = await client.call_tool("remove-job", {"name": "acme.hello"})
        own = told(await register(client))

    assert error_of(foreign)["code"] == error_of(unknown)["code"] == "JOB_NOT_FOUND"
    assert error_of(removed)["code"] == "JOB_NOT_FOUND"
    assert own["version"] == "1"


async def test_limits_and_debounce_are_registered_by_tool_and_shown_in_detail(
    client: Client,
) -> None:
    limits = {
        "concurrency": {"limit": 1, "key": "/text"},
        "rateLimit": {"count": 9, "periodMs": 60_000},
        "debounce": {"windowMs": 60_000},
    }
    await client.call_tool("register-job", {**HELLO, **limits})

    shown = told(await client.call_tool("list-jobs", {"query": "hello", "detail": True}))
    first = told(await client.call_tool("execute-job", {"name": "acme.hello", "background": True}))
    last = told(await client.call_tool("execute-job", {"name": "acme.hello", "background": True}))
    held = told(await client.call_tool("get-job-status", {"runId": last["runId"]}))
    replaced = told(await client.call_tool("get-job-status", {"runId": first["runId"]}))

    assert shown["jobs"][0]["concurrency"] == limits["concurrency"]
    assert shown["jobs"][0]["rateLimit"] == limits["rateLimit"]
    assert "debounce key" in held["next"]
    assert replaced["error"]["code"] == "DEBOUNCED"
    assert replaced["next"].startswith("Follow the newer run that error names instead")


async def test_a_dry_run_says_that_somebody_else_would_have_to_approve(
    client: Client, database: ScratchDatabase
) -> None:
    with database.connect() as connection:
        connection.execute("select jobforge.require_approval('acme', true)")

    planned = told(await client.call_tool("register-job", {**HELLO, "dryRun": True}))

    assert planned["outcome"] == "planned"
    assert "quarantined until somebody else approves" in planned["next"]


async def test_a_dry_run_of_a_run_says_which_limits_and_scopes_apply(client: Client) -> None:
    limited = {**HELLO, "concurrency": {"limit": 2, "key": "/text"}}
    await client.call_tool("register-job", limited)

    planned = told(
        await client.call_tool(
            "execute-job", {"name": "acme.hello", "input": {"text": "a"}, "dryRun": True}
        )
    )

    assert planned["limits"] == {"concurrency": {"limit": 2, "key": "a"}}
    assert (planned["scopes"], planned["jobVersion"]) == (["jobs:execute"], "1")


async def test_a_page_after_the_last_says_so(client: Client) -> None:
    page = told(await client.call_tool("list-jobs", {"cursor": "zzz"}))

    assert (page["jobs"], page["next"]) == ([], "Nothing comes after this cursor.")
