r"""Reads a URL in one strict way, and refuses it where another reader could read it differently.

Server-side request forgery lives on such differences: ``http://good\@bad``, ``http://127.1``, ``http://0x7f000001``. So
the form is narrow: ASCII, no user information, no backslash, a host that is a plain name or a plain IP address.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from jobforge_mcp.errors import PermanentError

if TYPE_CHECKING:
    import httpx2

_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>[/?][!-\[\]-~]*)?",
    re.IGNORECASE,
)
_MAX_LENGTH = 4_096


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes."""

    scheme: str
    host: str
    """Lower case; an IPv6 address without brackets."""
    port: int
    url: httpx2.URL
    """The whole, without a fragment."""

    @property
    def origin(self) -> tuple[str, str, int]:
        """What must be equal for two requests to go to the same receiver."""
        return self.scheme, self.host, self.port

    @property
    def place(self) -> str:
        """How messages name it: no path and no query, which may hold secrets."""
        return f"{self.scheme}://{self.url.netloc.decode('ascii')}"


def parse_url(text: str) -> Target:
    """Read one absolute URL.

    Raises:
        PermanentError: ``URL_INVALID``, if the text has another form or two readers disagree about it.
    """
    import httpx2

    if len(text) > _MAX_LENGTH:
        raise _invalid(f"it has more than {_MAX_LENGTH} characters")
    bare = text.partition("#")[0]
    found = _URL.fullmatch(bare)
    if found is None:
        raise _invalid("it is not a plain http or https URL in ASCII without user information")
    scheme = found["scheme"].lower()
    host = _host(found["host"].lower())
    port = int(found["port"]) if found["port"] else _DEFAULT_PORTS[scheme]
    if not 1 <= port <= 65_535:
        raise _invalid("its port is not between 1 and 65535")
    try:
        url = httpx2.URL(bare)
    except httpx2.InvalidURL:
        raise _invalid("two readers disagree about it") from None
    theirs = url.raw_host.decode("ascii")
    if ":" in theirs:
        theirs = IPv6Address(theirs).compressed
    if (url.scheme, theirs, url.port or _DEFAULT_PORTS.get(url.scheme), url.userinfo) != (
        scheme,
        host,
        port,
        b"",
    ):
        raise _invalid("two readers disagree about it")
    return Target(scheme, host, port, url)


def host_is_allowed(host: str, allowed: Collection[str]) -> bool:
    """Whether a list names the host, itself or as ``*.parent``; an empty list names every host."""
    return not allowed or any(
        host.endswith(entry[1:].lower()) if entry.startswith("*.") else host == entry.lower()
        for entry in allowed
    )


def _host(text: str) -> str:
    if text.startswith("["):
        try:
            return IPv6Address(text[1:-1]).compressed
        except AddressValueError:
            raise _invalid("its IPv6 address is malformed") from None
    if len(text) > 253 or any(len(label) > 63 for label in text.split(".")):
        raise _invalid("its host name is too long")
    last = text.rpartition(".")[2]
    # What ends in a number is an IPv4 address to every browser, in a dozen forms; only the plain one is taken.
    if last.isdigit() or re.fullmatch(r"0x[0-9a-f]*", last):
        try:
            return str(IPv4Address(text))
        except AddressValueError:
            raise _invalid("its host is a number but not a plain IPv4 address") from None
    return text


def _invalid(why: str) -> PermanentError:
    return PermanentError(
        f"the URL cannot be used: {why}",
        code="URL_INVALID",
        hint="write it like https://example.com/path; names beyond ASCII as xn--…, other characters as %XX",
    )
