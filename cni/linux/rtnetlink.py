"""Links, VFs, addresses and routes of one network namespace, by rtnetlink: one kernel verb per method.

Here are the links'; those of VFs and of addresses and routes are in modules of their own.
Hot: every plugin imports it. It knows no pod and no order of steps; names are iproute2's, object first.

Source: rtnetlink(7), net/core/rtnetlink.c, net/core/dev.c, vishvananda/netlink.
"""

from __future__ import annotations

import errno
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from cni.linux.link import IFF_ALLMULTI, IFF_PROMISC, IFF_UP, Link, link_from
from cni.linux.link_message import linkmsg
from cni.linux.netlink import NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL
from cni.linux.netns import Netns
from cni.linux.rtnetlink_address import AddressVerbs
from cni.linux.rtnetlink_socket import RTM_GETLINK, RTM_SETLINK
from cni.linux.rtnetlink_vf import VfVerbs
from conf.errors import KernelRefused

# linux/rtnetlink.h
RTM_NEWLINKPROP, RTM_DELLINKPROP = 108, 109
# linux/if.h
IFNAMSIZ = 16


class Rtnetlink(VfVerbs, AddressVerbs):
    """One rtnetlink socket in one network namespace, this thread's own by default; a context manager.

    Every method raises KernelRefused with the kernel's errno; those named ``get`` return None for ENODEV.
    """

    def link_get(self, ifname: str | None = None, *, index: int | None = None, vfs: bool = False) -> Link | None:
        """Return the link of this name, altname or index, or None; ``Link.ifname`` tells its real name."""
        message = linkmsg()
        if ifname is None:
            message["index"] = index
        else:
            # Kernel: a short name is looked up among real names and altnames alike; a long one can be no other.
            key = "IFLA_IFNAME" if len(ifname.encode()) < IFNAMSIZ else "IFLA_ALT_IFNAME"
            message["attrs"] = [(key, ifname)]
        try:
            links = self._netlink.request(
                message,
                RTM_GETLINK,
                operation="reading the link",
                target=ifname or self._target(index),
                decode=link_from,
            )
        except KernelRefused as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return self._seen(links[0], vfs=vfs)

    def links(self, *, vfs: bool = False) -> tuple[Link, ...]:
        """Return every link of the namespace."""
        links = self._netlink.dump(
            linkmsg, RTM_GETLINK, operation="listing the links", target="the netns", decode=link_from
        )
        return tuple(self._seen(link, vfs=vfs) for link in links)

    def link_set_netns(self, index: int, *, netns: Netns, ifname: str) -> None:
        """Move a link into ``netns`` and give it the name ``ifname`` there, by one message.

        Kernel: the interface is closed on the way, loses its addresses, keeps MTU, MAC, alias and altnames,
        and may get a new index. A link is moved under its old name and renamed after that, so a name taken
        there is found out half-way; what was moved is then brought back, down, under the name it had.

        Raises: KernelRefused; EEXIST when ``ifname``, or an altname of the link, is taken there as a name or
        altname. An altname equal to ``ifname`` on the link itself is EEXIST too: remove it first.
        """
        link = self.link_get(index=index)
        if link is None:
            raise KernelRefused("moving the link", self._target(index), errno.ENODEV)
        message = linkmsg()
        message["index"] = index
        message["attrs"] = [("IFLA_NET_NS_FD", netns.fd), ("IFLA_IFNAME", ifname)]
        target = f"{link.ifname} to {ifname} in netns {netns.path}"
        with Rtnetlink(netns) as there:
            if ifname in link.altnames or there.link_get(ifname) is not None:
                holder = "by the link's own altname" if ifname in link.altnames else "there already"
                raise KernelRefused("moving the link", target, errno.EEXIST, details=f"{ifname} is taken {holder}")
            try:
                self._netlink.command(message, RTM_SETLINK, operation="moving the link", target=target)
            except KernelRefused:
                self._bring_back(link, there)
                raise

    def link_set_name(self, index: int, ifname: str) -> None:
        """Rename a link; older kernels refuse with EBUSY while it is up."""
        self._link_set(index, "renaming the link", [("IFLA_IFNAME", ifname)])

    def link_set_mtu(self, index: int, mtu_bytes: int) -> None:
        self._link_set(index, f"setting MTU {mtu_bytes}", [("IFLA_MTU", mtu_bytes)])

    def link_set_address(self, index: int, mac: str) -> None:
        self._link_set(index, f"setting MAC {mac}", [("IFLA_ADDRESS", mac)])

    def link_set_alias(self, index: int, alias: str) -> None:
        """Set the alias of a link; an empty one removes it."""
        self._link_set(index, "setting the alias", [("IFLA_IFALIAS", alias)])

    def link_set_txqlen(self, index: int, txqlen: int) -> None:
        self._link_set(index, f"setting queue length {txqlen}", [("IFLA_TXQLEN", txqlen)])

    def link_set_up(self, index: int) -> None:
        self._link_set_flag(index, "setting it up", IFF_UP, on=True)

    def link_set_down(self, index: int) -> None:
        self._link_set_flag(index, "setting it down", IFF_UP, on=False)

    def link_set_promisc(self, index: int, *, on: bool) -> None:
        self._link_set_flag(index, f"setting promisc {_word(on)}", IFF_PROMISC, on=on)

    def link_set_allmulti(self, index: int, *, on: bool) -> None:
        self._link_set_flag(index, f"setting allmulti {_word(on)}", IFF_ALLMULTI, on=on)

    def altname_add(self, index: int, altname: str) -> None:
        """Give a link one more name. Raises: KernelRefused, EEXIST when it is taken. Undo: altname_del."""
        flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND
        self._altname(index, altname, RTM_NEWLINKPROP, operation=f"adding altname {altname}", flags=flags)

    def altname_del(self, index: int, altname: str) -> None:
        """Take an altname from a link. Raises: KernelRefused, ENOENT or EINVAL when it has no such altname."""
        self._altname(index, altname, RTM_DELLINKPROP, operation=f"removing altname {altname}", flags=0)

    # What the methods above are made of

    def _seen(self, link: Link, *, vfs: bool) -> Link:
        self._names[link.index] = link.ifname
        if not vfs:
            return link
        # Asked on its own and not in the dump: a long list breaks the message it is in, see vfs_from.
        count, states = self._vfs(link.index) if link.parent_dev else (0, ())
        return replace(link, num_vfs=count, vfs=states)

    def _link_set(self, index: int, operation: str, attributes: list[tuple[str, Any]]) -> None:
        message = linkmsg()
        message["index"] = index
        message["attrs"] = attributes
        self._command(message, RTM_SETLINK, index, operation)

    def _link_set_flag(self, index: int, operation: str, flag: int, *, on: bool) -> None:
        message = linkmsg()
        message["index"], message["flags"], message["change"] = index, flag if on else 0, flag
        self._command(message, RTM_SETLINK, index, operation)

    def _altname(self, index: int, altname: str, kind: int, *, operation: str, flags: int) -> None:
        message = linkmsg()
        message["index"] = index
        message["attrs"] = [("IFLA_PROP_LIST", {"attrs": [("IFLA_ALT_IFNAME", altname)]})]
        self._command(message, kind, index, operation, flags=flags)

    def _bring_back(self, link: Link, there: Rtnetlink) -> None:
        """Undo a move that got as far as the other namespace: somebody took the name in between."""
        stray = there.link_get(link.ifname) if self.link_get(index=link.index) is None else None
        if stray is None or (stray.ifname, stray.mac, stray.kind) != (link.ifname, link.mac, link.kind):
            return
        with Netns.current() if self._netns is None else nullcontext(self._netns) as here:
            there._link_set(
                stray.index,
                "bringing the link back",
                [("IFLA_NET_NS_FD", here.fd), ("IFLA_IFNAME", link.ifname)],
            )
        back = self.link_get(link.ifname)
        if back is not None and link.up:
            self.link_set_up(back.index)


def _word(on: bool) -> str:
    return "on" if on else "off"
