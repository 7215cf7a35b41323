"""Search for the lowest free addresses in etcd: exact wherever the leases are, in few transactions of bounded size."""

from __future__ import annotations

from base64 import b64encode
from bisect import bisect_left, bisect_right

from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.stores.etcd_scout import Line
from ipam.stores.etcd_search import MOST_QUESTIONS, Search
from ipam.stores.runs import Runs


@st.composite
def spans(draw):
    """Disjoint, ascending, with gaps; some of them wide."""
    found, at = [], draw(st.integers(0, 2**100))
    for _ in range(draw(st.integers(1, 6))):
        first = at + draw(st.integers(1, 300))
        at = first + draw(st.one_of(st.integers(0, 300), st.integers(0, 30_000), st.just(2**64)))
        found.append((first, at))
    return tuple(found)


@st.composite
def occupied(draw, line):
    """Mostly a full low end, with a few gaps, of addresses that are free or only cool."""
    number = draw(st.integers(0, min(line.size, 5_000)))
    gaps = {line.at(index) for index in draw(st.sets(st.integers(0, max(number - 1, 0)), max_size=8)) if number}
    cooling = {value for value in gaps if draw(st.booleans())}
    return {line.at(index) for index in range(number)} - gaps, cooling


class Answers:
    """An etcd with such leases; ``asked``: how many questions each time."""

    def __init__(self, leased, cooling):
        self._of = [sorted(leased), sorted(cooling)]
        self.asked = []

    def __call__(self, questions):
        self.asked.append(len(questions))
        return [self._answer(each, values) for each in questions for values in self._of]

    def _answer(self, question, values):
        within = values[bisect_left(values, question.first) : bisect_right(values, question.last)]
        keys = [{"key": b64encode(f"/ip/{value:x}".encode()).decode()} for value in within] if question.listed else []
        return {"response_range": {"count": str(len(within)), "kvs": keys}}


def ask_until_over(search, answers, most=MOST_QUESTIONS):
    while not search.is_over:
        questions = search.questions(most)
        search.hear(questions, answers(questions))


@given(spans(), st.integers(1, 5), st.data())
@settings(max_examples=60)
def test_it_finds_exactly_the_lowest_free_addresses(ranges, wanted, data):
    line = Line(ranges)
    leased, cooling = data.draw(occupied(line))
    known = Runs.of(value for value in leased if data.draw(st.booleans()) or len(leased) > 50)
    lost = {value for value in (line.at(0), line.at(line.size - 1)) if value not in leased | cooling}
    answers = Answers(leased, cooling)
    search = Search(line, known, wanted=wanted, lost=lost)
    presumed = search.presumed(10)
    ask_until_over(search, answers, data.draw(st.sampled_from([1, 2, 11, MOST_QUESTIONS])))
    indices = range(min(line.size, len(leased) + len(cooling) + len(lost) + wanted + 1))
    free = [line.at(at) for at in indices if line.at(at) not in leased | cooling | lost]
    assert search.free[: len(free)] == free[: len(search.free)]
    assert len(search.free) >= min(wanted, len(free))
    # What it learns to be full has leases, and no address that only cools.
    assert all(value in leased for first, last in search.full.to_json() for value in range(first, last + 1))
    # Nothing that is free lies below what is presumed without asking.
    assert not free or not presumed or presumed[0] <= free[0]


@given(st.integers(0, 65_533), st.booleans())
@settings(max_examples=10)
def test_a_wide_range_takes_a_few_small_transactions(gap, is_known):
    line = Line(((1, 65_534),))
    leased = {value for value in range(1, 65_535) if value != gap + 1}
    answers = Answers(leased, ())
    search = Search(line, Runs.of(leased) if is_known else Runs(), wanted=1)
    ask_until_over(search, answers)
    assert search.free[0] == gap + 1
    assert len(answers.asked) <= (1 if is_known else 3)
    assert max(answers.asked) <= MOST_QUESTIONS


def test_of_an_empty_or_full_range():
    line = Line(((10, 2**64), (2**65, 2**65 + 5)))
    search = Search(line, Runs(), wanted=3)
    ask_until_over(search, Answers((), ()))
    assert search.free[:3] == [10, 11, 12]
    full = Search(Line(((1, 3000),)), Runs(), wanted=1)
    ask_until_over(full, Answers(range(1, 3001), ()))
    assert full.free == []
    assert full.full.to_json() == [[1, 3000]]
