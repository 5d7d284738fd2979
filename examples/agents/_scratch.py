"""What the stories share: an installation of their own that leaves nothing behind. No story itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from jobforge_mcp import embedded

JOBFORGE = str(Path(sys.executable).with_name("jobforge"))
"""The command that an MCP client starts: without arguments it speaks MCP over stdio."""


@contextmanager
def installation(**settings: str) -> Generator[dict[str, str]]:
    """Yield the environment in which every ``jobforge`` process finds the same database.

    The environment's own installation is used where it names one, but never with other settings than its own.
    """
    if not settings and ("JOBFORGE_STATE_DIR" in os.environ or "DATABASE_URL" in os.environ):
        yield dict(os.environ)
        return
    state_dir = embedded.scratch_state_directory()
    environment = {
        **{name: value for name, value in os.environ.items() if not _is_setting(name)},
        **settings,
        "JOBFORGE_STATE_DIR": str(state_dir),
    }
    try:
        yield environment
    finally:
        jobforge(environment, "node", "stop")
        embedded.stop(state_dir)
        shutil.rmtree(state_dir)


@contextmanager
def http_server(environment: Mapping[str, str]) -> Generator[str]:
    """Run ``jobforge serve --http`` on a free port, and yield its address."""
    command = [JOBFORGE, "serve", "--http", "--port", "0"]
    quiet = {**environment, "JOBFORGE_LOG_LEVEL": "error"}
    with subprocess.Popen(command, env=quiet, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            yield _address(server.stderr)
        finally:
            server.terminate()


def jobforge(environment: Mapping[str, str], *arguments: str) -> str:
    """Run one command and return what it prints."""
    done = subprocess.run(
        [JOBFORGE, *arguments], env=dict(environment), capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _is_setting(name: str) -> bool:
    return name.startswith("JOBFORGE_") or name == "DATABASE_URL"


def _address(lines: IO[str]) -> str:
    """Wait until the server says where it is."""
    for line in lines:
        before, mark, _ = line.partition("/mcp ")
        if mark:
            return before.rpartition(" ")[2]
    raise SystemExit("the server did not start")
