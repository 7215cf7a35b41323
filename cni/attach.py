"""A netdev from the host into a sandbox and back, found by its PCI device wherever it is and whatever it is called.

What is set on it through a PF is in cni/vf.py; addresses are in cni/addresses.py. The move is one message, host to
sandbox: a detour through a netns of our own would let a veth die with this process.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cni import host_network
from cni.kernel import Kernel
from cni.linux.link import Link
from cni.linux.netns import Netns
from cni.linux.rtnetlink import Rtnetlink
from cni.linux.sysfs import is_pci_address
from cni.recorded_sandbox import opened, sandbox_lives, tries_while_returning
from cni.steps import timed
from cni.undo import EveryStep
from conf.attachment import Attachment, LinkRecord
from conf.errors import IfnameTaken, KernelRefused, TryAgainLater, UndoneInPart

LOG = logging.getLogger("vferry.attach")


@dataclass(frozen=True)
class Place:
    """A netdev and the netns it is in, with a socket there; ``sandbox`` is None on the host."""

    rtnl: Rtnetlink
    link: Link
    sandbox: Netns | None


def link_record(link: Link, host: Rtnetlink | None = None) -> LinkRecord:
    """Return what must be known of a host link to put it back; without ``host`` no addresses and routes."""
    return LinkRecord(
        ifname=link.ifname,
        index=link.index,
        mac=link.mac,
        mtu_bytes=link.mtu_bytes,
        up=link.up,
        promisc=link.promisc,
        allmulti=link.allmulti,
        txqlen=link.txqlen,
        alias=link.alias,
        altnames=list(link.altnames),
        parent_dev=link.parent_dev,
        perm_mac=link.perm_mac,
        kind=link.kind,
        addresses=host_network.addresses(host, link.index) if host else [],
        routes=host_network.routes(host, link.index) if host and link.up else [],  # setting it down removed them
    )


def require_free(inside: Rtnetlink, ifname: str) -> None:
    """Raise IfnameTaken when the sandbox has a link of that name, as its name or its altname."""
    taken = inside.link_get(ifname)
    if taken is not None:
        raise IfnameTaken(
            f'CNI_IFNAME="{ifname}" is taken: the sandbox already has a link of that name',
            details=f"index {taken.index}, {taken.kind or taken.parent_dev or 'link'} {taken.mac}",
            hint="choose another interface name; the link was not touched",
        )


def move_in(kernel: Kernel, host: Rtnetlink, link: Link, *, sandbox: Netns, ifname: str) -> None:
    """Move a host link into a sandbox under its new name, without altnames that are taken there. Undo: ``move_out``.

    Raises: IfnameTaken when the name was taken since it was looked at, KernelRefused.
    """
    if link.altnames:
        with kernel.rtnetlink(sandbox) as inside:
            taken = {name for other in inside.links() for name in (other.ifname, *other.altnames)}
        # The kernel refuses to name a link as its own altname too.
        for altname in {*link.altnames} & {ifname, *taken}:
            host.altname_del(link.index, altname)
    try:
        host.link_set_netns(link.index, netns=sandbox, ifname=ifname)
    except KernelRefused as error:
        if error.errno == errno.EEXIST:
            raise IfnameTaken(f'CNI_IFNAME="{ifname}" is taken in the sandbox', details=str(error)) from error
        raise


@contextmanager
def located(kernel: Kernel, host: Rtnetlink, attachment: Attachment) -> Iterator[Place | None]:
    """Find the netdev of an attachment: on the host, or in the recorded sandbox under any name; None if in neither."""
    recorded = attachment.link
    # The host may have hundreds of links: one without a device, renamed there, is looked for last.
    virtual = None if recorded is None or _has_device(attachment, recorded) else recorded
    on_host = _virtual_named(host, virtual, virtual.ifname) if virtual else home_link(kernel, host, attachment)
    if on_host is not None:
        yield Place(host, on_host, None)
        return
    with opened(attachment.sandbox) as sandbox:
        if sandbox is not None:
            with kernel.rtnetlink(sandbox) as inside:
                link = _of_device(inside, attachment, attachment.ifname)
                if link is not None:
                    yield Place(inside, link, sandbox)
                    return
    on_host = home_link(kernel, host, attachment) if virtual else None
    yield Place(host, on_host, None) if on_host else None


def host_link(kernel: Kernel, host: Rtnetlink, pci_address: str) -> Link | None:
    """Return the netdev of a PCI device that is in the host's netns."""
    for ifname in kernel.sysfs.pci_netdevs(pci_address):
        link = host.link_get(ifname)
        # sysfs shows the netns it was mounted in, which need not be ours; the parent of virtio's is no PCI function.
        if link is not None and (link.parent_dev in (None, pci_address) or link.parent_bus != "pci"):
            return link
    return None


