"""``secret://NAME``: resolved in the worker alone, and found nowhere afterwards."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import psycopg
import pytest
from psycopg import sql
from pydantic import BaseModel

from jobforge_mcp import JobContext, PermanentError, job
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import JobForgeError
from jobforge_mcp.logs import configure_logging
from jobforge_mcp.types import JsonValue, Run, RunStatus
from jobforge_mcp.worker.secrets import SecretStore, references_in, resolved
from tests.worker.conftest import Desk, PoolMaker

CANARIES = 1_000
PER_JOB = 20


class Leak(BaseModel):
    """What to do with values that are secret."""

    values: list[str]
    how: Literal["result", "error", "log", "child", "length"]
    url: str | None = None


async def give_away(input: Leak, job: JobContext) -> JsonValue:
    """Do with secrets what a careless handler might."""
    match input.how:
        case "result":
            return {"echo": [*input.values], "by name": dict.fromkeys(input.values, 1)}
        case "error":
            try:
                raise KeyError(*input.values)
            except KeyError as error:
                raise ValueError(f"bad: {input!r}") from error
        case "log":
            for value in input.values:
                job.log(f"using {value}")
                job.progress(1, message=value)
            raise PermanentError(input.values[0], code="TOLD", hint=input.values[-1])
        case "child":
            child = await job.enqueue("leak", {"values": [*input.values], "how": "length"})
            return str(child)
        case "length":
            return [len(value) for value in input.values]


@job(name="leak")
async def leak(input: Leak, job: JobContext) -> JsonValue:
    return await give_away(input, job)


@job(name="leak.process", isolation="process")
async def leak_in_process(input: Leak, job: JobContext) -> JsonValue:
    print(input)  # noqa: T201 - that is the point
    return await give_away(input, job)


class Nothing(BaseModel):
    """No input."""


@job(name="ask.late")
async def ask_late(input: Nothing, job: JobContext) -> JsonValue:
    try:
        job.secret("late")
        refused = ""
    except PermanentError as error:
        refused = error.code
    return [refused, len(await job.fetch_secret("late")), len(job.secret("late"))]


@pytest.fixture
def registry() -> Registry:
    return Registry([leak, leak_in_process, ask_late])


def everything_stored(admin: psycopg.Connection) -> str:
    """Every row of every table, as text."""
    tables = admin.execute(
        "select tablename from pg_tables where schemaname = 'jobforge'"
    ).fetchall()
    found: list[str] = []
    for (name,) in tables:
        query = sql.SQL("select t::text from jobforge.{} t").format(sql.Identifier(name))
        found += [row[0] for row in admin.execute(query)]
    return "\n".join(found)


def code_of(run: Run) -> str | None:
    return None if run.error is None else run.error.code


@pytest.mark.requirement("secrets.canaries")
@pytest.mark.timeout(120)
async def test_a_thousand_canaries_are_found_nowhere(
    desk: Desk,
    make_pool: PoolMaker,
    admin: psycopg.Connection,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("debug", "json")
    canaries = {f"c{number}": f"cAnary-{number:04}-vAlue" for number in range(CANARIES)}
    environ = {f"JOBFORGE_SECRET_{name.upper()}": value for name, value in canaries.items()}
    names = list(canaries)
    ways = ("result", "error", "log", "child")
    async with make_pool(environ, secret_references=("*",)):
        ids = [
            await desk.enqueue(
                "leak",
                values=[f"secret://{name}" for name in names[start : start + PER_JOB]],
                how=ways[start // PER_JOB % len(ways)],
            )
            for start in range(0, CANARIES, PER_JOB)
        ]
        runs = [await desk.until_final(job_id) for job_id in ids]

    stored = everything_stored(admin)
    seen = stored + repr(runs) + "".join(capsys.readouterr())
    assert [value for value in canaries.values() if value in seen] == []
    assert "cAnary" not in seen
    assert "[secret c0]" in stored
    assert {run.status for run in runs} >= {RunStatus.SUCCEEDED, RunStatus.FAILED}


async def test_what_a_handler_in_a_child_process_does_with_a_secret_is_struck_out(
    desk: Desk, make_pool: PoolMaker, admin: psycopg.Connection
) -> None:
    async with make_pool({"JOBFORGE_SECRET_KEY": "cAnary-process"}, secret_references=("key",)):
        run = await desk.until_final(
            await desk.enqueue("leak.process", values=["Bearer secret://key"], how="result")
        )

    assert run.status is RunStatus.SUCCEEDED
    assert run.result == '{"echo": ["Bearer [secret key]"], "by name": {"Bearer [secret key]": 1}}'
    assert "cAnary" not in everything_stored(admin)


async def test_a_handler_gets_the_value_and_a_child_the_reference(
    desk: Desk, make_pool: PoolMaker
) -> None:
    async with make_pool({"JOBFORGE_SECRET_KEY": "cAnary"}, secret_references=("key",)):
        told = await desk.until_final(
            await desk.enqueue("leak", values=["secret://key", "x"], how="length")
        )
        parent = await desk.until_final(
            await desk.enqueue("leak", values=["secret://key"], how="child")
        )

    assert told.result == "[6, 1]"
    assert parent.status is RunStatus.SUCCEEDED


@pytest.mark.requirement("secrets.references")
@pytest.mark.parametrize(
    ("references", "url", "code"),
    [
        ((), "https://api.example.com/x", "SECRET_NOT_ALLOWED"),
        (("other",), "https://api.example.com/x", "SECRET_NOT_ALLOWED"),
        (("key@api.example.com",), "https://evil.example.com/", "SECRET_NOT_ALLOWED"),
        (
            ("key@api.example.com",),
            "https://api.example.com@evil.example.com/",
            "SECRET_NOT_ALLOWED",
        ),
        (("key@api.example.com",), None, "SECRET_NOT_ALLOWED"),
        (("globex/key",), "https://api.example.com/x", "SECRET_NOT_ALLOWED"),
        (("key@api.example.com",), "https://api.example.com/x", None),
        (("key@*.example.com",), "https://API.example.com:443/x", None),
        (("acme/key",), None, None),
    ],
)
async def test_an_input_names_only_the_secrets_it_may(
    desk: Desk,
    make_pool: PoolMaker,
    references: tuple[str, ...],
    url: str | None,
    code: str | None,
) -> None:
    async with make_pool({"JOBFORGE_SECRET_KEY": "cAnary"}, secret_references=references):
        run = await desk.until_final(
            await desk.enqueue("leak", values=["secret://key"], how="length", url=url)
        )

    assert code_of(run) == code


async def test_a_secret_that_is_not_there_is_named(desk: Desk, make_pool: PoolMaker) -> None:
    async with make_pool({}, secret_references=("*",)):
        run = await desk.until_final(
            await desk.enqueue("leak", values=["secret://absent"], how="length")
        )

    assert code_of(run) == "SECRET_MISSING"


def test_a_secret_comes_from_the_environment_then_a_folder_then_a_command(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("from folder\n")
    (tmp_path / "two").write_text("from folder\n")
    script = "import sys; print('from command' if sys.argv[1] == 'three' else sys.exit(1))"
    store = SecretStore(
        {"JOBFORGE_SECRET_ONE": "from environment"}, tmp_path, (sys.executable, "-c", script)
    )

    assert [store.get(name) for name in ("one", "two", "three")] == [
        "from environment",
        "from folder",
        "from command",
    ]
    with pytest.raises(PermanentError, match="no secret 'four'"):
        store.get("four")


@pytest.mark.parametrize(
    "name", ["../one", "/etc/passwd", "a/b", "..", "", "a\0b", "x" * 200, "-v"]
)
def test_a_name_leads_to_no_other_file_and_is_no_option(tmp_path: Path, name: str) -> None:
    (tmp_path / "one").write_text("cAnary")
    store = SecretStore({}, tmp_path / "folder", (sys.executable, "-c", "print('cAnary')"))

    with pytest.raises(JobForgeError) as caught:
        store.get(name)
    assert caught.value.code == "SECRET_MISSING"


def test_a_secret_too_short_to_be_kept_is_refused() -> None:
    with pytest.raises(PermanentError) as caught:
        SecretStore({"JOBFORGE_SECRET_PIN": "123"}).get("pin")
    assert caught.value.code == "SECRET_TOO_SHORT"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"a":"secret://one"}', {"one"}),
        ('{"a":"Bearer secret://one.two-3, secret://four."}', {"one.two-3", "four"}),
        ('{"a":"secrets://one","b":"secret:/one"}', set[str]()),
    ],
)
def test_references_are_found(text: str, names: Iterable[str]) -> None:
    assert references_in([text]) == names


def test_values_are_put_into_texts_and_nowhere_else() -> None:
    given: JsonValue = {"secret://one": ["secret://one", 1, None, {"x": "y secret://two"}]}

    assert resolved(given, {"one": "secret://two"}) == {
        "secret://one": ["secret://two", 1, None, {"x": "y secret://two"}]
    }


@pytest.mark.requirement("secrets.no-blocking")
async def test_a_secret_of_a_command_does_not_keep_the_event_loop(
    make_pool: PoolMaker, desk: Desk
) -> None:
    command = shlex.join([sys.executable, "-c", "print('s' * 20)"])

    async with make_pool(secrets_command=command):
        run = await desk.until_final(await desk.enqueue("ask.late"))

    assert run.result is not None
    assert json.loads(run.result) == ["SECRET_WOULD_BLOCK", 20, 20]
