"""Which ``Host`` and ``Origin`` headers are answered, whatever address is bound.

A page in the user's browser can reach loopback, and with DNS rebinding under a name of its own; these two headers are what
gives it away. Values are taken apart and compared by their parts: a comparison of beginnings would take
``localhost:1.evil.example`` for loopback. What cannot be taken apart is refused.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from jobforge_mcp.errors import SettingsError
from jobforge_mcp.settings import Settings

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_EVERY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104  # compared with, not bound
_DEFAULT_PORTS = {"http": 80, "https": 443}

_NAME = (
    r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)
_AUTHORITY = re.compile(rf"({_NAME}|\[[0-9A-Fa-f:.]+\])(?::([0-9]{{1,5}}))?")


@dataclass(frozen=True, slots=True)
class _Place:
    host: str
    port: int | None
    """``None`` is any where it is allowed, and none where it is sent."""


@dataclass(frozen=True, slots=True)
class Origins:
    """The hosts and origins of one server."""

    hosts: frozenset[_Place]
    origins: frozenset[tuple[str, _Place]]

    @classmethod
    def from_settings(cls, settings: Settings) -> Origins:
        """Allow loopback, the bound address, the server's own URL, and what the settings add.

        Raises:
            SettingsError: The settings hold a wildcard, or what is no host or origin.
        """
        hosts = {_Place(host, None) for host in LOOPBACK}
        if settings.host not in _EVERY_ADDRESS:
            hosts.add(_Place(_canonical(settings.host), None))
        if settings.resource_url is not None:
            hosts.add(_Place(_canonical(urlsplit(settings.resource_url).hostname or ""), None))
        hosts |= {_named_host(host) for host in settings.allowed_hosts}
        origins = {(scheme, _Place(host, None)) for scheme in _DEFAULT_PORTS for host in LOOPBACK}
        origins |= {_named_origin(origin) for origin in settings.allowed_origins}
        return cls(frozenset(hosts), frozenset(origins))

    def allows_host(self, values: Sequence[str]) -> bool:
        """Whether the ``Host`` headers of a request are one, and one of ours."""
        place = _parse_authority(values[0]) if len(values) == 1 else None
        return place is not None and not self.hosts.isdisjoint({place, _Place(place.host, None)})

    def allows_origin(self, values: Sequence[str]) -> bool:
        """Whether a request comes from no page at all, or from one that may ask."""
        if not values:
            return True
        origin = _parse_origin(values[0]) if len(values) == 1 else None
        if origin is None:
            return False
        scheme, place = origin
        return not self.origins.isdisjoint({origin, (scheme, _Place(place.host, None))})


def _parse_authority(text: str) -> _Place | None:
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    name, port = found.groups()
    if port is not None and not 1 <= int(port) <= 65_535:
        return None
    try:
        host = _canonical(name)
    except ValueError:
        return None
    return _Place(host, int(port) if port is not None else None)


def _parse_origin(text: str) -> tuple[str, _Place] | None:
    """Read ``scheme://host:port``; ``null``, which any sandboxed page sends, is none."""
    scheme, separator, authority = text.partition("://")
    scheme = scheme.lower()
    place = _parse_authority(authority) if separator and scheme in _DEFAULT_PORTS else None
    if place is None:
        return None
    return scheme, _Place(place.host, place.port or _DEFAULT_PORTS[scheme])


def _canonical(host: str) -> str:
    """Write a host as it is compared: small letters, IPv6 in its shortest form and without brackets."""
    if host.startswith("["):
        return str(ipaddress.IPv6Address(host[1:-1]))
    return str(ipaddress.IPv6Address(host)) if ":" in host else host.lower()


def _named_host(text: str) -> _Place:
    place = _parse_authority(text)
    if place is None:
        raise SettingsError(
            f"JOBFORGE_ALLOWED_HOSTS holds {text!r}, which is no host",
            hint="write name or name:port; a wildcard would switch the check off",
        )
    return place


def _named_origin(text: str) -> tuple[str, _Place]:
    scheme, origin = "", None
    if text.endswith(":*") and (origin := _parse_origin(text[:-2])) is not None:
        scheme = origin[0]
        return scheme, _Place(origin[1].host, None)
    if (origin := _parse_origin(text)) is None:
        raise SettingsError(
            f"JOBFORGE_ALLOWED_ORIGINS holds {text!r}, which is no origin",
            hint="write https://name or https://name:port; a wildcard or null would let every page in",
        )
    return origin
