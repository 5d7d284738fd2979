"""The four runs of the demo: what an agent calls, what the audience sees, and what has to be true at the end."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

from mcp.client import Client
from mcp.shared.dispatcher import ProgressFnT
from mcp.shared.exceptions import MCPError

from jobforge_mcp.cli.demo_crew import LEASE_MS, Crew, open_crew
from jobforge_mcp.cli.demo_screen import Screen
from jobforge_mcp.local.install import Command
from jobforge_mcp.server.wire import RunView
from jobforge_mcp.types import JsonObject, RunStatus

KILL_AT_STEP = 2
_STEP = re.compile(r"step (\d+) of (\d+) in process (\d+)")


class BrokenPromiseError(Exception):
    """A run did not do what the demo promised; the message says what it did."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What the scenes share."""

    screen: Screen
    command: Command
    """How this program is started."""
    client: Client
    """Connected to the local node."""
    runs: dict[str, RunView] = field(default_factory=dict[str, RunView])
    """Every run that was started, as it was when last seen."""

    @property
    def agent(self) -> Agent:
        """The agent at the local node."""
        return Agent(self, self.client)


@dataclass(frozen=True, slots=True)
class Scene:
    """One run, and what it shows."""

    title: str
    promise: str
    """How it will end, in a word for the table."""
    status: RunStatus
    play: Callable[[Stage], Awaitable[RunView]]


@dataclass(frozen=True, slots=True)
class Agent:
    """Calls tools through one MCP client, in sight of the audience."""

    stage: Stage
    client: Client

    async def execute(self, job: str, given: JsonObject) -> RunView:
        """Have a job run, without waiting for it."""
        arguments: JsonObject = {"name": job, "input": given, "background": True}
        run = await self.call("execute-job", arguments)
        self.stage.screen.say(f"stored in Postgres as run {run.run_id}")
        return run

    async def follow(self, run: RunView, on_progress: ProgressFnT) -> RunView:
        """Wait for the end of a run; the server reports progress meanwhile."""
        self.stage.screen.say('> get-job-status {"runId": ..., "waitSeconds": 20}', "cyan")
        while not RunStatus(run.status).is_final:
            arguments: JsonObject = {"runId": run.run_id, "waitSeconds": 20}
            run = await self.call("get-job-status", arguments, on_progress, is_shown=False)
        arguments = {"runId": run.run_id, "include": ["attempts"]}
        return await self.call("get-job-status", arguments, is_shown=False)

    async def call(
        self,
        tool: str,
        arguments: JsonObject,
        on_progress: ProgressFnT | None = None,
        *,
        is_shown: bool = True,
    ) -> RunView:
        """Call a tool that answers with a run.

        Raises:
            BrokenPromiseError: The tool refused, or the server did not answer.
        """
        if is_shown:
            self.stage.screen.say(f"> {tool} {json.dumps(arguments)}", "cyan")
        try:
            result = await self.client.call_tool(
                tool, dict(arguments), progress_callback=on_progress
            )
        except MCPError as error:
            raise BrokenPromiseError(f"{tool} was not answered: {error}") from error
        answer = cast("Mapping[str, object]", result.structured_content or {})
        if "runId" not in answer:
            raise BrokenPromiseError(f"{tool} was refused: {_reason(answer)}")
        run = RunView.model_validate(answer)
        self.stage.runs[run.run_id] = run
        return run


async def succeed(stage: Stage) -> RunView:
    """Run a job that succeeds, and see its progress."""
    run = await stage.agent.execute("demo.countdown", {"seconds": 3, "steps": 6})
    with stage.screen.bar("demo.countdown") as on_progress:
        return await stage.agent.follow(run, on_progress)


async def retry(stage: Stage) -> RunView:
    """Run a job that fails twice before it succeeds."""
    run = await stage.agent.execute("demo.flaky", {"failures": 2})
    with stage.screen.bar("demo.flaky") as on_progress:
        run = await stage.agent.follow(run, on_progress)
    _say_attempts(stage.screen, run)
    expect(run, RunStatus.SUCCEEDED)
    if run.attempt != 3:
        raise BrokenPromiseError(f"it took {run.attempt} attempts and not 3")
    return run


async def recover(stage: Stage) -> RunView:
    """Run a job whose worker is killed, and have another worker finish it."""
    screen = stage.screen
    async with open_crew(stage.command) as (crew, client):
        first, second = crew.pids
        screen.say(f"two worker processes started for this job alone: {first} and {second}")
        screen.say("and an MCP server without workers; the agent calls that one now")
        agent = Agent(stage, client)
        run = await agent.execute(crew.job, {})
        with screen.bar(crew.job) as on_progress:
            run = await agent.follow(run, _Witness(screen, crew, on_progress).watch)
        if last_words := crew.last_words():
            raise BrokenPromiseError(last_words)
        _say_attempts(screen, run)
        expect(run, RunStatus.SUCCEEDED)
        _check_relay(run, crew)
        return run


