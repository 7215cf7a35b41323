"""What the Go ``host-device`` plugin leaves of an attachment: the host name of the link, in the link's alias.

Read so that a node can be upgraded. Our own ADD sets the alias too (cni/host_device.py), so a node can go back.

Source: containernetworking/plugins plugins/main/host-device/host-device.go moveLinkIn; reference 3.2, 3.3.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath

from cni import attach
from cni.kernel import Kernel
from cni.linux.link import Link
from cni.linux.netns import Netns, boot_id
from cni.recorded_sandbox import sandbox_record
from conf import host_device
from conf.attachment import Attachment, SandboxRecord
from conf.errors import CniError, InvalidNetns
from conf.request import Request

_IFNAME_BYTES = 15  # IFNAMSIZ of linux/if.h, less the terminating NUL


def load(kernel: Kernel, request: Request) -> Attachment | None:
    """Return the attachment that the Go plugin made, None when there is none.

    The link must be the one that the configuration selects: somebody else's may have an alias too.
    """
    try:
        sandbox = Netns.open(request.netns) if request.netns else None
    except InvalidNetns:
        sandbox = None
    if sandbox is None:
        return _returned(kernel, request)
    with sandbox, kernel.rtnetlink(sandbox) as inside:
        link = inside.link_get(request.ifname)
        if link is None or not _is_selected(link, request):
            return None
        return _attachment(request, link, sandbox_record(sandbox))


def _returned(kernel: Kernel, request: Request) -> Attachment | None:
    """Return the attachment whose link the kernel has returned from a netns that is gone, under the pod's name."""
    with kernel.rtnetlink(None) as host:
        link = host.link_get(request.ifname)
    if link is None or attach.link_record(link).is_virtual or link.alias == link.ifname:
        return None
    if not _is_selected(link, request):
        return None
    return _attachment(request, link, SandboxRecord(path=request.netns, inode=0, device=0, boot_id=boot_id()))


def _attachment(request: Request, link: Link, sandbox: SandboxRecord) -> Attachment:
    recorded = attach.link_record(replace(link, ifname=link.alias))
    return Attachment(
        plugin="host-device",
        network=request.network,
        container_id=request.container_id,
        ifname=request.ifname,
        sandbox=sandbox,
        device_id=(link.parent_dev or "") if link.parent_bus in ("pci", "auxiliary") else "",
        # It says nothing of what was before: the alias is cleared, as the Go plugin does, the rest kept.
        link=recorded.model_copy(update={"alias": "", "altnames": None, "up": None, "txqlen": None}),
    )


def _is_selected(link: Link, request: Request) -> bool:
    """Tell whether a link is what the configuration had the plugin move, its alias being its host name."""
    alias = link.alias
    if not 0 < len(alias.encode()) <= _IFNAME_BYTES or set(alias) & set("/: \t\n") or alias in (".", ".."):
        return False
    try:
        conf = host_device.load(request)
    except CniError:
        return False
    if conf.device:
        return alias == conf.device
    if conf.hwaddr:
        return conf.hwaddr in (link.mac, link.perm_mac)
    # Before Linux 5.14 a link does not name its parent, and virtio's parent is no PCI function.
    parent = link.parent_dev if link.parent_bus in ("pci", "auxiliary") else None
    if conf.kernelpath:
        return parent is None or parent in PurePath(conf.kernelpath).parts
    return link.kind is None and parent in (None, conf.runtime_device_id or conf.pci_bus_id)
