"""The netlink socket against a kernel that interrupts, loses, delays and refuses."""

from __future__ import annotations

import errno
import logging
import struct

import pytest

from cni.linux.link import link_from
from cni.linux.link_message import linkmsg
from cni.linux.netlink import NetlinkSocket
from conf.errors import KernelRefused
from tests.unit.fake_rtnetlink import PF_INDEX, FakeKernel, error, message

GETLINK = 18
WORDS = {"operation": "listing the links", "target": "the netns"}


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def netlink(kernel: FakeKernel) -> NetlinkSocket:
    return NetlinkSocket(0, transport=kernel)


def question() -> linkmsg:
    asked = linkmsg()
    asked["index"] = PF_INDEX
    return asked


def dump(netlink: NetlinkSocket) -> list[str]:
    return [link.ifname for link in netlink.dump(question, GETLINK, decode=link_from, **WORDS)]


def get(netlink: NetlinkSocket) -> list[str]:
    return [link.ifname for link in netlink.request(question(), GETLINK, decode=link_from, **WORDS)]


def test_interrupted_dump_is_asked_for_again(netlink: NetlinkSocket, kernel: FakeKernel) -> None:
    kernel.interrupted_dumps = 3
    assert dump(netlink) == ["ens1"]
    assert len(kernel.requests) == 4


def test_dump_that_never_settles_is_an_error(netlink: NetlinkSocket, kernel: FakeKernel) -> None:
    kernel.interrupted_dumps = 1000
    with pytest.raises(KernelRefused) as refused:
        dump(netlink)
    assert refused.value.errno == errno.EINTR
    assert 1 < len(kernel.requests) < 100


def test_overrun_dump_is_asked_for_again(netlink: NetlinkSocket, kernel: FakeKernel) -> None:
    kernel.overruns = 1
    assert dump(netlink) == ["ens1"]
    assert len(kernel.requests) == 2


def test_overrun_request_is_not_repeated(netlink: NetlinkSocket, kernel: FakeKernel) -> None:
    kernel.overruns = 1
    with pytest.raises(KernelRefused) as refused:
        get(netlink)
    assert refused.value.errno == errno.ENOBUFS
    assert len(kernel.requests) == 1


def test_refused_dump_is_not_repeated(netlink: NetlinkSocket, kernel: FakeKernel) -> None:
    kernel.refuse = {1: (errno.EPERM, "")}
    with pytest.raises(KernelRefused) as refused:
        dump(netlink)
    assert refused.value.errno == errno.EPERM
    assert len(kernel.requests) == 1


def test_dump_that_fails_at_its_end_is_an_error(netlink: NetlinkSocket, kernel: FakeKernel) -> None:
    kernel.silent = True
    kernel.waiting.append((message(3, struct.pack("=i", -errno.EMSGSIZE), sequence=1, flags=2), 0))
    with pytest.raises(KernelRefused) as refused:
        dump(netlink)
    assert refused.value.errno == errno.EMSGSIZE


def test_silence_is_a_timeout(netlink: NetlinkSocket, kernel: FakeKernel) -> None:
    kernel.silent = True
    with pytest.raises(KernelRefused) as refused:
        get(netlink)
    assert refused.value.errno == errno.ETIMEDOUT


def test_late_answer_to_an_abandoned_request_is_not_taken_for_the_next(
    netlink: NetlinkSocket, kernel: FakeKernel
) -> None:
    kernel.silent = True
    with pytest.raises(KernelRefused):
        get(netlink)
    kernel.waiting.append((error(kernel.requests[0], errno.ENODEV), 0))
    kernel.silent = False
    assert get(netlink) == ["ens1"]


def test_messages_of_other_processes_are_ignored(netlink: NetlinkSocket, kernel: FakeKernel) -> None:
    forged = struct.pack("=IHHII", 16, 18, 0, 1, 0)
    kernel.waiting.append((error(forged, errno.ENODEV), 4711))
    assert get(netlink) == ["ens1"]


@pytest.mark.parametrize("capped", [True, False])
def test_extended_text_is_read_behind_the_refused_request(
    netlink: NetlinkSocket, kernel: FakeKernel, capped: bool
) -> None:
    kernel.silent = True
    request = message(18, b"\1" * 21 + b"\0" * 3, sequence=1)
    kernel.waiting.append((error(request, errno.EINVAL, text="no such thing", capped=capped), 0))
    with pytest.raises(KernelRefused) as refused:
        get(netlink)
    assert (refused.value.errno, refused.value.ext_ack) == (errno.EINVAL, "no such thing")


def test_warning_of_an_obedient_kernel_is_logged(
    netlink: NetlinkSocket, kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.silent = True
    kernel.waiting.append((error(message(19, b"", sequence=1), 0, text="deprecated"), 0))
    with caplog.at_level(logging.WARNING, logger="vferry"):
        netlink.command(question(), 19, operation="setting it up", target="ens1")
    assert "deprecated" in caplog.text


def test_reply_larger_than_the_buffer_is_read_whole(netlink: NetlinkSocket, kernel: FakeKernel) -> None:
    kernel.silent = True
    big = message(16, b"x" * 100_000, sequence=1)
    kernel.waiting.append((big, 0))
    kernel.waiting.append((error(message(18, b"", sequence=1), 0), 0))
    assert netlink.request(question(), GETLINK, decode=bytes, **WORDS) == [big]


def test_requests_are_numbered_and_sent_to_the_kernel(netlink: NetlinkSocket, kernel: FakeKernel) -> None:
    get(netlink)
    get(netlink)
    headers = [struct.unpack_from("=IHHII", request) for request in kernel.requests]
    assert [(kind, flags, sequence, port) for _length, kind, flags, sequence, port in headers] == [
        (18, 0x5, 1, 0),
        (18, 0x5, 2, 0),
    ]


def test_closing_closes_the_transport(kernel: FakeKernel) -> None:
    with NetlinkSocket(0, transport=kernel):
        pass
    assert kernel.closed
