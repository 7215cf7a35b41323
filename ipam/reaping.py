"""Which leases are stale, by proof only, and giving exactly those back; who testifies is the caller's.

A lease is stale when **all** of this holds, and held at an earlier look at least one interval before:

* it is older than the grace period, which is longer than a runtime takes to make or to abandon a sandbox;
* its pod is gone: a consistent read finds none, one with another UID, or one that has ended;
* one proof says that its sandbox is gone: the word of the node it is on, that this node has left the cluster, or that
  an administrator declared it out of service.

A node that does not answer proves nothing: its pods may run on, cut off from everybody. Nor does the annotation
network-status: it is written after all networks were attached. Where no pod is recorded, or no cluster is there to ask,
the node's own word alone decides.

Nothing is locked and nobody is elected: a lease is given back as it was seen, or not at all, so any number of these may
run at once.

Source: reference 8.4.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

from conf.errors import CniError
from ipam.stores.contract import Deadline, Lease, Store

GRACE_S = 600.0
INTERVAL_S = 30.0

State = Literal["in use", "unknown", "young", "suspected", "seen once", "stale", "reaped", "changed", "failed"]

log = logging.getLogger("vferry.ipam.reaping")


@dataclass(frozen=True)
class Word:
    """What a witness says of one lease: ``gone`` why it no longer is in use, or ``lives`` why it is; else nothing."""

    gone: str = ""
    lives: str = ""


NOTHING_KNOWN = Word()


@dataclass(frozen=True)
class Finding:
    """One lease at one look: what it was found to be, why, and by which proof."""

    lease: Lease
    state: State
    reason: str = ""
    proof: str = ""


class Node(Protocol):
    """The word of the node this runs on; of leases made elsewhere it knows nothing."""

    def sandbox(self, lease: Lease) -> Word:
        """Return whether the lease's sandbox is there."""
        ...

    def earlier_boot(self, lease: Lease) -> Word:
        """Return whether the lease's sandbox was of an earlier boot of this machine."""
        ...

    def held_off(self, lease: Lease) -> AbstractContextManager[None]:
        """Keep ADDs away from the device that the lease's container had.

        Raises: TryAgainLater when one is under way for too long.
        """
        ...


class Cluster(Protocol):
    """What the API server says; read consistently, never from a cache."""

    def pod(self, lease: Lease) -> Word:
        """Return whether the lease's pod is there.

        Raises: StoreUnavailable.
        """
        ...

    def node(self, lease: Lease) -> Word:
        """Return whether the lease's node has certainly no pods any more.

        Raises: StoreUnavailable.
        """
        ...

    def forget(self) -> None:
        """Ask anew from now on."""
        ...

    def tell(self, finding: Finding) -> None:
        """Record a removal where administrators look for it; failing is no failure."""
        ...


@runtime_checkable
class Sweeping(Protocol):
    """A store in which released leases leave something behind that is of no use any more."""

    def sweep(self) -> int:
        """Take it away and return how much it was.

        Raises: StoreUnavailable, TryAgainLater.
        """
        ...


class RenewedDeadline(Deadline):
    """A deadline for each step instead of one for all."""

    def renew(self) -> None:
        """Begin anew."""
        self._end = self._clock() + self.seconds


@dataclass(frozen=True)
class Rules:
    """How long a lease is left alone, and how far apart the two looks are at least."""

    grace_s: float = GRACE_S
    interval_s: float = INTERVAL_S


def judge(  # noqa: PLR0911 - one way out per condition
    lease: Lease, *, pod: Word, sandbox: Word, seen_for_s: float | None, age_s: float, rules: Rules
) -> Finding:
    """Return what a lease is. ``seen_for_s``: since when all but its age has held, None at the first look."""
    if pod.lives:
        return Finding(lease, "in use", pod.lives, sandbox.gone)
    if sandbox.lives:
        return Finding(lease, "suspected" if pod.gone else "in use", f"{pod.gone or 'not asked'}, but {sandbox.lives}")
    if not pod.gone:
        return Finding(lease, "unknown", "nobody here can tell whether its sandbox is there")
    if not sandbox.gone:
        return Finding(lease, "suspected", pod.gone)
    if age_s < rules.grace_s:
        return Finding(lease, "young", pod.gone, sandbox.gone)
    if seen_for_s is None or seen_for_s < rules.interval_s:
        return Finding(lease, "seen once", pod.gone, sandbox.gone)
    return Finding(lease, "stale", pod.gone, sandbox.gone)


def give_back(store: Store, lease: Lease) -> bool:
    """Give back exactly this lease; False when it is gone, or the address was leased anew.

    Where a store keeps all leases of an owner in one record, giving one back changes the revision of the others.
    """
    if store.reap(lease):
        return True
    now = [held for held in store.find(lease.owner) if replace(held, revision=lease.revision) == lease]
    return any(lease.allocated_at and held.revision != lease.revision and store.reap(held) for held in now)


