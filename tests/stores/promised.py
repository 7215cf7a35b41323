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
                if self._holder(self._folder / address) != name:
                    (self._doubled / f"{address} {name}").touch()

    def forget(self, name):
        for path in self._folder.iterdir():
            if self._holder(path) == name:
                path.unlink()

    def of(self, name):
        """Return the addresses that one relies on."""
        return {address for address, holder in self.all() if holder == name}

    def all(self):
        """Return every address and whose it is."""
        found = {(path.name, self._holder(path)) for path in self._folder.iterdir()}
        return {(address, holder) for address, holder in found if holder}

    def _holder(self, path):
        with contextlib.suppress(OSError):  # the folder within, or another one's that has just gone
            return os.readlink(path)
        return ""

    def doubled(self):
        return [path.name for path in self._doubled.iterdir()]
