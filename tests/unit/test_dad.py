"""The wait for duplicate address detection, against a link whose addresses change with the clock."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass, field

import pytest

from cni.linux.address import IFA_F_DADFAILED, IFA_F_OPTIMISTIC, IFA_F_TENTATIVE, Address
from cni.linux.dad import wait_dad
from conf.errors import KernelRefused

INDEX = 4


def address(text: str, flags: int = 0) -> Address:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    tentative, dadfailed = bool(flags & IFA_F_TENTATIVE), bool(flags & IFA_F_DADFAILED)
    return Address(text, family, 0, tentative, dadfailed, flags, INDEX)


@dataclass
class FakeLink:
    """Its addresses by the time from which on they are so; time passes by sleeping only."""

    history: dict[float, tuple[Address, ...]]
    now: float = 100.0
    asked: int = field(default=0)

    def addresses(self, index: int) -> tuple[Address, ...]:
        assert index == INDEX
        self.asked += 1
        return next(found for since, found in sorted(self.history.items(), reverse=True) if self.now >= since)

    def sleep(self, duration_s: float) -> None:
        assert duration_s > 0
        self.now += duration_s

    def wait(self, timeout_s: float = 5, *, accept_optimistic: bool = False) -> None:
        wait_dad(
            self,
            INDEX,
            timeout_s,
            accept_optimistic=accept_optimistic,
            sleep=self.sleep,
            clock=lambda: self.now,
        )


def test_nothing_tentative_is_not_waited_for() -> None:
    link = FakeLink({0: (address("10.0.0.5/24"), address("fd00::5/64"))})
    link.wait()
    assert (link.asked, link.now) == (1, 100.0)


def test_waits_until_the_last_is_cleared() -> None:
    ready = address("fd00::5/64")
    link = FakeLink({0: (ready, address("fd00::6/64", IFA_F_TENTATIVE)), 101.5: (ready, address("fd00::6/64"))})
    link.wait()
    assert 101.5 <= link.now < 101.6


def test_gives_up_at_the_deadline_naming_what_is_missing() -> None:
    link = FakeLink({0: (address("fd00::5/64"), address("fd00::6/64", IFA_F_TENTATIVE))})
    with pytest.raises(KernelRefused) as refused:
        link.wait(2)
    assert refused.value.errno == errno.ETIMEDOUT
    assert "fd00::6/64" in refused.value.msg and "fd00::5/64" not in refused.value.msg
    assert 102 <= link.now < 102.1


def test_failure_is_told_at_once() -> None:
    failed = address("fd00::6/64", IFA_F_TENTATIVE | IFA_F_DADFAILED)
    link = FakeLink({0: (address("fd00::6/64", IFA_F_TENTATIVE),), 100.5: (failed,)})
    with pytest.raises(KernelRefused) as refused:
        link.wait()
    assert (refused.value.errno, refused.value.target) == (errno.EADDRINUSE, "fd00::6/64")
    assert link.now < 101


def test_optimistic_addresses_are_waited_for_unless_accepted() -> None:
    optimistic = address("fd00::5/64", IFA_F_TENTATIVE | IFA_F_OPTIMISTIC)
    history = {0.0: (optimistic,), 101.0: (address("fd00::5/64"),)}
    strict, lenient = FakeLink(history), FakeLink(history)
    strict.wait()
    lenient.wait(accept_optimistic=True)
    assert (strict.now >= 101, lenient.now) == (True, 100.0)


def test_failed_optimistic_address_is_not_accepted() -> None:
    failed = address("fd00::5/64", IFA_F_TENTATIVE | IFA_F_OPTIMISTIC | IFA_F_DADFAILED)
    with pytest.raises(KernelRefused):
        FakeLink({0: (failed,)}).wait(accept_optimistic=True)
