"""``vferry vfs``: every VF of this node in one table, or as JSON; what is known of them is cni/inventory.py's."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click
from rich.console import Console

from cni.cli import table
from cni.inventory import Holder, Inventory, Pf, Vf
from conf.errors import DeviceNotFound
from conf.section import Json

NOTHING = "-"
COLUMNS = (
    "PF",
    "VF",
    "PCI",
    "DRIVER",
    "NETDEV",
    "CONTAINER",
    "IFNAME",
    "NETNS",
    "MAC",
    "VLAN",
    "TRUST",
    "SPOOFCHK",
    "NUMA",
)


def cells(vf: Vf, *, owners_known: bool) -> tuple[str, ...]:
    """Return the line of one VF, column by column."""
    state = vf.state
    unknown = "?" if not owners_known and vf.netdev is None else NOTHING
    holder = vf.holder or Holder("", "", "", "")
    texts = (
        vf.pf_ifname or vf.pf_pci_address,
        vf.index,
        vf.pci_address,
        vf.driver,
        vf.netdev,
        holder.container_id or unknown,
        holder.ifname or unknown,
        holder.netns or unknown,
        vf.mac,
        _vlan(vf) if state else None,
        _switch(state.trust) if state else None,
        _switch(state.spoofchk) if state else None,
        vf.numa_node,
    )
    return tuple(NOTHING if text is None else str(text) for text in texts)


def to_json(vf: Vf) -> Json:
    """Return one VF as a program wants it: null is not known, or not so."""
    state, holder = vf.state, vf.holder
    return {
        "pf": vf.pf_ifname,
        "pfPciAddress": vf.pf_pci_address,
        "vf": vf.index,
        "pciAddress": vf.pci_address,
        "driver": vf.driver,
        "netdev": vf.netdev,
        "owner": {
            "containerID": holder.container_id or None,
            "ifname": holder.ifname or None,
            "netns": holder.netns or None,
            "recordedBy": holder.recorded_by,
        }
        if holder
        else None,
        "free": vf.is_free,
        "mac": vf.mac,
        "vlan": state.vlan_id if state else None,
        "vlanQoS": state.vlan_qos if state else None,
        "vlanProto": state.vlan_proto if state else None,
        "trust": state.trust if state else None,
        "spoofchk": state.spoofchk if state else None,
        "linkState": state.link_state if state else None,
        "minTxRate": state.min_tx_rate_mbps if state else None,
        "maxTxRate": state.max_tx_rate_mbps if state else None,
        "mtu": vf.link.mtu_bytes if vf.link else None,
        "numaNode": vf.numa_node,
    }


def no_vfs(pfs: Sequence[Pf]) -> DeviceNotFound:
    """Return what to say when there is no VF: what was looked for, and how VFs are made."""
    if not pfs:
        return DeviceNotFound(
            "this machine has no SR-IOV NIC",
            details="looked for PCI functions with sriov_totalvfs",
            hint="is SR-IOV (and the IOMMU) enabled in the firmware? try it in a VM: scripts/quickstart.sh",
        )
    return DeviceNotFound(
        "no PF has any VF",
        details=f"PFs: {', '.join(map(_named, pfs))}",
        hint=f"as root: echo {min(4, pfs[0].total_vfs)} > /sys/bus/pci/devices/{pfs[0].pci_address}/sriov_numvfs",
    )


@click.command()
@click.option("--pf", metavar="IFNAME", help="Only the VFs of this PF, by its interface or PCI address.")
@click.option("--free", is_flag=True, help="Only VFs that nobody has and an ADD could take.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def vfs(*, pf: str | None, free: bool, output: str) -> None:
    """List the VFs of this node: what they are set to, where they are, who has them.

    "-" is nothing, or not known. A VF with a driver of netdevs, but neither NETDEV nor NETNS, is in a netns that no
    record names. Who has what is known to root only; else "?" stands for what could not be read.
    """
    inventory = Inventory()
    every = inventory.vfs()
    chosen = [
        vf for vf in every if (pf is None or pf in (vf.pf_ifname, vf.pf_pci_address)) and (not free or vf.is_free)
    ]
    if not every:
        if output == "json":
            click.echo("[]")
        raise no_vfs(inventory.pfs())
    if pf is not None and not any(pf in (found.ifname, found.pci_address) for found in inventory.pfs()):
        raise DeviceNotFound(f"there is no PF {pf}", details=f"PFs: {', '.join(map(_named, inventory.pfs()))}")
    if output == "json":
        click.echo(json.dumps([to_json(vf) for vf in chosen], indent=2))
    else:
        show([cells(vf, owners_known=inventory.owners_known) for vf in chosen], Console())
    if not inventory.owners_known:
        click.echo("vferry: who has a VF is recorded for root only; run this as root", err=True)


def show(rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print the rows."""
    table.show(COLUMNS, rows, console, key=COLUMNS.index("PCI"))


def _named(pf: Pf) -> str:
    return f"{pf.ifname or 'no netdev'} ({pf.pci_address}, up to {pf.total_vfs})"


def _vlan(vf: Vf) -> str:
    state = vf.state
    if state is None or not state.vlan_id:
        return "0" if state else NOTHING
    qos = f"/{state.vlan_qos}" if state.vlan_qos else ""
    return f"{state.vlan_id}{qos}" + ("" if state.vlan_proto == "802.1q" else f"@{state.vlan_proto}")


def _switch(value: bool | None) -> str | None:
    return None if value is None else "on" if value else "off"
