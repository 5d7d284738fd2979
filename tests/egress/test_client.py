"""The client against real receivers on loopback: what is connected to, followed, sent along and read."""

from __future__ import annotations

import gzip
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import anyio
import anyio.abc
import pytest

from jobforge_mcp.egress.client import EgressPolicy, Incoming, Outgoing, SendError, send
from jobforge_mcp.errors import PermanentError


@dataclass
class Receiver:
    """An HTTP server that answers by path and remembers what it was asked."""

    port: int
    answers: dict[str, bytes] = field(default_factory=dict[str, bytes])
    asked: list[tuple[str, dict[str, str], bytes]] = field(
        default_factory=list[tuple[str, dict[str, str], bytes]]
    )

    is_silent: bool = False
    """Reads requests and never answers."""

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            data = b""
            while b"\r\n\r\n" not in data:
                data += await stream.receive()
            head, _, body = data.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
            while len(body) < int(headers.get("content-length", "0")):
                body += await stream.receive()
            self.asked.append((first.rsplit(" ", 1)[0], headers, body))
            if self.is_silent:
                await anyio.sleep_forever()
            await stream.send(self.answers.get(first.split(" ")[1], answer(b"404 None", b"")))


def answer(status: bytes, body: bytes, *headers: bytes) -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 " + status, length, b"Connection: close", *headers, b"", body])


def port_of(listener: anyio.abc.Listener[anyio.abc.SocketStream]) -> int:
    return listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - anyio's, not Django's


async def started(tasks: anyio.abc.TaskGroup) -> Receiver:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    receiver = Receiver(port_of(listener))

    async def run() -> None:
        async with listener:
            await listener.serve(receiver.serve)

    tasks.start_soon(run)
    return receiver


@pytest.fixture
async def receiver() -> AsyncGenerator[Receiver]:
    async with anyio.create_task_group() as tasks:
        yield await started(tasks)
        tasks.cancel_scope.cancel()


@pytest.fixture
async def other() -> AsyncGenerator[Receiver]:
    async with anyio.create_task_group() as tasks:
        yield await started(tasks)
        tasks.cancel_scope.cancel()


def open_to(*receivers: Receiver) -> EgressPolicy:
    return EgressPolicy(ports=tuple(r.port for r in receivers), allow_private=True)


async def get(
    url: str, policy: EgressPolicy, *, max_redirects: int = 0, max_bytes: int = 1_000_000
) -> Incoming:
    with anyio.fail_after(60):
        return await send(Outgoing("GET", url, {}, None, max_redirects, max_bytes), policy)


async def test_a_request_arrives_as_it_was_asked(receiver: Receiver) -> None:
    receiver.answers["/a?b=c"] = answer(b"201 Made", b"hello", b"X-Request-Id: 7")

    with anyio.fail_after(60):
        incoming = await send(
            Outgoing("POST", receiver.url("/a?b=c", "localhost"), {"X-Mine": "1"}, b"data"),
            open_to(receiver),
        )

    assert (incoming.status, incoming.content, incoming.is_truncated) == (201, b"hello", False)
    ((line, headers, body),) = receiver.asked
    assert (line, body) == ("POST /a?b=c", b"data")
    assert headers["host"] == f"localhost:{receiver.port}"
    assert headers["x-mine"] == "1"
    assert headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.requirement("egress.judged")
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"]
)
async def test_nothing_is_sent_to_a_private_address(receiver: Receiver, host: str) -> None:
    with pytest.raises(PermanentError) as refused:
        await get(receiver.url(host=host), EgressPolicy(ports=(receiver.port,)))

    assert refused.value.code == "URL_REFUSED"
    assert receiver.asked == []


@pytest.mark.requirement("egress.judged")
async def test_only_allowed_ports_and_hosts_are_called(receiver: Receiver) -> None:
    for policy in (
        EgressPolicy(allow_private=True),
        EgressPolicy(ports=(receiver.port,), hosts=("*.example.com",), allow_private=True),
    ):
        with pytest.raises(PermanentError) as refused:
            await get(receiver.url(), policy)
        assert refused.value.code == "URL_REFUSED"

    assert receiver.asked == []


@pytest.mark.requirement("egress.judged")
async def test_no_proxy_of_the_environment_is_used(
    receiver: Receiver, other: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, other.url())
    receiver.answers["/"] = answer(b"200 OK", b"direct")

    assert (await get(receiver.url(), open_to(receiver))).content == b"direct"
    assert other.asked == []


@pytest.mark.requirement("egress.redirects")
async def test_a_redirect_is_followed_only_as_far_as_asked(receiver: Receiver) -> None:
    for n in range(6):
        receiver.answers[f"/{n}"] = answer(b"302 Found", b"", b"Location: /%d" % (n + 1))
    receiver.answers["/6"] = answer(b"200 OK", b"end")

    assert (await get(receiver.url("/0"), open_to(receiver))).status == 302
    stopped = await get(receiver.url("/0"), open_to(receiver), max_redirects=5)
    arrived = await get(receiver.url("/1"), open_to(receiver), max_redirects=5)

    assert (stopped.status, stopped.redirects, stopped.url) == (302, 5, receiver.url("/5"))
    assert (arrived.status, arrived.content, arrived.redirects) == (200, b"end", 5)


