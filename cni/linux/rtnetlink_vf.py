"""VFs through their PF: what the kernel lists of them, and one verb per setting.

Source: linux/if_link.h IFLA_VF_*, net/core/rtnetlink.c do_setvfinfo.
"""

from __future__ import annotations

import errno
from typing import Any

from cni.linux.link import VF_LINK_STATES, VLAN_PROTOCOLS, VfState, vfs_from
from cni.linux.link_message import linkmsg
from cni.linux.rtnetlink_socket import RTM_GETLINK, RTM_SETLINK, RtnetlinkSocket
from cni.linux.vf import vf_request, vf_vlan_list
from conf.errors import KernelRefused

RTEXT_FILTER_VF, RTEXT_FILTER_SKIP_STATS = 0x1, 0x8  # linux/rtnetlink.h


class VfVerbs(RtnetlinkSocket):
    """The verbs of VFs; ``pf_index`` is the PF's link, ``vf`` the VF's number at it."""

    def link_vf_get(self, pf_index: int, vf: int) -> VfState | None:
        """Return a VF by its number, never by its place in the list; None when the PF has no such VF."""
        _count, vfs = self._vfs(pf_index)
        return next((state for state in vfs if state.index == vf), None)

    def link_set_vf_vlan(self, pf_index: int, vf: int, *, vlan_id: int, qos: int, proto: str) -> None:
        """Set VLAN (0: none), priority and ``802.1q`` or ``802.1ad`` of a VF in one message.

        Kernels and drivers without the newer attribute answer EOPNOTSUPP; the older one can say 802.1q only.
        """
        operation = f"setting VLAN {vlan_id} qos {qos} proto {proto}"
        value = vf_vlan_list(vf, vlan_id=vlan_id, qos=qos, protocol=VLAN_PROTOCOLS[proto])
        try:
            self._vf_set(pf_index, vf, operation, "IFLA_VF_VLAN_LIST", value)
        except KernelRefused as error:
            if error.errno != errno.EOPNOTSUPP or proto != "802.1q":
                raise
            self._vf_set(pf_index, vf, operation, "IFLA_VF_VLAN", {"vf": vf, "vlan": vlan_id, "qos": qos})

    def link_set_vf_mac(self, pf_index: int, vf: int, mac: str) -> None:
        """Set the administrative MAC; all zero clears it where the driver knows how."""
        self._vf_set(pf_index, vf, f"setting MAC {mac}", "IFLA_VF_MAC", {"vf": vf, "mac": mac})

    def link_set_vf_rate(self, pf_index: int, vf: int, *, min_tx_rate_mbps: int, max_tx_rate_mbps: int) -> None:
        """Set both rates in Mbit/s, 0 for no limit; the kernel has no message for one alone."""
        operation = f"setting rates {min_tx_rate_mbps} to {max_tx_rate_mbps} Mbit/s"
        value = {"vf": vf, "min_tx_rate": min_tx_rate_mbps, "max_tx_rate": max_tx_rate_mbps}
        self._vf_set(pf_index, vf, operation, "IFLA_VF_RATE", value)

    def link_set_vf_spoofchk(self, pf_index: int, vf: int, *, on: bool) -> None:
        value = {"vf": vf, "spoofchk": int(on)}
        self._vf_set(pf_index, vf, f"setting spoofchk {_word(on)}", "IFLA_VF_SPOOFCHK", value)

    def link_set_vf_trust(self, pf_index: int, vf: int, *, on: bool) -> None:
        value = {"vf": vf, "trust": int(on)}
        self._vf_set(pf_index, vf, f"setting trust {_word(on)}", "IFLA_VF_TRUST", value)

    def link_set_vf_link_state(self, pf_index: int, vf: int, state: str) -> None:
        """Set the link state of a VF to ``auto``, ``enable`` or ``disable``."""
        value = {"vf": vf, "link_state": VF_LINK_STATES.index(state)}
        self._vf_set(pf_index, vf, f"setting link state {state}", "IFLA_VF_LINK_STATE", value)

    def _vfs(self, pf_index: int) -> tuple[int, tuple[VfState, ...]]:
        message = linkmsg()
        message["index"] = pf_index
        message["attrs"] = [("IFLA_EXT_MASK", RTEXT_FILTER_VF | RTEXT_FILTER_SKIP_STATS)]
        replies = self._netlink.request(
            message, RTM_GETLINK, operation="listing VFs", target=self._target(pf_index), decode=vfs_from
        )
        return replies[0]

    def _vf_set(self, pf_index: int, vf: int, operation: str, attribute: str, value: dict[str, Any]) -> None:
        target = f"VF {vf} of {self._target(pf_index)}"
        message = vf_request(pf_index, attribute, value)
        self._netlink.command(message, RTM_SETLINK, operation=operation, target=target)


def _word(on: bool) -> str:
    return "on" if on else "off"
