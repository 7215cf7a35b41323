"""``vferry ipam reconcile`` as it is typed, on a store of this host: watching, the start-up pass, what is printed."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
from click.testing import CliRunner
from netaddr import IPNetwork

from cni.cli import reconcile as command
from cni.cli.command import vferry
from conf.errors import StoreUnavailable
from ipam.ranges import Range
from ipam.reaping import NOTHING_KNOWN, Word
from ipam.stores.contract import Deadline, Owner, Pool, Want
from ipam.stores.local import LocalStore

POOL = Pool("", Range.of(IPNetwork("192.0.2.0/28")))
GONE = Word(gone="netns /run/netns/a on node n1 is gone")


class Host:
    """One local store; ``gone`` and ``rebooted`` are the containers this node says that of."""

    def __init__(self, data_dir):
        self.data_dir = data_dir
        self.gone, self.rebooted, self.slept = set(), set(), []
        self.sleep = self.slept.append

    def __call__(self, _name):
        return self

    def sandbox(self, lease):
        return GONE if lease.owner.container_id in self.gone else Word(lives="netns is there")

    def earlier_boot(self, lease):
        return Word(gone="it is of boot x") if lease.owner.container_id in self.rebooted else NOTHING_KNOWN

    def held_off(self, _lease):
        return nullcontext()

    def open(self):
        return LocalStore(self.data_dir, deadline=Deadline(10), cooldown_s=0)

    def lease(self, name, node="n1"):
        with self.open() as store:
            store.reserve(Owner(name, "net1", node=node), [Want(POOL)], allocation="lowest")

    def holders(self):
        with self.open() as store:
            return [each.owner.container_id for each in store.leases()]

    def run(self, *words):
        options = ["--datastore", "local", "--data-dir", str(self.data_dir), "--grace", "0", "--node", "n1"]
        return CliRunner().invoke(vferry, ["ipam", "reconcile", *options, *words])


@pytest.fixture
def host(tmp_path, monkeypatch):
    host = Host(tmp_path / "data")
    monkeypatch.setattr(command, "Sandboxes", host)
    monkeypatch.setattr(command, "_sleep", lambda seconds: host.sleep(seconds))  # noqa: PLW0108 - tests set others
    return host


def test_nothing_stale_is_one_look(host):
    host.lease("a")
    done = host.run()
    assert (done.exit_code, host.slept, done.stdout) == (0, [], "")
    assert "1 in use" in done.stderr


def test_between_two_looks_it_waits(host):
    host.lease("a")
    host.lease("b")
    host.gone = {"a"}
    done = host.run("--interval", "0", "--output", "json")
    assert (done.exit_code, host.slept) == (0, [0.0])
    (found,) = json.loads(done.stdout)
    assert (found["address"], found["state"], found["proof"]) == ("192.0.2.1", "reaped", GONE.gone)
    assert "192.0.2.1 of container a interface net1 reaped" in done.stderr
    assert host.holders() == ["b"]


def test_what_lives_again_at_the_second_look_is_kept(host):
    host.lease("a")
    host.gone = {"a"}
    host.sleep = lambda _seconds: host.gone.clear()
    assert host.run("--interval", "0").exit_code == 0
    assert host.holders() == ["a"]


def test_failing_ends_with_an_error(host, monkeypatch):
    host.lease("a")
    host.gone = {"a"}

    def refuse(_store, _lease):
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(LocalStore, "reap", refuse)
    done = host.run("--interval", "0")
    assert done.exit_code == 1
    assert "192.0.2.1: the disk is full" in done.stderr


class Stop(Exception):
    """Ends a watch as a signal does."""


def test_watch_goes_on_whatever_fails(host, monkeypatch):
    host.lease("a")
    host.gone = {"a"}
    leases, looks = LocalStore.leases, []

    def flapping(store, *names, **more):
        looks.append(store)
        if len(looks) == 2:
            raise StoreUnavailable("the store is away")
        return leases(store, *names, **more)

    def sleep(seconds):
        host.slept.append(seconds)
        if len(host.slept) == 4:
            raise Stop

    monkeypatch.setattr(LocalStore, "leases", flapping)
    host.sleep = sleep
    # Shorter than a look takes: what matters is that two looks see it.
    done = host.run("--watch", "0.000001", "--output", "json")
    assert isinstance(done.exception, Stop)
    assert "the store is away" in done.stderr
    assert [json.loads(line)["state"] for line in done.stdout.splitlines()] == ["reaped"]
    assert host.slept == [0.000001] * 4
    assert leases(host.open()) == ()


def test_start_up_gives_back_what_an_earlier_boot_had(host):
    for name, node in (("old", "n1"), ("new", "n1"), ("elsewhere", "n2")):
        host.lease(name, node)
    host.rebooted = {"old", "elsewhere"}
    done = host.run("--node-startup")
    assert (done.exit_code, host.slept) == (0, [])
    assert "reaped" in done.stdout
    assert host.holders() == ["new", "elsewhere"]


def test_watch_has_an_interval_of_its_own(host):
    def stop(seconds):
        host.slept.append(seconds)
        raise Stop

    host.sleep = stop
    host.run("--watch")
    assert host.slept == [30.0]
