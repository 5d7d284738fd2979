"""The corpus of addresses: what leads inside is refused in every notation, and public ones pass."""

from __future__ import annotations

import pytest

from jobforge_mcp.egress.addresses import why_refused

PRIVATE = [
    "127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
    "100.127.255.255", "::1", "fc00::1", "fdff::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::127.0.0.1",
    "64:ff9b::a00:1", "2a00::5efe:127.0.0.1", "2a00::200:5efe:10.0.0.1",
]  # fmt: skip

METADATA = [
    "169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254",
    "fd20:ce::254", "::ffff:169.254.169.254", "64:ff9b::169.254.169.254",
]  # fmt: skip

NEVER = [
    "0.1.2.3", "169.254.0.1", "192.0.0.8", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "192.31.196.1",
    "192.52.193.1", "192.175.48.1", "::", "::127.0.0.1", "::8.8.8.8", "64:ff9b:1::1", "100::1", "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::",
    "2002:808:808::", "2620:4f:8000::1", "3fff::1", "5f00::1", "fe80::1", "fec0::1", "ff02::1", "4000::1",
    "::ffff:0:0", "64:ff9b::224.0.0.1",
]  # fmt: skip

PUBLIC = [
    "1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.1", "172.15.255.255", "172.32.0.1",
    "192.167.255.255", "198.17.255.255", "198.20.0.1", "223.255.255.255", "168.63.129.17", "2606:4700::1111",
    "2a00:1450:4001::200e", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808", "2003::1",
]  # fmt: skip

NO_ADDRESS = [
    "",
    "localhost",
    "127.1",
    "0x7f000001",
    "2130706433",
    "0177.0.0.1",
    "fe80::1%eth0",
    "1.2.3.4 ",
]


@pytest.mark.requirement("egress.addresses")
@pytest.mark.parametrize("address", [*PRIVATE, *METADATA, *NEVER, *NO_ADDRESS])
def test_an_address_that_leads_inside_is_refused(address: str) -> None:
    assert why_refused(address) is not None


@pytest.mark.requirement("egress.addresses")
@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_passes(address: str) -> None:
    assert why_refused(address) is None


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_pass_where_the_operator_allows_them(address: str) -> None:
    assert why_refused(address, allow_private=True) is None


@pytest.mark.requirement("egress.addresses")
@pytest.mark.parametrize("address", [*METADATA, *NEVER, *NO_ADDRESS])
def test_nothing_opens_metadata_services_and_reserved_ranges(address: str) -> None:
    assert why_refused(address, allow_private=True) is not None
