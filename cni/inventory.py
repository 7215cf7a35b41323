"""Every VF of this node as sysfs, its PF and the records tell: what it is set to, where it is, who has it.

Nothing is changed, no lock is taken, so a line can be out of date as soon as it is read. How lines are shown is in
cni/cli/vfs.py. Without root everything is told but the owners: records are root's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from cni.attach import host_link
from cni.attachments import Attachments
from cni.kernel import Kernel
from cni.linux.link import Link, VfState
from cni.sriov_device import DPDK_DRIVERS
from cni.upstream_sriov import GoSriovFiles
from conf.attachment import Attachment

_NO_MAC = "00:00:00:00:00:00"


@dataclass(frozen=True)
class Holder:
    """Who has a VF, by the record that says so: ours, or the Go plugin's.

    ``container_id`` and ``ifname`` are empty for an allocation of the Go plugin's that names only a netns.
    """

    container_id: str
    ifname: str
    netns: str
    recorded_by: str


@dataclass(frozen=True)
class Vf:
    """One VF; None where nothing is known: ``index`` without its PF, ``state`` without the PF's netdev.

    ``netdev`` is its interface on the host. ``link`` is that interface as the kernel reports it.
    """

    pci_address: str
    pf_pci_address: str
    pf_ifname: str | None
    index: int
    driver: str | None
    netdev: str | None
    link: Link | None
    state: VfState | None
    numa_node: int | None
    holder: Holder | None

    @property
    def mac(self) -> str | None:
        """The address that the PF has set for it, else the interface's own."""
        administrative = self.state.mac if self.state else _NO_MAC
        if administrative != _NO_MAC:
            return administrative
        return self.link.mac if self.link else None

    @property
    def is_free(self) -> bool:
        """Tell whether an ADD could take it: nobody has it, and there is something on the host to take."""
        return self.holder is None and (self.netdev is not None or self.driver in DPDK_DRIVERS)


@dataclass(frozen=True)
class Pf:
    """One function that can have VFs."""

    pci_address: str
    ifname: str | None
    num_vfs: int
    total_vfs: int


class Inventory:
    """The PFs and VFs of this node; ``owners_known`` is false when the records may not be read."""

    def __init__(
        self,
        kernel: Kernel | None = None,
        *,
        attachments: Attachments | None = None,
        go_files: GoSriovFiles | None = None,
    ) -> None:
        self._kernel = kernel or Kernel()
        self._attachments = attachments or Attachments()
        self._go_files = go_files or GoSriovFiles()
        self.owners_known = all(_is_readable(str(place.root)) for place in (self._attachments, self._go_files))

    def pfs(self) -> list[Pf]:
        """Return every function that can have VFs, whether it has some or not."""
        sysfs = self._kernel.sysfs
        return [
            Pf(address, sysfs.pf_ifname(address), sysfs.sriov_numvfs(address), sysfs.sriov_totalvfs(address))
            for address in sysfs.pf_addresses()
        ]

    def vfs(self) -> list[Vf]:
        """Return every VF whose PF is on this machine, PF by PF, in the order of their numbers."""
        holders = self._our_holders()
        found = []
        with self._kernel.rtnetlink(None) as host:
            for pf in self.pfs():
                link = host.link_get(pf.ifname, vfs=True) if pf.ifname else None
                states = {state.index: state for state in link.vfs} if link else {}
                found += [
                    self._vf(
                        pf,
                        index,
                        address,
                        link=host_link(self._kernel, host, address),
                        state=states.get(index),
                        holder=holders.get(address) or self._go_holder(address),
                    )
                    for index, address in self._kernel.sysfs.pci_virtfns(pf.pci_address).items()
                ]
        return found

    def _vf(
        self, pf: Pf, index: int, address: str, *, link: Link | None, state: VfState | None, holder: Holder | None
    ) -> Vf:
        sysfs = self._kernel.sysfs
        return Vf(
            pci_address=address,
            pf_pci_address=pf.pci_address,
            pf_ifname=pf.ifname,
            index=index,
            driver=sysfs.pci_driver(address),
            netdev=link.ifname if link else None,
            link=link,
            state=state,
            numa_node=sysfs.numa_node(address),
            holder=holder,
        )

    def _our_holders(self) -> dict[str, Holder]:
        if not self.owners_known:
            return {}
        records = [record for record in self._attachments.every() if not record.returned]
        # The interface's record goes before that of its RDMA device, which the chained plugin writes.
        records.sort(key=lambda record: record.link is not None or record.dpdk_driver is not None)
        return {record.device_id: _holder(record, "vferry") for record in records}

    def _go_holder(self, address: str) -> Holder | None:
        if not self.owners_known:
            return None
        netns = self._go_files.allocated_to(address)
        if netns is None:
            return None
        records = self._go_files.holding(address)
        return _holder(records[0], "sriov-cni") if records else Holder("", "", netns, "sriov-cni")


def _holder(record: Attachment, recorded_by: str) -> Holder:
    return Holder(record.container_id, record.ifname, record.sandbox.path, recorded_by)


def _is_readable(directory: str) -> bool:
    try:
        os.listdir(directory)  # noqa: PTH208 - whether it can be read is all that is asked
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
