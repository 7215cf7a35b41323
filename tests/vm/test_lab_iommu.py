"""The lab's other machine: two NICs, and an IOMMU that lets a VF be handed to user space."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

LAB = {"vfs": 1, "nics": 2, "iommu": True}

VF = Path("/sys/bus/pci/devices/0000:01:10.0")


def test_what_another_guest_wrote_is_not_here():
    assert not Path("/etc/vmlab-was-here").exists()


def test_two_nics_stand_at_addresses_of_their_own():
    addresses = sorted(name for name in os.listdir("/sys/bus/pci/drivers/igb") if name.startswith("0000:"))
    assert addresses == ["0000:01:00.0", "0000:02:00.0"]


def test_vfio_pci_takes_a_vf():
    subprocess.run(["modprobe", "vfio-pci"], check=True)
    (VF / "driver_override").write_text("vfio-pci")
    (VF / "driver/unbind").write_text(VF.name)
    Path("/sys/bus/pci/drivers_probe").write_text(VF.name)
    assert os.path.basename(os.readlink(VF / "driver")) == "vfio-pci"
    group = os.path.basename(os.readlink(VF / "iommu_group"))
    with open(f"/dev/vfio/{group}", "rb+", buffering=0):
        pass
    assert not (VF / "net").exists()
