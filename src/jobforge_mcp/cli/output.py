"""What commands print: one JSON document for programs, tables and bars for people; errors alike.

Results go to stdout, everything else to stderr. Secrets go nowhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from jobforge_mcp.types import JsonValue

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

CALLER_EXIT = 1
"""What was asked cannot be done as asked, or the run did not succeed."""
USAGE_EXIT = 2
"""The command line itself is wrong."""
OPERATOR_EXIT = 3
"""The installation needs a person."""
INTERRUPTED_EXIT = 130

_PIPE_WIDTH = 200

STATUS_STYLES = {
    "queued": "cyan",
    "running": "blue",
    "waiting": "magenta",
    "succeeded": "green",
    "failed": "red",
    "dead": "bold red",
    "canceled": "yellow",
}


def show(document: JsonValue, *, is_json: bool, people: Callable[[Console], None]) -> None:
    """Print a result: the document, or what ``people`` writes."""
    if is_json:
        print(json.dumps(document, ensure_ascii=False))
    else:
        people(console())


def show_error(code: str, message: str, hint: str | None, is_json: bool, exit_code: int) -> int:
    """Print an error and return the exit code: to stdout as JSON, or to stderr in words."""
    if is_json:
        error: dict[str, JsonValue] = {"code": code, "message": message}
        if hint:
            error["hint"] = hint
        print(json.dumps({"error": error}, ensure_ascii=False))
    else:
        print(f"jobforge: {message}", file=sys.stderr)
        if hint:
            print("\n".join(f"  {line}" for line in hint.splitlines()), file=sys.stderr)
    return exit_code


def say(sentence: str) -> None:
    """Tell a person something that is not the result."""
    print(sentence, file=sys.stderr)


def console() -> Console:
    """Return the console of stdout."""
    from rich.console import Console

    # What is piped into a file or a pager keeps its lines, so that it can be searched.
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Make a plain table; cells may not hold markup, because they hold words of others."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        # The first one is what a person copies: an id or a name.
        made.add_column(column, overflow="fold", no_wrap=place == 0)
    for row in rows:
        made.add_row(*[Text(printable(cell), style=STATUS_STYLES.get(cell, "")) for cell in row])
    return made


def printable(text: str) -> str:
    """Take away what would move the cursor or colour a terminal: jobs and errors hold words of strangers."""
    return "".join(char if char.isprintable() or char == "\n" else "�" for char in text)
