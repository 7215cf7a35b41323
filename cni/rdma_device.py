"""An RDMA device from the host into a sandbox and back, found by its index wherever it is and whatever it is called.

Used by ``rdma`` and by ``rdmaIsolation`` of the plugins that move the netdev. Order: the netdev goes in first and the
RDMA device comes out first, because moving an RDMA device makes its clients anew in the netns it comes to.

Source: reference 4 (rdma-cni#21, #39, dranet#177).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cni.kernel import Kernel
from cni.linux.netns import Netns
from cni.linux.rdma import RdmaLink, RdmaNetlink
from cni.recorded_sandbox import opened, tries_while_returning
from conf.attachment import Attachment, RdmaRecord
from conf.errors import DeviceNotFound, InvalidNetworkConfig, KernelRefused, TryAgainLater, UndoneInPart

LOG = logging.getLogger("vferry.rdma")
_EXCLUSIVE_HINT = (
    'set it before the first netns exists, at boot: "options ib_core netns_mode=0" in /etc/modprobe.d '
    "(in the initramfs too), or 'rdma system set netns exclusive'; the kernel refuses while other netns exist"
)


@dataclass(frozen=True)
class RdmaPlace:
    """An RDMA device and the netns it is in, with a socket there; ``sandbox`` is None on the host."""

    netlink: RdmaNetlink
    link: RdmaLink
    sandbox: Netns | None


@contextmanager
def host_socket(kernel: Kernel) -> Iterator[RdmaNetlink]:
    """Open the host's RDMA socket. Raises: DeviceNotFound when the kernel has no RDMA subsystem loaded."""
    try:
        opened = kernel.rdma(None)
    except KernelRefused as error:
        if error.errno == errno.EPROTONOSUPPORT:
            raise DeviceNotFound(
                "this kernel has no RDMA subsystem", details=str(error), hint="load ib_core and the NIC's RDMA driver"
            ) from error
        raise
    with opened:
        yield opened


def require_exclusive_mode(host: RdmaNetlink) -> None:
    """Raise InvalidNetworkConfig when the node shares its RDMA devices among all netns."""
    mode = host.system_get_netns_mode()
    if mode != "exclusive":
        raise InvalidNetworkConfig(
            f"RDMA subsystem network namespace mode is {mode}, it must be exclusive to isolate a device",
            hint=_EXCLUSIVE_HINT,
        )


def find(kernel: Kernel, host: RdmaNetlink, device_id: str) -> RdmaRecord:
    """Return the one RDMA device of a PCI or auxiliary device.

    Raises: DeviceNotFound when it has none here, InvalidNetworkConfig when it has several.
    """
    names = kernel.sysfs.rdma_devices(device_id)
    if not names:
        raise DeviceNotFound(
            f'no RDMA devices found for "deviceID": "{device_id}"',
            hint="is its RDMA driver loaded, is the device on the host, and is the deviceID the VF's?",
        )
    if len(names) > 1:
        raise InvalidNetworkConfig(
            f'"deviceID": "{device_id}" has {len(names)} RDMA devices: {", ".join(names)}',
            hint="devices with several ports on one function cannot be given to one pod",
        )
    link = host.rdma_link_get(names[0])
    if link is None:
        raise DeviceNotFound(f"RDMA device {names[0]} is not in the host's netns")
    if link.node_guid == 0:
        LOG.warning(
            "RDMA device %s has node GUID 0: RDMA-CM will not work; set the VF's MAC, then unbind and bind its driver",
            link.name,
        )
    return RdmaRecord(name=link.name, index=link.index, node_guid=link.node_guid)


def isolated(kernel: Kernel, device_id: str) -> RdmaRecord:
    """Return the RDMA device that ``rdmaIsolation`` is to move with its netdev.

    Raises: InvalidNetworkConfig when the mode is shared; as ``find``.
    """
    if not device_id:
        raise InvalidNetworkConfig("rdmaIsolation: a virtual link has no RDMA device", hint="leave rdmaIsolation out")
    with host_socket(kernel) as host:
        require_exclusive_mode(host)
        return find(kernel, host, device_id)


