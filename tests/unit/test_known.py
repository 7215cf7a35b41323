"""What is known to be taken, as runs, against a plain set; how crowded it is, in a time of its own."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ipam.stores.contention import Races
from ipam.stores.runs import Runs
from ipam.stores.scratch import Scratch

VALUE = st.integers(0, 60)
CHANGE = st.tuples(st.sampled_from(["add", "discard", "run"]), VALUE, st.integers(0, 9))


@given(st.lists(VALUE), st.lists(CHANGE, max_size=30), VALUE, VALUE)
def test_runs_are_a_set(values, changes, first, last):
    runs, plain = Runs.of(values), set(values)
    for change, value, length in changes:
        if change == "discard":
            runs.discard(value)
            plain.discard(value)
        else:
            end = value + length * (change == "run")
            runs.add(value, end)
            plain |= set(range(value, end + 1))
        between = sorted(each for each in plain if first <= each <= last)
        assert runs.between(first, last) == between
        assert runs.count(first, max(first - 1, last)) == len(between)
    kept = json.loads(json.dumps(runs.to_json()))
    assert Runs(kept).between(0, 100) == sorted(plain)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(kept))


def test_a_window_opens_with_each_lost_race_and_closes_again(tmp_path):
    now = 1000.0
    scratch = Scratch(tmp_path / "run" / "stores")

    def races(first=1):
        return Races(scratch, "somewhere", first=first, clock=lambda: now)

    met = races()
    windows = [met.window]
    for _ in range(4):
        met.lose()
        windows.append(met.window)
    assert windows == [1, 64, 256, 512, 1024]
    assert races().window == 1
    met.remember()
    # The next ones on this node, as long as they come at once, expect less and less of a crowd.
    for expected in (1024, 512, 256):
        later = races()
        assert later.window == expected
        later.remember()
    now += 1.5
    assert races().window == 1
    assert races(first=64).window == 64
