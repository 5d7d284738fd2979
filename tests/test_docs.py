"""The documentation says what the code does: names, tables, commands, and the code blocks, which are run here.

Error codes and the reference of the tools are held by ``tests/server/test_docs.py``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql

import dev
from jobforge_mcp.client import SyncClient
from jobforge_mcp.db.migrate import migrate
from jobforge_mcp.definitions.installed import load_registry
from jobforge_mcp.policy.keys import KeyFolder
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.policy.tokens import Grant, issue_token
from jobforge_mcp.server.build import listed
from jobforge_mcp.server.metrics import Metrics
from jobforge_mcp.server.tools.table import TOOLS
from jobforge_mcp.settings import Settings, load_settings, variable_name
from jobforge_mcp.types import EnqueueOutcome, FailureKind, RunStatus, SettleOutcome
from tests.docs.place_order import place_order
from tests.docs_reference import PAGES, ROOT, commands, render
from tests.postgres import ScratchDatabase

SNIPPETS = ROOT / "tests/docs"
LOGINS = ("jobforge_api", "jobforge_worker", "jobforge_scheduler", "jobforge_readonly", "jobforge_auditor")  # fmt: skip
PAGE_IDS = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
GRANT_MADE_ROLES: LiteralString = """
    grant jobforge_api, jobforge_worker, jobforge_owner, jobforge_rpc, jobforge_sys to jobforge_migrator
    with admin option"""
INCLUDED = re.compile(r"<!-- from (\S+) -->\n```(\w+)\n")


def page(name: str) -> str:
    return (ROOT / name).read_text()


def names(connection: psycopg.Connection, query: LiteralString) -> set[str]:
    return {str(row[0]) for row in connection.execute(query)}


# --- generated parts and code blocks


@pytest.mark.parametrize("path", PAGES, ids=PAGE_IDS)
def test_generated_tables_and_included_files_are_up_to_date(path: Path) -> None:
    assert path.read_text() == render(path.read_text()), "run: python -m tests.docs_reference"


@pytest.mark.parametrize("path", PAGES, ids=PAGE_IDS)
def test_code_comes_from_a_file_that_is_run(path: Path) -> None:
    text = path.read_text()
    code = [found[1] for found in FENCE.finditer(text) if found[1] in {"python", "sql"}]
    included = [found[2] for found in INCLUDED.finditer(text)]
    if path.name == "CONTRIBUTING.md":
        # Its one block shows the form of a test.
        code.remove("python")

    assert code == included


def test_every_snippet_is_shown() -> None:
    shown = {found[1] for path in PAGES for found in INCLUDED.finditer(path.read_text())}
    kept = {
        str(path.relative_to(ROOT)) for path in SNIPPETS.iterdir() if path.suffix in {".py", ".sql"}
    }

    assert kept == shown


def shell_lines() -> list[str]:
    blocks = [found for path in PAGES for found in FENCE.finditer(path.read_text())]
    lines = [line for found in blocks if found[1] == "sh" for line in found[2].splitlines()]
    inline = [quoted for path in PAGES for quoted in re.findall(r"`(jobforge [^`]+)`", path.read_text())]  # fmt: skip
    return sorted({*lines, *inline})


@pytest.mark.parametrize("line", shell_lines())
def test_a_quoted_command_exists_with_its_options(line: str) -> None:
    words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", word)]
    match words:
        case ["python3", "dev.py", *rest]:
            assert not rest or rest[0] in dev.COMMANDS
        case ["jobforge", *rest]:
            groups = {command[0] for command in commands() if len(command) > 1}
            path = tuple(rest[: 2 if rest[:1] and rest[0] in groups else 1])
            options = {word.partition("=")[0] for word in rest if word.startswith("-") and word != "-"}  # fmt: skip
            if path in commands():
                assert options <= commands()[path][1]
            else:
                assert len(rest) == 1, f"no command {' '.join(path)}"
                assert any(path == known[:1] for known in commands())
        case (
            ["pip", "install", *_]
            | ["export", *_]
            | ["pg_dump", *_]
            | [".ci/run"]
            | [".venv/bin/python", "-m", *_]
            | []
        ):
            pass
        case _:
            pytest.fail(f"nobody checks: {line}")


@pytest.mark.parametrize("path", PAGES, ids=PAGE_IDS)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in anchors, target


# --- every name is described


@pytest.mark.requirement("docs.names")
def test_every_table_and_view_is_described(admin: psycopg.Connection) -> None:
    found = names(
        admin,
        """select relname from pg_catalog.pg_class
           where relnamespace = 'jobforge'::regnamespace and relkind in ('r', 'v', 'p')""",
    )

    assert {name for name in found if f"`{name}`" not in page("docs/vocabulary.md")} == set()


@pytest.mark.requirement("docs.names")
def test_every_function_that_a_login_may_call_is_described(admin: psycopg.Connection) -> None:
    granted = admin.execute(
        """select distinct p.proname from pg_catalog.pg_proc p, unnest(%s::text[]) as login
           where p.pronamespace = 'jobforge'::regnamespace and has_function_privilege(login, p.oid, 'execute')""",
        [list(LOGINS)],
    )

    text = page("docs/vocabulary.md")
    assert {str(row[0]) for row in granted if f"`{row[0]}`" not in text} == set()


@pytest.mark.requirement("docs.names")
def test_every_role_is_described(admin: psycopg.Connection) -> None:
    found = names(
        admin, "select rolname from pg_catalog.pg_roles where rolname like 'jobforge\\_%'"
    )

    text = page("docs/operations.md")
    ours = {*LOGINS, "jobforge_owner", "jobforge_rpc", "jobforge_sys"}
    assert ours <= found
    assert {name for name in ours if f"`{name}`" not in text} == set()


@pytest.mark.requirement("docs.names")
def test_every_closed_vocabulary_of_the_schema_is_described(admin: psycopg.Connection) -> None:
    checks = admin.execute(
        """select pg_get_constraintdef(oid) from pg_catalog.pg_constraint
           where connamespace = 'jobforge'::regnamespace and conname in
             ('final_status_is_known', 'wait_reason_is_known', 'attempt_outcome_is_known', 'listeners_topic_is_known')"""
    ).fetchall()

    words = {word for (check,) in checks for word in re.findall(r"'(\w+)'", str(check))}
    assert len(checks) == 4
    assert {word for word in words if f"`{word}`" not in page("docs/vocabulary.md")} == set()


@pytest.mark.requirement("docs.names")
@pytest.mark.parametrize(
    "word", sorted({*RunStatus, *EnqueueOutcome, *SettleOutcome, *FailureKind})
)
def test_every_status_and_outcome_is_described(word: str) -> None:
    assert f"`{word}`" in page("docs/vocabulary.md")


@pytest.mark.requirement("docs.names")
def test_every_cause_of_explain_run_is_described() -> None:
    source = page("sql/functions/13_explain.sql")
    causes = set(re.findall(r"return query select '(\w+)'", source)) - {"waiting_"}

    assert len(causes) >= 10
    assert {cause for cause in causes if f"`{cause}`" not in page("docs/operations.md")} == set()


@pytest.mark.requirement("docs.names")
def test_every_error_code_of_sql_and_of_the_jobs_that_come_along_is_described() -> None:
    """Those of the package itself are held by the tests of the server."""
    files = [*(ROOT / "sql").rglob("*.sql"), *(ROOT / "job_definitions").rglob("*.py")]
    code = re.compile(r'"code": ?"([A-Z_]+)"|code="([A-Z_]+)"')
    codes = {left or right for file in files for left, right in code.findall(file.read_text())}

    assert {"WORKER_LOST", "HTTP_STATUS"} <= codes
    assert {name for name in codes if f"`{name}`" not in page("docs/tools.md")} == set()


@pytest.mark.requirement("docs.names")
@pytest.mark.parametrize("setting", [variable_name(name) for name in Settings.model_fields])
def test_every_setting_is_described(setting: str) -> None:
    assert f"| `{setting}` |" in page("docs/operations.md")


@pytest.mark.requirement("docs.names")
@pytest.mark.parametrize("scope", Scope)
def test_every_scope_is_described(scope: Scope) -> None:
    assert f"| `{scope}` |" in page("docs/security.md")


@pytest.mark.requirement("docs.names")
@pytest.mark.parametrize("tool", [tool.name for tool in TOOLS])
def test_every_tool_is_described(tool: str) -> None:
    assert f"| `{tool}` |" in page("README.md")
    assert f"### `{tool}`" in page("docs/tools.md")


@pytest.mark.requirement("docs.names")
@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_is_described(command: tuple[str, ...]) -> None:
    assert f"| `jobforge {' '.join(command)}` |" in page("docs/operations.md")


@pytest.mark.requirement("docs.names")
def test_every_figure_is_described() -> None:
    figures = {
        f"{figure.name}_total" if figure.type == "counter" else figure.name
        for figure in Metrics().registry.collect()
    }

    text = page("docs/operations.md")
    assert {name for name in figures if f"| `{name}` |" not in text} == set()


def test_every_job_that_comes_along_is_named(tmp_path: Path) -> None:
    jobs = load_registry(load_settings(state_dir=tmp_path)).names()

    assert {name for name in jobs if f"`{name}`" not in page("README.md")} == set()


@pytest.mark.requirement("docs.names")
def test_every_event_of_the_log_that_is_described_exists() -> None:
    section = page("docs/operations.md").partition("What to look for in the logs")[2]
    events = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]+) \|", section.partition("## ")[0], re.MULTILINE)))  # fmt: skip
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))

    assert len(events) >= 10
    assert {event for event in events if f'"{event}"' not in source} == set()


@pytest.mark.parametrize("path", PAGES, ids=PAGE_IDS)
def test_the_promise_is_told_in_the_words_that_were_agreed(path: Path) -> None:
    text = " ".join(path.read_text().split())
    promise = (
        "nqueue exactly once per key; execution at least once; exactly one accepted result; strict order only within "
        "an ordering key; effects in the same database exactly once; effects elsewhere exactly once only if the "
        "receiver is handed the key and epoch."
    )

    assert (promise in text) == ("exactly one accepted result" in text)
    assert promise in text or path.name != "README.md"


# --- what the pages show is run


@contextmanager
def worker_of(database: ScratchDatabase) -> Generator[None]:
    """Run a worker that knows the README's job, as a process of its own."""
    environ = {
        **os.environ,
        "JOBFORGE_WORKER_DATABASE_URL": database.url("jobforge_worker"),
        "DATABASE_URL": database.url("jobforge_api"),
        "JOBFORGE_JOBS": str(SNIPPETS / "receipts.py"),
        "JOBFORGE_POLL_MS": "50",
        "JOBFORGE_DRAIN_GRACE_SECONDS": "1",
    }
    command = [sys.executable, "-m", "jobforge_mcp.entry", "worker", "--type", "shop.*"]
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert any(line.endswith("ready\n") for line in process.stderr)
            yield
        finally:
            process.terminate()
            process.communicate(timeout=60)