@pytest.mark.requirement("egress.redirects")
@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/latest", "http://[::]/", "http://10.0.0.1\\@example.com/", "file:///etc/passwd", "http://127.1/",
     "//0.0.0.1/", "gopher://127.0.0.1/", "http://user@127.0.0.1/"],
)  # fmt: skip
async def test_a_redirect_passes_the_same_checks(receiver: Receiver, location: str) -> None:
    receiver.answers["/"] = answer(b"302 Found", b"", b"Location: " + location.encode())

    with pytest.raises(PermanentError):
        await get(
            receiver.url(),
            EgressPolicy(ports=(80, receiver.port), allow_private=True),
            max_redirects=3,
        )

    assert len(receiver.asked) == 1


@pytest.mark.requirement("egress.redirects")
async def test_credentials_stay_with_their_origin(receiver: Receiver, other: Receiver) -> None:
    receiver.answers["/"] = answer(b"302 Found", b"", b"Location: /again")
    receiver.answers["/again"] = answer(b"302 Found", b"", b"Location: " + other.url().encode())
    other.answers["/"] = answer(b"200 OK", b"")
    secrets = {
        "Authorization": "Bearer s",
        "Cookie": "c=s",
        "X-Api-Key": "s",
        "Accept": "text/plain",
    }

    with anyio.fail_after(60):
        await send(
            Outgoing("GET", receiver.url(), secrets, max_redirects=2), open_to(receiver, other)
        )

    assert [headers.get("authorization") for _, headers, _ in receiver.asked] == ["Bearer s"] * 2
    ((_, headers, _),) = other.asked
    assert headers["accept"] == "text/plain"
    assert not {"authorization", "cookie", "x-api-key"} & headers.keys()


@pytest.mark.requirement("egress.redirects")
async def test_a_post_is_never_sent_again(receiver: Receiver) -> None:
    receiver.answers["/307"] = answer(b"307 Again", b"", b"Location: /end")
    receiver.answers["/303"] = answer(b"303 See", b"", b"Location: /end")
    receiver.answers["/end"] = answer(b"200 OK", b"end")

    with anyio.fail_after(60):
        kept = await send(Outgoing("POST", receiver.url("/307"), {}, b"x", 5), open_to(receiver))
        seen = await send(Outgoing("POST", receiver.url("/303"), {}, b"x", 5), open_to(receiver))

    assert (kept.status, seen.status) == (307, 200)
    assert [(line, body) for line, _, body in receiver.asked] == [
        ("POST /307", b"x"),
        ("POST /303", b"x"),
        ("GET /end", b""),
    ]


@pytest.mark.requirement("egress.limits")
async def test_no_more_is_read_than_asked_for(receiver: Receiver) -> None:
    receiver.answers["/"] = answer(b"200 OK", b"x" * 100_000)

    incoming = await get(receiver.url(), open_to(receiver), max_bytes=1_000)

    assert (incoming.content, incoming.is_truncated) == (b"x" * 1_000, True)


@pytest.mark.requirement("egress.limits")
async def test_compressed_answers_are_unpacked(receiver: Receiver) -> None:
    packed = gzip.compress(b"hello " * 100)
    receiver.answers["/"] = answer(b"200 OK", packed, b"Content-Encoding: gzip")

    assert (await get(receiver.url(), open_to(receiver))).content == b"hello " * 100


@pytest.mark.requirement("egress.limits")
@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (gzip.compress(bytes(50_000_000)), b"gzip"),
        (gzip.compress(gzip.compress(b"x")), b"gzip, gzip"),
        (b"x", b"br"),
        (b"not gzip", b"gzip"),
    ],
    ids=["bomb", "twice", "other", "damaged"],
)
async def test_answers_that_cannot_be_unpacked_safely_are_refused(
    receiver: Receiver, body: bytes, encoding: bytes
) -> None:
    receiver.answers["/"] = answer(b"200 OK", body, b"Content-Encoding: " + encoding)

    with pytest.raises(PermanentError) as refused:
        await get(receiver.url(), open_to(receiver), max_bytes=100_000_000)

    assert refused.value.code == "HTTP_UNREADABLE"


async def test_a_receiver_that_is_not_there_has_seen_nothing(receiver: Receiver) -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = port_of(listener)
    await listener.aclose()

    with pytest.raises(SendError) as failed:
        await get(f"http://127.0.0.1:{port}/", EgressPolicy(ports=(port,), allow_private=True))

    assert not failed.value.was_sent


async def test_a_receiver_that_breaks_off_may_have_acted(receiver: Receiver) -> None:
    receiver.answers["/"] = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
    receiver.answers["/at-once"] = b""

    for path in ("/", "/at-once"):
        with pytest.raises(SendError) as failed:
            await get(receiver.url(path), open_to(receiver))
        assert failed.value.was_sent
