"""``serve`` as a process: it says where it is, and ends in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from urllib.request import urlopen

import pytest

from tests.cli.conftest import Runner


def test_http_says_where_it_is_and_ends_in_order(installed: Runner) -> None:
    # Slow, because a server has to start.
    command = [sys.executable, "-m", "jobforge_mcp.entry", "serve", "--http", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        url = next(
            found[1]
            for line in server.stderr
            if (found := re.search(r"serving MCP at (http://127\.0\.0\.1:\d+)/mcp", line))
        )
        with urlopen(f"{url}/health") as answer:  # noqa: S310 - the address it just printed
            assert answer.status == 200
        server.terminate()
        said = server.stderr.read()

    assert server.returncode == 0
    assert os.environ["JOBFORGE_TOKEN"] not in said


@pytest.mark.requirement("policy.http-without-keys")
def test_http_without_keys_leaves_loopback_to_nobody(
    installed: Runner, environment: pytest.MonkeyPatch
) -> None:
    environment.delenv("JOBFORGE_TOKEN_KEYS")

    everywhere = "0.0.0.0"  # noqa: S104 - what must be refused
    ran = installed("serve", "--http", "--host", everywhere, "--port", "0", "--workers", "0")

    assert ran.code == 3
    assert "token" in ran.err