def home_link(kernel: Kernel, host: Rtnetlink, attachment: Attachment) -> Link | None:
    """Return the netdev of an attachment when it is on the host, under whatever name."""
    recorded = attachment.link
    if is_pci_address(attachment.device_id) and not (recorded and recorded.shares_device):
        return host_link(kernel, host, attachment.device_id)
    return _of_device(host, attachment, attachment.link.ifname if attachment.link else "")


@timed("move")
def move_out(kernel: Kernel, host: Rtnetlink, attachment: Attachment) -> Link | None:
    """Bring the netdev of an attachment back to the host under the name it had; nothing to do is success.

    Returns None for a virtual link whose sandbox is gone: the kernel has destroyed it with the netns.
    Raises: TryAgainLater when it is nowhere to be found, UndoneInPart when it is back under another name because
    its own is taken, KernelRefused.
    """
    wanted = attachment.link
    if wanted is None:
        raise TryAgainLater(f"{attachment.device_id} has no recorded interface")
    for _try in tries_while_returning(kernel, attachment.sandbox):
        with located(kernel, host, attachment) as place:
            if place is not None:
                if place.sandbox is not None:
                    _leave_sandbox(place, wanted)
                return _under_own_name(kernel, host, attachment, wanted.ifname)
        if wanted.is_virtual and sandbox_lives(attachment.sandbox) is not None:
            LOG.info("%s has gone: it was a virtual link", wanted.ifname)
            return None
    raise TryAgainLater(
        f"the interface of {attachment.device_id or wanted.ifname} is neither on the host nor in "
        f"{attachment.sandbox.path}",
        hint="is its driver bound? was it moved by hand, or does a process still hold the deleted netns?",
    )


def _of_device(rtnl: Rtnetlink, attachment: Attachment, ifname: str) -> Link | None:
    """Find the netdev of an attachment in one netns, where it had or was given the name ``ifname``."""
    recorded = attachment.link
    if recorded and not _has_device(attachment, recorded):
        return _virtual_named(rtnl, recorded, ifname) or _virtual_with_alias(rtnl, recorded)
    parents = _parents(attachment, recorded)
    if not parents:
        return None
    links = rtnl.links()
    by_parent = [link for link in links if link.parent_dev in parents]
    if recorded and recorded.shares_device:
        # Ports of one card are on one function.
        return next((link for link in by_parent if link.perm_mac == recorded.perm_mac), None)
    if by_parent:
        return by_parent[0]
    # Before Linux 5.14 a link does not name its parent; only a physical link has no kind.
    kindless = [link for link in links if link.parent_dev is None and link.kind is None]
    return next((link for link in kindless if link.ifname == ifname), None)


def _parents(attachment: Attachment, recorded: LinkRecord | None) -> set[str]:
    return {parent for parent in (attachment.device_id, recorded.parent_dev if recorded else None) if parent}


def _has_device(attachment: Attachment, recorded: LinkRecord) -> bool:
    return bool(_parents(attachment, recorded)) or recorded.shares_device


# A link without a device that was made anew under its name is another's. Its index stays its own over a move unless it
# is taken there, and its alias is its host name until all else is as it was.


def _virtual_named(rtnl: Rtnetlink, recorded: LinkRecord, ifname: str) -> Link | None:
    link = rtnl.link_get(ifname)
    if link is None or link.ifname != ifname or not _is_of_its_kind(link, recorded):
        return None
    return link if link.index == recorded.index or link.mac == recorded.mac else None


