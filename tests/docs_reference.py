"""Write the generated parts of ``README.md`` and ``docs/``: ``python -m tests.docs_reference``.

Two kinds. A code block below ``<!-- from PATH -->`` is that file, which a test runs. What stands between
``<!-- generated: NAME -->`` and ``<!-- end -->`` is a table made from the code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from jobforge_mcp.cli.program import build_program
from jobforge_mcp.definitions.loader import load_jobs
from jobforge_mcp.policy.scopes import CARRIES, Scope
from jobforge_mcp.resources import job_definitions_folder
from jobforge_mcp.server.tools.table import TOOLS
from jobforge_mcp.settings import Settings, variable_name

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))

_INCLUDED = re.compile(r"(<!-- from (\S+) -->\n```(\w+)\n)(.*?)(```)", re.DOTALL)
_GENERATED = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def render(text: str) -> str:
    """Return a page with its generated parts made anew."""
    text = _INCLUDED.sub(
        lambda found: found[1] + (ROOT / found[2]).read_text().rstrip() + "\n" + found[5], text
    )
    return _GENERATED.sub(lambda found: found[1] + TABLES[found[2]]() + found[4], text)


def commands() -> dict[tuple[str, ...], tuple[str, set[str]]]:
    """Return every command with its one line of help and its options."""
    found: dict[tuple[str, ...], tuple[str, set[str]]] = {}

    def walk(path: tuple[str, ...], command: object) -> None:
        if isinstance(command, TyperGroup):
            for name, member in command.commands.items():
                walk((*path, name), member)
        elif isinstance(command, TyperCommand):
            options = {name for parameter in command.params for name in parameter.opts}
            found[path] = ((command.help or "").partition("\n\n")[0], {*options, "-h", "--help"})

    walk((), get_command(build_program()))
    return found


def _settings() -> str:
    rows = (
        (f"`{variable_name(name)}`", _default(name), _one_line(field.description))
        for name, field in Settings.model_fields.items()
    )
    return _table(("Variable", "Default", "Is"), rows)


def _default(name: str) -> str:
    if name == "state_dir":
        return "see above"
    value: object = Settings.model_fields[name].default
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{','.join(map(str, cast('tuple[object, ...]', value)))}`"
    return f"`{value}`"


def _commands() -> str:
    rows = (
        (f"`jobforge {' '.join(path)}`", _one_line(text)) for path, (text, _) in commands().items()
    )
    return _table(("Command", "Does"), rows)


def _scopes() -> str:
    docs = _member_docs()
    rows = (
        (
            f"`{scope.value}`",
            docs[scope.name],
            ", ".join(f"`{carried.value}`" for carried in sorted(CARRIES.get(scope, ()))),
            ", ".join(f"`{name}`" for name in _askers(scope)) or "nothing yet",
        )
        for scope in Scope
    )
    return _table(("Scope", "Allows", "Carries", "Asked for by"), rows)


def _askers(scope: Scope) -> list[str]:
    """Name the tools and the jobs of this package that need the scope."""
    jobs = load_jobs([job_definitions_folder()])
    return [
        *(tool.name for tool in TOOLS if tool.scope is scope),
        *(job.name for job in jobs if scope in job.definition.required_scopes("execute")),
    ]


def _member_docs() -> dict[str, str]:
    """Read what stands below each member of ``Scope``."""
    source = (ROOT / "src/jobforge_mcp/policy/scopes.py").read_text()
    return dict(re.findall(r'^    ([A-Z_]+) = "[^"]+"\n    """(.+?)\.?"""$', source, re.MULTILINE))


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join(f"| {' | '.join(cell or ' ' for cell in line)} |\n" for line in lines)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").replace("``", "`").replace("|", "\\|").split())


TABLES: dict[str, Callable[[], str]] = {
    "settings": _settings,
    "commands": _commands,
    "scopes": _scopes,
}


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(render(page.read_text()))