async def cancel(stage: Stage) -> RunView:
    """Cancel a job that never asks whether it is canceled."""
    screen, agent = stage.screen, stage.agent
    run = await agent.execute("demo.stubborn", {"seconds": 60})
    with screen.bar("demo.stubborn") as on_progress:
        screen.say(f'it says: "{await _first_words(agent, run)}"')
        run = await agent.call("cancel-job", {"runId": run.run_id, "reason": "changed my mind"})
        screen.say("it has a process of its own, which is told to stop, and killed if it goes on")
        return await agent.follow(run, on_progress)


SCENES = (
    Scene("A job that succeeds, with progress", "success", RunStatus.SUCCEEDED, succeed),
    Scene("A job that fails twice and is retried", "retries", RunStatus.SUCCEEDED, retry),
    Scene("A job whose worker is killed in the middle", "recovery", RunStatus.SUCCEEDED, recover),
    Scene("A job that is deaf to cancellation, and canceled", "cancel", RunStatus.CANCELED, cancel),
)


def expect(run: RunView, status: RunStatus) -> None:
    """Compare how a run ended with how it was to end.

    Raises:
        BrokenPromiseError: It ended otherwise.
    """
    if run.status != status:
        raise BrokenPromiseError(f"{_end_of(run)}, and not {status}")


class _Witness:
    """Watches the relay by its progress, and kills the worker that has it."""

    def __init__(self, screen: Screen, crew: Crew, on_progress: ProgressFnT) -> None:
        self._screen = screen
        self._crew = crew
        self._on_progress = on_progress
        self._killed_at = 0.0
        self._is_recovered = False

    async def watch(self, progress: float, total: float | None, message: str | None) -> None:
        """Take one progress notification."""
        told = _STEP.fullmatch(message or "")
        if told is None:
            await self._on_progress(progress, total, message)
            return
        step, steps, pid = (int(number) for number in told.groups())
        self._note_recovery(pid)
        # The job's own figure: those of MCP may not go back when the next worker begins anew.
        await self._on_progress(step, steps, f"in process {pid}")
        if step >= KILL_AT_STEP and self._crew.killed is None and pid in self._crew.pids:
            self._crew.kill(pid)
            self._killed_at = time.monotonic()
            self._screen.say(f"kill -9 {pid}: that worker is dead, in the middle of the job", "red")
            self._screen.say(
                f"its lease of {LEASE_MS / 1_000:g} s runs out, then anyone may take the run over"
            )

    def _note_recovery(self, pid: int) -> None:
        if self._crew.killed not in {None, pid} and not self._is_recovered:
            self._is_recovered = True
            seconds = time.monotonic() - self._killed_at
            self._screen.say(
                f"process {pid} has taken it over, {seconds:.1f} s after the kill", "green"
            )


async def _first_words(agent: Agent, run: RunView) -> str:
    """Wait until the job itself has logged something, and return that.

    Raises:
        BrokenPromiseError: It ended without a word.
    """
    while not run.logs and not RunStatus(run.status).is_final:
        arguments: JsonObject = {
            "runId": run.run_id,
            "waitSeconds": 0.5,
            "sinceVersion": run.version,
            "include": ["logs"],
        }
        run = await agent.call("get-job-status", arguments, is_shown=False)
    if not run.logs:
        raise BrokenPromiseError(f"{_end_of(run)}, before it was canceled")
    return run.logs[0].message


def _check_relay(run: RunView, crew: Crew) -> None:
    """Compare what the run itself says with what was done to it.

    Raises:
        BrokenPromiseError: It was not killed and recovered.
    """
    finisher = run.result.get("process") if isinstance(run.result, dict) else None
    if crew.killed is None:
        raise BrokenPromiseError("its worker could not be killed, it was done before")
    if finisher == crew.killed or finisher not in crew.pids:
        raise BrokenPromiseError(f"process {finisher} says that it finished the run")
    if (run.attempt or 0) < 2:
        raise BrokenPromiseError("it says that it needed one attempt only")


def _end_of(run: RunView) -> str:
    why = f" ({run.error.code}: {run.error.message})" if run.error else ""
    return f"it is {run.status}{why}"


def _say_attempts(screen: Screen, run: RunView) -> None:
    """Tell what became of each attempt."""
    for attempt in run.attempts or ():
        why = f": {attempt.error.code}, {attempt.error.message}" if attempt.error else ""
        screen.say(f"attempt {attempt.attempt} {attempt.outcome}{why}")
    if run.status == "succeeded":
        screen.say(f"attempt {run.attempt} succeeded: {json.dumps(run.result)}")


def _reason(answer: Mapping[str, object]) -> str:
    """Read the error of a refused call."""
    error = answer.get("error")
    if not isinstance(error, dict):
        return "it did not say why"
    told = cast("Mapping[str, object]", error)
    hint = f" ({told['hint']})" if told.get("hint") else ""
    return f"{told.get('message')}{hint}"