def _virtual_with_alias(rtnl: Rtnetlink, recorded: LinkRecord) -> Link | None:
    return next(
        (link for link in rtnl.links() if link.alias == recorded.ifname and _is_of_its_kind(link, recorded)), None
    )


def _is_of_its_kind(link: Link, recorded: LinkRecord) -> bool:
    return link.kind == recorded.kind and link.parent_dev is None


def _leave_sandbox(place: Place, record: LinkRecord) -> None:
    rtnl, link = place.rtnl, place.link
    # An altname moves along, and one that the host has too forbids the move. The record brings back those we know.
    known = record.altnames is not None
    for altname in link.altnames:
        if known or altname == record.ifname:
            rtnl.altname_del(link.index, altname)
    with Netns.current() as host_netns:
        try:
            rtnl.link_set_netns(link.index, netns=host_netns, ifname=record.ifname)
        except KernelRefused as error:
            if error.errno != errno.EEXIST:
                raise
            # Its name is another link's now. Back under any name is better than lost in a pod.
            LOG.warning("the host has another link %s", record.ifname)
            rtnl.link_set_netns(link.index, netns=host_netns, ifname=f"vfdev{link.index}")


def _under_own_name(kernel: Kernel, host: Rtnetlink, attachment: Attachment, ifname: str) -> Link:
    link = home_link(kernel, host, attachment)
    if link is None:
        raise TryAgainLater(f"the interface of {attachment.device_id} has gone from the host")
    if link.ifname == ifname:
        return link
    if ifname in link.altnames:
        host.altname_del(link.index, ifname)
    try:
        host.link_set_down(link.index)  # before Linux 6.2 a link that is up cannot be renamed
        host.link_set_name(link.index, ifname)
    except KernelRefused as error:
        if error.errno != errno.EEXIST:
            raise
        raise UndoneInPart(
            f"{attachment.device_id} is back on the host as {link.ifname}, not as {ifname}",
            details=str(error),
            hint=f"rename the link that is now called {ifname}; the next DEL or ADD gives the VF its name back",
        ) from error
    renamed = host.link_get(index=link.index)
    return renamed or link


def restore_link(host: Rtnetlink, link: Link, record: LinkRecord) -> None:
    """Put MTU, flags, queue length and altnames back as recorded; the MAC is cni/mac.py's.

    What the record does not know stays as it is. Raises: what failed, when every step has been tried.
    """
    index, steps = link.index, EveryStep(f"{record.ifname} is back, but not as it was")
    if record.mtu_bytes and link.mtu_bytes != record.mtu_bytes:
        with steps.step("MTU"):
            host.link_set_mtu(index, record.mtu_bytes)
    if link.promisc != record.promisc:
        with steps.step("promisc"):
            host.link_set_promisc(index, on=record.promisc)
    if link.allmulti != record.allmulti:
        with steps.step("allmulti"):
            host.link_set_allmulti(index, on=record.allmulti)
    if record.txqlen is not None and link.txqlen != record.txqlen:
        with steps.step("txqlen"):
            host.link_set_txqlen(index, record.txqlen)
    if record.altnames is not None:
        _restore_altnames(host, link, record.altnames, steps)
    steps.raise_any()


def restore_use(host: Rtnetlink, index: int, record: LinkRecord) -> None:
    """Put a link up or down as recorded, with its addresses and routes, and its alias when all else is done.

    The last step: setting MACs and renaming may want the link down, and until it is back in whole the alias of a
    virtual link is what tells it. Raises: what failed.
    """
    link = host.link_get(index=index)
    if link is None:
        return
    if record.up is not None and link.up != record.up:
        (host.link_set_up if record.up else host.link_set_down)(index)
    host_network.restore(host, index, record)
    if record.alias is not None and link.alias != record.alias and link.ifname == record.ifname:
        host.link_set_alias(index, record.alias)


def _restore_altnames(host: Rtnetlink, link: Link, wanted: list[str], steps: EveryStep) -> None:
    for name in link.altnames:
        if name not in wanted:
            with steps.step(f"altname {name}"):
                host.altname_del(link.index, name)
    for name in wanted:
        if name not in (*link.altnames, link.ifname):
            with steps.step(f"altname {name}"):
                host.altname_add(link.index, name)
