"""The processes of a soak: workers that are replaced when they end, and callers that are not hurt."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

STOP_SECONDS = 60
LEASE_SECONDS = 3.0
"""What the workers are given, and what a lost attempt must have lasted."""


class Crew:
    """Starts processes and ends them, by their numbers alone."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *, workers: int) -> None:
        """Run so many workers with this environment; their logs go to ``folder``."""
        self._folder = folder
        self._environment = {**os.environ, **environment}
        self._wanted = workers
        self._workers: list[subprocess.Popen[bytes]] = []
        self._leaving: list[subprocess.Popen[bytes]] = []
        self._callers: list[subprocess.Popen[bytes]] = []
        self.deaths = 0
        """Workers that ended by themselves: jobs that kill their worker did that."""

    def start_callers(self, seed: int, groups: list[list[str]]) -> None:
        """Start one process of callers for each group of tenants."""
        for number, tenants in enumerate(groups):
            command = [
                sys.executable,
                "-m",
                "soak.callers",
                str(self._folder),
                str(seed * 100 + number),
            ]
            self._callers.append(self._start([*command, *tenants], "callers"))

    def stop_callers(self) -> None:
        """Let the callers finish what they are at."""
        for caller in self._callers:
            caller.terminate()
        for caller in self._callers:
            caller.wait(STOP_SECONDS)

    def keep(self) -> None:
        """Replace workers that ended, and bury those that were told to."""
        for worker in list(self._workers):
            if worker.poll() is not None:
                self._workers.remove(worker)
                self.deaths += 1
        while len(self._workers) < self._wanted:
            self._workers.append(
                self._start(
                    [
                        str(Path(sys.executable).with_name("jobforge")),
                        "worker",
                        "--concurrency",
                        "8",
                    ],
                    "worker",
                )
            )
        self._leaving = [worker for worker in self._leaving if worker.poll() is None]

    def pick(self, chance: random.Random) -> subprocess.Popen[bytes]:
        """Choose one of the living workers."""
        return chance.choice(self._workers)

    def replace(self, chance: random.Random, number: signal.Signals) -> None:
        """Send one worker a signal that ends it; another takes its place."""
        worker = self.pick(chance)
        self._workers.remove(worker)
        with suppress(ProcessLookupError):
            worker.send_signal(signal.SIGCONT)
            worker.send_signal(number)
        self._leaving.append(worker)
        self.keep()

    def thaw(self) -> None:
        """Let everybody go on who was stopped."""
        for worker in [*self._workers, *self._leaving]:
            with suppress(ProcessLookupError):
                worker.send_signal(signal.SIGCONT)

    def stop(self) -> list[int]:
        """End all workers in good order, and return how many seconds each took."""
        began = time.monotonic()
        everybody = [*self._workers, *self._leaving, *self._callers]
        for process in everybody:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                    process.terminate()
        took: list[int] = []
        for process in everybody:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            took.append(round(time.monotonic() - began))
        self._workers, self._leaving, self._callers = [], [], []
        return took

    def _start(self, command: list[str], name: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
