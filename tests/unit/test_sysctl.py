"""Paths of sysctls; what the kernel does with them is tested in tests/netns."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cni.linux.sysctl import Sysctl
from conf.errors import KernelRefused

ARP_NOTIFY = ("net", "ipv4", "conf", "eth0.100", "arp_notify")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    file = tmp_path.joinpath("sys", *ARP_NOTIFY)
    file.parent.mkdir(parents=True)
    file.write_text("0\n")
    (tmp_path / "secret").write_text("0\n")
    return tmp_path / "sys"


def test_a_dot_in_an_ifname_is_part_of_it(root: Path) -> None:
    sysctl = Sysctl(str(root))
    assert sysctl.read(ARP_NOTIFY) == "0"
    sysctl.write(ARP_NOTIFY, 1)
    assert root.joinpath(*ARP_NOTIFY).read_text() == "1\n"


@pytest.mark.parametrize("path", [("..", "secret"), ("net/../../secret",), ("",), (), (".", "net"), ("net\0",)])
def test_no_way_out_of_the_tree(root: Path, path: tuple[str, ...]) -> None:
    sysctl = Sysctl(str(root))
    for refused_call in (lambda: sysctl.read(path), lambda: sysctl.write(path, 1)):
        with pytest.raises(KernelRefused) as refused:
            refused_call()
        assert refused.value.errno == errno.EINVAL
    assert (root.parent / "secret").read_text() == "0\n"


def test_absent_settings_are_enoent_and_not_made(root: Path) -> None:
    path = (*ARP_NOTIFY[:-1], "absent")
    sysctl = Sysctl(str(root))
    for refused_call in (lambda: sysctl.read(path), lambda: sysctl.write(path, 1)):
        with pytest.raises(KernelRefused) as refused:
            refused_call()
        assert (refused.value.errno, refused.value.target) == (errno.ENOENT, "/".join(path))
    assert not root.joinpath(*path).exists()
