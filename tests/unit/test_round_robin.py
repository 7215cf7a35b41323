"""The round robin of ``host-local`` against a model that walks: upstream's iterator, address by address."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from conf.host_local import RangeConf, RangeSet
from ipam.round_robin import next_free

BASE = {4: int(IPAddress("10.0.0.0")), 6: int(IPAddress("fd00::"))}


def range_of(version, block, start, end, gateway):
    """A range in the block-th /28 (or /124)."""
    network = IPNetwork((BASE[version] + 16 * block, 28 if version == 4 else 124), version=version)
    addresses = {
        key: IPAddress(network.first + offset, version)
        for key, offset in (("rangeStart", start), ("rangeEnd", end), ("gateway", gateway))
        if offset is not None
    }
    return RangeConf.model_validate({"subnet": network, **addresses})


@st.composite
def range_sets(draw):
    version = draw(st.sampled_from([4, 6]))
    blocks = draw(st.lists(st.integers(0, 5), unique=True, min_size=1, max_size=3))
    ranges = []
    for block in blocks:
        start, end = sorted(draw(st.tuples(st.integers(0, 15), st.integers(0, 15))))
        bounds = [draw(st.sampled_from([value, None])) for value in (start, end)]
        if bounds == [None, end] and end == 0:
            bounds = [0, 0]  # the default start lies behind it
        if bounds == [start, None] and start == 15 and version == 4:
            bounds = [15, 15]  # likewise the default end
        ranges.append(range_of(version, block, *bounds, draw(st.one_of(st.none(), st.integers(0, 15)))))
    return RangeSet(tuple(ranges))


def walk(range_set, last_reserved):
    """Yield the addresses as upstream's RangeIter does: one step at a time, until it is where it began."""
    ranges = range_set.ranges
    at = next((at for at, element in enumerate(ranges) if last_reserved is not None and last_reserved in element), None)
    current = None if at is None else int(last_reserved)
    at, began = at or 0, None
    while True:
        if current is None:
            current = ranges[at].first
        elif current == ranges[at].last:
            at = (at + 1) % len(ranges)
            current = ranges[at].first
        else:
            current += 1
        if current == began:
            return
        began = current if began is None else began
        if current != int(ranges[at].router):
            yield IPAddress(current, range_set.version)


@given(range_sets(), st.data())
def test_next_free_is_upstreams_next(range_set, data):
    everything = [IPAddress(BASE[range_set.version] + offset, range_set.version) for offset in range(96)]
    last_reserved = data.draw(st.one_of(st.none(), st.sampled_from(everything)))
    taken = data.draw(st.sets(st.sampled_from(everything)))
    gateways = {element.router for element in range_set.ranges}
    expected = next((address for address in walk(range_set, last_reserved) if address not in taken), None)
    assert next_free(range_set, last_reserved, taken=taken | gateways) == expected


@given(range_sets())
def test_every_address_has_its_turn_once(range_set):
    gateways = {element.router for element in range_set.ranges}
    given_out, last_reserved = [], None
    while (address := next_free(range_set, last_reserved, taken={*given_out, *gateways})) is not None:
        given_out.append(address)
        last_reserved = address
    assert given_out == list(walk(range_set, None))


def test_a_wide_range_costs_no_walk():
    wide = RangeSet((RangeConf.model_validate({"subnet": "fd00::/16"}),))
    last = IPAddress("fd00:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
    assert str(next_free(wide, last, taken={IPAddress("fd00::1")})) == "fd00::2"
