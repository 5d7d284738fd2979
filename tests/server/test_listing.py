"""What a list of jobs costs a model."""

from __future__ import annotations

from pathlib import Path

from mcp.client import Client
from mcp.types import TextContent

from jobforge_mcp import JobContext, job
from jobforge_mcp.definitions.model import BoundJob
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.server.build import build_server
from tests.postgres import ScratchDatabase
from tests.server.jobs import Nothing
from tests.server.stage import open_stage
from tests.server.tokens import count_tokens

DOMAINS = ("billing.invoice", "support.ticket", "warehouse.stock", "marketing.campaign")
VERBS = ("create", "archive", "reconcile", "summarize", "export")
LONG = "{} the {} that was asked for, with everything that belongs to it. Takes a while, and is safe to repeat."


def _many() -> list[BoundJob]:
    return [_make(f"{domain}.{verb}", verb, domain) for domain in DOMAINS for verb in VERBS]


def _make(name: str, verb: str, domain: str) -> BoundJob:
    description = LONG.format(verb.capitalize(), domain.replace(".", " "))

    @job(name=name, description=description, tags=["business", domain], labels={"team": "any"})
    async def handler(input: Nothing, job: JobContext) -> None:
        return None

    return handler


async def test_a_list_of_20_jobs_costs_at_most_500_tokens(
    database: ScratchDatabase, tmp_path: Path
) -> None:
    registry = Registry(_many())
    async with (
        open_stage(database, tmp_path, has_pool=False, registry=registry) as stage,
        Client(build_server(stage.parts, stage.credential())) as client,
    ):
        listed = await client.call_tool("list-jobs", {"limit": 20})
        found = await client.call_tool("list-jobs", {"query": "everything reconcile ticket"})
        whole = await client.call_tool("list-jobs", {"query": "reconcile ticket", "detail": True})

    assert listed.structured_content is not None
    assert found.structured_content is not None
    assert whole.structured_content is not None
    (text,) = listed.content
    assert isinstance(text, TextContent)
    jobs = listed.structured_content["jobs"]
    assert len(jobs) == 20
    assert {member for row in jobs for member in row} == {"name", "title"}
    assert jobs[0]["title"].endswith("…")
    assert count_tokens(listed.structured_content) <= 500
    assert count_tokens(text.text) <= 500
    # What a row leaves out is searched all the same, and told with detail.
    assert [row["name"] for row in found.structured_content["jobs"]] == ["support.ticket.reconcile"]
    (detail,) = whole.structured_content["jobs"]
    assert detail["description"] == LONG.format("Reconcile", "support ticket")
    assert detail["tags"] == ["business", "support.ticket"]
