"""The server, databases and routers that tests act on. Real PostgreSQL, always.

``JOBFORGE_TEST_SERVER`` chooses the server: ``embedded`` (default: the wheel), ``system`` (this machine's newest), or a
folder with its programs. The header of the run says which it is.

===================  ========  =======================================================================================
fixture              lives     is
===================  ========  =======================================================================================
``cluster``          session   the running server; ``cluster.url(role, database)``
``databases``        session   makes databases: ``create_empty()``, ``create_migrated()``, ``drop(database)``
``template``         session   the template exists; needed only by what makes databases itself
``empty_database``   test      an empty database that ``jobforge_admin`` owns
``database``         test      a migrated database of its own; ``database.url(role)``, ``database.connect(role)``
``admin``            test      blocking autocommit connection of the superuser to ``database``: to arrange, to look
``clock``            test      ``clock.advance(timedelta(seconds=31))``, ``clock.now()`` of ``database``
``rollback``         test      ``rollback("jobforge_api")``: an open transaction as that role, on a migrated database
                               that all tests of the process share, rolled back at the end; under 1 ms
``api_database``     test      an open pool of role ``jobforge_api`` on ``database``
``worker_database``  test      the same for ``jobforge_worker``
``router``           test      ``Router`` over ``api_database``
``worker_router``    test      ``WorkerRouter`` over ``worker_database``
``acme, globex``     test      callers of two tenants with every scope
``make_caller``      session   ``make_caller("acme", projects=["p1"])``: other callers
===================  ========  =======================================================================================
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol

import psycopg
import pytest
from psycopg import sql

from jobforge_mcp.db.pool import Database
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.leases import WorkerRouter
from jobforge_mcp.types import Caller, TenantId
from tests.postgres import (
    Binaries,
    Clock,
    Cluster,
    DatabaseMaker,
    ScratchDatabase,
    choose_binaries,
    running_cluster,
)

BINARIES = pytest.StashKey[Binaries]()
CLUSTER = pytest.StashKey[Cluster]()
RUNNING = pytest.StashKey[AbstractContextManager[Cluster]]()


class CallerMaker(Protocol):
    """Makes a caller of a tenant."""

    def __call__(
        self, tenant: str, *, projects: Iterable[str] | None = None, scopes: Iterable[str] = ("*",)
    ) -> Caller: ...


class WorkerNode(Protocol):
    """What the controller of xdist, which has no types, knows of a worker."""

    config: pytest.Config
    workerinput: dict[str, str]


def pytest_configure(config: pytest.Config) -> None:
    try:
        config.stash[BINARIES] = choose_binaries()
    except LookupError as error:
        raise pytest.UsageError(str(error)) from None
    if (inherited := worker_input(config)) is not None:
        config.stash[CLUSTER] = Cluster(inherited["socket"], inherited["version"])


def pytest_report_header(config: pytest.Config) -> str:
    return f"server: {config.stash[BINARIES]}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Start the server that all workers share, while this process has one thread."""
    running = running_cluster(config.stash[BINARIES])
    config.stash[CLUSTER] = running.__enter__()
    config.stash[RUNNING] = running


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerNode) -> None:
    shared = node.config.stash[CLUSTER]
    node.workerinput["socket"] = shared.socket
    node.workerinput["version"] = shared.version


def pytest_unconfigure(config: pytest.Config) -> None:
    if RUNNING in config.stash:
        config.stash[RUNNING].__exit__(None, None, None)


def worker_input(config: pytest.Config) -> dict[str, str] | None:
    """What the controller gave to this process, if it is a worker of xdist."""
    return getattr(config, "workerinput", None)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Choose the one loop that psycopg can run on."""
    return "asyncio"


@pytest.fixture(scope="session")
def cluster(pytestconfig: pytest.Config) -> Generator[Cluster]:
    if CLUSTER in pytestconfig.stash:
        yield pytestconfig.stash[CLUSTER]
    else:
        with running_cluster(pytestconfig.stash[BINARIES]) as started:
            yield started


@pytest.fixture(scope="session")
def databases(cluster: Cluster, pytestconfig: pytest.Config) -> Generator[DatabaseMaker]:
    inherited = worker_input(pytestconfig)
    owner = inherited["workerid"] if inherited else "main"
    with psycopg.connect(cluster.url(), autocommit=True) as connection:
        yield DatabaseMaker(cluster, connection, owner)


@pytest.fixture(scope="session")
def template(databases: DatabaseMaker) -> None:
    databases.ensure_template()


@pytest.fixture
def empty_database(databases: DatabaseMaker) -> Generator[ScratchDatabase]:
    made = databases.create_empty()
    yield made
    databases.drop(made)


@pytest.fixture
def database(databases: DatabaseMaker, template: None) -> Generator[ScratchDatabase]:
    made = databases.create_migrated()
    yield made
    databases.drop(made)


@pytest.fixture
def admin(database: ScratchDatabase) -> Generator[psycopg.Connection]:
    with database.connect() as connection:
        yield connection


@pytest.fixture
def clock(admin: psycopg.Connection) -> Clock:
    return Clock(admin)


@pytest.fixture(scope="session")
def shared_database(databases: DatabaseMaker, template: None) -> Generator[ScratchDatabase]:
    """For tests that commit nothing."""
    made = databases.create_migrated()
    yield made
    databases.drop(made)


@pytest.fixture(scope="session")
def shared_connection(shared_database: ScratchDatabase) -> Generator[psycopg.Connection]:
    with shared_database.connect(autocommit=False) as connection:
        yield connection


@pytest.fixture
def rollback(
    shared_database: ScratchDatabase, shared_connection: psycopg.Connection
) -> Generator[Callable[[str], psycopg.Connection]]:
    with ExitStack() as opened:
        unused = [shared_connection]

        def begin(role: str) -> psycopg.Connection:
            if unused:
                connection = unused.pop()
            else:
                connection = opened.enter_context(shared_database.connect(autocommit=False))
            opened.callback(connection.rollback)
            connection.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
            return connection

        yield begin


@pytest.fixture
async def api_database(database: ScratchDatabase) -> AsyncGenerator[Database]:
    async with Database(database.url("jobforge_api"), role="jobforge_api", max_size=4) as opened:
        yield opened


@pytest.fixture
async def worker_database(database: ScratchDatabase) -> AsyncGenerator[Database]:
    url = database.url("jobforge_worker")
    async with Database(url, role="jobforge_worker", max_size=4) as opened:
        yield opened


@pytest.fixture
def router(api_database: Database) -> Router:
    return Router(api_database)


@pytest.fixture
def worker_router(worker_database: Database) -> WorkerRouter:
    return WorkerRouter(worker_database)


@pytest.fixture(scope="session")
def make_caller() -> CallerMaker:
    def make(
        tenant: str, *, projects: Iterable[str] | None = None, scopes: Iterable[str] = ("*",)
    ) -> Caller:
        return Caller(
            tenant_id=TenantId(tenant),
            subject=f"agent@{tenant}",
            scopes=frozenset(scopes),
            projects=None if projects is None else frozenset(projects),
        )

    return make


@pytest.fixture
def acme(make_caller: CallerMaker) -> Caller:
    return make_caller("acme")


@pytest.fixture
def globex(make_caller: CallerMaker) -> Caller:
    return make_caller("globex")
