"""Where free addresses are looked for in etcd: a few windows within the spans of a range, and what they cover."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPNetwork

from ipam.ranges import Range
from ipam.stores.contract import Pool
from ipam.stores.etcd_scout import WINDOW, Line, Scout


@st.composite
def spans(draw):
    """Disjoint, ascending, with gaps."""
    found, at = [], draw(st.integers(0, 2**100))
    for _ in range(draw(st.integers(1, 6))):
        first = at + draw(st.integers(1, 300))
        at = first + draw(st.integers(0, 2**40))
        found.append((first, at))
    return tuple(found)


@given(spans(), st.data())
def test_index_and_address_are_inverse(ranges, data):
    line = Line(ranges)
    assert line.size == sum(last - first + 1 for first, last in ranges)
    index = data.draw(st.integers(0, line.size - 1))
    value = line.at(index)
    assert any(first <= value <= last for first, last in ranges)
    assert line.index(value) == index


@given(spans())
def test_address_between_two_spans_has_the_index_of_the_one_before(ranges):
    line = Line(ranges)
    for (_, last), (first, _) in pairwise(ranges):
        if first - last > 1:
            assert line.index(last + 1) == line.index(last)
    assert line.index(ranges[0][0] - 1) == 0


def pool(ranges):
    network = IPNetwork("::/0")
    return Pool("", Range(network, ranges[0][0], ranges[-1][1], ranges))


@given(spans(), st.data())
@settings(max_examples=200)
def test_questions_are_few_and_within_the_spans(ranges, data):
    line = Line(ranges)
    indices = data.draw(st.lists(st.integers(0, line.size - 1), max_size=5, unique=True))
    free = sorted(line.at(index) for index in indices)
    full = data.draw(st.none() | st.just(free[0] - 1)) if free else None
    scout = Scout(pool(ranges), free, full=full)
    assert len(scout.questions) <= 40
    assert len(scout.news) <= 20
    assert scout.questions[0].first == (free[0] if free else ranges[0][0])
    for question in {*scout.questions, *scout.news}:
        assert any(first <= question.first <= question.last <= last for first, last in ranges)
    assert [each for each in scout.questions if each.listed] == [scout.questions[0]]


def test_what_is_asked_of_one_scout_does_not_change():
    scout = Scout(pool(((0, 2**20),)), [2**19])
    assert scout.questions == scout.questions
    assert scout.news == scout.news


def test_all_of_a_small_range_is_looked_at():
    for base in (0, 1, 100, 200, 400, 511):
        scout = Scout(pool(((1000, 1511),)), [1000 + base])
        seen = {value for each in scout.questions for value in range(each.first, each.last + 1)}
        behind = set(range(1000 + base, min(1000 + base + 4 * WINDOW, 1512)))
        assert set(range(1000, 1000 + base)) | behind <= seen, base


def test_free_addresses_below_are_found_within_a_few_looks():
    random.seed(3)
    found = 0
    for _ in range(200):
        scout = Scout(pool(((0, 2**16),)), [60_000], full=50_000)
        found += any(each.last >= 52_000 and each.first < 60_000 for each in scout.news)
    assert found == 200


def test_believes_the_first_ones_free_without_knowledge_and_only_those_it_was_told_else():
    blank = Scout(pool(((5, 4000),)))
    assert blank.count(5, 1028) == 0
    assert blank.count(1029, 4000) == 4000 - 1028
    told = Scout(pool(((5, 4000),)), [7, 9])
    assert told.taken(5, 10) == [5, 6, 8, 10]
    assert told.count(11, 20) == 10