@contextmanager
def login(connection: psycopg.Connection, name: str) -> Generator[str]:
    """Make a login that is a member of ``jobforge_api``, as an application has one."""
    role = sql.Identifier(name)
    connection.execute(sql.SQL("create role {} login").format(role))
    try:
        connection.execute(sql.SQL("grant jobforge_api to {}").format(role))
        yield name
    finally:
        connection.execute(sql.SQL("drop owned by {}").format(role))
        connection.execute(sql.SQL("drop role {}").format(role))


@pytest.mark.requirement("docs.examples")
def test_the_readmes_job_runs_for_an_application_in_python_and_in_sql(
    database: ScratchDatabase, admin: psycopg.Connection, tmp_path: Path
) -> None:
    keys = KeyFolder(tmp_path / "keys")
    settings = load_settings(
        database_url=database.url("jobforge_api"),
        token_keys=str(keys.path),
        jobs=str(SNIPPETS / "receipts.py"),
        state_dir=tmp_path,
        token=issue_token(
            keys.ensure(),
            Grant("acme", [Scope.JOBS_EXECUTE]),
            issuer="jobforge",
            audience="jobforge",
        ),
    )
    admin.execute("create table public.orders (id bigint primary key)")
    with (
        login(admin, f"shop_{database.name}") as shop,
        worker_of(database),
        SyncClient.connect(settings) as client,
        database.connect(shop) as connection,
    ):
        admin.execute(sql.SQL("grant insert, select on public.orders to {}").format(sql.Identifier(shop)))  # fmt: skip

        from_python = place_order(client, connection, 43)
        answers = run_script(connection, "enqueue.sql")
        run_id, outcome = answers[0][0]
        from_sql = client.result(str(run_id), timeout_seconds=30)

    assert from_python == {"order": 43, "lines": 3}
    assert (outcome, from_sql) == ("created", {"order": 42, "lines": 3})
    assert names(admin, "select id from public.orders") == {"42", "43"}


