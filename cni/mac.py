"""A VF's two MACs: the administrative one, set through the PF, and the effective one, set on the netdev.

Drivers tie them together in different ways, so each is set, read back, and set again until it is seen; i40e and iavf
apply it after they have answered, mlx5 wants the netdev's set too, igbvf refuses any change of the netdev's while an
administrative one is set and the VF is not trusted, and does not take up the administrative one by itself.

Source: reference 2.2 "Retry" (sriov-cni#232, #239), drivers/net/ethernet/intel/igb/igb_main.c igb_set_vf_mac_addr.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass

from cni.linux.rtnetlink import Rtnetlink
from cni.vf import VfPort
from conf.errors import DeviceNotFound, KernelRefused

LOG = logging.getLogger("vferry.mac")
ZERO = "00:00:00:00:00:00"
_TRIES = 20
_PAUSE_S = 0.1
# What a VF driver answers when its PF keeps it from having another address.
_NOT_TRUSTED = frozenset({errno.EADDRNOTAVAIL, errno.EPERM, errno.EACCES})
_UNCLEARABLE = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.EADDRNOTAVAIL})
_BUSY = frozenset({errno.EAGAIN, errno.EBUSY})


def another(mac: str) -> str:
    """Return a MAC that differs in its last bit."""
    return f"{mac[:-2]}{int(mac[-2:], 16) ^ 1:02x}"


@dataclass(frozen=True)
class VfMac:
    """Both MACs of one VF; ``port`` is None for a VF without a PF, whose administrative MAC is out of reach."""

    port: VfPort | None
    sleep: Callable[[float], None]

    def set_admin(self, mac: str) -> None:
        """Set the administrative MAC and see it taken up.

        Raises: KernelRefused; with EADDRNOTAVAIL when the driver says yes and does not do it.
        """
        port = self.port
        if port is not None:
            self._until_seen(mac, port.set_mac, lambda: port.state().mac, f"VF {port.vf_index} of {port.pf_ifname}")

    def set_effective(self, rtnl: Rtnetlink, index: int, mac: str, *, again: bool = False) -> None:
        """Set the netdev's MAC and see it taken up, with the VF trusted for that moment where the driver insists.

        ``again``: also when it reads so already, for a PF that has forgotten what the VF told it.
        Raises: KernelRefused, DeviceNotFound.
        """

        def seen() -> str:
            link = rtnl.link_get(index=index)
            if link is None:
                raise DeviceNotFound(f"interface {index} has gone while its MAC was set")
            return link.mac

        if again and seen() == mac:
            # The kernel does not call the driver for the address that the netdev has.
            self._set_on_netdev(rtnl, index, another(mac))
        if again or seen() != mac:
            self._until_seen(mac, lambda wanted: self._set_on_netdev(rtnl, index, wanted), seen, f"interface {index}")

    def choose(self, rtnl: Rtnetlink, index: int, mac: str) -> bool:
        """Set another MAC on the netdev than it has, and tell whether the PF lets the VF do that by itself.

        The PF lists an administrative MAC and one that the VF chose alike, but clearing the first undoes it, and
        setting the second would make it administrative for good. Setting the MAC it has would tell nothing: igbvf
        takes that for done even when the PF refuses. Raises: KernelRefused. Undo: ``restore``.
        """
        try:
            rtnl.link_set_address(index, mac)
        except KernelRefused as error:
            if error.errno not in _NOT_TRUSTED | _BUSY:
                raise
            LOG.debug("the VF does not choose its MAC: %s", error)
            return False
        return True

    def restore(self, rtnl: Rtnetlink | None, index: int, *, admin: str, effective: str, administrative: bool) -> None:
        """Put both MACs back; ``rtnl`` is None when there is no netdev here (DPDK, or it is still in a sandbox).

        Raises: KernelRefused, DeviceNotFound.
        """
        port = self.port
        chosen = port is not None and not administrative
        if chosen and rtnl is None:
            return  # only the VF can say its own MAC again; to set it on the PF would make it administrative
        if chosen and port is not None:
            self._clear_admin(port)
        if rtnl is not None and effective:
            self.set_effective(rtnl, index, effective, again=chosen)
        if port is None or not admin or port.state().mac == admin:
            return
        if admin != ZERO:
            self.set_admin(admin)
            return
        self._clear_admin(port)
        if effective and port.state().mac not in (ZERO, effective):
            self.set_admin(effective)  # where it cannot be cleared: at least not the pod's

    def _clear_admin(self, port: VfPort) -> None:
        try:
            port.set_mac(ZERO)
        except KernelRefused as error:
            if error.errno not in _UNCLEARABLE:
                raise
            LOG.info("the driver does not clear an administrative MAC: %s", error)

    def _set_on_netdev(self, rtnl: Rtnetlink, index: int, mac: str) -> None:
        try:
            rtnl.link_set_address(index, mac)
        except KernelRefused as error:
            port = self.port
            if error.errno not in _NOT_TRUSTED or port is None or port.state().trust is not False:
                raise
            port.set_trust(True)
            try:
                rtnl.link_set_address(index, mac)
            finally:
                port.set_trust(False)

    def _until_seen(self, mac: str, put: Callable[[str], None], seen: Callable[[], str], target: str) -> None:
        refused: KernelRefused | None = None
        for _attempt in range(_TRIES):
            try:
                put(mac)
                refused = None
            except KernelRefused as error:
                if error.errno not in _BUSY:
                    raise
                refused = error
            if seen() == mac:
                return
            self.sleep(_PAUSE_S)
        raise refused or KernelRefused(
            f"setting the MAC {mac}", target, errno.EADDRNOTAVAIL, details=f"it still reads {seen()}"
        )
