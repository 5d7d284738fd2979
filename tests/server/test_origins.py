from __future__ import annotations

import socket
from pathlib import Path

import anyio
import pytest

from jobforge_mcp.errors import SettingsError
from jobforge_mcp.server.origins import Origins
from jobforge_mcp.settings import Settings
from tests.end_to_end.doors import http_server
from tests.postgres import ScratchDatabase
from tests.server.stage import open_stage

SETTINGS = Settings(
    host="10.0.0.5",
    allowed_hosts=("jobs.example", "ops.example:8443", "[2001:DB8::7]"),
    allowed_origins=("https://app.example", "http://dev.example:*"),
)


@pytest.mark.requirement("server.places")
@pytest.mark.parametrize(
    ("hosts", "is_allowed"),
    [
        (["127.0.0.1"], True),
        (["127.0.0.1:8377"], True),
        (["localhost:1"], True),
        (["LocalHost:8377"], True),
        (["[::1]:8377"], True),
        (["[0:0:0:0:0:0:0:1]"], True),
        (["10.0.0.5:8377"], True),
        (["JOBS.example"], True),
        (["jobs.example:443"], True),
        (["ops.example:8443"], True),
        (["[2001:db8:0::7]:1"], True),
        ([], False),
        ([""], False),
        (["localhost", "localhost"], False),
        (["ops.example"], False),
        (["ops.example:8444"], False),
        (["localhost."], False),
        (["jobs.example.:443"], False),
        (["localhost:1.evil.example"], False),
        (["localhost:80:80"], False),
        (["localhost:"], False),
        (["localhost:0"], False),
        (["localhost:65536"], False),
        (["localhost:8377@evil.example"], False),
        (["evil.example/localhost"], False),
        (["jobs.example, localhost"], False),
        (["::1"], False),
        (["[::1"], False),
        (["[::ffff:127.0.0.1]"], False),
        (["[fe80::1%25lo]"], False),
        (["127.0.0.1.evil.example"], False),
        (["127.1"], False),
        (["2130706433"], False),
        (["0.0.0.0"], False),  # noqa: S104  # asked about, not bound
        (["localhost:８０"], False),
        (["sub.jobs.example"], False),
    ],
)
def test_a_host_is_compared_by_its_parts(hosts: list[str], is_allowed: bool) -> None:
    assert Origins.from_settings(SETTINGS).allows_host(hosts) is is_allowed


@pytest.mark.requirement("server.places")
@pytest.mark.parametrize(
    ("origins", "is_allowed"),
    [
        ([], True),
        (["http://localhost"], True),
        (["http://localhost:5173"], True),
        (["https://127.0.0.1:1"], True),
        (["http://[::1]:5173"], True),
        (["HTTP://LOCALHOST:5173"], True),
        (["https://app.example"], True),
        (["https://app.example:443"], True),
        (["http://dev.example:9999"], True),
        (["null"], False),
        ([""], False),
        (["http://localhost", "https://evil.example"], False),
        (["http://app.example"], False),
        (["https://app.example:444"], False),
        (["https://dev.example:9999"], False),
        (["https://app.example."], False),
        (["https://app.example.evil.example"], False),
        (["https://app.example:443.evil.example"], False),
        (["http://localhost:1/"], False),
        (["file://"], False),
        (["chrome-extension://localhost"], False),
        (["localhost"], False),
        (["http://user@localhost"], False),
        (["http://jobs.example"], False),
        (["*"], False),
    ],
)
def test_an_origin_is_compared_by_its_parts(origins: list[str], is_allowed: bool) -> None:
    assert Origins.from_settings(SETTINGS).allows_origin(origins) is is_allowed


@pytest.mark.requirement("server.exposure")
@pytest.mark.parametrize(
    "overrides",
    [
        {"allowed_hosts": ("*",)},
        {"allowed_hosts": ("*.example",)},
        {"allowed_hosts": ("jobs.example:*",)},
        {"allowed_origins": ("*",)},
        {"allowed_origins": ("null",)},
        {"allowed_origins": ("https://*.example",)},
        {"allowed_origins": ("app.example",)},
    ],
)
def test_what_would_switch_the_check_off_is_refused(overrides: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(SettingsError, match="JOBFORGE_ALLOWED_") as caught:
        Origins.from_settings(Settings.model_validate(overrides))

    assert caught.value.hint


async def _status(port: int, head: bytes, address: str = "127.0.0.1") -> bytes:
    """Send a request as it is, and return the first line of the answer."""
    with anyio.fail_after(60):
        async with await anyio.connect_tcp(address, port) as stream:
            await stream.send(head + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
            return (await stream.receive()).split(b"\r\n", 1)[0]


@pytest.mark.requirement("server.places")
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])  # noqa: S104  # with token keys
async def test_hosts_and_origins_are_checked_whatever_is_bound(
    host: str, database: ScratchDatabase, tmp_path: Path
) -> None:
    if ":" in host and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    async with (
        open_stage(database, tmp_path, has_pool=False, host=host) as stage,
        http_server(stage) as server,
    ):
        port = int(server.url.rpartition(":")[2])
        address = "::1" if ":" in host else "127.0.0.1"
        bearer = f"Authorization: Bearer {stage.token()}\r\n".encode()
        answers = [
            await _status(port, b"POST " + path + b" HTTP/1.1\r\n" + bearer + headers, address)
            for path in (b"/mcp", b"/sse", b"/messages/?session_id=0")
            for headers in (
                b"Host: evil.example\r\n",
                b"Host: localhost.\r\n",
                b"Host: localhost\r\nHost: evil.example\r\n",
                b"Host: localhost\r\nOrigin: null\r\n",
                b"Host: localhost\r\nOrigin: https://evil.example\r\n",
            )
        ]

    refused = {b"HTTP/1.1 421 Misdirected Request", b"HTTP/1.1 403 Forbidden", b"HTTP/1.1 400 Bad Request"}  # fmt: skip
    assert set(answers) <= refused
    assert [answer[9:12] for answer in answers[:5]] in (
        [b"421", b"421", b"421", b"403", b"403"],
        [b"421", b"421", b"400", b"403", b"403"],
    )
