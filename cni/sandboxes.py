"""This node's word on leases made here: whether their sandboxes are there, by our records and libcni's cached results.

Absence of a record proves nothing: a foreign interface plugin writes none of ours. What is told rests on a record that
names the sandbox, and on the sandbox not being where it was.

Source: reference 8.4; design section 4 ("a reboot is a normal event").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from cni.attachments import Attachments
from cni.cli.results import Results
from cni.interface import lock_name
from cni.linux import netns
from cni.locks import device_lock
from conf.attachment import Attachment, SandboxRecord
from conf.errors import CniError
from ipam.reaping import NOTHING_KNOWN, Word
from ipam.stores.contract import Lease


class Sandboxes:
    """The sandboxes of this node. ``name`` is the node's, as its ADDs record it."""

    def __init__(
        self,
        name: str,
        *,
        attachments: Attachments | None = None,
        results: Results | None = None,
        boot_id: Callable[[], str] = netns.boot_id,
        has_vanished: Callable[[str], bool] = netns.has_vanished,
        is_inhabited: Callable[[int, int], bool] = netns.is_inhabited,
        lock: Callable[[str], AbstractContextManager[None]] = device_lock,
    ) -> None:
        self.name = name
        self._attachments = attachments or Attachments()
        self._results = results or Results()
        self._boot_id = boot_id
        self._has_vanished = has_vanished
        self._is_inhabited = is_inhabited
        self._lock = lock

    def sandbox(self, lease: Lease) -> Word:
        """Return whether the lease's sandbox is there; see ``ipam.reaping``.

        All interfaces of a container have one: any of them tells of a lease that does not say of which it is.
        """
        if lease.owner.node not in ("", self.name):
            return NOTHING_KNOWN
        try:
            records = [each.sandbox for each in self._recorded(lease)]
            cached = self._results.of_owner(lease.owner.container_id, lease.owner.ifname)
        except (CniError, OSError) as error:
            return Word(lives=f"its record cannot be read: {error}")
        earlier = self._of_earlier_boot(records)
        if earlier.gone:
            return earlier
        paths = sorted({each.path for each in records} | {each.netns for each in cached})
        if not paths or "" in paths:
            return NOTHING_KNOWN
        there = [f"netns {path} is there, or cannot be looked at" for path in paths if not self._has_vanished(path)]
        there += [
            f"a process is still in what was netns {each.path}"
            for each in records
            if each.inode and not there and self._is_inhabited(each.inode, each.device)
        ]
        if there:
            return Word(lives=", ".join(there))
        return Word(gone=f"netns {', '.join(paths)} on node {self.name} is gone")

    def earlier_boot(self, lease: Lease) -> Word:
        """Return whether the lease's sandbox was of an earlier boot; see ``ipam.reaping``."""
        if lease.owner.node not in ("", self.name):
            return NOTHING_KNOWN
        try:
            return self._of_earlier_boot([each.sandbox for each in self._recorded(lease)])
        except (CniError, OSError) as error:
            return Word(lives=f"its record cannot be read: {error}")

    @contextmanager
    def held_off(self, lease: Lease) -> Iterator[None]:
        """Keep ADDs away from the device on record; see ``ipam.reaping``. Raises: TryAgainLater, IoFailure."""
        names = {lock_name(each.device_id, each.link) for each in self._recorded(lease)}
        with ExitStack() as locks:
            for name in sorted(names - {""}):
                locks.enter_context(self._lock(name))
            yield

    def _of_earlier_boot(self, records: list[SandboxRecord]) -> Word:
        boots = {each.boot_id for each in records}
        current = self._boot_id()
        if not boots or "" in boots:
            return NOTHING_KNOWN
        if current in boots:
            return Word(lives="its sandbox was made since this machine booted")
        return Word(gone=f"its sandbox is of boot {', '.join(sorted(boots))}, node {self.name} now runs {current}")

    def _recorded(self, lease: Lease) -> list[Attachment]:
        owner = lease.owner
        if not owner.ifname:
            return [each for each in self._attachments.every() if each.container_id == owner.container_id]
        folders = sorted(self._attachments.root.glob("*"))
        found = [self._attachments.load(folder.name, owner.container_id, owner.ifname) for folder in folders]
        return [record for record in found if record is not None]
