"""The ladder of this room: nsname -> host_ns, sandbox -> veth, wire; the machine's own links are left alone."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from cni.linux.link import Link
from cni.linux.netns import Netns
from cni.linux.rtnetlink import Rtnetlink
from cni.linux.sysctl import Sysctl

_numbers = itertools.count(1)
_run = uuid.uuid4().hex[:8]


@dataclass(frozen=True)
class ScratchNetns:
    """A namespace of ``ip netns``, open, with a socket in it; ``host_ns`` plays the host, ``sandbox`` the pod."""

    name: str
    path: str
    netns: Netns
    rtnl: Rtnetlink

    def ip(self, *words: str) -> str:
        """Run ``ip`` in here and return what it prints."""
        command = ["ip", "-n", self.name, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def link(self, ifname: str) -> Link:
        """Return a link that must be here."""
        found = self.rtnl.link_get(ifname)
        assert found is not None, f"no {ifname} in netns {self.name}"
        return found


def wait_until(true_of_it: Callable[[], bool]) -> None:
    """Wait for what the kernel does in its own time: on a busy machine a netns takes seconds to be taken down."""
    until = time.monotonic() + 120
    while not true_of_it():
        assert time.monotonic() < until, "never came true"
        time.sleep(0.01)


def prolong_dad(netns: Netns, ifname: str, *, seconds: int) -> None:
    """Have an address of this link be tentative for so long, and not for the one second that a test may be asleep."""
    with netns.entered():
        Sysctl().write(("net", "ipv6", "conf", ifname, "dad_transmits"), seconds)


@dataclass(frozen=True)
class Wire:
    """A veth pair between two namespaces, both ends up."""

    sandbox_link: Link
    host_link: Link


@pytest.fixture(autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")


@pytest.fixture
def nsname() -> Iterator[Callable[[], str]]:
    """Return a maker of names for namespaces; namespaces of these names are deleted at the end."""
    made: list[str] = []

    def name() -> str:
        # Of its own by chance: what a run of the same pid left when it was killed may still be there.
        made.append(f"vferry-test-{_run}-{next(_numbers)}")
        return made[-1]

    yield name
    for each in made:
        if os.path.exists(f"/run/netns/{each}"):
            subprocess.run(["ip", "netns", "del", each], check=True)


@pytest.fixture
def scratch_netns(nsname: Callable[[], str]) -> Iterator[Callable[[], ScratchNetns]]:
    """Return a maker of scratch namespaces."""
    with ExitStack() as opened:

        def make() -> ScratchNetns:
            name = nsname()
            subprocess.run(["ip", "netns", "add", name], check=True)
            path = f"/run/netns/{name}"
            netns = opened.enter_context(Netns.open(path))
            rtnl = opened.enter_context(Rtnetlink(netns))
            return ScratchNetns(name, path, netns, rtnl)

        yield make


@pytest.fixture
def host_ns(scratch_netns: Callable[[], ScratchNetns]) -> ScratchNetns:
    return scratch_netns()


@pytest.fixture
def sandbox(scratch_netns: Callable[[], ScratchNetns]) -> ScratchNetns:
    return scratch_netns()


@pytest.fixture
def veth(host_ns: ScratchNetns) -> Link:
    """A link in ``host_ns`` to play the VF: ``ens1v0``; its peer there is ``ens1p0``, up."""
    host_ns.ip("link", "add", "ens1v0", "type", "veth", "peer", "name", "ens1p0")
    host_ns.ip("link", "set", "ens1p0", "up")
    return host_ns.link("ens1v0")


@pytest.fixture
def wire(host_ns: ScratchNetns, sandbox: ScratchNetns) -> Wire:
    """``net1`` in the sandbox, ``wire0`` in the host, both up."""
    host_ns.ip("link", "add", "wire0", "type", "veth", "peer", "name", "net1", "netns", sandbox.name)
    host_ns.ip("link", "set", "wire0", "up")
    sandbox.ip("link", "set", "net1", "up")
    return Wire(sandbox_link=sandbox.link("net1"), host_link=host_ns.link("wire0"))
