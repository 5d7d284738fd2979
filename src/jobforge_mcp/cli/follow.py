"""``run`` and ``status``: enqueue a job and follow a run, with a live bar on a terminal.

Whoever stops following stops nothing: the run goes on, and its id is said.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import CALLER_EXIT, INTERRUPTED_EXIT, printable, say, show
from jobforge_mcp.cli.runs import RunId, parse_time
from jobforge_mcp.cli.session import call, open_client, read_settings
from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.types import Cause, JsonValue, LogLine, Run, RunStatus

if TYPE_CHECKING:
    from jobforge_mcp.client import Client, Options

_LOG_LINES = 200

_PATIENCE_SECONDS = 2.0
"""After which a person is told why a run does not start."""


def run(
    name: Annotated[str, typer.Argument(help="Name of the job; see: jobforge jobs.")],
    input: Annotated[
        str, typer.Option("--input", "-i", help="JSON, @FILE, or - for standard input.")
    ] = "{}",
    key: Annotated[
        str | None, typer.Option("--key", help="Idempotency key: repeating the call is safe.")
    ] = None,
    wait: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait; without it, until the end.")
    ] = None,
    background: Annotated[
        bool, typer.Option("--background", help="Do not wait; the same as --wait 0.")
    ] = False,
    run_at: Annotated[str | None, typer.Option(help="Not before; ISO 8601.")] = None,
    priority: Annotated[int, typer.Option(min=0, max=3, help="0 is the most urgent.")] = 2,
    ordering_key: Annotated[
        str | None, typer.Option(help="One after the other among runs of this key.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Project of the run.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; repeatable.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Run it, but tell its handler to leave out effects.")
    ] = False,
    json: Json = False,
) -> int:
    """Run a job and wait for its result. It survives this command: Ctrl-C leaves it running."""
    from jobforge_mcp.client import Options

    given = read_input(input)
    options = Options(
        idempotency_key=key,
        ordering_key=ordering_key,
        priority=priority,
        run_at=parse_time(run_at) if run_at is not None else None,
        project_id=project,
        labels=_labels(label) if label else None,
        is_dry_run=rehearse,
    )
    seconds = 0 if background else wait
    if dry_run:
        return call(lambda: _plan(name, given, options, is_json=json))
    follower = _Follower(is_json=json, seconds=seconds)
    return follower.end(lambda: _run(name, given, options, follower))


def status(
    run_id: RunId,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the end of the run.")] = 0,
    logs: Annotated[bool, typer.Option("--logs", help="Show what the handler logged.")] = False,
    attempts: Annotated[
        bool, typer.Option("--attempts", help="Show the attempts that did not succeed.")
    ] = False,
    input: Annotated[bool, typer.Option("--input", help="Show the input.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Show what it did and why, as Markdown.")
    ] = False,
    json: Json = False,
) -> int:
    """Show a run: status, progress, result or error."""
    follower = _Follower(
        is_json=json,
        seconds=wait,
        has_logs=logs,
        has_attempts=attempts,
        has_input=input,
        has_report=report,
    )

    async def work() -> Run:
        async with open_client(read_settings(), "status", is_waiting=wait > 0) as client:
            return await follower.follow(client, run_id)

    follower.end(work)
    # The command has done its work whatever became of the run.
    return 0


def read_input(text: str) -> JsonValue:
    """Read the input of a job from the command line, a file, or standard input.

    Raises:
        InvalidInputError: the file cannot be read, or it is not JSON.
    """
    from jobforge_mcp.definitions.json_limits import load_limited

    if text == "-":
        return load_limited(sys.stdin.read())
    if not text.startswith("@"):
        return load_limited(text)
    path = Path(text[1:])
    try:
        return load_limited(path.read_bytes())
    except OSError as error:
        raise InvalidInputError(
            f"the input file {path} cannot be read: {error.strerror}",
            hint="write --input '{\"name\": 1}', or --input @FILE",
        ) from None


async def _run(name: str, given: JsonValue, options: Options, follower: _Follower) -> Run:
    is_waiting = follower.seconds != 0
    settings = read_settings()
    async with open_client(settings, "run", is_waiting=is_waiting, needs_worker=True) as client:
        enqueued = await client.enqueue(name, given, options)
        follower.outcome = cast("Literal['created', 'replayed']", enqueued.outcome.value)
        return await follower.follow(client, str(enqueued.job_id))


async def _plan(name: str, given: JsonValue, options: Options, *, is_json: bool) -> int:
    async with open_client(read_settings(), "run") as client:
        planned = await client.plan(name, given, options)
    document: dict[str, JsonValue] = {
        "dryRun": True,
        "jobName": name,
        "outcome": planned.outcome.value,
    }
    text = f"dry run of {name}: {planned.outcome.value}"
    show(document, is_json=is_json, people=lambda console: console.print(text, markup=False))
    return 0


class _Follower:
    """Waits for one run, shows how it goes, and says how it ended."""

    def __init__(
        self,
        *,
        is_json: bool,
        seconds: float | None,
        has_logs: bool = False,
        has_attempts: bool = False,
        has_input: bool = False,
        has_report: bool = False,
    ) -> None:
        self.seconds = seconds
        self.outcome: Literal["created", "replayed"] | None = None
        self._is_json = is_json
        self._has_logs = has_logs
        self._has_attempts = has_attempts
        self._has_input = has_input
        self._has_report = has_report
        self._run_id: str | None = None

    def end(self, work: Callable[[], Awaitable[Run]]) -> int:
        """Do the work and return the exit code; an interruption says where the run can be found."""
        try:
            found = call(work)
        except KeyboardInterrupt:
            if self._run_id is not None:
                say(f"\nthe run goes on; to follow it: jobforge status {self._run_id} --wait 60")
            return INTERRUPTED_EXIT
        is_lost = found.status.is_final and found.status is not RunStatus.SUCCEEDED
        return CALLER_EXIT if is_lost else 0

    async def follow(self, client: Client, run_id: str) -> Run:
        """Wait, then print the run."""
        self._run_id = run_id
        with _live_bar(is_shown=not self._is_json and sys.stdout.isatty()) as on_change:
            if self.seconds == 0:
                found = await client.get(run_id)
            else:
                found = await self._wait(client, run_id, on_change)
        await self._print(client, found)
        return found

    async def _wait(
        self, client: Client, run_id: str, on_change: Callable[[Run], Awaitable[None]]
    ) -> Run:
        """Wait for the end, and say why nothing happens when nothing does."""
        await on_change(await client.get(run_id))
        seconds = math.inf if self.seconds is None else self.seconds
        patience = min(seconds, _PATIENCE_SECONDS)
        found = await client.wait(run_id, timeout_seconds=patience, on_change=on_change)
        if found.status.is_final or patience == seconds:
            return found
        if found.status is RunStatus.QUEUED and not self._is_json:
            for cause in await client.explain(run_id):
                say(f"still queued: {printable(cause.message)}")
        return await client.wait(run_id, timeout_seconds=seconds - patience, on_change=on_change)

    async def _print(self, client: Client, found: Run) -> None:
        from jobforge_mcp.cli.views import print_run, run_document
        from jobforge_mcp.server.wire import Extras

        causes: list[Cause] = []
        is_asked = self.seconds != 0 or self.outcome is None  # `run --background` wants no reasons
        if found.status in {RunStatus.QUEUED, RunStatus.WAITING} and is_asked:
            causes = list(await client.explain(found.job_id))
        cause = causes[0] if causes else None
        lines = await _last_lines(client, found) if self._has_logs else None
        given = await client.payload(found.job_id) if self._has_input else None
        attempts = list(await client.attempts(found.job_id)) if self._has_attempts else None
        report = await client.report(found.job_id) if self._has_report else None
        extras = Extras(
            input=given,
            logs=lines,
            attempts=attempts,
            outcome=self.outcome,
            cause=cause,
            report=report,
        )
        if report is not None and not self._is_json:
            print(printable(report), end="")
            return
        show(
            run_document(found, client.caller, extras),
            is_json=self._is_json,
            people=lambda console: print_run(
                console, found, cause=cause, logs=lines or (), input=given, attempts=attempts or ()
            ),
        )


async def _last_lines(client: Client, found: Run) -> list[LogLine]:
    """Return the end of a run's log; a page at a time, because pages begin at the front."""
    lines: list[LogLine] = []
    while page := await client.logs(
        found.job_id, after=lines[-1].line_no if lines else 0, limit=_LOG_LINES
    ):
        lines = [*lines, *page][-_LOG_LINES:]
    return lines


@contextmanager
def _live_bar(*, is_shown: bool) -> Generator[Callable[[Run], Awaitable[None]]]:
    """Show progress as a bar that vanishes at the end; the result says the rest."""
    if not is_shown:

        async def show_nothing(_: Run) -> None:
            pass

        yield show_nothing
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from jobforge_mcp.cli.output import console

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[said]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(), transient=True) as progress:
        bar = progress.add_task("", total=None, said="")

        async def show_run(run: Run) -> None:
            attempt = f", attempt {run.attempt_no}" if run.attempt_no > 1 else ""
            progress.update(
                bar,
                description=f"{run.job_type} {run.status.value}{attempt}",
                completed=run.progress_done or 0,
                total=run.progress_total,
                said=printable(run.progress_message or ""),
            )

        yield show_run


def _labels(pairs: list[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not mark or not name:
            raise InvalidInputError(f"the label {pair[:40]!r} is not NAME=VALUE")
        labels[name] = value
    return labels
