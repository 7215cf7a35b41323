"""The first root of the guest: busybox, the modules that mount the host's files, and the two scripts of guest/.

All later modules are loaded with modprobe from the kernel package, not from here.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.vm.lab import kernel
from tests.vm.lab.artefacts import INITRAMFS, SOURCE, run_tool, scratch

EARLY_MODULES = ("9pnet_virtio", "9p", "overlay")
SCRIPTS = (SOURCE / "guest" / "init", SOURCE / "guest" / "job")
UNPACKERS = {".xz": "xz", ".zst": "zstd", ".gz": "gzip"}


def build() -> None:
    """Write the archive that qemu hands to the kernel. Source: Documentation/driver-api/early-userspace."""
    with scratch() as made:
        tree = made / "tree"
        for folder in ("bin", "modules", "dev", "proc", "sys"):
            (tree / folder).mkdir(parents=True)
        shutil.copy("/bin/busybox", tree / "bin")
        for script in SCRIPTS:
            shutil.copy(script, tree)
            (tree / script.name).chmod(0o755)
        _copy_modules(tree / "modules")
        names = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
        archive = made / INITRAMFS.name
        command = ("cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0", "-F", archive)
        run_tool(*command, cwd=tree, stdin="\n".join(names).encode())
        archive.rename(INITRAMFS)


def _copy_modules(into: Path) -> None:
    order: dict[str, None] = {}
    for packed in (path for name in EARLY_MODULES for path in kernel.depends(name)):
        # busybox's insmod reads plain files only.
        copy = Path(shutil.copy(packed, into))
        if packed.suffix in UNPACKERS:
            run_tool(UNPACKERS[packed.suffix], "-d", "-f", copy)
            copy = copy.with_suffix("")
        order[copy.name] = None
    (into / "order").write_text("".join(f"{name}\n" for name in order))