class Reaper:
    """Look after look at one store; what was seen before is remembered from one to the next, not kept anywhere.

    ``open_store`` is called for each look. With ``dry_run`` what is stale is told and nothing is given back.
    """

    def __init__(
        self,
        open_store: Callable[[Deadline], Store],
        node: Node,
        *,
        cluster: Cluster | None = None,
        network_name: str | None = None,
        rules: Rules = Rules(),
        deadline_s: float = 30.0,
        dry_run: bool = False,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_store = open_store
        self._node = node
        self._cluster = cluster
        self._network_name = network_name
        self._rules = rules
        self._deadline_s = deadline_s
        self._dry_run = dry_run
        self._clock = clock
        self._monotonic = monotonic
        self._first_seen: dict[Lease, float] = {}

    def look(self) -> list[Finding]:
        """Judge every lease once and give back those that are stale.

        Raises: StoreUnavailable when the leases cannot be listed; what goes wrong with one lease is its finding.
        """
        deadline = RenewedDeadline(self._deadline_s)
        with self._open_store(deadline) as store:
            leases = list(store.leases(self._network_name))
            if self._cluster is not None:
                self._cluster.forget()
                self._ask_every_pod(leases)
            found = [self._found(lease) for lease in leases]
            self._remember(found)
            judged = [self._reaped(store, deadline, each) if each.state == "stale" else each for each in found]
            if not self._dry_run:
                deadline.renew()
                _sweep(store)
        return judged

    def start_up(self, node_name: str) -> list[Finding]:
        """Give back what sandboxes of an earlier boot of this machine held: that they are gone needs no second look.

        It may be called at any time: what is made since says so itself. Raises: StoreUnavailable.
        """
        found: list[Finding] = []
        deadline = RenewedDeadline(self._deadline_s)
        silence = ""
        with self._open_store(deadline) as store:
            for lease in list(store.leases(self._network_name, node=node_name)):
                word = self._node.earlier_boot(lease)
                if not word.gone:
                    found.append(Finding(lease, "in use" if word.lives else "unknown", word.lives))
                elif silence:
                    # It was waited for once: not again for each of a hundred leases.
                    found.append(Finding(lease, "failed", silence, word.gone))
                else:
                    found.append(self._given_back_at_start(store, deadline, lease))
                    if found[-1].state == "failed" and deadline.remaining_s() < deadline.seconds / 2:
                        silence = found[-1].reason
        return found

    def _given_back_at_start(self, store: Store, deadline: RenewedDeadline, lease: Lease) -> Finding:
        # A runtime that calls its containers the same after each boot may be making this one anew: its ADD writes
        # another record before it is given the same lease.
        try:
            with self._node.held_off(lease):
                word = self._node.earlier_boot(lease)
                if not word.gone:
                    return Finding(lease, "in use" if word.lives else "unknown", word.lives)
                finding = Finding(lease, "stale", "this machine has booted since", word.gone)
                return self._give_back(store, deadline, finding)
        except CniError as error:
            return Finding(lease, "failed", str(error))

    def _ask_every_pod(self, leases: Sequence[Lease]) -> None:
        # What one pod says of its node counts for the leases before it too.
        for lease in leases:
            try:
                self._testimonies(lease)
            except CniError as error:
                log.debug("%s: %s", lease.address, error)

    def _found(self, lease: Lease) -> Finding:
        try:
            pod, sandbox = self._testimonies(lease)
        except CniError as error:
            return Finding(lease, "unknown", str(error))
        first_seen = self._first_seen.get(lease)
        seen_for_s = None if first_seen is None else self._monotonic() - first_seen
        # What upstream made has no time: its age is how long it has been seen stale.
        age_s = self._clock() - lease.allocated_at if lease.allocated_at else seen_for_s or 0.0
        return judge(lease, pod=pod, sandbox=sandbox, seen_for_s=seen_for_s, age_s=age_s, rules=self._rules)

    def _testimonies(self, lease: Lease) -> tuple[Word, Word]:
        """Return what is said of the pod and of the sandbox; of a lease without pod, the node's word is both."""
        own_word = self._node.sandbox(lease)
        if self._cluster is None or not lease.owner.pod_name:
            return own_word, own_word
        pod = self._cluster.pod(lease)
        if not pod.gone or own_word != NOTHING_KNOWN:
            return pod, own_word
        return pod, self._cluster.node(lease)

    def _remember(self, found: Sequence[Finding]) -> None:
        now = self._monotonic()
        self._first_seen = {
            each.lease: self._first_seen.get(each.lease, now)
            for each in found
            if each.state in ("young", "seen once", "stale")
        }

    def _reaped(self, store: Store, deadline: RenewedDeadline, finding: Finding) -> Finding:
        # Judging the others took its time: once more, and from nobody's memory.
        if self._cluster is not None:
            self._cluster.forget()
        again = self._found(finding.lease)
        if again.state != "stale":
            return again
        return self._give_back(store, deadline, again)

    def _give_back(self, store: Store, deadline: RenewedDeadline, finding: Finding) -> Finding:
        lease = finding.lease
        if self._dry_run:
            return finding
        deadline.renew()
        try:
            done = give_back(store, lease)
        except CniError as error:
            log.warning("%s of %s is stale but could not be given back: %s", lease.address, lease.owner, error)
            return Finding(lease, "failed", str(error), finding.proof)
        if not done:
            return Finding(lease, "changed", "it was given back or taken anew meanwhile", finding.proof)
        self._first_seen.pop(lease, None)
        reaped = Finding(lease, "reaped", finding.reason, finding.proof)
        log.info("%s of %s reaped: %s; proof: %s", lease.address, lease.owner, finding.reason, finding.proof)
        if self._cluster is not None:
            self._cluster.tell(reaped)
        return reaped


def _sweep(store: Store) -> None:
    if not isinstance(store, Sweeping):
        return
    try:
        swept = store.sweep()
    except CniError as error:
        # Nothing is held by what is left; the next look goes on.
        log.warning("released leases are not swept away: %s", error)
    else:
        if swept:
            log.info("%d released leases swept away", swept)
