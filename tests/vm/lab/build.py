"""Building the lab as a whole: what has to be made again, and in which order; how is in kernel and initramfs."""

from __future__ import annotations

import hashlib

from tests.vm.lab import initramfs, kernel
from tests.vm.lab.artefacts import INITRAMFS, STAMP, one_builder, require_tools, say


def ensure_built() -> None:
    """Make what is missing or older than its source; a second call returns at once.

    Raises LabUnavailable when this machine can't have the lab, RuntimeError when a tool fails.
    """
    require_tools()
    with one_builder():
        kernel.fetch()
        sources = _sources()
        if INITRAMFS.exists() and STAMP.exists() and STAMP.read_text() == sources:
            return
        STAMP.unlink(missing_ok=True)
        kernel.build_vfrdma()
        initramfs.build()
        STAMP.write_text(sources)
        say(f"built, kernel {kernel.release()}")


def _sources() -> str:
    """Return what the artefacts depend on, in one word."""
    digest = hashlib.sha256(kernel.release().encode())
    for path in (*sorted(kernel.VFRDMA.iterdir()), *initramfs.SCRIPTS):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