def move_in(kernel: Kernel, record: RdmaRecord, *, sandbox: Netns) -> None:
    """Move an RDMA device into a sandbox. Undo: ``move_out``. Raises: KernelRefused."""
    assert record.index is not None
    try:
        with host_socket(kernel) as host:
            host.rdma_link_set_netns(record.index, netns=sandbox, name=record.name)
    except KernelRefused as error:
        if error.errno == errno.EOPNOTSUPP:
            error.hint = "its driver cannot move a device between netns (rxe and siw cannot); use a VF's own device"
        raise


def move_out(kernel: Kernel, attachment: Attachment) -> None:
    """Bring the RDMA device of an attachment back to the host under its own name; nothing to do is success.

    It is no more when its function has gone, or has another driver. Raises: TryAgainLater when it is in no netns we
    know, UndoneInPart when its name is taken, KernelRefused.
    """
    record = attachment.rdma
    if record is None:
        return
    for _try in tries_while_returning(kernel, attachment.sandbox):
        with located(kernel, attachment) as place:
            if place is not None:
                if place.sandbox is not None:
                    with Netns.current() as host_netns:
                        place.netlink.rdma_link_set_netns(place.link.index, netns=host_netns, name=place.link.name)
                _under_own_name(kernel, place.link, record)
                return
        if attachment.device_id and not kernel.sysfs.has_rdma(attachment.device_id):
            LOG.info("RDMA device %s is no more: %s has no RDMA driver", record.name, attachment.device_id)
            return
        if not attachment.sandbox.path:
            LOG.warning("RDMA device %s is in a netns that nobody names; the kernel returns it with that", record.name)
            return
    raise TryAgainLater(
        f"RDMA device {record.name} is neither on the host nor in {attachment.sandbox.path}",
        hint="is its driver bound? does a process still hold the deleted netns?",
    )


@contextmanager
def located(kernel: Kernel, attachment: Attachment) -> Iterator[RdmaPlace | None]:
    """Find the RDMA device of an attachment: on the host, or in the recorded sandbox under any name."""
    with host_socket(kernel) as host:
        on_host = _on_host(kernel, host, attachment)
        if on_host is not None:
            yield RdmaPlace(host, on_host, None)
            return
    with opened(attachment.sandbox) as sandbox:
        if sandbox is None:
            yield None
            return
        with kernel.rdma(sandbox) as inside:
            link = _in_sandbox(kernel, inside, attachment)
            yield RdmaPlace(inside, link, sandbox) if link else None


def _on_host(kernel: Kernel, host: RdmaNetlink, attachment: Attachment) -> RdmaLink | None:
    """Ask sysfs, which shows the host's devices by their function: a name may be another device's by now."""
    record = attachment.rdma
    assert record is not None
    names = kernel.sysfs.rdma_devices(attachment.device_id) if attachment.device_id else (record.name,)
    return next((link for link in host.rdma_links() if link.name in names), None)


def _in_sandbox(kernel: Kernel, inside: RdmaNetlink, attachment: Attachment) -> RdmaLink | None:
    """Find a device by index and GUID, which survive a renaming, else by name; Go's plugin records no index."""
    record, links = attachment.rdma, inside.rdma_links()
    assert record is not None
    by_index = [link for link in links if (link.index, link.node_guid) == (record.index, record.node_guid)]
    present = kernel.sysfs.rdma_names(attachment.device_id) if attachment.device_id else ()
    by_name = [link for link in links if link.name in (present or (record.name,))]
    return next(iter([*by_index, *by_name]), None)


def _under_own_name(kernel: Kernel, link: RdmaLink, record: RdmaRecord) -> None:
    if link.name == record.name:
        return
    with host_socket(kernel) as host:
        try:
            host.rdma_link_set_name(link.index, record.name)
        except KernelRefused as error:
            if error.errno != errno.EEXIST:
                raise
            raise UndoneInPart(
                f"RDMA device {record.name} is back on the host as {link.name}",
                details=str(error),
                hint=f"rename the device that is now called {record.name}",
            ) from error
