"""The bar of ``vferry ipam pools``: how long each part is, and that none is lost because it is small."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from cni.cli.pools import Usage, bar, cells
from ipam.ranges import Range
from ipam.stores.contract import Pool

# 256 addresses, two of them never given.
BLOCK = Pool("", Range.of(IPNetwork("192.0.2.0/24")))
WIDTH = 20


def drawn(used, cooling, block=BLOCK):
    return bar(Usage(block, used, cooling))


@pytest.mark.parametrize(
    ("used", "cooling", "shown"),
    [
        (0, 0, "...................."),
        (254, 0, "####################"),
        (0, 254, "~~~~~~~~~~~~~~~~~~~~"),
        (127, 0, "##########.........."),
        (127, 127, "##########~~~~~~~~~~"),
        (64, 64, "######~~~~~~........"),
        (1, 0, "#..................."),
        (0, 1, "~..................."),
        (1, 1, "#~.................."),
        (253, 0, "###################."),
        (253, 1, "###################~"),
        (252, 1, "##################~."),
        (1, 252, "#~~~~~~~~~~~~~~~~~~."),
    ],
)
def test_bar_shows_what_is_leased_cools_and_is_free(used, cooling, shown):
    assert drawn(used, cooling) == shown


@given(st.data())
def test_whatever_is_there_is_seen_and_nothing_else(data):
    length = data.draw(st.integers(8, 30))
    block = Pool("", Range.of(IPNetwork(f"10.0.0.0/{length}")))
    used = data.draw(st.integers(0, block.range.size))
    cooling = data.draw(st.integers(0, block.range.size - used))
    shown = drawn(used, cooling, block)
    assert len(shown) == WIDTH
    parts = {"#": used, "~": cooling, ".": block.range.size - used - cooling}
    assert [sign for sign in parts if parts[sign]] == list(dict.fromkeys(shown))
    for sign, part in parts.items():
        # No part is off by more than the others need to be seen.
        assert abs(shown.count(sign) - WIDTH * part / block.range.size) < 3


def test_more_than_a_range_offers_by_now_is_full():
    shrunk = Pool("", Range.of(IPNetwork("192.0.2.0/29")))
    assert drawn(9, 4, shrunk).count("#") + drawn(9, 4, shrunk).count("~") == WIDTH


def test_range_that_offers_nothing_has_no_bar():
    nothing = Pool("", Range.of(IPNetwork("192.0.2.0/30"), exclude=[IPNetwork("192.0.2.0/30")]))
    assert drawn(0, 0, nothing) == "-"
    assert cells(Usage(nothing, 0, 0))[2:] == ("0", "0", "0", "0", "4", "-")


def test_reserved_addresses_are_no_part_of_the_bar():
    half = Pool("", Range.of(IPNetwork("192.0.2.0/24"), exclude=[IPNetwork("192.0.2.128/25"), IPAddress("192.0.2.1")]))
    # 128 are excluded, one too; 192.0.2.0 is the network's. What is left is the whole of it.
    assert cells(Usage(half, 126, 0))[2:] == ("126", "126", "0", "0", "130", "#" * WIDTH)
