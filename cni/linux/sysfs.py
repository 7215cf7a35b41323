"""What sysfs says of PCI functions: PF and VF, drivers, netdevs, RDMA devices, NUMA nodes; read only.

A mount of sysfs shows under ``net`` the links of the network namespace it was mounted in: a VF's netdev is seen
here only while it is in the host's. Links inside a pod are asked for by rtnetlink.

Source: Documentation/ABI/testing/sysfs-bus-pci, sysfs-class-net; net/core/devlink.c (port names).
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from conf.errors import DeviceNotFound, KernelRefused

# drivers/pci/probe.c: "%04x:%02x:%02x.%d"; Intel VMD makes domains of five digits.
_PCI_ADDRESS = re.compile(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7]")
_AUXILIARY = re.compile(r"[A-Za-z0-9_]+\.[A-Za-z0-9_-]+\.[0-9]+")
_VIRTFN = re.compile(r"virtfn(\d+)")
# devlink port names: "p0" or "p0s1" is the wire; the others stand for a PF, VF or SF behind the switch.
_REPRESENTOR = re.compile(r"(c\d+)?pf\d+(vf\d+|sf\d+|hpf)?")
# Not there, or the driver does not know: both mean "no such value".
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.EOPNOTSUPP, errno.EINVAL})


def is_pci_address(text: str) -> bool:
    """Tell whether ``text`` is a full PCI address such as ``0000:01:10.0``, and so no path either."""
    return _PCI_ADDRESS.fullmatch(text) is not None


class Sysfs:
    """One sysfs tree. Every method that takes a PCI address raises DeviceNotFound when it is none."""

    def __init__(self, root: str = "/sys") -> None:
        self._root = Path(root)

    # Any device that a deviceID names: a PCI function, or an auxiliary device such as mlx5_core.sf.4

    def device_exists(self, device_id: str) -> bool:
        """Tell whether a device is there; a link without a device, ``""``, counts as there."""
        return not device_id or self._device(device_id).exists()

    def rdma_devices(self, device_id: str) -> tuple[str, ...]:
        """Return the device's RDMA devices that this netns sees, sorted."""
        return _entries(self._device(device_id) / "infiniband")

    def has_rdma(self, device_id: str) -> bool:
        """Tell whether the device has an RDMA device in any netns: its folder stays when what is in it is hidden."""
        return (self._device(device_id) / "infiniband").exists()

    def rdma_names(self, device_id: str) -> tuple[str, ...]:
        """Return the present names of the device's RDMA devices in whatever netns; their uverbs devices tell."""
        verbs = self._device(device_id) / "infiniband_verbs"
        names = (_text(verbs / name / "ibdev") for name in _entries(verbs))
        return tuple(sorted({name for name in names if name is not None}))

    def auxiliary_netdevs(self, device_id: str) -> tuple[str, ...]:
        """Return the netdevs of an auxiliary device, sorted."""
        return _entries(self._device(device_id) / "net")

    def kernelpath_netdevs(self, path: str) -> tuple[str, ...]:
        """Return the netdevs of a device given by its folder below ``/sys/devices``, sorted."""
        return _entries(self._root / "devices" / path.removeprefix("/sys/devices/") / "net")

    # Any PCI function

    def pci_exists(self, addr: str) -> bool:
        return self._pci(addr).exists()

    def pci_driver(self, addr: str) -> str | None:
        """Return the name of the bound driver."""
        return _link_name(self._pci(addr) / "driver")

    def pci_vendor(self, addr: str) -> str | None:
        """Return the vendor id as sysfs writes it, ``0x8086``."""
        return _text(self._pci(addr) / "vendor")

    def pci_device(self, addr: str) -> str | None:
        """Return the device id as sysfs writes it, ``0x10ca``."""
        return _text(self._pci(addr) / "device")

    def pci_netdevs(self, addr: str) -> tuple[str, ...]:
        """Return the function's netdevs, sorted, with those of virtio, which hang one level deeper."""
        here = self._pci(addr)
        found = {name for place in (here, *here.glob("virtio*")) for name in _entries(place / "net")}
        return tuple(sorted(found))

    def numa_node(self, addr: str) -> int | None:
        """Return the function's NUMA node, None when the firmware names none."""
        node = _number(self._pci(addr) / "numa_node")
        return None if node is None or node < 0 else node

    def net_device_pci(self, ifname: str) -> str | None:
        """Return the PCI address behind a netdev of the host, None for one without."""
        if ifname in {"", ".", ".."} or "/" in ifname:
            return None
        device = os.path.realpath(self._root / "class/net" / ifname / "device")
        # The nearest PCI function upwards: a virtio or auxiliary device has one above it.
        return next((part for part in reversed(Path(device).parts) if is_pci_address(part)), None)

    # VF to PF

    def pci_physfn(self, addr: str) -> str | None:
        """Return the PCI address of the VF's PF, None for a PF, and for a VF handed to a virtual machine."""
        return _link_name(self._pci(addr) / "physfn")

    def pci_vf_index(self, addr: str) -> int:
        """Return the number of a VF at its PF. Raises: DeviceNotFound when it is no VF of a PF seen here."""
        pf_addr = self.pci_physfn(addr)
        if pf_addr is not None:
            for vf, vf_addr in self.pci_virtfns(pf_addr).items():
                if vf_addr == addr:
                    return vf
        raise DeviceNotFound(f"PCI device {addr} is not a VF of a PF on this machine")

    # PF to VF

    def pci_virtfns(self, pf_addr: str) -> dict[int, str]:
        """Return the VFs of a PF: number to PCI address, in order of number."""
        found = {
            int(match[1]): _link_name(self._pci(pf_addr) / name)
            for name in _entries(self._pci(pf_addr))
            if (match := _VIRTFN.fullmatch(name))
        }
        return {vf: addr for vf, addr in sorted(found.items()) if addr is not None}

    def pf_ifname(self, pf_addr: str) -> str | None:
        """Return the PF's own netdev, None when it has none here.

        In switchdev mode the representors of the VFs hang off the PF too; they are told by their port name. Of
        several uplinks on one PCI function (ens1, ens1d1) the one with the lowest ``dev_port`` is the PF's: no
        kernel interface says which of them a VF belongs to, and drivers of that kind have VFs on port 0 first.
        """
        uplinks = [name for name in self.pci_netdevs(pf_addr) if not self._is_representor(name)]
        return min(uplinks, key=lambda name: (self._dev_port(name), name), default=None)

    def sriov_totalvfs(self, pf_addr: str) -> int:
        """Return how many VFs the PF could have; 0 when it is no PF."""
        return _number(self._pci(pf_addr) / "sriov_totalvfs") or 0

    def sriov_numvfs(self, pf_addr: str) -> int:
        """Return how many VFs the PF has now; 0 when it is no PF."""
        return _number(self._pci(pf_addr) / "sriov_numvfs") or 0

    # The machine

    def pf_addresses(self) -> tuple[str, ...]:
        """Return the PCI address of every function that can have VFs."""
        return tuple(addr for addr in self._functions() if self.sriov_totalvfs(addr))

    def pci_vfs(self) -> tuple[str, ...]:
        """Return the PCI address of every VF whose PF is on this machine."""
        return tuple(addr for addr in self._functions() if self.pci_physfn(addr))

    def _functions(self) -> tuple[str, ...]:
        return tuple(name for name in _entries(self._root / "bus/pci/devices") if is_pci_address(name))

    def _pci(self, addr: str) -> Path:
        if not is_pci_address(addr):
            raise DeviceNotFound(
                f"{addr!r} is not a PCI address", hint="write domain:bus:device.function, as 0000:01:10.0"
            )
        return self._root / "bus/pci/devices" / addr

    def _device(self, device_id: str) -> Path:
        if is_pci_address(device_id):
            return self._pci(device_id)
        if not _AUXILIARY.fullmatch(device_id):
            raise DeviceNotFound(f"{device_id!r} is neither a PCI address nor an auxiliary device name")
        return self._root / "bus/auxiliary/devices" / device_id

    def _is_representor(self, ifname: str) -> bool:
        name = _text(self._root / "class/net" / ifname / "phys_port_name")
        return name is not None and _REPRESENTOR.fullmatch(name) is not None

    def _dev_port(self, ifname: str) -> int:
        return _number(self._root / "class/net" / ifname / "dev_port") or 0


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise KernelRefused("reading sysfs", str(file), error.errno or errno.EIO) from error


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text is not None else None


def _link_name(file: Path) -> str | None:
    try:
        return file.readlink().name
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise KernelRefused("reading sysfs", str(file), error.errno or errno.EIO) from error


def _entries(directory: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(os.listdir(directory)))  # noqa: PTH208 - names are wanted, not paths
    except OSError as error:
        if error.errno in _ABSENT:
            return ()
        raise KernelRefused("reading sysfs", str(directory), error.errno or errno.EIO) from error
