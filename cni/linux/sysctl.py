"""Kernel settings under /proc/sys, by path components, so that an ifname with a dot is one component.

``/proc/sys/net`` shows the network namespace of whoever looks: callers are inside ``Netns.entered()``.

Source: Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from conf.errors import KernelRefused


class Sysctl:
    """The tree of kernel settings; ``root`` is another place in tests."""

    def __init__(self, root: str = "/proc/sys") -> None:
        self._root = Path(root)

    def read(self, path: tuple[str, ...]) -> str:
        """Return one setting, as ``read(("net", "ipv4", "conf", "net1", "arp_notify"))``.

        Raises: KernelRefused, ENOENT when this kernel has no such setting.
        """
        try:
            return self._file(path, "reading").read_text(encoding="ascii").strip()
        except OSError as error:
            raise KernelRefused("reading sysctl", _name(path), error.errno or errno.EIO) from error

    def write(self, path: tuple[str, ...], value: str | int) -> None:
        """Set one setting. Raises: KernelRefused, ENOENT as above, EROFS in most containers."""
        try:
            # Not Path.write_text: no O_CREAT, or a misspelt name would be EACCES instead of ENOENT.
            setting = os.open(self._file(path, "writing"), os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(setting, f"{value}\n".encode())
            finally:
                os.close(setting)
        except OSError as error:
            raise KernelRefused(f"setting sysctl to {value}", _name(path), error.errno or errno.EIO) from error

    def _file(self, path: tuple[str, ...], operation: str) -> Path:
        if not path or any(part in {"", ".", ".."} or "/" in part or "\0" in part for part in path):
            raise KernelRefused(f"{operation} sysctl", _name(path), errno.EINVAL)
        return self._root.joinpath(*path)


def _name(path: tuple[str, ...]) -> str:
    return "/".join(path)
