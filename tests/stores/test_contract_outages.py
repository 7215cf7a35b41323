"""The contract of ipam/stores/contract.py while a store is down, slow or failing at random, tried at every store.

What fails is in tests/stores/outages.py. The Kubernetes stores are at the stand-in here, whatever server the rest of
the contract is run at.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest

from conf.errors import CniError, StoreUnavailable, TryAgainLater
from ipam.stores.contract import Want
from tests.stores.conftest import KubernetesLab, owner, pool, release, reserve
from tests.stores.flapping_files import Killed
from tests.stores.node import Node
from tests.stores.outages import OUTAGES, WAYS, together
from tests.stores.promised import Promised

BLOCKS = "10.3.0.0/25", "2001:db8:3::/64"
WANTS = [Want(pool(block)) for block in BLOCKS]
DEADLINE_S = 1.0
# By how much whoever ends at a deadline may be late: by what this machine is slow.
LATE_S = 20.0
# Of many at once; and of those who are to wait.
PATIENCE_S = 300.0


@pytest.fixture(params=sorted(OUTAGES))
def outage(request):
    return OUTAGES[request.param](request)


@pytest.fixture
def node(request, outage, tmp_path, monkeypatch):
    """What ``vferry ipam reconcile`` runs on; at an API server as an administrator."""
    make = outage.lab.make
    if isinstance(make, KubernetesLab):
        path = tmp_path / "reconcile.kubeconfig"
        request.getfixturevalue("api_server").write_kubeconfig(path=path, token="admin")
        make = replace(make, kubeconfig=str(path))
    return Node(make, BLOCKS, tmp_path, monkeypatch)


def add_holders(lab):
    """Return what "a", "b" and "c" hold from now on."""
    return {name: add(lab, name) for name in "abc"}


HOLDERS = {name: [f"10.3.0.{at}", f"2001:db8:3::{at}"] for at, name in enumerate("abc", 1)}
NEXT = ["10.3.0.4", "2001:db8:3::4"]


def add(lab, name, **opening):
    """Reserve in both families, without cool-down, and return the addresses."""
    return reserve(lab, name, *WANTS, cooldown_s=0.0, **opening)


def delete(lab, name, **opening):
    return release(lab, name, cooldown_s=0.0, **opening)


def found(lab, name, **opening):
    with lab.open(**opening) as store:
        return [str(lease.address) for lease in store.find(owner(name))]


def held(lab):
    """Return who holds what, of all."""
    with lab.open() as store:
        return sorted((lease.owner.container_id, str(lease.address)) for lease in store.leases())


def everything(callers, **opening):
    """Return every call that a plugin makes, by what it is; holders hold addresses, "new" and "never" do not.

    Each is of an owner of its own, for of one owner's invocations the second waits for the first.
    """
    lab = callers.lab

    def probe():
        with lab.open(**opening) as store:
            store.probe()

    def leases():
        with lab.open(**opening) as store:
            return [str(lease.address) for lease in store.leases()]

    return {
        "reserve": partial(add, lab, "new", **opening),
        "reserve again": partial(add, lab, "a", **opening),
        "release": partial(delete, lab, "b", **opening),
        "release of nothing": partial(delete, lab, "never", **opening),
        "find": partial(found, lab, "c", **opening),
        "leases": leases,
        "probe": probe,
    }


def errors_of(callers):
    """Make every call at once, with little time; each is an error, and in time."""
    calls = everything(callers, deadline_s=DEADLINE_S)
    started = time.monotonic()
    outcomes = together(*(partial(callers.call, call) for call in calls.values()))
    assert time.monotonic() - started < DEADLINE_S + LATE_S
    errors = dict(zip(calls, outcomes, strict=True))
    for call, error in errors.items():
        assert isinstance(error, StoreUnavailable | TryAgainLater), (call, error)
    return errors


# Down.


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_of_a_store_that_is_down_every_call_is_an_error_that_names_it_and_changes_nothing(request, name, way):
    outage = OUTAGES[name](request)
    lab = outage.lab
    assert add_holders(lab) == HOLDERS
    before = held(lab)
    with outage.down(way) as callers:
        errors = errors_of(callers)
    for call, error in errors.items():
        assert callers.store in str(error), (call, error)
        assert error.hint, call
    if way == "nobody listens":
        assert {type(error) for error in errors.values()} == {StoreUnavailable}
        assert all("does not answer" in error.msg and "refused" in error.details for error in errors.values())
    # Then it is there again.
    assert held(lab) == before
    assert add(lab, "a") == HOLDERS["a"]
    assert add(lab, "new") == NEXT
    for each in (*HOLDERS, "new"):
        assert len(delete(lab, each)) == 2
    assert outage.left() == set()


def test_a_store_that_is_back_before_the_deadline_was_waited_for(outage):
    add_holders(outage.lab)
    waiting = []
    with outage.away() as (callers, back):
        thread = threading.Thread(
            target=lambda: waiting.extend(together(partial(add, callers.lab, "new", deadline_s=PATIENCE_S)))
        )
        thread.start()
        time.sleep(0.5)
        assert not waiting
        back()
        thread.join()
    assert waiting == [NEXT]


# Slow.


def test_a_store_whose_every_answer_is_late_works_within_the_deadline(outage):
    add_holders(outage.lab)
    with outage.slow(0.1) as callers:
        calls = everything(callers, deadline_s=PATIENCE_S)
        outcomes = dict(zip(calls, together(*(partial(callers.call, call) for call in calls.values())), strict=True))
    leases = outcomes.pop("leases")
    assert {*HOLDERS["a"], *HOLDERS["c"]} <= set(leases)
    assert outcomes.pop("reserve")[0] in ("10.3.0.2", "10.3.0.4")  # before the release, or after it
    assert outcomes == {
        "reserve again": HOLDERS["a"],
        "release": HOLDERS["b"],
        "release of nothing": [],
        "find": HOLDERS["c"],
        "probe": None,
    }
    assert {name for name, _ in held(outage.lab)} == {"a", "c", "new"}


def test_a_store_whose_answers_come_after_the_deadline_is_an_error_in_time_and_leaks_nothing(outage, node):
    """What was asked may have been done all the same, even after the DEL."""
    add_holders(outage.lab)
    with outage.slow(2.0) as callers:
        errors_of(callers)
        for name in (*HOLDERS, "new", "never"):
            delete(outage.lab, name)
            node.record(name)
    # Everything late has arrived.
    node.reconcile()
    assert held(outage.lab) == []
    assert outage.left() == set()


# Failing at random.


def until_done(callers, function, *args):
    """Call as a runtime does, which repeats what failed or never answered."""
    for _ in range(1000):
        with contextlib.suppress(CniError, Killed):
            return callers.call(function, *args)
    raise AssertionError("it never succeeds")


def test_a_lost_reply_takes_no_second_address(outage):
    names = [f"c{number}" for number in range(4)]
    with outage.losing_replies() as callers:

        def call(function, name):
            return until_done(callers, partial(function, callers.lab, name, deadline_s=PATIENCE_S))

        given = together(*(partial(call, add, name) for name in names))
        assert held(outage.lab) == sorted((names[at], each) for at in range(4) for each in given[at])
        assert len(held(outage.lab)) == 8
        together(*(partial(call, delete, name) for name in names))
        assert held(outage.lab) == []
        assert callers.seen.total() > callers.seen["be done"] + callers.seen["pass"]
    assert outage.left() == set()


OPERATIONS = 2000
WORKERS = 20
OWNERS = 40
KINDS = {"ADD": 40, "ADD twice at once": 8, "DEL": 27, "DEL again": 5, "CHECK": 20}


class Wrong(Exception):
    """A store did not keep its word."""


class Operations:
    """What one worker does, in a process that may be killed any time; the next one goes on behind that."""

    def __init__(self, callers, opening, number, promised, folder):
        self._callers, self._number, self._promised = callers, number, promised
        self._opening = {"cooldown_s": 0.0, "deadline_s": PATIENCE_S, **opening}
        self._outcomes = folder / f"outcomes{number}"
        self._outcomes.touch()

    def outcomes(self):
        return self._outcomes.read_text().splitlines()

    def run(self):
        while len(self.outcomes()) < OPERATIONS // WORKERS:
            ended = self._callers.start(self._go_on)
            if ended == -signal.SIGKILL:
                self._note("killed")
            else:
                assert ended == 0

    def _note(self, outcome):
        with open(self._outcomes, "a") as file:
            file.write(outcome + "\n")

    def _go_on(self):
        for at in range(len(self.outcomes()), OPERATIONS // WORKERS):
            rng = random.Random(f"{self._number} {at}")
            name = f"{self._number}-{rng.randrange(OWNERS // WORKERS)}"
            (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
            try:
                self._do(kind, name)
            except (CniError, Wrong) as error:
                self._note(f"{type(error).__name__} {kind}: {error}")
            else:
                self._note(f"done {kind}")

    def _do(self, kind, name):
        if kind == "CHECK":
            with self._open() as store:
                there = {str(lease.address) for lease in store.find(owner(name))}
            # A request that arrived twice may have made more than was returned, up to the DEL.
            if not (promised := self._promised.of(name)) <= there:
                raise Wrong(f"{name} was promised {promised}, and has {there}")
        elif kind == "ADD twice at once":
            outcomes = together(*[partial(self._add, name)] * 2)
            for leases in outcomes:
                if not isinstance(leases, Exception):
                    self._promise(name, leases)
            raise_first(outcomes)
        elif kind == "ADD":
            self._promise(name, self._add(name))
        else:
            self._promised.forget(name)
            for _ in range(2 if kind == "DEL again" else 1):
                with self._open() as store:
                    store.release(owner(name))

    def _open(self):
        return self._callers.lab.open(**self._opening)

    def _add(self, name):
        with self._open() as store:
            return store.reserve(owner(name, node=Node.name), WANTS, allocation="window")

    def _promise(self, name, leases):
        self._compare(name, leases)
        self._promised.promise(name, leases)

    def _compare(self, name, leases):
        promised = self._promised.of(name)
        if promised and promised != (now := {str(lease.address) for lease in leases}):
            raise Wrong(f"{name} was promised {promised}, and now {now}")


def raise_first(outcomes):
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


def test_2000_operations_at_a_store_that_fails_at_random_double_nothing_and_leak_nothing(outage, node, tmp_path):
    promised, store = Promised(tmp_path / "promised"), outage.lab.make
    with outage.flapping() as callers:
        workers = [Operations(callers, outage.opening, number, promised, tmp_path) for number in range(WORKERS)]
        raise_first(together(*(worker.run for worker in workers)))
        seen = dict(callers.seen)
    outcomes = [outcome for worker in workers for outcome in worker.outcomes()]
    counts = Counter(outcome.partition(" ")[0] for outcome in outcomes)
    assert counts.total() == OPERATIONS
    assert [outcome for outcome in outcomes if outcome.startswith("Wrong")] == []
    assert counts.keys() <= {"done", "killed", StoreUnavailable.__name__, TryAgainLater.__name__}
    assert {outcome.partition(" ")[2] for outcome in outcomes if outcome.startswith("done")} == KINDS.keys()
    assert set(seen) == outage.MISHAPS
    assert counts["done"] > OPERATIONS * outage.SUCCESSES
    # Whoever was promised an address has it, and nobody else.
    assert promised.doubled() == []
    there = held(outage.lab)
    assert {(name, address) for address, name in promised.all()} <= set(there)
    assert len({address for _, address in there}) == len(there)
    if not isinstance(store, KubernetesLab):  # whose two families are two objects, and two requests
        assert set(Counter(name for name, _ in there).values()) <= {2}
    # One half of the sandboxes ends with a DEL, of the other half only the node knows that they are gone.
    names = [f"{number}-{each}" for number in range(WORKERS) for each in range(OWNERS // WORKERS)]
    for name in names:
        node.record(name)
    for name in names[::2]:
        delete(outage.lab, name)
    left = [name for name, _ in held(outage.lab) if name in names[::2]]
    # What was repeated on the way after an earlier DEL may be nobody's but reconcile's at an API server.
    assert len(left) <= (OPERATIONS // 100 if isinstance(store, KubernetesLab) else 0)
    there = held(outage.lab)
    assert node.reconcile() == {"reaped": len(there)}
    assert held(outage.lab) == []
    assert outage.left() == set()
