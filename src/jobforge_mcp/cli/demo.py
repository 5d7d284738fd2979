"""``jobforge demo``: four runs through a real MCP client, each with a promise that is checked.

It acts as an agent does: the client of the SDK starts this very program without arguments, which is the bridge to the
user's local node, and calls tools. The third run needs a worker that may be killed, so it has processes of its own, see
``demo_crew``. Whatever becomes of the demo, it takes along the processes it started and cancels what it left running; the
node is the user's and stays by its own rules.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import cast

import anyio
from anyio.abc import TaskStatus
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.exceptions import MCPError

from jobforge_mcp.cli.demo_scenes import SCENES, BrokenPromiseError, Scene, Stage, expect
from jobforge_mcp.cli.demo_screen import Screen
from jobforge_mcp.cli.output import CALLER_EXIT, INTERRUPTED_EXIT
from jobforge_mcp.cli.session import read_settings
from jobforge_mcp.errors import OperatorError
from jobforge_mcp.local.install import ClientName, Command, find_command, install
from jobforge_mcp.local.node import NodeStatus, node_status
from jobforge_mcp.server.about import describe_local_features
from jobforge_mcp.server.wire import RunView
from jobforge_mcp.settings import Settings
from jobforge_mcp.types import RunStatus

SCENE_SECONDS = 90.0
"""After which a run is given up; on an idle machine none takes ten."""

CLEANUP_SECONDS = 10.0


def run_demo() -> int:
    """Show it, and return 0 only if every run ended as promised."""

    async def perform() -> int:
        return await Demo(read_settings(), Screen()).run()

    return anyio.run(perform)


@dataclass(frozen=True, slots=True)
class Ending:
    """How the run of a scene ended."""

    scene: Scene
    run: RunView | None
    """``None`` when not even that came about."""
    complaint: str
    """Why it is not as promised; empty when it is."""


class Demo:
    """One performance."""

    def __init__(self, settings: Settings, screen: Screen) -> None:
        """Take where to play and where to show it."""
        self._settings = settings
        self._screen = screen
        self._command = find_command()
        self._scope = anyio.CancelScope()
        self._is_interrupted = False

    async def run(self) -> int:
        """Play all scenes, tell how they ended, and return the exit code."""
        endings: list[Ending] = []
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._heed_signals)
            with self._scope:
                endings = await self._connect_and_play()
            tasks.cancel_scope.cancel()
        if self._is_interrupted:
            self._screen.line()
            self._screen.line("Interrupted: what the demo had started was canceled and ended.")
            return INTERRUPTED_EXIT
        self._say_endings(endings)
        return CALLER_EXIT if any(ending.complaint for ending in endings) else 0

    async def _connect_and_play(self) -> list[Ending]:
        self._screen.line(
            "Four jobs, run the way an agent runs them: an MCP client over stdio that calls tools.",
            "bold",
        )
        self._say_start()
        server = StdioServerParameters(
            command=self._command.program, args=[*self._command.arguments], env=dict(os.environ)
        )
        endings: list[Ending] = []
        # What the server logs would tear the picture; it is told if nothing else is.
        with TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
            try:
                async with Client(stdio_client(server, errlog=log)) as client:
                    self._say_place()
                    await self._play_all(Stage(self._screen, self._command, client), endings)
            except* (MCPError, OSError) as errors:
                log.seek(0)
                raise _unusable(_innermost(errors), log.read()) from errors
        return endings

    async def _play_all(self, stage: Stage, endings: list[Ending]) -> None:
        """Play the scenes; an interruption ends them and leaves the connection, to cancel what they left running."""
        self._scope = anyio.CancelScope()
        with self._scope:
            for number, scene in enumerate(SCENES, 1):
                endings.append(await self._play(stage, number, scene))
        with anyio.move_on_after(CLEANUP_SECONDS):
            await _cancel_open_runs(stage)

    async def _play(self, stage: Stage, number: int, scene: Scene) -> Ending:
        """Play one scene; whatever goes wrong in it, the others are still played."""
        self._screen.title(f"{number} of {len(SCENES)}  {scene.title}")
        known = len(stage.runs)
        began = time.monotonic()
        complaint = ""
        try:
            with anyio.fail_after(SCENE_SECONDS):
                expect(await scene.play(stage), scene.status)
        except* (BrokenPromiseError, MCPError, OSError) as errors:
            complaint = _complaint(_innermost(errors))
        took = f"after {time.monotonic() - began:.1f} s"
        if complaint:
            self._screen.say(f"not as promised {took}: {complaint}", "bold red")
        else:
            self._screen.say(f"{scene.status} {took}, as promised", "green")
        mine = list(stage.runs.values())[known:]
        return Ending(scene, mine[0] if mine else None, complaint)

    async def _heed_signals(self, *, task_status: TaskStatus[None]) -> None:
        """End in order, whoever says so: Ctrl+C, a supervisor, or the terminal that was closed."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        if sys.platform != "win32":
            numbers.append(signal.SIGHUP)
        with anyio.open_signal_receiver(*numbers) as signals:
            task_status.started()
            async for _ in signals:
                self._is_interrupted = True
                self._scope.cancel()

    def _node(self) -> NodeStatus | None:
        """Look at the local node, where there is one at all."""
        uses_node = self._settings.node == "auto" and sys.platform != "win32"
        return node_status(self._settings) if uses_node else None

    def _say_start(self) -> None:
        node = self._node()
        if node is not None and node.state == "stopped":
            self._screen.line("Starting the local node, which has the server and the workers.")
            if self._settings.is_embedded and not any(self._settings.state_dir.glob("pg*")):
                self._screen.line("This first time it makes a PostgreSQL of its own: some seconds.")

    def _say_place(self) -> None:
        postgres = f"PostgreSQL in {self._settings.state_dir}"
        database = postgres if self._settings.is_embedded else "the database of DATABASE_URL"
        node = self._node()
        if node is None:
            self._screen.line(f"The server is a process of this demo's own, on {database}.")
        else:
            self._screen.line(f"The local node is process {node.pid}, on {database}.")
        if said := describe_local_features(self._settings):
            self._screen.line(f"{said[0].upper()}{said[1:]}.")

    def _say_endings(self, endings: list[Ending]) -> None:
        screen = self._screen
        screen.line()
        screen.rows(
            ("run", "job", "promised", "ended", "tries"), [_row(ending) for ending in endings]
        )
        screen.line()
        broken = [ending for ending in endings if ending.complaint]
        if not broken:
            screen.line("All four ended as promised.", "bold green")
        for ending in broken:
            name = ending.run.job_name if ending.run else ending.scene.title
            screen.line(f"Not as promised: {name}: {ending.complaint}", "bold red")
        self._say_what_next(endings)

    def _say_what_next(self, endings: list[Ending]) -> None:
        """Tell how to go on, in commands that can be pasted into this very terminal."""
        screen = self._screen
        program = _shown(self._command)
        known = [ending.run for ending in endings if ending.run is not None]
        screen.title("Look at these runs")
        screen.say(f"{program} runs")
        if known:
            screen.say(f"{program} status {known[-1].run_id} --attempts --logs")
        screen.title("Give the tools to your agent")
        screen.say(f"{program} install claude-code    (or: {', '.join(list(ClientName)[1:])})")
        screen.say("or paste this into the client's configuration:")
        for line in install(ClientName.CURSOR, print_only=True).snippet.splitlines():
            screen.say(line)
        if self._node() is not None:
            screen.title("Stop")
            screen.say(f"{program} node stop")
            linger = self._settings.node_linger_seconds
            screen.say(f"or wait: the node ends {linger:g} s after the last client left")


