"""The wait for IPv6 duplicate address detection (DAD); it asks, and sends nothing itself.

Source: RFC 4862 section 5.4, RFC 4429; SettleAddresses in containernetworking/plugins pkg/ip/addr_linux.go.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from typing import Protocol

from cni.linux.address import Address
from conf.errors import KernelRefused

_POLL_S, _POLL_MAX_S = 0.002, 0.05


class AddressSource(Protocol):
    """Whoever can list a link's addresses: Rtnetlink."""

    def addresses(self, index: int) -> tuple[Address, ...]: ...


def wait_dad(
    rtnl: AddressSource,
    index: int,
    timeout_s: float = 5,
    *,
    accept_optimistic: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until duplicate address detection has cleared every IPv6 address of the link.

    Raises: KernelRefused naming the address: EADDRINUSE when another host has it, ETIMEDOUT when the time is
    over. An *optimistic* address may be used while it is checked; waiting for it finds out a duplicate.
    """
    deadline = clock() + timeout_s
    pause_s = _POLL_S
    while True:
        addresses = [each for each in rtnl.addresses(index) if each.family == socket.AF_INET6]
        for each in addresses:
            if each.dadfailed:
                raise KernelRefused(
                    "duplicate address detection",
                    each.address,
                    errno.EADDRINUSE,
                    hint="another host on this network answers for this address",
                )
        waiting = [each for each in addresses if each.tentative and not (accept_optimistic and each.optimistic)]
        if not waiting:
            return
        if clock() >= deadline:
            names = ", ".join(each.address for each in waiting)
            raise KernelRefused(
                "duplicate address detection", names, errno.ETIMEDOUT, details=f"not done within {timeout_s:g} s"
            )
        sleep(pause_s)
        pause_s = min(pause_s * 1.5, _POLL_MAX_S)
