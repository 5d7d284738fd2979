"""A search in memory finds what the database would, whoever registered it, wherever, and whenever that was committed."""

from __future__ import annotations

import json
from dataclasses import replace

import psycopg
import pytest

from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions import index
from jobforge_mcp.definitions.catalog import Catalog, Wanted
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.policy.permissions import may_list
from jobforge_mcp.router.definitions import DefinitionRouter
from jobforge_mcp.types import Caller, TenantId
from tests.postgres import ScratchDatabase
from tests.server.jobs import JOBS

ACME = Caller(TenantId("acme"), "agent", frozenset({"jobs:list", "jobs:execute"}))
GLOBEX = replace(ACME, tenant_id=TenantId("globex"))


@pytest.fixture
def router(api_database: Database) -> DefinitionRouter:
    return DefinitionRouter(api_database)


@pytest.fixture
def catalog(router: DefinitionRouter) -> Catalog:
    return Catalog(Registry(JOBS), router)


def text_of(name: str, **more: object) -> str:
    return json.dumps({"name": name, "title": "One Job", "handler": "test.echo", **more})


async def register(router: DefinitionRouter, name: str, caller: Caller = ACME, **more: object) -> None:  # fmt: skip
    await router.register_definition(caller, text_of(name, **more), lane_type="test.echo")


async def listed(
    catalog: Catalog, wanted: Wanted | None = None, *, caller: Caller = ACME
) -> list[str]:
    """Names of registered jobs, from the second list on out of memory."""
    asked = wanted or Wanted(limit=100)
    found, _ = await catalog.list(caller, asked, is_visible=may_list(caller))
    return [bound.name for bound in found if bound.name not in catalog.registry.by_name]


@pytest.mark.requirement("registering.found")
async def test_what_one_replica_registers_changes_and_removes_another_finds_at_once(
    catalog: Catalog, router: DefinitionRouter
) -> None:
    found = [await listed(catalog) for _ in range(2)]
    await register(router, "acme.b")
    found.append(await listed(catalog))
    await register(router, "acme.a", description="Pays a bill.")
    found.append(await listed(catalog))
    await register(router, "acme.b", hidden=True)
    found.append(await listed(catalog))
    await router.remove_definition(ACME, "acme.a")
    found.append(await listed(catalog))
    await register(router, "acme.b", description="Seen again.")
    found.append(await listed(catalog, Wanted("SEEN")))

    assert found == [[], [], ["acme.b"], ["acme.a", "acme.b"], ["acme.a"], [], ["acme.b"]]


async def test_a_search_in_memory_finds_what_the_database_finds(
    catalog: Catalog, router: DefinitionRouter
) -> None:
    for number in range(12):
        tags = ["even"] if number % 2 == 0 else ["odd", "even-less"]
        labels = {"team": f"t{number % 3}"}
        await register(router, f"acme.job-{number:02}", tags=tags, labels=labels)
    searches = [
        Wanted(),
        Wanted("one JOB"),
        Wanted("job-1 odd"),
        Wanted("nothing"),
        Wanted(tags=("even",)),
        Wanted(labels={"team": "t1"}, after="acme.job-04"),
        Wanted(limit=3, after="acme.job-03"),
        Wanted("even", labels={"team": "t2"}, limit=5),
    ]

    for wanted in searches:
        from_database = await listed(Catalog(catalog.registry, router), wanted)
        await listed(catalog)
        assert await listed(catalog, wanted) == from_database, wanted


async def test_what_was_under_way_while_others_looked_is_found_when_it_is_committed(
    catalog: Catalog, router: DefinitionRouter, database: ScratchDatabase
) -> None:
    await listed(catalog)
    with database.connect("jobforge_api") as slow, slow.transaction():
        slow.execute("select jobforge.enter_scope('acme', 'slow')")
        slow.execute(
            "select jobforge.register_definition('acme', %s, 'test.echo')", [text_of("acme.slow")]
        )
        await register(router, "globex.quick", GLOBEX)
        before = [await listed(catalog), await listed(catalog)]

    assert before == [[], []]
    assert await listed(catalog) == ["acme.slow"]


@pytest.mark.requirement("isolation.tools")
async def test_neither_tenants_nor_confined_callers_change_what_others_find(
    catalog: Catalog, router: DefinitionRouter
) -> None:
    await register(router, "acme.secret")
    await register(router, "acme.open")
    await register(router, "globex.own", GLOBEX)
    confined = replace(ACME, deny_types=("acme.secret",))

    for _ in range(3):
        assert await listed(catalog, caller=confined) == ["acme.open"]
        assert await listed(catalog) == ["acme.open", "acme.secret"]
        assert await listed(catalog, caller=GLOBEX) == ["globex.own"]


async def test_a_tenant_with_very_many_jobs_is_searched_by_the_database(
    catalog: Catalog, router: DefinitionRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "MOST_OF_ONE", 2)
    for name in ("acme.a", "acme.b", "acme.c"):
        await register(router, name)

    for _ in range(3):
        assert await listed(catalog) == ["acme.a", "acme.b", "acme.c"]


async def test_many_jobs_are_read_page_by_page(
    catalog: Catalog, router: DefinitionRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "PAGE", 2)
    names = [f"acme.job-{number}" for number in range(5)]
    for name in names:
        await register(router, name)

    for _ in range(3):
        assert await listed(catalog) == names


async def test_another_database_than_before_is_read_anew(
    catalog: Catalog, router: DefinitionRouter, admin: psycopg.Connection
) -> None:
    await register(router, "acme.a")
    await listed(catalog)
    assert await listed(catalog) == ["acme.a"]
    # as if the numbers it heard had been those of a database that is gone
    kept = catalog._index._tenants[ACME.tenant_id]  # pyright: ignore[reportPrivateUsage]  # no number of another database comes through a door
    assert kept is not None
    kept.settled = 2**60
    admin.execute("update jobforge.registered_jobs set job_type = 'acme.b', name_key = 'acmeb'")
    admin.execute(
        "update jobforge.job_definitions set job_type = 'acme.b', definition = definition || %s::jsonb",
        ['{"name": "acme.b"}'],
    )

    assert await listed(catalog) == ["acme.b"]
