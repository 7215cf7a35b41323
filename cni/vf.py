"""One VF through its PF: what the configuration sets there, and how it is put back.

The VF's own netdev is moved in cni/attach.py; its two MACs, which drivers entangle, are set in cni/mac.py.

Source: reference 2.2 step 6 and 2.3 ResetVFConfig.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cni.linux.link import VfState
from cni.linux.rtnetlink import Rtnetlink
from conf.attachment import VfRecord, Wanted
from conf.errors import DeviceNotFound


@dataclass(frozen=True)
class VfPort:
    """The PF's side of one VF."""

    host: Rtnetlink
    pf_index: int
    pf_ifname: str
    vf_index: int

    def state(self) -> VfState:
        """Return what the PF says of the VF.

        Raises: DeviceNotFound when it lists no such VF.
        """
        state = self.host.link_vf_get(self.pf_index, self.vf_index)
        if state is None:
            raise DeviceNotFound(
                f"PF {self.pf_ifname} does not list VF {self.vf_index}",
                hint="were the VFs made anew? see 'vferry vfs'; in switchdev mode settings belong to the representor",
            )
        return state

    def set_vlan(self, vlan_id: int, qos: int, proto: str) -> None:
        self.host.link_set_vf_vlan(self.pf_index, self.vf_index, vlan_id=vlan_id, qos=qos, proto=proto)

    def set_rate(self, min_tx_rate_mbps: int, max_tx_rate_mbps: int) -> None:
        self.host.link_set_vf_rate(
            self.pf_index,
            self.vf_index,
            min_tx_rate_mbps=min_tx_rate_mbps,
            max_tx_rate_mbps=max_tx_rate_mbps,
        )

    def set_spoofchk(self, on: bool) -> None:
        self.host.link_set_vf_spoofchk(self.pf_index, self.vf_index, on=on)

    def set_trust(self, on: bool) -> None:
        self.host.link_set_vf_trust(self.pf_index, self.vf_index, on=on)

    def set_link_state(self, state: str) -> None:
        self.host.link_set_vf_link_state(self.pf_index, self.vf_index, state=state)

    def set_mac(self, mac: str) -> None:
        self.host.link_set_vf_mac(self.pf_index, self.vf_index, mac=mac)


@dataclass(frozen=True)
class Setting:
    """One thing that is set on the PF for a VF, with the way back."""

    name: str
    wanted: tuple[object, ...]
    seen: Callable[[VfState], tuple[object, ...]]
    original: tuple[object, ...]
    put: Callable[..., None]

    def apply(self) -> None:
        self.put(*self.wanted)

    def restore(self, port: VfPort) -> None:
        """Put the original back unless it is there; what the driver could not report can't be put back."""
        if None not in self.original and self.seen(port.state()) != self.original:
            self.put(*self.original)

    def difference(self, state: VfState) -> str:
        """Say how the VF differs from what is wanted, '' when it does not."""
        seen = self.seen(state)
        # None: the driver takes the setting, or took it silently, but does not report it.
        if seen == self.wanted or None in seen:
            return ""
        return f"VF {self.name} is {_text(seen)}, wanted {_text(self.wanted)}"


def settings(port: VfPort, original: VfRecord, wanted: Wanted) -> list[Setting]:
    """Return what is to be set, in the order of setting; the MAC is not among them."""
    found = []
    if wanted.vlan_id is not None:
        found.append(
            Setting(
                "VLAN",
                (wanted.vlan_id, wanted.vlan_qos, wanted.vlan_proto),
                lambda vf: (vf.vlan_id, vf.vlan_qos, vf.vlan_proto),
                (original.vlan_id, original.vlan_qos, original.vlan_proto),
                port.set_vlan,
            )
        )
    if wanted.min_tx_rate_mbps is not None:
        found.append(
            Setting(
                "rate",
                (wanted.min_tx_rate_mbps, wanted.max_tx_rate_mbps or 0),
                lambda vf: (vf.min_tx_rate_mbps, vf.max_tx_rate_mbps),
                (original.min_tx_rate_mbps, original.max_tx_rate_mbps),
                port.set_rate,
            )
        )
    if wanted.spoofchk is not None:
        found.append(
            Setting("spoofchk", (wanted.spoofchk,), lambda vf: (vf.spoofchk,), (original.spoofchk,), port.set_spoofchk)
        )
    if wanted.trust is not None:
        found.append(Setting("trust", (wanted.trust,), lambda vf: (vf.trust,), (original.trust,), port.set_trust))
    if wanted.link_state is not None:
        found.append(
            Setting(
                "link state",
                (wanted.link_state,),
                lambda vf: (vf.link_state,),
                (original.link_state,),
                port.set_link_state,
            )
        )
    return found


def _text(values: tuple[object, ...]) -> str:
    words = {True: "on", False: "off"}
    return "/".join(words[value] if isinstance(value, bool) else str(value) for value in values)
