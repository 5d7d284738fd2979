"""An HTTP client for jobs, which connects only to addresses that it has judged itself.

A name is resolved once, all its addresses are judged, and the connection goes to one of those, under the name's own TLS
identity: a name that resolves differently a moment later gains nothing. Each redirect is a new request with the same
checks. Nothing is read from the environment: no proxy, no ``.netrc``. Receivers' bodies never get into messages.

The library is loaded by the first request: every worker knows jobs that could send one, and most never run them.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from socket import SOCK_STREAM, gaierror
from typing import TYPE_CHECKING

import anyio

from jobforge_mcp.egress.addresses import why_refused
from jobforge_mcp.egress.urls import Target, host_is_allowed, parse_url
from jobforge_mcp.errors import PermanentError, RetryableError

if TYPE_CHECKING:
    import httpx2

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KEPT_ACROSS_ORIGINS = frozenset({"accept", "accept-language", "user-agent"})
_CONNECT_SECONDS = 5
"""The caller bounds the whole; the connection alone is bounded here, so that one dead address does not use it up."""
_MAX_RATIO = 200
_RATIO_COUNTS_FROM = 256 * 1024


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What the operator allows."""

    hosts: tuple[str, ...] = ()
    """Hosts, ``*.example.com`` for all below; empty: every public one."""
    ports: tuple[int, ...] = (80, 443)
    """Ports."""
    allow_private: bool = False
    """Loopback and private networks as well."""
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    """Trust in certificates; ``None`` is the usual authorities."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One request."""

    method: str
    url: str
    headers: Mapping[str, str]
    content: bytes | None = None
    max_redirects: int = 0
    max_bytes: int = 256 * 1024


@dataclass(frozen=True, slots=True)
class Incoming:
    """What came back."""

    url: str
    status: int
    headers: httpx2.Headers
    content: bytes
    is_truncated: bool
    redirects: int


class SendError(RetryableError):
    """Nothing usable came back."""

    def __init__(self, message: str, *, was_sent: bool) -> None:
        """Say whether the receiver may have seen the request."""
        super().__init__(message, code="HTTP_UNREACHABLE")
        self.was_sent = was_sent


async def send(request: Outgoing, policy: EgressPolicy) -> Incoming:
    """Send a request, follow redirects as far as it asks for, and read at most ``max_bytes`` of the body.

    A method other than GET and HEAD is never sent again to where a redirect points; its 303 is followed with GET.

    Raises:
        PermanentError: The URL, its host, port or addresses are not allowed, or the answer cannot be decoded.
        SendError: Nothing usable came back.
    """
    target = parse_url(request.url)
    method, headers, content = request.method, dict(request.headers), request.content
    for hop in range(request.max_redirects + 1):
        async with _exchange(target, method, headers, content, policy) as response:
            onward = _redirect(response, target, method) if hop < request.max_redirects else None
            if onward is None:
                body, is_truncated = await _read(response, request.max_bytes, target)
                return Incoming(
                    str(target.url), response.status_code, response.headers, body, is_truncated, hop
                )
        if onward.origin != target.origin:
            headers = {k: v for k, v in headers.items() if k.lower() in _KEPT_ACROSS_ORIGINS}
        if method != "HEAD":
            method, content = "GET", None
        headers = {k: v for k, v in headers.items() if k.lower() != "content-type"}
        target = onward
    raise AssertionError("the last hop returns")


async def judge(target: Target, policy: EgressPolicy) -> list[str]:
    """Return the addresses of a target once host, port and every address are allowed.

    Raises:
        PermanentError: ``URL_REFUSED``, if one of them is not.
        SendError: The name does not resolve.
    """
    if not host_is_allowed(target.host, policy.hosts):
        raise _refused(target, "the host is not in JOBFORGE_HTTP_ALLOW_HOSTS")
    if target.port not in policy.ports:
        raise _refused(target, f"port {target.port} is not in JOBFORGE_HTTP_ALLOW_PORTS")
    addresses = await _resolve(target)
    for address in addresses:
        reason = why_refused(address, allow_private=policy.allow_private)
        if reason is not None:
            raise _refused(target, f"the host leads to {reason}")
    return addresses


