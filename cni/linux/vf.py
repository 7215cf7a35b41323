"""The requests that set one VF through its PF; no socket here, and no order of steps.

Source: linux/if_link.h (struct ifla_vf_*), do_setvfinfo in net/core/rtnetlink.c.
"""

from __future__ import annotations

from typing import Any

from cni.linux.link_message import linkmsg


def vf_request(pf_index: int, attribute: str, value: dict[str, Any]) -> Any:
    """Write an RTM_SETLINK message that sets one attribute of one VF."""
    message = linkmsg()
    message["index"] = pf_index
    entry = ("IFLA_VF_INFO", {"attrs": [(attribute, value)]})
    message["attrs"] = [("IFLA_VFINFO_LIST", {"attrs": [entry]})]
    return message


def vf_vlan_list(vf: int, *, vlan_id: int, qos: int, protocol: int) -> dict[str, Any]:
    """Write IFLA_VF_VLAN_LIST, the only attribute that can say 802.1ad."""
    return {"attrs": [("IFLA_VF_VLAN_INFO", {"vf": vf, "vlan": vlan_id, "qos": qos, "proto": protocol})]}
