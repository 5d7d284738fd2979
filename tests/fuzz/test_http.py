"""Clients that send anything at all: never a failure of our own, never a hang, never memory without bound.

``JOBFORGE_FUZZ_EXAMPLES`` runs more than the usual number of messages.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, suppress
from time import monotonic

import httpx2
import pytest
from hypothesis import given

from tests.fuzz.conftest import Live
from tests.fuzz.messages import bodies, fuzzing, headers, named

EXAMPLES = int(os.environ.get("JOBFORGE_FUZZ_EXAMPLES", "600"))

MOST_GROWTH_MB = 150
GOOD = {
    "Accept": "application/json, text/event-stream",
    "Content-Type": "application/json",
    "MCP-Protocol-Version": "2026-07-28",
    "Mcp-Method": "tools/call",
}
LIST = (
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list-jobs","arguments":{},"_meta":'
    b'{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}'
)


def serves(live: Live) -> None:
    """A good call is answered, whatever came before it."""
    said = {**GOOD, "Mcp-Name": "list-jobs", "Authorization": f"Bearer {live.token}"}
    answer = httpx2.post(f"{live.url}/mcp", content=LIST, headers=said, timeout=60)
    assert answer.status_code == 200
    assert "demo.broken" in answer.text
    assert live.process.poll() is None


@pytest.mark.timeout(1800)
@pytest.mark.requirement("faults.fuzz")
def test_no_message_is_answered_by_a_failure_of_our_own(live: Live) -> None:
    """Half a minute: six hundred messages."""
    serves(live)
    before = live.resident_mb
    sent = 0
    answered: dict[int, int] = {}

    with httpx2.Client(timeout=httpx2.Timeout(60)) as http:

        @fuzzing(EXAMPLES)
        @given(body=bodies, said=headers)
        def send(body: bytes, said: dict[str, str]) -> None:
            nonlocal sent
            sent += 1
            whole = {**GOOD, **named(body), **said, "Authorization": f"Bearer {live.token}"}
            began = monotonic()
            # an answer that streams on is left after its head: what comes of it is another test's
            with http.stream("POST", f"{live.url}/mcp", content=body, headers=whole) as answer:
                answered[answer.status_code] = answered.get(answer.status_code, 0) + 1
                assert answer.status_code < 500, (answer.status_code, body[:500], said)
                text = b""
                for part in answer.iter_raw():
                    text += part
                    if len(text) > 1 << 20 or monotonic() - began > 45:
                        break
            assert b'"INTERNAL"' not in text, (text[:500], body[:500], said)
            assert b"Traceback" not in text
            assert monotonic() - began < 60

        send()
    serves(live)

    print(f"{sent} messages: {answered}, {before:.0f} to {live.resident_mb:.0f} MB")  # noqa: T201
    assert sent >= EXAMPLES
    assert live.resident_mb < before + MOST_GROWTH_MB
    assert not [line for line in live.said if "Traceback" in line], live.said[-20:]


@pytest.mark.requirement("faults.fuzz")
@pytest.mark.parametrize("is_chunked", [False, True], ids=["with its length", "chunked"])
def test_bodies_without_end_are_refused_before_they_fill_the_memory(
    live: Live, is_chunked: bool
) -> None:
    serves(live)
    before = live.resident_mb
    part = b'"' + b"a" * 65_535

    def endless() -> object:
        for _ in range(1_000):
            yield part

    statuses: list[int] = []
    for _ in range(5):
        said = {**GOOD, "Authorization": f"Bearer {live.token}"}
        try:
            if is_chunked:
                answer = httpx2.post(f"{live.url}/mcp", content=endless(), headers=said, timeout=60)  # pyright: ignore[reportArgumentType]  # a generator of bytes
            else:
                answer = httpx2.post(f"{live.url}/mcp", content=part * 1_000, headers=said, timeout=60)  # fmt: skip
            statuses.append(answer.status_code)
        except httpx2.TransportError:
            statuses.append(413)  # hung up on while it was still sending
    serves(live)

    assert set(statuses) == {413}
    assert live.resident_mb < before + MOST_GROWTH_MB


def connected(live: Live, opened: ExitStack) -> socket.socket:
    made = opened.enter_context(socket.create_connection(("127.0.0.1", live.port), timeout=60))
    made.settimeout(60)
    return made


HEAD = b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
BODY = HEAD + b"Authorization: Bearer %s\r\nContent-Length: 1000\r\n\r\n{"
SLOW = {"no byte": b"", "half a head": HEAD, "half a body": BODY}


@pytest.mark.requirement("faults.fuzz")
@pytest.mark.parametrize("start", SLOW.values(), ids=SLOW.keys())
def test_clients_that_send_slowly_or_nothing_are_hung_up_on_and_others_are_served(
    live: Live, start: bytes
) -> None:
    """A hundred connections that say a byte a second, and no more than their time."""
    begun = start.replace(b"%s", live.token.encode())
    with ExitStack() as opened:
        slow = [connected(live, opened) for _ in range(100)]
        for each in slow:
            each.sendall(begun)

        serves(live)
        ends: list[bytes] = []
        for each in slow:
            try:
                ends.append(each.recv(4_096))
            except ConnectionResetError:
                ends.append(b"")

    # those with a body may be told why before
    assert all(end == b"" or end.startswith(b"HTTP/1.1 4") for end in ends), ends[:3]
    serves(live)


@pytest.mark.requirement("faults.fuzz")
def test_headers_without_end_are_hung_up_on(live: Live) -> None:
    serves(live)
    before = live.resident_mb
    with ExitStack() as opened:
        made = connected(live, opened)
        made.sendall(HEAD)
        sent = 0
        with suppress(OSError):  # reset or broken, as it comes
            while sent < 512 << 20:
                made.sendall(b"X-More: " + b"a" * 8_000 + b"\r\n")
                sent += 8_010
    serves(live)

    assert sent < 64 << 20
    assert live.resident_mb < before + MOST_GROWTH_MB
