"""Ranges against a model that walks over every address, IPv4 and IPv6."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from ipam.ranges import Range, usable


class Taken:
    """An occupancy that counts what it is asked."""

    def __init__(self, values=()):
        self.values = sorted(values)
        self.listed = 0
        self.counted = 0

    def count(self, first, last):
        self.counted += 1
        return sum(first <= value <= last for value in self.values)

    def taken(self, first, last):
        self.listed += last - first + 1
        return [value for value in self.values if first <= value <= last]


# Blocks small enough for a model to walk over, with a base that tells IPv4 from IPv6 and has carries in it.
_BLOCKS = st.one_of(
    st.builds(lambda base, length: IPNetwork((base, length), version=4).cidr, st.just(0x0A00FE00), st.integers(21, 32)),
    st.builds(
        lambda base, length: IPNetwork((base, length), version=6).cidr,
        st.just((0x20010DB8 << 96) + (1 << 64) - 2048),
        st.integers(117, 128),
    ),
)


def _within(network):
    return st.integers(network.first, network.last).map(lambda value: IPAddress(value, network.version))


@st.composite
def _cases(draw):
    network = draw(_BLOCKS)
    start = draw(st.none() | _within(network))
    end = draw(st.none() | _within(network))
    bits = 32 if network.version == 4 else 128
    exclude = draw(
        st.lists(
            st.builds(
                lambda address, length: IPNetwork((address.value, length), version=address.version).cidr,
                _within(network),
                st.integers(bits - 4, bits),
            ),
            max_size=6,
        )
    )
    taken = draw(st.sets(st.integers(network.first, network.last), max_size=300))
    return network, start, end, exclude, taken


def _model(network, start, end, exclude):
    values = set(range(network.first, network.last + 1))
    if network.size > 2:
        values -= {network.first}
        values -= {network.last} if network.version == 4 else set()
    if start is not None:
        values = {value for value in values if value >= start.value}
    if end is not None:
        values = {value for value in values if value <= end.value}
    for block in exclude:
        values -= set(range(block.first, block.last + 1))
    return values


@given(_cases())
def test_range_offers_what_a_walk_over_it_finds(case):
    network, start, end, exclude, taken = case
    block = Range.of(network, start=start, end=end, exclude=exclude)
    model = _model(network, start, end, exclude)
    assert block.size == len(model)
    for value in range(network.first - 1, network.last + 2):
        assert block.offers(IPAddress(value, network.version)) == (value in model)
    occupancy = Taken(taken)
    assert block.count(occupancy) == len(model & taken)
    assert [address.value for address in block.free(occupancy)] == sorted(model - taken)
    assert list(block.spans) == sorted(block.spans)


@given(_cases())
def test_range_counts_what_it_excludes(case):
    network, start, end, exclude, _ = case
    block = Range.of(network, start=start, end=end, exclude=exclude)
    assert block.size + block.excluded == len(_model(network, start, end, []))


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("192.0.2.0/24", "192.0.2.1", "192.0.2.254"),
        ("192.0.2.0/30", "192.0.2.1", "192.0.2.2"),
        ("192.0.2.0/31", "192.0.2.0", "192.0.2.1"),
        ("192.0.2.7/32", "192.0.2.7", "192.0.2.7"),
        ("2001:db8::/64", "2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff"),
        ("2001:db8::/126", "2001:db8::1", "2001:db8::3"),
        ("2001:db8::/127", "2001:db8::", "2001:db8::1"),
        ("2001:db8::7/128", "2001:db8::7", "2001:db8::7"),
        ("0.0.0.0/0", "0.0.0.1", "255.255.255.254"),
    ],
)
def test_usable_leaves_out_what_is_no_host_address(text, first, last):
    assert usable(IPNetwork(text)) == (IPAddress(first).value, IPAddress(last).value)


@pytest.mark.parametrize("text", ["10.0.0.0/8", "2001:db8::/64", "2001:db8::/48", "::/0"])
def test_free_asks_for_no_more_of_a_wide_range_than_of_a_narrow_one(text):
    network = IPNetwork(text)
    occupancy = Taken(range(network.first + 1, network.first + 1001))
    found = list(islice(Range.of(network).free(occupancy), 64))
    assert [address.value for address in found] == list(range(network.first + 1001, network.first + 1065))
    assert occupancy.listed <= 2048
    assert occupancy.counted <= 10


def test_free_finds_a_gap_behind_a_long_run_without_listing_the_run():
    network = IPNetwork("10.0.0.0/16")
    run = set(range(network.first + 1, network.last))
    gap = network.first + 60_000
    occupancy = Taken(run - {gap})
    assert [address.value for address in Range.of(network).free(occupancy)] == [gap]
    assert occupancy.listed <= 1024


def test_free_passes_a_taken_cluster_at_the_far_end_of_an_ipv6_range():
    network = IPNetwork("2001:db8::/48")
    occupancy = Taken([network.first + 1, *range(network.last - 5000, network.last + 1)])
    assert next(Range.of(network).free(occupancy)).value == network.first + 2
    assert occupancy.listed <= 512


def test_exclude_of_the_other_family_excludes_nothing():
    assert Range.of(IPNetwork("10.0.0.0/24"), exclude=[IPNetwork("::a00:0/120"), IPAddress("2001:db8::1")]).size == 254


def test_range_is_empty_when_everything_is_excluded():
    block = Range.of(IPNetwork("10.0.0.0/29"), exclude=[IPNetwork("10.0.0.0/28")])
    assert (block.size, block.spans, block.excluded) == (0, (), 6)


def test_range_says_its_bounds_only_when_they_were_given():
    assert str(Range.of(IPNetwork("10.0.0.5/24"))) == "10.0.0.0/24"
    assert (
        str(Range.of(IPNetwork("10.0.0.0/24"), start=IPAddress("10.0.0.9"))) == "10.0.0.0/24 (10.0.0.9 to 10.0.0.254)"
    )
