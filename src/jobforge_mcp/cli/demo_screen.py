"""What the demo shows: live bars on a terminal, plain lines everywhere else, the same facts in both."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

from mcp.shared.dispatcher import ProgressFnT
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from jobforge_mcp.cli.output import STATUS_STYLES, console, printable

INDENT = "     "


class Screen:
    """Writes to standard output, for people."""

    def __init__(self) -> None:
        """Find out whether there is a terminal."""
        self._console = console()
        self._is_live = self._console.is_terminal and not self._console.is_dumb_terminal

    def title(self, text: str) -> None:
        """Begin a part."""
        self.line()
        self.line(text, "bold")

    def say(self, text: str, style: str = "") -> None:
        """Tell something within a part."""
        self.line(f"{INDENT}{text}", style)

    def line(self, text: str = "", style: str = "") -> None:
        """Write one line; a bar that is shown stays below it."""
        self._console.print(Text(printable(text), style), soft_wrap=True)

    def rows(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Write a table; a line of it is never broken, so that ids can be copied."""
        cells = [header, *rows]
        widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
        for row in cells:
            text = Text()
            for cell, width in zip(row, widths, strict=True):
                is_header = row is header
                text.append(
                    printable(cell).ljust(width + 2),
                    "dim" if is_header else STATUS_STYLES.get(cell, ""),
                )
            text.rstrip()
            self._console.print(text, soft_wrap=True)

    @contextmanager
    def bar(self, name: str) -> Generator[ProgressFnT]:
        """Show the progress of one run, as a bar that vanishes at the end or as a line for each change."""
        if self._is_live:
            with self._live_bar(name) as report:
                yield report
        else:
            yield self._report_lines()

    def _report_lines(self) -> ProgressFnT:
        last = ""

        async def report(progress: float, total: float | None, message: str | None) -> None:
            nonlocal last
            said = " ".join(filter(None, (_count(progress, total), message)))
            if said != last:
                last = said
                self.say(f"  {said}")

        return report

    @contextmanager
    def _live_bar(self, name: str) -> Generator[ProgressFnT]:
        columns = (
            TextColumn(INDENT[1:]),
            SpinnerColumn(),
            TextColumn(name, markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[said]}", markup=False),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as bars:
            bar = bars.add_task("", total=None, said="")

            async def report(progress: float, total: float | None, message: str | None) -> None:
                said = " ".join(filter(None, (_count(progress, total), printable(message or ""))))
                bars.update(bar, completed=progress, total=total, said=said)

            yield report


def _count(progress: float, total: float | None) -> str:
    """Write how far it is, where that is known. The server adds fractions, because MCP's figures must always grow."""
    return f"{int(progress)}/{int(total)}" if total else ""