async def _cancel_open_runs(stage: Stage) -> None:
    """Leave nothing running; whichever server a run was enqueued through, any other can cancel it."""
    for run in stage.runs.values():
        if not RunStatus(run.status).is_final:
            arguments = {"runId": run.run_id, "reason": "the demo ended before it"}
            await stage.client.call_tool("cancel-job", arguments)


def _unusable(reason: BaseException, log: str) -> OperatorError:
    """Say why there is no server to talk to, in the server's own words where it left any."""
    hint = ""
    if isinstance(reason, MCPError) and isinstance(reason.error.data, dict):
        hint = str(cast("Mapping[str, object]", reason.error.data).get("hint") or "")
    last_words = "\n".join(log.strip().splitlines()[-5:])
    return OperatorError(
        f"the demo has no server to talk to: {reason}",
        hint=hint or last_words or "jobforge doctor looks for the cause",
    )


def _row(ending: Ending) -> tuple[str, str, str, str, str]:
    run, promise = ending.run, ending.scene.promise
    if run is None:
        return ("-", "-", promise, "-", "-")
    return (run.run_id, run.job_name, promise, run.status, str(run.attempt or 0))


def _complaint(error: BaseException) -> str:
    if isinstance(error, BrokenPromiseError):
        return str(error)
    if isinstance(error, TimeoutError):
        return f"it was not over after {SCENE_SECONDS:.0f} s"
    return f"its MCP server cannot be used: {error}"


def _shown(command: Command) -> str:
    """Write how this program is started, the short way where that works from here."""
    path, here = Path(command.program), Path.cwd()
    program = str(path.relative_to(here)) if path.is_relative_to(here) else command.program
    return shlex.join([program, *command.arguments])


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error
