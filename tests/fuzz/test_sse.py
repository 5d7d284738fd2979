"""The old transport, sent anything at all: messages come by one request, answers by a stream that must go on."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Queue
from time import monotonic

import httpx2
import pytest
from hypothesis import given

from tests.fuzz.conftest import Live
from tests.fuzz.messages import bodies, fuzzing, headers
from tests.fuzz.test_http import MOST_GROWTH_MB, serves

EXAMPLES = int(os.environ.get("JOBFORGE_FUZZ_EXAMPLES", "300"))

WAIT_SECONDS = 60
HELLO = {
    "jsonrpc": "2.0",
    "id": "hello",
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "fuzz", "version": "1"},
    },
}
LIST = b'{"jsonrpc":"2.0","id":"last","method":"tools/call","params":{"name":"list-jobs","arguments":{}}}'


@dataclass
class Stream:
    """One connection of the old transport, read by a thread."""

    live: Live
    http: httpx2.Client
    where: str = ""
    """Where its messages go."""
    said: list[str] = field(default_factory=list[str])
    _heard: Queue[str] = field(default_factory=Queue[str])
    is_closed: threading.Event = field(default_factory=threading.Event)

    def listen(self, answer: httpx2.Response) -> None:
        """Read until the stream ends."""
        try:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    self.said.append(line)
                    self._heard.put(line)
        except httpx2.TransportError:
            pass
        self.is_closed.set()

    def hear(self, word: str) -> str:
        """Wait for a line with this in it."""
        deadline = monotonic() + WAIT_SECONDS
        while True:
            line = self._heard.get(timeout=max(0.01, deadline - monotonic()))
            if word in line:
                return line

    def send(self, body: bytes, said: dict[str, str]) -> httpx2.Response:
        """Send one message."""
        whole = {"Content-Type": "application/json", **said, "Authorization": f"Bearer {self.live.token}"}  # fmt: skip
        return self.http.post(self.where, content=body, headers=whole)


@contextmanager
def streaming(live: Live) -> Generator[Stream]:
    """Open a stream and shake hands."""
    head = {"Authorization": f"Bearer {live.token}"}
    timeout = httpx2.Timeout(WAIT_SECONDS, read=None)
    with (
        httpx2.Client(timeout=WAIT_SECONDS) as http,
        httpx2.stream("GET", f"{live.url}/sse", headers=head, timeout=timeout) as answer,
    ):
        assert answer.status_code == 200
        stream = Stream(live, http)
        reader = threading.Thread(target=stream.listen, args=(answer,), daemon=True)
        reader.start()
        found = re.search(r"/messages/\?session_id=\w+", stream.hear("session_id"))
        assert found
        stream.where = live.url + found[0]
        assert stream.send(json.dumps(HELLO).encode(), {}).status_code == 202
        stream.hear('"hello"')
        ready = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
        assert stream.send(ready, {}).status_code == 202
        yield stream
        serves(live)


@pytest.mark.timeout(1800)
@pytest.mark.requirement("faults.fuzz")
def test_no_message_to_an_old_stream_is_answered_by_a_failure_of_our_own_or_ends_it(
    live: Live,
) -> None:
    """A quarter of a minute: three hundred messages into one stream."""
    serves(live)
    before = live.resident_mb
    answered: dict[int, int] = {}

    with streaming(live) as stream:

        @fuzzing(EXAMPLES)
        @given(body=bodies, said=headers)
        def send(body: bytes, said: dict[str, str]) -> None:
            answer = stream.send(body, said)
            answered[answer.status_code] = answered.get(answer.status_code, 0) + 1
            assert answer.status_code < 500, (answer.status_code, body[:500], said)
            assert not stream.is_closed.is_set(), (body[:500], said)

        send()
        assert stream.send(LIST, {}).status_code == 202
        assert "demo.broken" in stream.hear('"last"')
        text = "\n".join(stream.said)

    print(f"{answered}, {len(text)} characters said, {before:.0f} to {live.resident_mb:.0f} MB")  # noqa: T201
    assert '"INTERNAL"' not in text, [line for line in stream.said if '"INTERNAL"' in line][:3]
    assert "Traceback" not in text
    assert answered[202] > EXAMPLES / 20
    assert live.resident_mb < before + MOST_GROWTH_MB
    assert not [line for line in live.said if "Traceback" in line], live.said[-20:]
