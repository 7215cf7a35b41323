"""RDMA devices of one network namespace, by NETLINK_RDMA: the mode, the devices, moving and renaming one.

Which device belongs to which PCI function is sysfs's to say (cni/linux/sysfs.py). The socket must be opened in the
netns that holds the device: the kernel lists, and lets move, only that one's (dranet#177).

Source: rdma(8) of iproute2, include/uapi/rdma/rdma_netlink.h, drivers/infiniband/core/nldev.c; Linux 5.3 or later.
"""

from __future__ import annotations

import errno
from contextlib import nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from cni.linux.netlink import NetlinkSocket
from cni.linux.netns import Netns
from cni.linux.pyroute2_messages import nlmsg
from conf.errors import KernelRefused

NETLINK_RDMA = 20  # linux/netlink.h
# rdma/rdma_netlink.h
RDMA_NL_NLDEV = 5
RDMA_NLDEV_CMD_GET, RDMA_NLDEV_CMD_SET, RDMA_NLDEV_CMD_SYS_GET = 1, 2, 6
_EXCLUSIVE, _SHARED = 0, 1  # RDMA_NLDEV_SYS_ATTR_NETNS_MODE: ib_devices_shared_netns


def _kind(command: int) -> int:
    return (RDMA_NL_NLDEV << 10) + command


class nldevmsg(nlmsg):  # type: ignore[misc]
    """A message of RDMA_NL_NLDEV: attributes only, no header of its own."""

    fields = ()
    nla_map = (
        (1, "RDMA_NLDEV_ATTR_DEV_INDEX", "uint32"),
        (2, "RDMA_NLDEV_ATTR_DEV_NAME", "asciiz"),
        (6, "RDMA_NLDEV_ATTR_NODE_GUID", "uint64"),
        (66, "RDMA_NLDEV_SYS_ATTR_NETNS_MODE", "uint8"),
        (68, "RDMA_NLDEV_NET_NS_FD", "uint32"),
    )


@dataclass(frozen=True)
class RdmaLink:
    """One RDMA device; ``index`` stays its own over a move and a renaming, until the driver is unbound."""

    index: int
    name: str
    node_guid: int


class RdmaNetlink:
    """One NETLINK_RDMA socket in one network namespace, this thread's own by default; a context manager.

    Every method raises KernelRefused; EPROTONOSUPPORT from the constructor when the kernel has no RDMA loaded.
    """

    def __init__(self, netns: Netns | None = None, *, netlink: NetlinkSocket | None = None) -> None:
        self._netns = netns
        self._netlink = netlink or NetlinkSocket(NETLINK_RDMA, netns)

    def close(self) -> None:
        self._netlink.close()

    def __enter__(self) -> RdmaNetlink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def system_get_netns_mode(self) -> str:
        """Return ``exclusive`` or ``shared``, the mode of the whole machine."""
        replies = self._netlink.request(
            nldevmsg(),
            _kind(RDMA_NLDEV_CMD_SYS_GET),
            operation="asking for the RDMA netns mode",
            target="the RDMA subsystem",
            decode=_decoded,
        )
        mode = next((reply.get_attr("RDMA_NLDEV_SYS_ATTR_NETNS_MODE") for reply in replies), None)
        # Kernels before 5.3 answer without the attribute: they know the shared mode only.
        return "exclusive" if mode == _EXCLUSIVE else "shared"

    def rdma_links(self) -> tuple[RdmaLink, ...]:
        """Return the RDMA devices that this netns sees."""
        return tuple(
            self._netlink.dump(
                nldevmsg,
                _kind(RDMA_NLDEV_CMD_GET),
                operation="listing RDMA devices",
                target="the netns",
                decode=_link,
            )
        )

    def rdma_link_get(self, name: str | None = None, *, index: int | None = None) -> RdmaLink | None:
        """Return one device by name or index, None when this netns has no such."""
        return next((link for link in self.rdma_links() if name == link.name or index == link.index), None)

    def rdma_link_set_netns(self, index: int, *, netns: Netns, name: str) -> None:
        """Move a device into ``netns``; ``name`` is for the words of an error.

        Kernel: its user contexts are disassociated, its clients (IPoIB, CM) detached and attached again there. A
        driver that cannot do the first, as rxe and siw, answers EOPNOTSUPP; the shared mode answers EOPNOTSUPP too.
        ENODEV unless the task that asks, too, and not only its socket, is in the netns that holds the device
        (rdma_dev_change_netns is given current->nsproxy->net_ns).
        """
        with nullcontext() if self._netns is None else self._netns.entered():
            self._set(index, [("RDMA_NLDEV_NET_NS_FD", netns.fd)], f"moving the RDMA device to {netns.path}", name)

    def rdma_link_set_name(self, index: int, name: str) -> None:
        """Rename a device. Raises: EEXIST when the name is taken in any netns."""
        self._set(index, [("RDMA_NLDEV_ATTR_DEV_NAME", name)], f"renaming the RDMA device to {name}", f"index {index}")

    def _set(self, index: int, attributes: list[tuple[str, Any]], operation: str, target: str) -> None:
        message = nldevmsg()
        message["attrs"] = [("RDMA_NLDEV_ATTR_DEV_INDEX", index), *attributes]
        self._netlink.command(message, _kind(RDMA_NLDEV_CMD_SET), operation=operation, target=target)


def rdma_is_loaded() -> bool:
    """Tell whether the kernel has an RDMA subsystem at all."""
    try:
        RdmaNetlink().close()
    except KernelRefused as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return False
        raise
    return True


def _decoded(data: bytes) -> Any:
    message = nldevmsg(data)
    message.decode()
    return message


def _link(data: bytes) -> RdmaLink:
    message = _decoded(data)
    return RdmaLink(
        index=message.get_attr("RDMA_NLDEV_ATTR_DEV_INDEX"),
        name=message.get_attr("RDMA_NLDEV_ATTR_DEV_NAME"),
        node_guid=message.get_attr("RDMA_NLDEV_ATTR_NODE_GUID") or 0,
    )
