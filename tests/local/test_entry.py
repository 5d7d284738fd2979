"""Which way the console script goes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mcp.client import Client

from tests.local.conftest import JOBFORGE, Home

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs Unix sockets")

SHOW = """
import json, sys
from jobforge_mcp import entry
sys.argv[1:] = json.loads(sys.argv[1])
before = set(sys.modules)
try:
    code = entry.main()
except SystemExit as end:
    code = end.code
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
print(json.dumps([code, sorted(loaded - sys.stdlib_module_names)]), file=sys.stderr)
"""


def run_entry(home: Home, *arguments: str, **extra: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", SHOW, json.dumps(arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=home.environment(**extra),
        cwd=home.state_dir,
        check=True,
        timeout=50,
    )
    code, loaded = json.loads(done.stderr.splitlines()[-1])
    return code, loaded


@pytest.mark.requirement("package.light-start")
def test_a_whole_chat_loads_nothing_but_the_standard_library_and_this_package(home: Home) -> None:
    with home.chat() as chat:
        chat.initialize()

        code, loaded = run_entry(home)

    assert (code, loaded) == (0, ["jobforge_mcp"])


def test_anything_else_goes_to_the_command_line(home: Home) -> None:
    code, loaded = run_entry(home, "--help")

    assert code == 0
    assert "typer" in loaded


@pytest.mark.requirement("local.without-node")
async def test_without_a_node_one_process_serves_by_itself(home: Home) -> None:
    home.stop_node()

    async with Client(home.server(JOBFORGE_NODE="off")) as client:
        result = await client.call_tool(
            "execute-job", {"name": "demo.countdown", "input": {"seconds": 0}}
        )
        state = home.node.state

    assert result.structured_content is not None
    assert result.structured_content["status"] == "succeeded"
    assert state == "stopped"


@pytest.mark.requirement("local.without-node")
def test_a_settings_file_can_switch_the_node_off(home: Home, tmp_path: Path) -> None:
    home.stop_node()
    (tmp_path / "jobforge.toml").write_text('node = "off"')

    done = subprocess.run(
        [JOBFORGE],
        input=b"",
        capture_output=True,
        env=home.environment(),
        cwd=tmp_path,
        check=False,
        timeout=50,
    )

    assert done.returncode == 0
    assert home.node.state == "stopped"
