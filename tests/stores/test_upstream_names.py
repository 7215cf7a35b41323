"""Names and offsets as upstream's whereabouts has them; the tables are those of its documentation and tests."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from conf.errors import InvalidNetworkConfig
from ipam.stores.upstream_names import (
    OFFSETS,
    cidr,
    network_name_of,
    offset_of,
    pool_name,
    reservation_name,
    reserved_address,
    text,
)

DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")


@pytest.mark.parametrize(
    ("network_name", "block", "name"),
    [
        ("", "10.0.0.0/8", "10.0.0.0-8"),
        ("", "192.168.2.225/28", "192.168.2.224-28"),
        ("blue", "10.0.0.0/8", "blue-10.0.0.0-8"),
        ("", "2001:db8::/64", "2001-db8---64"),
        ("", "2001:db8:0:1::/64", "2001-db8-0-1---64"),
        ("blue", "2001:db8::/64", "blue-2001-db8---64"),
        ("", "2001:db8::4/127", "2001-db8--4-127"),
        ("blue", "::/64", "blue----64"),
        # Upstream's would begin with "-", which is no name.
        ("", "::/64", "0-0-0-0-0-0-0-0-64"),
        ("", "::a00:0/120", "0-0-0-0-0-0-a00-0-120"),
    ],
)
def test_pool_names(network_name, block, name):
    network = IPNetwork(block).cidr
    assert pool_name(network_name, network) == name
    assert network_name_of(name, network) == network_name
    assert DNS_1123.match(name)


@pytest.mark.parametrize(
    ("network_name", "address", "name"),
    [
        ("", "10.0.0.1", "10.0.0.1"),
        ("blue", "10.0.0.1", "blue-10.0.0.1"),
        ("", "2001:db8::1", "2001-db8--1"),
        ("blue", "2001:db8::1", "blue-2001-db8--1"),
        ("", "2001:db8::", "2001-db8--0"),
        ("", "fe80:0:0:1::", "fe80-0-0-1--0"),
        ("blue", "::1", "blue---1"),
        ("", "::1", "0-0-0-0-0-0-0-1"),
        ("", "::10.0.0.1", "0-0-0-0-0-0-a00-1"),
    ],
)
def test_reservation_names(network_name, address, name):
    assert reservation_name(network_name, IPAddress(address)) == name
    assert reserved_address(name, network_name) == IPAddress(address)
    assert DNS_1123.match(name)


def test_a_reservation_of_another_network_name_is_none_of_ours():
    assert reserved_address("blue-10.0.0.1", "") is None
    assert reserved_address("blue-10.0.0.1", "red") is None
    assert reserved_address("blue-green-10.0.0.1", "blue") is None


@pytest.mark.parametrize(
    ("block", "address", "offset"),
    [
        ("10.0.0.0/24", "10.0.0.0", 0),
        ("10.0.0.0/24", "10.0.0.255", 255),
        # Upstream's subtraction with a borrow is exact where the base has no host bits, and ours always.
        ("10.0.0.0/16", "10.0.1.5", 261),
        ("2001:db8::/64", "2001:db8::1:0", 65536),
        ("2001:db8::/64", "2001:db8::7fff:ffff:ffff:ffff", 2**63 - 1),
        ("2001:db8::/48", "2001:db8::5", 5),
    ],
)
def test_offsets(block, address, offset):
    assert offset_of(IPNetwork(block), IPAddress(address)) == offset


@pytest.mark.parametrize(
    ("block", "address"),
    [("2001:db8::/64", "2001:db8::8000:0:0:0"), ("2001:db8::/48", "2001:db8:0:1::5"), ("10.0.0.0/24", "9.255.255.255")],
)
def test_offsets_that_upstream_corrupts_are_refused(block, address):
    with pytest.raises(InvalidNetworkConfig, match=re.escape(str(IPAddress(address)))):
        offset_of(IPNetwork(block), IPAddress(address))


@given(st.integers(0, 2**128 - 1), st.sampled_from(["", "blue", "a-1"]))
def test_every_address_has_a_legal_name_of_its_own(value, network_name):
    address = IPAddress(value, 6)
    name = reservation_name(network_name, address)
    assert DNS_1123.match(name)
    assert reserved_address(name, network_name) == address


@given(st.integers(0, 2**128 - 1), st.integers(0, 128), st.sampled_from(["", "blue"]))
def test_every_range_has_a_legal_name_that_tells_its_network_name(value, length, network_name):
    network = IPNetwork((value, length), version=6).cidr
    name = pool_name(network_name, network)
    assert DNS_1123.match(name)
    assert network_name_of(name, network) == network_name
    assert IPNetwork(cidr(network)) == network


@given(st.integers(0, 2**63))
def test_offsets_are_below_2_to_the_63_or_refused(value):
    network = IPNetwork("2001:db8::/64")
    address = IPAddress(int(network.first) + value, 6)
    if value < OFFSETS:
        assert int(network.first) + offset_of(network, address) == address.value
    else:
        with pytest.raises(InvalidNetworkConfig):
            offset_of(network, address)


def test_ipv6_is_printed_as_go_prints_it():
    assert [text(IPAddress(each)) for each in ("::10.0.0.1", "2001:DB8::", "1:0:0:2:0:0:0:3")] == [
        "::a00:1",
        "2001:db8::",
        "1:0:0:2::3",
    ]
    assert ipaddress.ip_address("2001:db8:0:1:1:1:1:1").compressed == text(IPAddress("2001:db8:0:1:1:1:1:1"))
