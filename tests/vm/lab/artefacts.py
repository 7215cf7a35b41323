"""Where the lab's artefacts lie, what making them takes, and how progress is told; how each is made is not here.

Everything made stands under build/vmlab (or $VMLAB_DIR) and can be deleted at any time. An artefact is written
beside its place and renamed, so one that is there is whole, whatever interrupted whom.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
ROOT = SOURCE.parents[2]
LAB = Path(os.environ.get("VMLAB_DIR") or ROOT / "build" / "vmlab").absolute()
KERNEL = LAB / "kernel"  # an unpacked linux-image package
HEADERS = LAB / "headers"  # the packages of its headers, unpacked only while a module is built
INITRAMFS = LAB / "initramfs.cpio"
STAMP = LAB / "built-from"
RUNS = LAB / "runs"
UNAVAILABLE = LAB / "unavailable"  # why a test run went without the lab; scripts/test.sh ends with it
SCRATCH = "making-"

# Program or file -> the Debian package that has it.
TOOLS = {
    "/bin/busybox": "busybox-static",
    "apt-get": "apt",
    "cpio": "cpio",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "gcc-12": "gcc-12",
    "make": "make",
    "qemu-system-x86_64": "qemu-system-x86 (8.0 or later, of bookworm-backports)",
    "setpriv": "util-linux",
    "strip": "binutils",
    "xz": "xz-utils",
}
QEMU_WITH_IGB = 8  # the NIC with VFs came with 8.0


class LabUnavailable(Exception):
    """The lab cannot be had on this machine; the text says why and what would help."""


def say(text: str) -> None:
    """Tell the person who waits; never on stdout, which is the guest's."""
    print(f"vmlab: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Tell that a long step begins, and how long it took."""
    say(f"{text} ...")
    begin = time.monotonic()
    yield
    say(f"{text}: {time.monotonic() - begin:.0f} s")


@contextlib.contextmanager
def one_builder() -> Iterator[None]:
    """Let one process build at a time; the others find its work done."""
    LAB.mkdir(parents=True, exist_ok=True)
    with open(LAB / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left_behind in LAB.glob(f"{SCRATCH}*"):
            # The tools of a killed builder can still be writing there; then a later one removes it.
            shutil.rmtree(left_behind, ignore_errors=True)
        yield


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Yield a directory beside the artefacts, to rename from; the next builder removes what a killed one left."""
    with tempfile.TemporaryDirectory(dir=LAB, prefix=SCRATCH) as made:
        yield Path(made)


def search_path() -> str:
    """Return PATH with the administrator's directories, which a user's own need not have."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))


def require_tools() -> None:
    """Raise LabUnavailable naming every package that is missing, in one line."""
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool, path=search_path())]
    if not missing and _qemu_major() < QEMU_WITH_IGB:
        missing = [TOOLS["qemu-system-x86_64"]]
    if missing:
        raise LabUnavailable(f"missing {', '.join(missing)}; run scripts/needs.sh vm")


def _qemu_major() -> int:
    words = run_tool("qemu-system-x86_64", "--version").split()
    return int(words[words.index("version") + 1].split(".")[0])


def run_tool(*command: str | Path, cwd: Path | None = None, stdin: bytes | None = None) -> str:
    """Run a program and return what it says; RuntimeError with its last lines when it fails."""
    done = subprocess.run(
        command,
        cwd=cwd,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": search_path()},
        check=False,
    )
    said = done.stdout.decode(errors="replace")
    if done.returncode:
        tail = "\n".join(said.splitlines()[-40:])
        raise RuntimeError(f"{' '.join(map(str, command))} ended with status {done.returncode}:\n{tail}")
    return said
