"""Sysctls of a scratch namespace."""

from __future__ import annotations

import errno

import pytest

from cni.linux.sysctl import Sysctl
from conf.errors import KernelRefused
from tests.netns.conftest import ScratchNetns, Wire


def test_ifname_with_a_dot(sandbox: ScratchNetns, wire: Wire) -> None:
    sandbox.rtnl.link_set_name(wire.sandbox_link.index, "net1.100")
    path = ("net", "ipv4", "conf", "net1.100", "arp_notify")
    with sandbox.netns.entered():
        Sysctl().write(path, 1)
        assert Sysctl().read(path) == "1"


def test_settings_are_those_of_the_namespace_entered(sandbox: ScratchNetns, host_ns: ScratchNetns, wire: Wire) -> None:
    path = ("net", "ipv6", "conf", "default", "accept_ra")
    with sandbox.netns.entered():
        Sysctl().write(path, 0)
    with host_ns.netns.entered():
        assert Sysctl().read(path) == "1"
        with pytest.raises(KernelRefused) as refused:
            Sysctl().read(("net", "ipv4", "conf", "net1", "arp_notify"))  # net1 is in the sandbox
    assert refused.value.errno == errno.ENOENT


def test_value_the_kernel_refuses(sandbox: ScratchNetns) -> None:
    path = ("net", "ipv4", "ip_forward")
    with sandbox.netns.entered(), pytest.raises(KernelRefused) as refused:
        Sysctl().write(path, "many")
    assert (refused.value.errno, refused.value.target) == (errno.EINVAL, "net/ipv4/ip_forward")
