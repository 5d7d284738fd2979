"""What passes through a chat's pump: whole messages, however large, and nothing torn."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterable

import anyio
import pytest
from anyio.abc import SocketStream

from jobforge_mcp.local import rendezvous
from jobforge_mcp.local.bridge import LineBuffer
from jobforge_mcp.local.connections import Chat, ReadStream, WriteStream
from tests.local.conftest import Home

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs Unix sockets")


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"one\n"], [b"one\n"]),
        ([b"on", b"e\ntw", b"o\n"], [b"one\n", b"two\n"]),
        ([b"a\nb\nc\n"], [b"a\n", b"b\n", b"c\n"]),
        ([b"\n", b"x"], [b"\n"]),
        ([b"torn"], []),
    ],
)
def test_bytes_are_cut_into_whole_lines(chunks: Iterable[bytes], lines: list[bytes]) -> None:
    buffer = LineBuffer()

    assert [line for chunk in chunks for line in buffer.feed(chunk)] == lines


@pytest.mark.requirement("local.whole-messages")
def test_a_large_input_is_answered_by_the_server_and_the_chat_goes_on(home: Home) -> None:
    with home.chat() as chat:
        chat.initialize()
        refused = chat.call("execute-job", name="demo.countdown", input={"x": "y" * 2_000_000})
        after = chat.ask("tools/list")

    assert refused["error"]["retryable"] is False
    assert "result" in after


@pytest.mark.requirement("local.whole-messages")
def test_a_message_beyond_all_bounds_is_refused_and_the_chat_goes_on(home: Home) -> None:
    with home.chat() as chat:
        chat.initialize()
        refused = chat.ask("tools/call", {"name": "x" * rendezvous.LONGEST_LINE})
        after = chat.ask("tools/list")

    assert refused["error"]["data"]["code"] == "LIMIT_EXCEEDED"
    assert "result" in after


@pytest.mark.requirement("local.whole-messages")
def test_a_node_refuses_what_is_too_long_whoever_sends_it(home: Home) -> None:
    with home.chat() as chat, socket.socket(socket.AF_UNIX) as other:
        chat.initialize()
        other.settimeout(60)
        other.connect(home.place.socket_path)
        other.sendall(rendezvous.write_object(rendezvous.say_hello("mcp")))
        with other.makefile("rb") as heard:
            heard.readline()
            other.sendall(b'{"x":"' + b"x" * rendezvous.LONGEST_LINE + b'"}\n')
            refused = json.loads(heard.readline())

    assert refused["id"] is None
    assert "at most" in refused["error"]["message"]


@pytest.mark.requirement("local.whole-messages")
def test_many_requests_at_once_are_all_answered(home: Home) -> None:
    with home.chat() as chat:
        chat.initialize()
        asked = {chat.say("tools/list") for _ in range(200)}
        answered = {chat.hear()["id"] for _ in range(200)}

    assert answered == asked


def test_garbage_does_not_end_a_chat(home: Home) -> None:
    with home.chat() as chat:
        chat.initialize()
        assert chat.process.stdin is not None
        chat.process.stdin.write(b'not json\n\n[1, 2]\n{"jsonrpc": "1.0"}\n\xff\xfe\n')
        after = chat.ask("tools/list")

    assert "result" in after


def test_a_hello_that_is_none_is_not_answered(home: Home) -> None:
    with home.chat() as chat, socket.socket(socket.AF_UNIX) as stranger:
        chat.initialize()
        stranger.settimeout(60)
        stranger.connect(home.place.socket_path)
        stranger.sendall(b"GET / HTTP/1.1\r\n")
        heard = json.loads(stranger.recv(rendezvous.LONGEST_HELLO))

    assert "error" in heard


@pytest.mark.requirement("local.node-lost")
async def test_a_chat_that_left_with_a_question_open_hinders_nobody_s_end() -> None:
    """A node that ends says farewell to all chats at once: one whose host has just gone must not cost the others theirs."""
    ours, theirs = socket.socketpair()
    stream = await SocketStream.from_socket(ours)
    chat = Chat(stream, b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}\n')
    was_asked, has_left, may_end = anyio.Event(), anyio.Event(), anyio.Event()

    async def serve(reading: ReadStream, _: WriteStream) -> None:
        async for _message in reading:
            was_asked.set()
        has_left.set()
        await may_end.wait()

    async def handle() -> None:
        async with stream:
            await chat.run(serve)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(handle)
            await was_asked.wait()
            theirs.close()
            await has_left.wait()
            tasks.start_soon(chat.end, 600)
            await anyio.wait_all_tasks_blocked()
            may_end.set()
