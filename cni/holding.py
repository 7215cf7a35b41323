"""Who holds a device, and how it is given back: the one path that DEL, GC, an ADD's undo and the next ADD share.

Everything is done from the record, wherever the device is by then, and only what differs from it is set.

Source: reference 2.3, 2.5 and their known faults (sriov-cni#126, #219, #313, #349).
"""

from __future__ import annotations

import logging

from cni import rdma_device
from cni.attach import home_link, located, move_out, restore_link, restore_use
from cni.attachments import Attachments
from cni.kernel import Kernel
from cni.linux.link import Link
from cni.linux.netns import Netns, boot_id
from cni.linux.rtnetlink import Rtnetlink
from cni.linux.sysfs import is_pci_address
from cni.mac import VfMac
from cni.recorded_sandbox import sandbox_lives
from cni.sriov_device import DPDK_DRIVERS, port_of
from cni.undo import EveryStep
from cni.upstream_sriov import GoSriovFiles
from cni.vf import settings
from conf.attachment import Attachment
from conf.errors import InvalidNetns, TryAgainLater

LOG = logging.getLogger("vferry.sriov")


def give_back(kernel: Kernel, host: Rtnetlink, attachment: Attachment) -> None:
    """Bring a device home and put everything back as recorded; every step is tried.

    A device of an earlier boot, or one that has gone, is as good as back: it was made anew.
    Raises: what failed.
    """
    device_id = attachment.device_id
    if attachment.sandbox.boot_id not in ("", boot_id()) or not kernel.sysfs.device_exists(device_id):
        LOG.info("%s was not there since: nothing to give back", device_id)
        return
    recorded = attachment.link
    steps = EveryStep(f"{device_id or (recorded.ifname if recorded else 'the device')} is not entirely as it was")
    with steps.step("RDMA device"):
        rdma_device.move_out(kernel, attachment)
    if recorded and not _has_lost_its_netdev(kernel, device_id):
        with steps.step("move"):
            move_out(kernel, host, attachment)
    link = home_link(kernel, host, attachment) if recorded else None
    if link and recorded:
        with steps.step("link"):
            restore_link(host, link, recorded)
    with steps.step("MAC and PF settings"):
        _restore_on_pf(kernel, host, attachment)
    if link and recorded:
        with steps.step("use"):
            restore_use(host, link.index, recorded)
    steps.raise_any()


def _has_lost_its_netdev(kernel: Kernel, device_id: str) -> bool:
    """Tell whether a device has no driver, or one without netdevs, by now: then there is none in any netns."""
    return is_pci_address(device_id) and kernel.sysfs.pci_driver(device_id) in {None, *DPDK_DRIVERS}


def _restore_on_pf(kernel: Kernel, host: Rtnetlink, attachment: Attachment) -> None:
    recorded, vf = attachment.link, attachment.vf
    port = port_of(kernel, host, attachment.device_id) if vf else None
    link = home_link(kernel, host, attachment) if recorded else None
    steps = EveryStep(f"{attachment.device_id} is not set on its PF as it was")
    # The MAC first: some drivers refuse it once the VF is not trusted any more.
    with steps.step("MAC"):
        VfMac(port, kernel.sleep).restore(
            host if link else None,
            link.index if link else 0,
            admin=vf.mac if vf else "",
            effective=recorded.mac if recorded else "",
            administrative=vf.mac_is_administrative if vf else True,
        )
    if port is not None and vf is not None:
        wanted = attachment.wanted
        if wanted.mac and wanted.trust is None:
            # Setting the MAC may have meant trusting the VF for a moment, and we may have been killed in that moment.
            wanted = wanted.model_copy(update={"trust": vf.trust})
        for setting in reversed(settings(port, vf, wanted)):
            with steps.step(setting.name):
                setting.restore(port)
    steps.raise_any()


def require_unheld(
    kernel: Kernel,
    host: Rtnetlink,
    device_id: str,
    *,
    attachments: Attachments,
    go_files: GoSriovFiles,
    link: Link | None = None,
) -> None:
    """Refuse a device that a living sandbox holds, and give back one whose holder has died.

    ``link``: which netdev of the device is meant, where that is known.

    The record of a dead holder stays until its own DEL or GC has released the lease; it is marked returned, so that
    a late DEL leaves the device alone. Raises: TryAgainLater; what failed in giving it back.
    """
    ours = [record for record in attachments.holding(device_id) if _is_held_by(record, link)]
    owners = {record.owner for record in ours}
    for record in ours:
        require_dead(kernel, host, record)
        if not belongs_to_another(record, go_files):
            give_back(kernel, host, record)
        # Marked when all else is done: whoever is killed here leaves a record that says "not yet".
        go_files.delete(record)
        attachments.write(record.model_copy(update={"returned": True}))
    for record in go_files.holding(device_id):
        if record.owner not in owners:
            require_dead(kernel, host, record)
            give_back(kernel, host, record)
            go_files.delete(record)
    path = go_files.allocated_to(device_id)
    if path is not None:
        # An allocation without a state file: what the Go plugin leaves when it is killed half-way.
        if _opens(path):
            raise _allocated(device_id, f"the Go plugin has allocated it to the netns {path}")
        go_files.forget_allocation(device_id)


def give_back_virtual(kernel: Kernel, host: Rtnetlink, link: Link, *, attachments: Attachments) -> None:
    """Put right a host link without a device that a killed ADD, or the Go plugin's DEL of ours, left with our record.

    One that another sandbox has is another link, whatever its name was. Raises: what failed.
    """
    for record in attachments.holding(""):
        if record.link is None or record.link.ifname != link.ifname:
            continue
        with located(kernel, host, record) as place:
            is_home = place is not None and place.sandbox is None
        if is_home:
            give_back(kernel, host, record)
            attachments.write(record.model_copy(update={"returned": True}))


def _is_held_by(record: Attachment, link: Link | None) -> bool:
    if record.link is None:
        return record.dpdk_driver is not None
    # Of several netdevs on one function each can have a holder of its own.
    return link is None or not record.link.shares_device or record.link.perm_mac == link.perm_mac


def belongs_to_another(attachment: Attachment, go_files: GoSriovFiles) -> bool:
    """Tell whether the Go plugin has given the device to another sandbox since; ours mark the record instead."""
    path = go_files.allocated_to(attachment.device_id)
    return path not in (None, "", attachment.sandbox.path) and _opens(str(path))


def require_dead(kernel: Kernel, host: Rtnetlink, record: Attachment) -> None:
    """Raise TryAgainLater when a living sandbox has the device of a record."""
    if record.sandbox.boot_id not in ("", boot_id()):
        return
    with located(kernel, host, record) as place:
        on_host = place is not None and place.sandbox is None
    # A netdev that is on the host is nobody's; one that DPDK drives never leaves it, there the sandbox tells.
    if (on_host and record.link is not None) or not sandbox_lives(record.sandbox):
        return
    raise _allocated(
        record.device_id or (record.link.ifname if record.link else ""),
        f"container {record.container_id} has it as {record.ifname} in {record.sandbox.path}",
    )


def _allocated(device: str, details: str) -> TryAgainLater:
    kind = "pci address" if is_pci_address(device) else "device"
    return TryAgainLater(
        f"{kind} {device} is already allocated",
        details=details,
        hint="it is free again after that container's DEL",
    )


def _opens(path: str) -> bool:
    try:
        with Netns.open(path):
            return True
    except InvalidNetns:
        return False
