"""A sysfs of PCI functions under a directory, with the links the kernel makes."""

from __future__ import annotations

import os
from pathlib import Path


class FakeSysfs:
    """Built function by function; ``root`` is what Sysfs takes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for place in ("bus/pci/devices", "bus/pci/drivers", "class/net"):
            (root / place).mkdir(parents=True)

    def device(self, addr: str, **attributes: str | int) -> Path:
        """Add a PCI function with these attribute files."""
        place = self.root / "devices/pci0000:00" / addr
        place.mkdir(parents=True)
        (self.root / "bus/pci/devices" / addr).symlink_to(os.path.relpath(place, self.root / "bus/pci/devices"))
        for name, value in attributes.items():
            (place / name).write_text(f"{value}\n")
        return place

    def driver(self, addr: str, name: str) -> None:
        place = self.root / "bus/pci/drivers" / name
        place.mkdir(exist_ok=True)
        device = (self.root / "bus/pci/devices" / addr).resolve()
        (device / "driver").symlink_to(os.path.relpath(place, device))

    def netdev(self, addr: str, ifname: str, *, below: str = "", **attributes: str | int) -> None:
        """Add a netdev to a function, or to a device ``below`` it, as ``virtio3``."""
        device = (self.root / "bus/pci/devices" / addr).resolve() / below
        place = device / "net" / ifname
        place.mkdir(parents=True)
        (place / "device").symlink_to("../..")
        (self.root / "class/net" / ifname).symlink_to(os.path.relpath(place, self.root / "class/net"))
        for name, value in attributes.items():
            (place / name).write_text(f"{value}\n")

    def vf(self, pf_addr: str, index: int, addr: str, **attributes: str | int) -> Path:
        """Add a VF and the links between it and its PF."""
        place = self.device(addr, **attributes)
        pf = (self.root / "bus/pci/devices" / pf_addr).resolve()
        (place / "physfn").symlink_to(os.path.relpath(pf, place))
        (pf / f"virtfn{index}").symlink_to(os.path.relpath(place, pf))
        return place
