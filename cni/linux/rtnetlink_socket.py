"""One rtnetlink socket in one network namespace, and what the verbs of links, VFs, addresses and routes share.

Source: rtnetlink(7).
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, TypeVar

from cni.linux.netlink import NetlinkSocket
from cni.linux.netns import Netns

NETLINK_ROUTE = 0  # linux/netlink.h
RTM_SETLINK, RTM_GETLINK = 19, 18  # linux/rtnetlink.h

Self = TypeVar("Self", bound="RtnetlinkSocket")


class RtnetlinkSocket:
    """One rtnetlink socket in one network namespace, this thread's own by default; a context manager.

    Every method raises KernelRefused with the kernel's errno.
    """

    def __init__(self, netns: Netns | None = None, *, netlink: NetlinkSocket | None = None) -> None:
        self._netns = netns
        self._netlink = netlink or NetlinkSocket(NETLINK_ROUTE, netns)
        self._names: dict[int, str] = {}  # for the words of an error only

    def close(self) -> None:
        self._netlink.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _target(self, index: int | None) -> str:
        name = self._names.get(index or 0)
        return f"{name} (ifindex {index})" if name else f"ifindex {index}"

    def _command(self, message: Any, kind: int, index: int, operation: str, *, flags: int = 0) -> None:
        self._netlink.command(message, kind, operation=operation, target=self._target(index), flags=flags)
