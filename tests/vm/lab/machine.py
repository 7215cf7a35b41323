"""The machine to emulate: its parts, and qemu's command line for them; running it is boot's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tests.vm.lab import kernel
from tests.vm.lab.artefacts import INITRAMFS

BOOT_OPTIONS = (
    "console=ttyS0",
    "panic=-1",
    "rdinit=/init",
    "net.ifnames=0",
    "random.trust_cpu=on",
    "tsc=reliable",
    # Emulation is slow enough without these.
    "mitigations=off",
    "nokaslr",
    "audit=0",
    "apparmor=0",
    "selinux=0",
)


@dataclass(frozen=True)
class Machine:
    """One guest before it boots. VFs are made on every NIC before the command runs; all NICs are on one wire."""

    vfs: int = 0
    nics: int = 1
    mem_mib: int = 1024
    cpus: int = 2
    iommu: bool = False
    timeout_s: int = 300
    verbose: bool = False
    # A stock kernel does not start under every KVM, so that is the owner's choice.
    accel: str = os.environ.get("VMLAB_ACCEL", "tcg")

    def qemu_command(self, out: Path) -> list[str]:
        """Return qemu's command; ``out`` is the one directory of the host that the guest may write."""
        emulated = self.accel == "tcg"
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"]
        command += ["-display", "none", "-monitor", "none", "-serial", "stdio", "-machine", "q35"]
        command += ["-accel", "tcg,thread=multi" if emulated else self.accel]
        command += ["-cpu", "max,la57=off" if emulated else "host"]
        command += ["-smp", str(self.cpus), "-m", str(self.mem_mib)]
        command += ["-kernel", str(kernel.image()), "-initrd", str(INITRAMFS), "-append", self._boot_options()]
        if self.iommu:
            command += ["-device", "intel-iommu,intremap=on,caching-mode=on"]
        command += _shared("host", Path("/"), ",readonly=on") + _shared("out", out)
        command += ["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"]
        for index in range(self.nics):
            command += _nic(index)
        return command

    def _boot_options(self) -> str:
        options = (*BOOT_OPTIONS, f"loglevel={7 if self.verbose else 1}")
        return " ".join(options + (("intel_iommu=on", "iommu=pt") if self.iommu else ()))


def _shared(tag: str, path: Path, mode: str = "") -> list[str]:
    # qemu takes a comma in a path as two.
    place = str(path).replace(",", ",,")
    return [
        "-fsdev",
        f"local,id={tag},path={place},security_model=none,multidevs=remap{mode}",
        "-device",
        f"virtio-9p-pci,fsdev={tag},mount_tag={tag}",
    ]


def _nic(index: int) -> list[str]:
    """Return an igb behind a port of its own: the first is 0000:01:00.0, the second 0000:02:00.0."""
    return [
        "-netdev",
        f"hubport,id=wire{index},hubid=0",
        "-device",
        f"pcie-root-port,id=port{index},chassis={index + 1},slot={index + 1}",
        "-device",
        f"igb,netdev=wire{index},bus=port{index},mac=52:54:00:00:00:{index + 1:02x},romfile=",
    ]
