"""The corpus of URLs: one strict reading, and a refusal wherever another reader could see another host."""

from __future__ import annotations

import pytest

from jobforge_mcp.egress.urls import host_is_allowed, parse_url
from jobforge_mcp.errors import PermanentError

REFUSED = [
    "", "example.com", "//example.com", "ftp://example.com", "file:///etc/passwd", "gopher://x", "http:example.com",
    "http:/example.com", "http:///example.com", "http://", "http://:80", "http://user@example.com", "http://u:p@example.com",
    "http://example.com@127.0.0.1", "http://example.com\\@127.0.0.1",
    "http://example.com\\.evil.test", "http:\\\\example.com", " http://example.com", "http://example.com ",
    "http://exam ple.com", "http://example.com/a b", "http://example.com/\n", "http://example.com\r\nHost: x",
    "http://ex\tample.com", "http://example.com/\0", "http://éxample.com", "http://example。com", "http://①②⑦.0.0.1",
    "http://ⓔxample.com", "http://example.com/ä", "http://127.1", "http://127.0.1", "http://0x7f000001", "http://0x7f.0.0.1",
    "http://2130706433", "http://0177.0.0.1", "http://127.0.0.01", "http://1.2.3.4.5", "http://1.2.3.256", "http://1.2.3.4.",
    "http://example.com.", "http://.example.com", "http://example..com", "http://a.0x", "http://a.09", "http://%31.1.1.1",
    "http://ex%61mple.com", "http://[::1", "http://::1", "http://[::1%25eth0]", "http://[::1]x", "http://[1.2.3.4]",
    "http://[::g]", "http://example.com:0", "http://example.com:65536", "http://example.com:99999", "http://example.com:",
    "http://example.com:80:80", "http://example.com:+80", "http://example.com:8 0", "http://" + "a" * 64 + ".com",
    "http://" + "a." * 130 + "com", "http://example.com/" + "a" * 5_000, "http://[fe80::1%eth0]/", "javascript:alert(1)",
]  # fmt: skip


@pytest.mark.requirement("egress.urls")
@pytest.mark.parametrize("text", REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_a_url_that_two_readers_could_read_differently_is_refused(text: str) -> None:
    with pytest.raises(PermanentError) as refused:
        parse_url(text)

    assert refused.value.code == "URL_INVALID"


@pytest.mark.requirement("egress.urls")
@pytest.mark.parametrize(
    ("text", "origin", "url"),
    [
        ("http://example.com", ("http", "example.com", 80), "http://example.com"),
        ("HTTPS://Example.COM:8443/A?b=c#d", ("https", "example.com", 8443), "https://example.com:8443/A?b=c"),
        ("https://example.com:443/", ("https", "example.com", 443), "https://example.com/"),
        ("http://xn--bcher-kva.example/%C3%A4", ("http", "xn--bcher-kva.example", 80), "http://xn--bcher-kva.example/%C3%A4"),
        ("http://127.0.0.1#@example.com", ("http", "127.0.0.1", 80), "http://127.0.0.1"),
        ("http://my_host/", ("http", "my_host", 80), "http://my_host/"),
        ("http://1.2.3.4/", ("http", "1.2.3.4", 80), "http://1.2.3.4/"),
        ("http://[2A00::0:1]:81/", ("http", "2a00::1", 81), "http://[2A00::0:1]:81/"),
        ("http://example.com?q=@", ("http", "example.com", 80), "http://example.com?q=@"),
        ("http://example.com/a@b:c", ("http", "example.com", 80), "http://example.com/a@b:c"),
    ],
)  # fmt: skip
def test_a_plain_url_is_read(text: str, origin: tuple[str, str, int], url: str) -> None:
    target = parse_url(text)

    assert target.origin == origin
    assert str(target.url) == url


def test_a_place_shows_neither_path_nor_query() -> None:
    assert parse_url("https://example.com:8443/secret?token=x").place == "https://example.com:8443"


@pytest.mark.parametrize(
    ("host", "allowed", "expected"),
    [
        ("a.test", (), True),
        ("a.test", ("a.test",), True),
        ("a.test", ("A.Test",), True),
        ("b.a.test", ("a.test",), False),
        ("b.a.test", ("*.a.test",), True),
        ("a.test", ("*.a.test",), False),
        ("ba.test", ("*.a.test",), False),
    ],
)
def test_a_list_names_hosts_and_all_below(
    host: str, allowed: tuple[str, ...], expected: bool
) -> None:
    assert host_is_allowed(host, allowed) is expected
