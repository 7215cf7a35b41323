"""The Go ``sriov`` plugin's state file, both ways: its attachments can be DELeted by us and ours by it.

Where the files lie is in cni/upstream_sriov.py.

Source: k8snetworkplumbingwg/sriov-cni pkg/types/types.go, pkg/utils/utils.go SaveNetConf; reference 2.5.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from conf.attachment import Attachment, LinkRecord, SandboxRecord, VfRecord, Wanted
from conf.device import pci_address
from conf.errors import IoFailure
from conf.section import Json, Section, read

_VLAN_PROTO = {"802.1q": 0x8100, "802.1ad": 0x88A8}  # ETH_P_8021Q, ETH_P_8021AD of linux/if_ether.h
_LINK_STATES = ("auto", "enable", "disable")  # IFLA_VF_LINK_STATE_* of linux/if_link.h, in their order
_DRIVER_OF_DPDK_UNKNOWN = "unknown"  # the Go plugin does not record that a VF was DPDK's


class _OrigVfState(Section):
    host_ifname: str = Field(default="", alias="HostIFName")
    spoofchk: bool = Field(default=False, alias="SpoofChk")
    trust: bool = Field(default=False, alias="Trust")
    admin_mac: str = Field(default="", alias="AdminMAC")
    effective_mac: str = Field(default="", alias="EffectiveMAC")
    vlan: int = Field(default=0, alias="Vlan")
    vlan_qos: int = Field(default=0, alias="VlanQoS")
    vlan_proto: int = Field(default=0, alias="VlanProto")
    min_tx_rate: int = Field(default=0, alias="MinTxRate")
    max_tx_rate: int = Field(default=0, alias="MaxTxRate")
    link_state: int = Field(default=0, alias="LinkState")
    mtu: int = Field(default=0, alias="MTU")


class _State(Section):
    name: str = ""
    master: str = Field(default="", alias="Master")
    vf_id: int = Field(default=0, alias="VFID")
    device_id: Annotated[str, AfterValidator(pci_address)] = Field(alias="deviceID")
    mac: str = Field(default="", alias="MAC")
    vlan: int | None = None
    min_tx_rate: int | None = None
    max_tx_rate: int | None = None
    spoofchk: str = ""
    trust: str = ""
    link_state: str = ""
    ipam: dict[str, Any] = {}
    orig: _OrigVfState = Field(default=_OrigVfState(), alias="OrigVfState")


def from_upstream(document: Json, *, container_id: str, ifname: str, netns_path: str, where: str) -> Attachment:
    """Return the attachment that a state file of the Go plugin describes.

    Its netns is known by path only, its boot not at all; both are left empty. Raises: IoFailure.
    """
    state = read(_State, document, where=where, error=IoFailure)
    orig = state.orig
    proto = next((name for name, number in _VLAN_PROTO.items() if number == orig.vlan_proto), "802.1q")
    link_state = _LINK_STATES[orig.link_state] if 0 <= orig.link_state < len(_LINK_STATES) else None
    rated = state.min_tx_rate is not None or state.max_tx_rate is not None
    return Attachment(
        plugin="sriov",
        network=state.name,
        container_id=container_id,
        ifname=ifname,
        sandbox=SandboxRecord(path=netns_path, inode=0, device=0, boot_id=""),
        device_id=state.device_id,
        pf_ifname=state.master or None,
        vf_index=state.vf_id,
        dpdk_driver=None if orig.host_ifname else _DRIVER_OF_DPDK_UNKNOWN,
        link=LinkRecord(
            ifname=orig.host_ifname,
            index=0,
            mac=orig.effective_mac.lower(),
            mtu_bytes=orig.mtu,
        )
        if orig.host_ifname
        else None,
        vf=VfRecord(
            mac=orig.admin_mac.lower(),
            vlan_id=orig.vlan,
            vlan_qos=orig.vlan_qos,
            vlan_proto=proto,
            min_tx_rate_mbps=orig.min_tx_rate,
            max_tx_rate_mbps=orig.max_tx_rate,
            spoofchk=orig.spoofchk,
            trust=orig.trust,
            link_state=link_state,
        ),
        wanted=Wanted(
            vlan_id=state.vlan,
            mac=state.mac.lower() or None,
            min_tx_rate_mbps=(state.min_tx_rate or 0) if rated else None,
            max_tx_rate_mbps=(state.max_tx_rate or 0) if rated else None,
            spoofchk=state.spoofchk == "on" if state.spoofchk else None,
            trust=state.trust == "on" if state.trust else None,
            link_state=state.link_state or None,
        ),
        ipam_type=str(state.ipam.get("type") or ""),
    )


def to_upstream(attachment: Attachment) -> Json:
    """Return the state file with which the Go plugin can DEL this attachment."""
    wanted, vf, link = attachment.wanted, attachment.vf, attachment.link
    tagged = wanted.vlan_id is not None
    document: Json = {
        "name": attachment.network,
        "type": "sriov",
        "ipam": {"type": attachment.ipam_type} if attachment.ipam_type else {},
        "Master": attachment.pf_ifname or "",
        "VFID": attachment.vf_index or 0,
        "deviceID": attachment.device_id,
        "MAC": wanted.mac or "",
        "vlan": wanted.vlan_id,
        "vlanQoS": wanted.vlan_qos if tagged else None,
        "vlanProto": wanted.vlan_proto if tagged else None,
        "min_tx_rate": wanted.min_tx_rate_mbps,
        "max_tx_rate": wanted.max_tx_rate_mbps,
        "spoofchk": _on_off(wanted.spoofchk),
        "trust": _on_off(wanted.trust),
        "link_state": wanted.link_state or "",
        "runtimeConfig": {},
    }
    orig: Json = {"HostIFName": link.ifname if link else "", "EffectiveMAC": link.mac if link else ""}
    if link:
        orig["MTU"] = document["MTU"] = link.mtu_bytes
    if vf:
        orig |= {
            "SpoofChk": bool(vf.spoofchk),
            "Trust": bool(vf.trust),
            "AdminMAC": vf.mac,
            "Vlan": vf.vlan_id,
            "VlanQoS": vf.vlan_qos,
            "VlanProto": _VLAN_PROTO[vf.vlan_proto],
            "MinTxRate": vf.min_tx_rate_mbps,
            "MaxTxRate": vf.max_tx_rate_mbps,
            "LinkState": _LINK_STATES.index(vf.link_state or "auto"),
        }
    return {**document, "OrigVfState": orig}


def _on_off(value: bool | None) -> str:
    return "" if value is None else "on" if value else "off"
