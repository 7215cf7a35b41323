"""The guest's kernel: Debian's newest image, unpacked and never installed, and our RDMA module.

Which modules start before the root is mounted is not decided here but in initramfs.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from tests.vm.lab.artefacts import HEADERS, KERNEL, SOURCE, STAMP, LabUnavailable, run_tool, scratch, step

VFRDMA = SOURCE / "vfrdma"


def release() -> str:
    """Return the release of the unpacked kernel, as uname -r says it in the guest."""
    return max(path.name for path in (KERNEL / "lib/modules").iterdir())


def image() -> Path:
    return KERNEL / "boot" / f"vmlinuz-{release()}"


def modules() -> Path:
    return KERNEL / "lib/modules"


def depends(name: str) -> list[Path]:
    """Return the module files that loading a module takes, in the order of loading."""
    said = run_tool("modprobe", "-d", KERNEL, "-S", release(), "--show-depends", name)
    return [Path(path) for path in re.findall(r"^insmod (.+\.ko\S*)", said, re.MULTILINE)]


def fetch() -> None:
    """Download image and headers where they are not there yet; LabUnavailable when apt can't give them."""
    if KERNEL.is_dir() and HEADERS.is_dir():
        return
    STAMP.unlink(missing_ok=True)
    shutil.rmtree(KERNEL, ignore_errors=True)  # the headers must be those of the image
    shutil.rmtree(HEADERS, ignore_errors=True)
    name = _newest_image() or (_update() and _newest_image())
    if not name:
        raise LabUnavailable("apt offers no kernel image; run apt-get update as root")
    rel = name.removeprefix("linux-image-")
    version = rel.removesuffix("-amd64")
    with scratch() as made:
        debs, unpacked = made / "debs", made / "kernel"
        with step(f"download {name} and its headers (about 120 MB)"):
            _download(debs, name, f"linux-headers-{rel}", f"linux-headers-{version}-common", f"linux-kbuild-{version}")
        with step("unpack the image"):
            (deb,) = debs.glob(f"{name}_*.deb")
            run_tool("dpkg-deb", "-x", deb, unpacked)
            deb.unlink()
        debs.rename(HEADERS)
        unpacked.rename(KERNEL)


def _newest_image() -> str:
    """Return the name of the newest plain image, "" when apt knows none; igb is in every one since 3.x."""
    said = run_tool("apt-cache", "search", "--names-only", r"^linux-image-[0-9].*-amd64$")
    names = [line.split()[0] for line in said.splitlines()]
    plain = [name for name in names if not re.search(r"-(rt|cloud)-amd64$", name)]
    return max(plain, key=lambda name: [int(number) for number in re.findall(r"[0-9]+", name)], default="")


def _update() -> bool:
    """Fetch apt's lists when we may; machine images come without them."""
    if os.geteuid() != 0:
        return False
    with step("apt-get update"):
        run_tool("apt-get", "-o", "DPkg::Lock::Timeout=300", "-qq", "update")
    return True


def _download(debs: Path, *packages: str) -> None:
    debs.mkdir()
    # As root apt would drop to a user of its own, who cannot write here.
    command = ("apt-get", "-o", "APT::Sandbox::User=root", "-qq", "download", *packages)
    try:
        run_tool(*command, cwd=debs)
    except RuntimeError as first:
        try:
            # Lists older than the archive name files that are gone.
            if not _update():
                raise LabUnavailable(f"cannot download the kernel: {first}") from first
            run_tool(*command, cwd=debs)
        except RuntimeError as second:
            raise LabUnavailable(f"cannot download the kernel: {second}") from second


def build_vfrdma() -> None:
    """Build the RDMA module and put it, with depmod's tables, among the guest's modules."""
    # Not beside the artefacts: kbuild can't stand a space in a path, and a clone may have one.
    with step("build the vfrdma module"), tempfile.TemporaryDirectory(prefix="vmlab-") as made:
        for deb in HEADERS.iterdir():
            run_tool("dpkg-deb", "-x", deb, made)
        src = Path(made, "usr/src")
        headers = src / f"linux-headers-{release()}"
        makefile = headers / "Makefile"  # its one absolute path is that of an installed package
        makefile.write_text(makefile.read_text().replace("include /usr/src/", f"include {src}/"))
        tree = shutil.copytree(VFRDMA, Path(made, "vfrdma"))
        # BTF would take the kernel's debug image, and pahole.
        without_btf = ("CONFIG_DEBUG_INFO_BTF_MODULES=", "CONFIG_DEBUG_INFO_BTF=")
        run_tool("make", "-C", headers, f"M={tree}", *without_btf, "modules")
        run_tool("strip", "--strip-debug", tree / "vfrdma.ko")
        _put(tree / "vfrdma.ko", modules() / release() / "updates")  # depmod prefers this folder
    run_tool("depmod", "-b", KERNEL, release())


def _put(file: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with scratch() as made:
        Path(shutil.copy(file, made)).rename(folder / file.name)
