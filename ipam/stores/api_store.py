"""What the two Kubernetes stores have in common: how the API server is opened, whose turn it is on this node.

What is kept there, and how an address is claimed, is each store's own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

from conf.errors import CniError
from conf.whereabouts import StoreConf
from ipam.stores.contract import Deadline, Owner
from ipam.stores.journal import DIRECTORY as JOURNALS
from ipam.stores.journal import Journal, Journals
from ipam.stores.kubeconfig import NotConfigured, find_access
from ipam.stores.kubernetes_api import KubernetesApi
from ipam.stores.scratch import DIRECTORY as SCRATCH
from ipam.stores.scratch import Scratch

This = TypeVar("This", bound="ApiStore")

log = logging.getLogger("vferry.ipam.kubernetes")


class ApiStore:
    """One store on an API server; a context manager that closes the connection."""

    name: str
    shared = True

    def __init__(
        self,
        open_api: Callable[[], KubernetesApi],
        *,
        deadline: Deadline,
        cooldown_s: float,
        sticky: bool | None = None,
        clock: Callable[[], float] = time.time,
        scratch: Path = SCRATCH,
        journals: Path = JOURNALS,
    ) -> None:
        self._open_api = open_api
        self._opened: KubernetesApi | None = None
        self._deadline = deadline
        self._cooldown_s = cooldown_s
        self._sticky = sticky
        self._clock = clock
        self._scratch = Scratch(scratch)
        self._journals = Journals(journals, self.name)

    @classmethod
    def of(cls: type[This], conf: StoreConf, deadline: Deadline, *, crds: str, rbac: str) -> This:
        """Return the store a configuration names; nothing is read or connected yet."""
        return cls(
            lambda: KubernetesApi(find_access(conf.kubernetes.kubeconfig), deadline=deadline, crds=crds, rbac=rbac),
            deadline=deadline,
            cooldown_s=conf.cooldown_s,
            sticky=conf.sticky,
        )

    def __enter__(self: This) -> This:
        return self

    def __exit__(self, *_: object) -> None:
        if self._opened is not None:
            self._opened.close()

    @property
    def api(self) -> KubernetesApi:
        """The server; how it is reached is read when it is first wanted.

        Raises: NotConfigured, StoreUnavailable.
        """
        if self._opened is None:
            self._opened = self._open_api()
        return self._opened

    def _may_hold(self, owner: Owner) -> bool:
        """Whether any access is configured: without one no ADD can have succeeded, and a DEL must not fail."""
        try:
            log.debug("releasing what %s holds at %s", owner, self.api)
        except NotConfigured as error:
            log.warning("nothing can have been leased to %s: %s", owner, error)
            return False
        return True

    @contextmanager
    def _reserving(self, owner: Owner) -> Iterator[Journal]:
        """Hold the owner's journal while it reserves; without any request sent its DEL has nothing to give back."""
        with self._lock(owner, makes=True) as journal:
            is_first = journal.begin()
            try:
                yield journal
            except CniError:
                if is_first and (self._opened is None or not self._opened.calls):
                    journal.unsend()
                raise

    def _has_sent(self, owner: Owner, journal: Journal) -> bool:
        """Whether any ADD may have; the journal stays as it is, for a runtime calls DEL more than once."""
        if journal.is_unsent:
            log.warning("nothing can have been leased to %s: no ADD of it reached the API server", owner)
            self._journals.tidy()
        return not journal.is_unsent

    def _lock(self, owner: Owner, *, makes: bool) -> AbstractContextManager[Journal]:
        return self._journals.of(owner, self._deadline, makes=makes)
