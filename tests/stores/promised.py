"""Who was promised which address, of all processes that were promised any: nothing else knows what callers rely on."""

from __future__ import annotations

import contextlib
import os


class Promised:
    """A file an address, which says whose it is, from its promise until its DEL begins."""

    def __init__(self, folder):
        self._folder = folder
        self._doubled = folder / "doubled"
        self._doubled.mkdir(parents=True)

    def promise(self, name, leases):
        for lease in leases:
            address = str(lease.address)
            try:
                os.symlink(name, self._folder / address)
            except FileExistsError:
                if os.readlink(self._folder / address) != name:
                    (self._doubled / f"{address} {name}").touch()

    def forget(self, name):
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):  # the folder, or another one's that has just gone
                if os.readlink(path) == name:
                    path.unlink()

    def of(self, name):
        """Return the addresses that one relies on."""
        return {address for address, holder in self.all() if holder == name}

    def all(self):
        """Return every address and whose it is."""
        return {(path.name, os.readlink(path)) for path in self._folder.iterdir() if path.is_symlink()}

    def doubled(self):
        return [path.name for path in self._doubled.iterdir()]
