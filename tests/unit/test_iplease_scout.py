"""Where free addresses are presumed to begin: few looks, always at a free one, near the end of a full low end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ipam.stores.iplease_scout import index_of, lowest, presumed_taken

SIZES = st.one_of(st.integers(100, 2**16), st.just(2**64), st.just(2**80))


@given(SIZES, st.data())
def test_the_end_of_a_full_low_end_is_found_with_few_looks(size, data):
    taken = data.draw(st.integers(0, min(size - 64, 2**20)))
    looks = []
    known = data.draw(st.integers(0, taken - 1)) if taken and data.draw(st.booleans()) else 0
    free = data.draw(st.none() | st.integers(taken, size - 1))
    found = presumed_taken(size, lambda index: looks.append(index) or index < taken, taken=known, free=free)
    assert taken <= found <= 64 + 2 * taken
    assert len(looks) == len(set(looks)) <= 14
    assert all(0 <= index < size for index in looks)


@given(st.integers(100, 10_000), st.data())
def test_what_is_found_is_free_wherever_the_leases_are(size, data):
    taken = data.draw(st.sets(st.integers(0, size - 1)))
    found = presumed_taken(size, taken.__contains__)
    assert found is None or found not in taken


def test_of_60000_in_a_16_two_looks_tell():
    looks = []
    assert 60_000 <= presumed_taken(65_534, lambda index: looks.append(index) or index < 60_000, taken=32_768) < 64_000
    assert len(looks) <= 2


def test_in_a_full_range_no_free_address_is_met():
    assert presumed_taken(2**16, lambda index: True) is None


@given(st.integers(0, 40))
def test_the_lowest_of_several_spans(number):
    spans = [(10, 14), (20, 20), (30, 39)]
    addresses = [value for first, last in spans for value in range(first, last + 1)]
    assert [value for first, last in lowest(spans, number) for value in range(first, last + 1)] == addresses[:number]
    assert [index_of(spans, value) for value in addresses] == list(range(len(addresses)))
