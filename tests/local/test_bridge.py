"""What a chat notices of the bridge: the real console script, a real node, its own embedded PostgreSQL."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mcp.client import Client

from jobforge_mcp import embedded
from tests.local.conftest import JOBFORGE, Chat, Home, is_alive, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.mark.requirement("local.both-eras")
@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_the_sdk_s_client_is_served_in_both_eras(home: Home, mode: str) -> None:
    async with Client(home.server(), mode=mode) as client:
        tools = await client.list_tools()
        result = await client.call_tool(
            "execute-job", {"name": "demo.countdown", "input": {"seconds": 0}}
        )

    assert "execute-job" in {tool.name for tool in tools.tools}
    assert result.structured_content is not None
    assert result.structured_content["status"] == "succeeded"


@pytest.mark.requirement("local.one-node")
def test_chats_that_start_at_once_share_one_node(home: Home) -> None:
    home.stop_node()

    with home.chat() as a, home.chat() as b, home.chat() as c, home.chat() as d, home.chat() as e:
        for chat in (a, b, c, d, e):
            assert chat.initialize()["result"]["serverInfo"]["name"] == "jobforge"
        pids = home.node_pids()
        chats = home.node.chats

    assert pids == {home.node.pid}
    assert chats == 5


@pytest.mark.requirement("local.light-bridge")
def test_a_bridge_takes_at_most_twelve_megabytes(home: Home) -> None:
    # The first start compiles, which an installed package has behind it.
    with home.chat() as chat:
        chat.initialize()

    with home.chat() as chat:
        chat.initialize()
        status = Path(f"/proc/{chat.process.pid}/status").read_text()

    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    assert int(peak[1]) <= 12 * 1024


@pytest.mark.requirement("local.no-orphans")
def test_a_bridge_ends_with_its_input_whatever_is_under_way(home: Home) -> None:
    with home.chat() as chat:
        chat.initialize()
        chat.say("tools/call", {"name": "execute-job", "arguments": countdown(120)})
        running = wait_for_running(home, chat_name="demo.countdown")

        code = chat.close()

    assert code == 0
    # The call was still under way: a bridge waits for no answer.
    with home.chat() as other:
        other.initialize()
        assert other.call("cancel-job", runId=running)["status"] in {"running", "canceled"}


@pytest.mark.requirement("local.no-orphans")
def test_a_bridge_ends_with_its_parent_although_its_input_stays_open(home: Home) -> None:
    parent = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:]); print(p.pid, file=sys.stderr, flush=True); p.wait()"
    with subprocess.Popen(
        [sys.executable, "-c", parent, str(JOBFORGE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=home.environment(),
    ) as process:
        assert process.stderr is not None
        bridge = int(process.stderr.readline())
        until(lambda: home.node.chats == 1)
        process.kill()

        until(lambda: not is_alive(bridge))


@pytest.mark.requirement("local.outlives-chat")
def test_a_job_outlives_its_chat(home: Home) -> None:
    with home.chat() as chat:
        chat.initialize()
        run = chat.call("execute-job", **countdown(1), background=True)
        chat.close()

    with home.chat() as chat:
        chat.initialize()
        found = chat.call("get-job-status", runId=run["runId"], waitSeconds=40)

    assert run["status"] in {"queued", "running"}
    assert found["status"] == "succeeded"


@pytest.mark.requirement("local.node-lost")
def test_a_killed_node_is_replaced_under_a_chat_and_nothing_committed_is_lost(home: Home) -> None:
    with home.chat() as chat:
        chat.initialize()
        done = chat.call("execute-job", **countdown(0))
        call = chat.say("tools/call", {"name": "execute-job", "arguments": countdown(120)})
        running = wait_for_running(home, chat_name="demo.countdown")
        killed = home.kill_node()

        lost = chat.hear()
        # The same chat goes on: the handshake was repeated for it.
        still_there = chat.call("get-job-status", runId=done["runId"])
        taken_up = chat.call("get-job-status", runId=running)
        chat.call("cancel-job", runId=running)

    assert (lost["id"], lost["error"]["data"]["code"]) == (call, "NODE_LOST")
    assert still_there["status"] == "succeeded"
    assert taken_up["status"] in {"queued", "running"}
    assert home.node.pid != killed


@pytest.mark.requirement("local.node-lost")
def test_a_stopped_node_is_started_again_by_the_next_request_and_no_sooner(home: Home) -> None:
    with home.chat() as chat:
        chat.initialize()
        before = home.node.pid
        call = chat.say("tools/call", {"name": "execute-job", "arguments": countdown(120)})
        running = wait_for_running(home, chat_name="demo.countdown")

        assert home.stop_node()
        answered = chat.hear()
        was_running = home.node.state
        after = chat.ask("tools/list")
        chat.call("cancel-job", runId=running)

    # What was under way is answered before the end: the wait is cut short, the job is not.
    assert (answered["id"], "error" in answered) == (call, False)
    assert was_running == "stopped"
    assert "result" in after
    assert home.node.pid != before


@pytest.mark.requirement("local.node-lost")
def test_a_killed_postmaster_comes_back_with_what_was_committed(home: Home) -> None:
    with home.chat() as chat:
        chat.initialize()
        run = chat.call("execute-job", **countdown(0))
        running = embedded.status(home.state_dir).running
        assert running is not None
        os.kill(running.postmaster_pid, signal.SIGKILL)

        until(lambda: chat.ask("tools/list").get("result") is not None)
        found = until_answered(chat, run["runId"])

    assert found["status"] == "succeeded"


@pytest.mark.requirement("local.stale-socket")
def test_the_socket_of_a_killed_node_does_not_hinder_the_next(home: Home) -> None:
    with home.chat() as chat:
        chat.initialize()
    home.kill_node()
    is_left_behind = Path(home.place.socket_path).exists()

    with home.chat() as chat:
        answer = chat.initialize()

    assert is_left_behind
    assert "result" in answer


@pytest.mark.requirement("local.told-why")
def test_a_node_that_cannot_start_is_explained_to_client_and_log(home: Home) -> None:
    home.stop_node()

    with home.chat(JOBFORGE_JOBS="/nowhere/jobs.py") as chat:
        answer = chat.ask("initialize")
        code = chat.close()
        assert chat.process.stderr is not None
        said = chat.process.stderr.read().decode()

    assert answer["error"]["data"]["code"] == "NODE_UNAVAILABLE"
    assert "/nowhere/jobs.py" in answer["error"]["message"]
    assert "/nowhere/jobs.py" in said
    assert code == 1


def countdown(seconds: float) -> dict[str, object]:
    return {"name": "demo.countdown", "input": {"seconds": seconds}}


def wait_for_running(home: Home, chat_name: str) -> str:
    """Return the id of the newest run once its handler runs, seen from another chat."""
    with home.chat() as other:
        other.initialize()
        while True:
            runs = other.call("list-runs", name=chat_name, status="running", limit=1)["runs"]
            if runs:
                return runs[0]["runId"]
            time.sleep(0.02)


def until_answered(chat: Chat, run_id: str) -> dict[str, object]:
    """Ask for a run as often as the database is said to be away."""
    while True:
        answer = chat.ask("tools/call", {"name": "get-job-status", "arguments": {"runId": run_id}})[
            "result"
        ]
        if not answer.get("isError"):
            return answer["structuredContent"]
        assert answer["structuredContent"]["error"]["retryable"], answer
        time.sleep(0.1)