async def _resolve(target: Target) -> list[str]:
    try:
        return [str(ip_address(target.host))]
    except ValueError:
        pass
    try:
        answers = await anyio.getaddrinfo(target.host, target.port, type=SOCK_STREAM)
    except (gaierror, UnicodeError):
        raise SendError(f"the host of {target.place} does not resolve", was_sent=False) from None
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


@asynccontextmanager
async def _exchange(
    target: Target,
    method: str,
    headers: Mapping[str, str],
    content: bytes | None,
    policy: EgressPolicy,
) -> AsyncGenerator[httpx2.Response]:
    """Connect to the first judged address that answers, and send."""
    import httpx2

    addresses = await judge(target, policy)
    # No connection is kept: the pool knows it by address, and another name on that address must not get it.
    limits = httpx2.Limits(max_connections=1, max_keepalive_connections=0)
    transport = httpx2.AsyncHTTPTransport(
        verify=policy.tls if policy.tls is not None else True, trust_env=False, limits=limits
    )
    timeout = httpx2.Timeout(None, connect=_CONNECT_SECONDS)
    async with httpx2.AsyncClient(transport=transport, trust_env=False, timeout=timeout) as client:
        response = await _first_answer(client, target, addresses, method, headers, content)
        try:
            yield response
        finally:
            await response.aclose()


async def _first_answer(
    client: httpx2.AsyncClient,
    target: Target,
    addresses: list[str],
    method: str,
    headers: Mapping[str, str],
    content: bytes | None,
) -> httpx2.Response:
    import httpx2

    for address in addresses:
        request = client.build_request(
            method,
            target.url.copy_with(host=address),
            headers={
                "accept": "*/*",
                "user-agent": "jobforge-mcp",
                **{name.lower(): value for name, value in headers.items()},
                "accept-encoding": "gzip, deflate",
                "host": target.url.netloc.decode("ascii"),
            },
            content=content,
            extensions={"sni_hostname": target.host} if target.scheme == "https" else {},
        )
        try:
            return await client.send(request, stream=True)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            continue
        except httpx2.TransportError as error:
            why = type(error).__name__
            raise SendError(
                f"{target.place} broke off before it answered ({why})", was_sent=True
            ) from None
    raise SendError(f"{target.place} cannot be connected to", was_sent=False)


def _redirect(response: httpx2.Response, target: Target, method: str) -> Target | None:
    """Return where to go next; ``None`` if the answer is to be taken as it is."""
    import httpx2

    location = response.headers.get("location")
    if response.status_code not in _REDIRECTS or location is None:
        return None
    if method not in {"GET", "HEAD"} and response.status_code != 303:
        return None
    try:
        onward = parse_url(str(target.url.join(location)) if "\\" not in location else location)
    except httpx2.InvalidURL:
        onward = parse_url(location)
    if target.scheme == "https" and onward.scheme != "https":
        raise _refused(onward, "a redirect leads from https to http")
    return onward


async def _read(response: httpx2.Response, limit: int, target: Target) -> tuple[bytes, bool]:
    import httpx2

    encodings = [
        part.strip() for part in response.headers.get("content-encoding", "").lower().split(",")
    ]
    if len(encodings) > 1 or encodings[0] not in {"", "identity", "gzip", "deflate"}:
        raise PermanentError(
            f"{target.place} answered in a content encoding that was not asked for",
            code="HTTP_UNREADABLE",
        )
    body = bytearray()
    try:
        async for piece in response.aiter_bytes(64 * 1024):
            body += piece
            if len(body) > max(_RATIO_COUNTS_FROM, _MAX_RATIO * response.num_bytes_downloaded):
                raise PermanentError(
                    f"{target.place} answered with data that unpacks to more than {_MAX_RATIO} times its size",
                    code="HTTP_UNREADABLE",
                )
            if len(body) > limit:
                return bytes(body[:limit]), True
    except httpx2.DecodingError:
        raise PermanentError(
            f"{target.place} answered with damaged compression", code="HTTP_UNREADABLE"
        ) from None
    except httpx2.TransportError as error:
        raise SendError(
            f"{target.place} broke off within its answer ({type(error).__name__})", was_sent=True
        ) from None
    return bytes(body), False


def _refused(target: Target, why: str) -> PermanentError:
    return PermanentError(
        f"{target.place} may not be called: {why}",
        code="URL_REFUSED",
        hint="only the operator of the worker can allow it, with JOBFORGE_HTTP_ALLOW_*",
    )
