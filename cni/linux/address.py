"""An IP address on a link, as the kernel reports it; no socket here, only messages read.

Source: linux/if_addr.h, net/core/rtnetlink.c, net/ipv6/addrconf.c.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni.linux.pyroute2_messages import ifaddrmsg

# linux/if_addr.h
IFA_F_NODAD, IFA_F_OPTIMISTIC, IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x02, 0x04, 0x08, 0x40


@dataclass(frozen=True)
class Address:
    """One address on one link: ``address`` is written with its prefix length, as ``10.0.0.5/24``."""

    address: str
    family: int
    scope: int
    tentative: bool
    dadfailed: bool
    flags: int
    index: int
    broadcast: str | None = None

    @property
    def optimistic(self) -> bool:
        """Whether it may be used although it is still being checked."""
        return bool(self.flags & IFA_F_OPTIMISTIC)


def address_from(data: bytes) -> Address:
    """Read one RTM_NEWADDR message."""
    message = ifaddrmsg(data)
    message.decode()
    flags = message.get_attr("IFA_FLAGS") or message["flags"]
    # On a point-to-point link IFA_ADDRESS is the peer's; IPv6 has IFA_LOCAL only there.
    local = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return Address(
        address=f"{local}/{message['prefixlen']}",
        family=message["family"],
        scope=message["scope"],
        tentative=bool(flags & IFA_F_TENTATIVE),
        dadfailed=bool(flags & IFA_F_DADFAILED),
        flags=flags,
        index=message["index"],
        broadcast=message.get_attr("IFA_BROADCAST"),
    )
