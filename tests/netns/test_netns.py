"""Opening, telling apart, entering and leaving network namespaces."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from cni.linux import netns as netns_module
from cni.linux.netns import CURRENT, Netns, boot_id
from cni.linux.rtnetlink import Rtnetlink
from conf.errors import InvalidNetns, KernelRefused, NetnsGone
from tests.descriptors import none_left_open
from tests.netns.conftest import ScratchNetns


def inode_here() -> int:
    return os.stat(CURRENT).st_ino


def test_identity_is_inode_device_and_boot(sandbox: ScratchNetns) -> None:
    stat = os.stat(sandbox.path)
    identity = sandbox.netns.identity
    assert (identity.inode, identity.device) == (stat.st_ino, stat.st_dev)
    assert identity.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_boot_id_is_read_below_the_given_root(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("0d9c\n")
    assert boot_id(str(tmp_path)) == "0d9c"


def test_one_namespace_by_two_paths_is_the_same(sandbox: ScratchNetns, host_ns: ScratchNetns) -> None:
    with subprocess.Popen(
        ["ip", "netns", "exec", sandbox.name, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as cat:
        assert cat.stdin and cat.stdout
        cat.stdin.write(b"there\n")
        cat.stdin.flush()
        cat.stdout.readline()  # now ip has become cat, inside the namespace
        with Netns.open(f"/proc/{cat.pid}/ns/net") as other:
            assert other.same_as(sandbox.netns)
            assert not other.same_as(host_ns.netns)
        cat.stdin.close()


def test_current_is_the_namespace_of_this_thread() -> None:
    with Netns.current() as here, Netns.open("/proc/self/ns/net") as again:
        assert here.same_as(again)


def test_absent_path_is_gone(tmp_path: Path) -> None:
    with pytest.raises(NetnsGone):
        Netns.open(str(tmp_path / "absent"))


def test_path_through_a_file_is_gone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NetnsGone):
        Netns.open(str(tmp_path / "file/net"))


def test_namespace_of_an_ended_process_is_gone() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with pytest.raises(NetnsGone):
        Netns.open(f"/proc/{ended.pid}/ns/net")


def test_unmounted_namespace_is_gone(sandbox: ScratchNetns) -> None:
    subprocess.run(["umount", "--lazy", sandbox.path], check=True)
    assert Path(sandbox.path).exists()
    with pytest.raises(NetnsGone, match="where a netns was unmounted, an empty one stays"):
        Netns.open(sandbox.path)


def test_directory_is_no_namespace(tmp_path: Path) -> None:
    with pytest.raises(NetnsGone):
        Netns.open(str(tmp_path))


def test_fifo_does_not_hold_us_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NetnsGone):
        Netns.open(str(tmp_path / "fifo"))


@pytest.mark.parametrize("other", ["mnt", "pid", "user"])
def test_other_namespaces_are_invalid_and_not_gone(other: str) -> None:
    with pytest.raises(InvalidNetns) as refused:
        Netns.open(f"/proc/self/ns/{other}")
    assert not isinstance(refused.value, NetnsGone)


def test_path_too_long_is_invalid_and_not_gone() -> None:
    with pytest.raises(InvalidNetns) as refused:
        Netns.open("/" + "x" * 300)
    assert not isinstance(refused.value, NetnsGone)


def test_refused_paths_leave_no_descriptor_open(tmp_path: Path) -> None:
    with none_left_open():
        for path in (str(tmp_path), "/proc/self/ns/mnt", str(tmp_path / "absent")):
            with pytest.raises(InvalidNetns):
                Netns.open(path)


def test_deleted_namespace_is_gone_by_name_but_held_open(sandbox: ScratchNetns) -> None:
    sandbox.ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
    subprocess.run(["ip", "netns", "del", sandbox.name], check=True)
    with pytest.raises(NetnsGone):
        Netns.open(sandbox.path)
    assert sandbox.link("v0").kind == "veth"


def test_descriptors_are_not_inherited(sandbox: ScratchNetns) -> None:
    assert not os.get_inheritable(sandbox.netns.fd)


def test_entered_is_inside_and_then_outside(sandbox: ScratchNetns) -> None:
    before = inode_here()
    with sandbox.netns.entered():
        assert inode_here() == sandbox.netns.identity.inode
    assert inode_here() == before


def test_entered_comes_back_after_an_error(sandbox: ScratchNetns) -> None:
    before = inode_here()
    with pytest.raises(ZeroDivisionError), sandbox.netns.entered():
        raise ZeroDivisionError
    assert inode_here() == before


def test_entered_nests(sandbox: ScratchNetns, host_ns: ScratchNetns) -> None:
    with sandbox.netns.entered():
        with host_ns.netns.entered():
            assert inode_here() == host_ns.netns.identity.inode
        assert inode_here() == sandbox.netns.identity.inode


@pytest.mark.parametrize("where", ["inwards", "homewards"])
@pytest.mark.parametrize("goes_first", [True, False])
def test_entered_comes_back_when_a_signal_comes_at_a_border(
    sandbox: ScratchNetns, monkeypatch: pytest.MonkeyPatch, where: str, goes_first: bool
) -> None:
    """Its handler may raise before the kernel has changed the namespace, or behind it; the first signal's does."""
    before = inode_here()
    really_setns, signals = netns_module._setns, [InterruptedByTest()]

    def setns(fd: int) -> None:
        is_met = (fd == sandbox.netns.fd) == (where == "inwards")
        if goes_first or not is_met:
            really_setns(fd)
        if is_met and signals:
            raise signals.pop()
        if not goes_first and is_met:
            really_setns(fd)

    monkeypatch.setattr(netns_module, "_setns", setns)
    with pytest.raises(InterruptedByTest), sandbox.netns.entered():
        assert where == "homewards"
    assert (inode_here(), signals) == (before, [])


class InterruptedByTest(Exception):
    pass


def test_closed_namespace_cannot_be_entered(sandbox: ScratchNetns) -> None:
    before = inode_here()
    sandbox.netns.close()
    with pytest.raises(KernelRefused) as refused, sandbox.netns.entered():
        pytest.fail("entered a closed namespace")
    assert refused.value.errno == errno.EBADF
    assert inode_here() == before


def test_not_coming_back_ends_the_process(sandbox: ScratchNetns, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = sandbox.netns
    really_setns = netns_module._setns

    def one_way(fd: int) -> None:
        if fd != inside.fd:
            raise OSError(1, "Operation not permitted")
        really_setns(fd)

    pid = os.fork()
    if pid == 0:
        netns_module._setns = one_way
        try:
            with inside.entered():
                pass
        except BaseException:
            os._exit(1)  # an error that somebody could catch, and go on
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 70


def test_sockets_stay_in_the_namespace_they_were_opened_in(sandbox: ScratchNetns) -> None:
    sandbox.ip("link", "add", "only-here", "type", "veth", "peer", "name", "v1")
    with Rtnetlink(sandbox.netns) as inside, Rtnetlink() as outside:
        assert inside.link_get("only-here") is not None
        assert outside.link_get("only-here") is None
