"""Loading: files, folders and modules; what is wrong is told with its place, and a fresh interpreter finds a handler again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobforge_mcp.definitions.loader import load_jobs, resolve
from jobforge_mcp.definitions.model import HandlerRef
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.errors import DefinitionError
from jobforge_mcp.resources import job_definitions_folder

GREET = """
from __future__ import annotations
from pydantic import BaseModel
from jobforge_mcp import JobContext, job

class Greeting(BaseModel):
    name: str
    times: int = 1

@job(name="test.greet", effects="external", scopes=["ops:read"])
async def greet(input: Greeting, job: JobContext) -> str:
    return input.name * input.times
"""

HELLO = {
    "name": "test.hello",
    "handler": "test.greet",
    "input": {"name": "world"},
    "inputSchema": {
        "type": "object",
        "properties": {"times": {"type": "integer", "default": 2}},
        "additionalProperties": False,
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = tmp_path / "greetings"
    inner.mkdir()
    (inner / "greet.py").write_text(GREET)
    (inner / "hello.json").write_text(json.dumps(HELLO))
    (inner / "_not_loaded.py").write_text("raise AssertionError")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.py").write_text("raise AssertionError")
    return tmp_path


def test_a_folder_is_loaded_with_the_folders_inside(folder: Path) -> None:
    names = [bound.name for bound in load_jobs([folder])]

    assert names == ["test.greet", "test.hello"]


@pytest.mark.requirement("definitions.declarative")
def test_a_declarative_definition_runs_its_handler_with_the_fixed_input(folder: Path) -> None:
    registry = Registry(load_jobs([folder]))
    hello = registry.get("test.hello")

    prepared = registry.prepare("test.hello", {})

    assert prepared.payload == '{"times":2}'
    assert prepared.received == "{}"
    assert registry.handler_input(hello, prepared.payload) == '{"name":"world","times":2}'
    assert hello.ref.name == "test.greet"
    assert hello.definition.required_scopes("execute") == {"ops:read"}
    assert hello.effects == "external"
    assert hello.definition.output_schema == {"type": "string"}


def test_a_module_is_loaded_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "jobs_by_name.py").write_text(GREET)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])

    (bound,) = load_jobs(["jobs_by_name"])

    assert bound.ref == HandlerRef("jobs_by_name", "test.greet")
    assert resolve(bound.ref) is bound


@pytest.mark.requirement("definitions.found-again")
def test_a_fresh_interpreter_finds_the_handler_of_a_file(folder: Path) -> None:
    (bound, _) = load_jobs([folder])
    ask = (
        "import sys; from jobforge_mcp.definitions.loader import resolve;"
        "from jobforge_mcp.definitions.model import HandlerRef;"
        "print(resolve(HandlerRef(*sys.argv[1:])).handler.__name__)"
    )

    answer = subprocess.run(
        [sys.executable, "-c", ask, bound.ref.source, bound.ref.name],
        check=True,
        capture_output=True,
        text=True,
    )

    assert answer.stdout.strip() == "greet"


def test_a_handler_that_is_gone_is_told(folder: Path) -> None:
    (bound, _) = load_jobs([folder])

    with pytest.raises(DefinitionError, match=r"has no job 'test\.gone'"):
        resolve(HandlerRef(bound.ref.source, "test.gone"))


@pytest.mark.requirement("definitions.broken-file")
@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("a.py", "x = 1\nraise ValueError('no')\n", "a.py:2"),
        ("a.py", "def f(:\n", "a.py:1"),
        ("a.py", "import nothing_of_this_name\n", "a.py:1"),
        ("a.py", GREET.replace("input: Greeting", "input"), "a.py:10"),
        ("a.json", "{", "a.json:1"),
        ("a.json", '{\n "name": "a",\n "handler": "b",\n "surprise": 1\n}', "a.json:4"),
        ("a.json", '{\n "name": "A B",\n "handler": "b"\n}', "a.json:2"),
        ("a.json", '{"name": "a"}', "a.json:1"),
        ("a.json", '{"name": "a", "handler": "unknown"}', "a.json:1"),
        ("a.json", '{"name": "a", "handler": "test.greet", "effects": "none"}', "a.json:1"),
        ("a.json", '{"name": "a", "handler": "test.greet", "isolation": "process"}', "a.json:1"),
        ("a.json", '{"name": "a", "handler": "test.hello"}', "a.json:1"),
        ("a.json", '{"name": "a", "handler": "test.greet", "inputSchema": {"type": "x"}}', "a.json:1"),
        ("a.json", "[" * 100_000, "a.json:1"),
    ],
)  # fmt: skip
def test_a_broken_file_stops_the_start_and_names_its_place(
    folder: Path, name: str, text: str, place: str
) -> None:
    (folder / name).write_text(text)

    with pytest.raises(DefinitionError) as refused:
        load_jobs([folder])

    assert f"{folder / place}" in refused.value.message


def test_a_name_that_is_taken_is_refused(folder: Path) -> None:
    (folder / "again.json").write_text(json.dumps(HELLO))

    with pytest.raises(DefinitionError, match=r"'test\.hello' is taken"):
        load_jobs([folder])


@pytest.mark.parametrize("source", ["/no/such/folder", "no such module", "a.py"])
def test_a_source_that_does_not_exist_is_refused(source: str) -> None:
    with pytest.raises(DefinitionError, match="neither a file, a folder nor the name of a module"):
        load_jobs([source])


def test_an_imported_job_belongs_to_its_own_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "first_jobs.py").write_text(GREET)
    (folder / "second_jobs.py").write_text("from first_jobs import greet as again\n")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])

    assert [bound.name for bound in load_jobs(["second_jobs", "first_jobs"])] == ["test.greet"]


@pytest.mark.requirement("jobs.shipped")
def test_the_shipped_definitions_are_these() -> None:
    shipped = load_jobs([job_definitions_folder()])

    facts = {
        bound.name: (
            str(bound.isolation),
            str(bound.effects),
            *bound.definition.required_scopes("execute"),
        )
        for bound in shipped
    }
    assert facts == {
        "connector.http.request": ("async", "external"),
        "connector.webhook.deliver": ("async", "external"),
        "demo.countdown": ("async", "none"),
        "demo.flaky": ("async", "none"),
        "demo.launch": ("async", "none"),
        "demo.stubborn": ("process", "none"),
        "ops.database.scan": ("async", "none", "ops:read"),
        "report.generate": ("async", "none"),
    }
    assert all(bound.definition.title and bound.definition.description for bound in shipped)


def test_a_file_imports_helpers_from_its_own_folder(folder: Path) -> None:
    (folder / "greetings" / "_words.py").write_text('WORD = "hello"\n')
    (folder / "greetings" / "with-helper.py").write_text(
        GREET.replace("test.greet", "test.helped").replace(
            "from pydantic", "from ._words import WORD\nfrom pydantic", 1
        )
    )
    (folder / "greetings" / "greet.v2.py").write_text(GREET.replace("test.greet", "test.greet2"))

    assert [bound.name for bound in load_jobs([folder])] == [
        "test.greet",
        "test.greet2",
        "test.helped",
        "test.hello",
    ]