@pytest.mark.requirement("docs.examples")
def test_what_is_shown_for_psql_shows_the_open_runs(
    database: ScratchDatabase, admin: psycopg.Connection
) -> None:
    admin.execute("create table public.orders (id bigint primary key)")
    admin.execute("grant insert on public.orders to jobforge_api")
    with database.connect("jobforge_api") as connection:
        ((run,),) = run_script(connection, "enqueue.sql")
        explained = run_script(connection, "explain.sql")
    with database.connect("jobforge_readonly") as connection:
        looked = run_script(connection, "look.sql")

    assert [row[1:4] for row in looked[1]] == [("shop.receipt", "queued", 0)]
    assert looked[1][0][0] == run[0]
    assert explained[1][0][0] == "no_worker"
    assert explained[2][0][:2] == ("shop.receipt", 1)


@pytest.mark.requirement("docs.examples")
def test_a_postgres_set_up_as_described_serves_with_its_own_owner(
    database: ScratchDatabase,
) -> None:
    made = ScratchDatabase(database.cluster, "jobs")
    with database.connect() as superuser:
        before = (SNIPPETS / "roles_before.sql").read_text()
        for statement in before.split(";\n"):
            if statement.strip():
                superuser.execute(statement.encode())
        try:
            # The roles are shared by all databases of the server, and here another one's owner made them.
            superuser.execute(GRANT_MADE_ROLES)
            report = migrate(made.url("jobforge_migrator"))
            with made.connect("jobforge_migrator") as owner:
                run_script(owner, "roles_after.sql")
            with made.connect("jobforge_api") as api:
                api.execute("select jobforge.enqueue_job(jobforge.enter_scope('acme'), 'a.job')")
        finally:
            superuser.execute("drop database jobs with (force)")
            superuser.execute("alter role jobforge_api password null")
            superuser.execute("alter role jobforge_worker password null")
            superuser.execute("drop role jobforge_migrator")

    assert report.is_current


def run_script(connection: psycopg.Connection, name: str) -> list[list[tuple[object, ...]]]:
    """Run a file as psql would, and return the rows of each statement that has some."""
    answers: list[list[tuple[object, ...]]] = []
    cursor = connection.execute((SNIPPETS / name).read_bytes())
    while True:
        if cursor.description is not None:
            answers.append(cursor.fetchall())
        if not cursor.nextset():
            return answers


def test_the_transcript_of_the_readme_has_the_fields_of_an_answer() -> None:
    blocks = [found[2] for found in FENCE.finditer(page("README.md")) if found[1] == "json"]
    shown = json.loads(blocks[0])
    (execute,) = (tool for tool in TOOLS if tool.name == "execute-job")

    known = json.dumps(listed(execute).output_schema)
    assert {field for field in shown if f'"{field}"' not in known} == set()
