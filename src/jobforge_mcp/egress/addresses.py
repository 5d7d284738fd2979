"""Which IP addresses a job may connect to: a table of its own, because ``is_global`` of the standard library is not enough.

On Python 3.11 that property calls public what leads inside: NAT64 and 6to4 forms of loopback, IPv4-compatible IPv6,
``192.0.0.192`` (a cloud's metadata service), ``5f00::/16`` and more. Here IPv6 is refused unless it lies in the one block
that is routed, and an IPv4 address embedded in it is judged as itself.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_METADATA = frozenset({
    IPv4Address("169.254.169.254"),  # most clouds
    IPv4Address("169.254.170.2"),  # AWS, containers
    IPv4Address("100.100.100.200"),  # Alibaba
    IPv4Address("168.63.129.16"),  # Azure, although it is a public number
    IPv4Address("192.0.0.192"),  # Oracle
    IPv6Address("fd00:ec2::254"),  # AWS
    IPv6Address("fd20:ce::254"),  # Google
})  # fmt: skip

_PRIVATE_V4 = tuple(
    map(
        IPv4Network,
        ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
    )
)
_PRIVATE_V6 = (IPv6Network("::1/128"), IPv6Network("fc00::/7"))

_NEVER_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network: reaches loopback on Linux
            "169.254.0.0/16",  # link-local
            "192.0.0.0/24",  # IETF protocol assignments
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # AMT
            "192.88.99.0/24",  # 6to4 relays
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarking
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
_ROUTED_V6 = IPv6Network("2000::/3")
_NEVER_V6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # Teredo, benchmarking, ORCHID and other protocol assignments
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


def why_refused(address: str, *, allow_private: bool = False) -> str | None:
    """Return what kind of forbidden address this is, or ``None`` if a job may connect to it.

    ``allow_private`` lifts loopback, private and shared networks, and nothing else: link-local addresses and metadata
    services stay closed.
    """
    if "%" in address:
        return "a scoped address"
    try:
        parsed = ip_address(address)
    except ValueError:
        return "no IP address"
    return _judge(parsed, allow_private=allow_private)


def _judge(address: IPv4Address | IPv6Address, *, allow_private: bool) -> str | None:
    if address in _METADATA:
        return "a metadata service"
    if isinstance(address, IPv4Address):
        if any(address in network for network in _PRIVATE_V4):
            return None if allow_private else "a loopback or private address"
        return "a reserved address" if any(address in network for network in _NEVER_V4) else None
    embedded = _embedded(address)
    if embedded is not None:
        return _judge(embedded, allow_private=allow_private)
    if any(address in network for network in _PRIVATE_V6):
        return None if allow_private else "a loopback or private address"
    if address not in _ROUTED_V6 or any(address in network for network in _NEVER_V6):
        return "a reserved address"
    return None


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that a packet to this one would end up at, where the form is one still in use."""
    if address in _MAPPED or address in _NAT64 or (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return None
