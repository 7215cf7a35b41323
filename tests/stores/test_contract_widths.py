"""What an address costs does not depend on how wide its range is, nor much on how full: counted, at every store.

Counted are calls and bytes, of ``local`` the statements and the steps of SQLite's machine.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

import pytest
from netaddr import IPNetwork

from ipam.stores.contract import Want
from ipam.stores.kubernetes_api import KubernetesApi
from tests.stores.conftest import EtcdLab, LocalLab, owner, pool
from tests.stores.filling import fill_etcd, fill_ipleases, fill_ippool, fill_local

WIDTHS = ["10.0.0.0/24", "10.1.0.0/16", "2001:db8:1::/64", "2001:db8:2::/48"]
# By how much they may differ: an IPv6 address is spelled longer. etcd is asked about more windows, further and further
# apart, up to twenty in any width.
DIFFERENCE = {"etcd": {"bytes": 13_000}, "local": {"steps": 10}}
SPELLING = {"bytes": 200}


@pytest.fixture
def asked(monkeypatch):
    """What an API server is asked, in its order: methods, and LIST for a GET of more than one object."""
    methods = []
    once = KubernetesApi._once

    def note(self, call, token):
        kind = call.path.partition("?")[0].rpartition("/")[2]
        is_list = call.method == "GET" and kind in ("ipleases", "ippools", "overlappingrangeipreservations")
        methods.append("LIST" if is_list else call.method)
        return once(self, call, token)

    monkeypatch.setattr(KubernetesApi, "_once", note)
    return methods


def cost_of(lab, name, text, asked):
    """Reserve as one invocation does; return the address, the calls, the steps of SQLite and the bytes."""
    del asked[:]
    with lab.open() as store:
        counted = Counter()
        if isinstance(lab.make, LocalLab):
            store._database.ensure()
            with store._database.reading() as db:
                db.set_trace_callback(lambda _: counted.update(calls=1))
                db.set_progress_handler(lambda: counted.update(steps=1), 1)
        (lease,) = store.reserve(owner(name), [Want(pool(text))], allocation=store.allocation)
        client = getattr(store, "gateway", None) or getattr(store, "api", None)
        if client is not None:
            received = client.received_bytes
            counted = {"calls": client.calls, "bytes": client.sent_bytes + received, "received": received}
    return lease.address.value - IPNetwork(text).first, counted


def store_of(lab):
    return lab.make.store.name if hasattr(lab.make, "store") else "local"


def test_an_address_of_an_empty_range_costs_the_same_whatever_its_width(lab, asked):
    cost_of(lab, "warm-up", "192.0.2.0/24", asked)
    costs = [cost_of(lab, f"c{at}", text, asked)[1] for at, text in enumerate(WIDTHS)]
    for what in ("calls", "steps", "bytes"):
        numbers = [cost.get(what, 0) for cost in costs]
        allowed = (SPELLING | DIFFERENCE.get(store_of(lab), {})).get(what, 0)
        assert max(numbers) - min(numbers) <= allowed, (what, costs)


class Full(NamedTuple):
    """How many are taken, how far behind them the eighth ADD's address may be, and what is asked for it."""

    number: int
    behind: int
    # By a node that knows nothing, and after that; at most.
    first: dict[str, int]
    later: dict[str, int]
    asked_first: str = ""
    asked_later: str = ""


# An IPPool cannot hold more than 6,000, and to make 60,000 IPLeases takes minutes.
FULL = {
    "etcd": Full(60_000, 1024, {"calls": 2, "received": 20_000}, {"calls": 1}),
    # Each taken row is counted about twice, at some ten steps each; what was found to be full is not counted again.
    "local": Full(60_000, 8, {"calls": 40, "steps": 60_000 * 40}, {"calls": 40, "steps": 20_000}),
    # The object is read, and what was patched is not sent back.
    "kubernetes": Full(
        6_000, 8, {"calls": 3, "bytes": 1_000_000}, {"calls": 3, "bytes": 1_000_000}, "GET POST PATCH", "GET POST PATCH"
    ),
    # To list or to count them is work for a server with every lease it has; a name is one look. Further and further up
    # it is tried first, and then looked where the free ones begin, to a factor of two.
    "kubernetes-leases": Full(
        6_000, 6_064, {"calls": 8, "bytes": 30_000}, {"calls": 1}, "POST POST POST( GET)+ POST", "POST"
    ),
}


def fill(lab, block, values):
    make = lab.make
    if isinstance(make, EtcdLab):
        fill_etcd(make.server, make.prefix, block, values)
    elif isinstance(make, LocalLab):
        fill_local(make.data_dir, block, values)
    elif make.store.name == "kubernetes":
        fill_ippool(make.kubeconfig, block, values)
    else:
        fill_ipleases(make.kubeconfig, block, values)


def test_an_address_behind_thousands_that_are_taken_costs_a_few_calls(lab, asked):
    """Even on a node that knows nothing; and what it learns then is not asked again."""
    text, full = "10.1.0.0/16", FULL[store_of(lab)]
    block = pool(text)
    fill(lab, block, range(block.range.first, block.range.first + full.number))
    for at in range(8):
        index, cost = cost_of(lab, f"c{at}", text, asked)
        most, pattern = (full.later, full.asked_later) if at else (full.first, full.asked_first)
        assert all(0 < cost[what] <= bound for what, bound in most.items()), (cost, most)
        assert re.fullmatch(pattern, " ".join(asked))
        assert index > full.number
    # What is asked along with the others leads back to where the free addresses begin.
    assert index - full.number <= full.behind
