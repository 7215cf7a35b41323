"""What a datastore of leases promises to the plugin that asks it; the stores themselves stand beside this file.

Whatever is killed, delayed, repeated or lost in between, these hold for every store:

1. **Unique.** Within one name space (``Pool.space``) an address has at most one owner. The proof is one atomic step of
   the store (a primary key, a transaction's comparison, "create if absent"), never a lock with a time-out.
2. **Durable.** When ``reserve`` or ``release`` returns, a crash of this process or machine loses nothing of it.
3. **Idempotent.** ``reserve`` again for the same owner and wants returns the same addresses; ``release`` of nothing
   succeeds. A reply that got lost is resolved by reading what the owner holds, never by trying a second address.
4. **All or none.** A ``reserve`` that raises leaves the owner with what it had before. Where the caller is killed in
   the middle, what is left names its owner, and ``release(owner)`` finds it.
5. **No expiry.** A live lease has no time to live: a node cut off from its store keeps its pods and their addresses.
6. **Cool-down.** A released address is not chosen again for ``cooldown_s``; who asks for it by name gets it.
   So does the pod whose interface gave it back, if it comes again under the same name.
7. **Bounded.** Every call ends at the deadline the store was opened with: StoreUnavailable when the store does not
   answer or refuses (a refused credential at once), TryAgainLater when it is only busy.

Besides, a store remembers for a day or so which address a pod's interface gave back (``Owner.pod_key``), and offers it
to ``ipam.choice`` as the preferred one; unless told to by ``sticky``, it asks nobody for that. Nothing is held back.

Which address is tried is decided in ``ipam.choice`` alone, for every store: a store tells what is taken (``Occupancy``)
and attempts what it is offered (``Attempt``).

Source: reference/ipam.md 8.1 to 8.5.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from netaddr import IPAddress, IPNetwork

from conf.errors import TryAgainLater
from ipam.ranges import Range

Allocation = Literal["lowest", "window"]


@dataclass(frozen=True)
class Owner:
    """Who holds an address: one interface of one container; the rest is recorded with the lease, no part of it."""

    container_id: str
    ifname: str
    cni_network: str = field(default="", compare=False)
    pod_namespace: str = field(default="", compare=False)
    pod_name: str = field(default="", compare=False)
    pod_uid: str = field(default="", compare=False)
    node: str = field(default="", compare=False)

    @property
    def pod_key(self) -> str:
        """What stays the same when the pod comes again in another container; empty without a pod."""
        if not self.pod_name:
            return ""
        return hashlib.sha256(f"{self.pod_namespace}/{self.pod_name}/{self.ifname}".encode()).hexdigest()[:16]

    def __str__(self) -> str:
        pod = f" of pod {self.pod_namespace}/{self.pod_name}" if self.pod_name else ""
        return f"container {self.container_id} interface {self.ifname}{pod}"


@dataclass(frozen=True)
class NodeSlice:
    """The ``part`` of the ``whole`` range that upstream's controller has given to a node."""

    node: str
    whole: IPNetwork
    part: IPNetwork


@dataclass(frozen=True)
class Pool:
    """One range of a configuration, and the name space in which its addresses are unique.

    ``network_name`` is the configuration's, empty for the default one. With ``overlap_checked``, all ranges of a
    network_name are one name space, so that overlapping ranges never give one address twice; without, each range is a
    name space of its own. The CNI network's name plays no part.
    """

    network_name: str
    range: Range
    overlap_checked: bool = True
    # Where the range is the slice of a node: which one; upstream's objects are named after it.
    node_slice: NodeSlice | None = None

    @property
    def space(self) -> str:
        """The name space: ``network_name``, or ``network_name/CIDR``."""
        return self.network_name if self.overlap_checked else f"{self.network_name}/{self.range.network}"


@dataclass(frozen=True)
class Want:
    """One address wanted out of a pool: any, or the requested one, which the pool's range offers.

    With ``alternatives``, in their order and ``pool`` among them, an address of any of them will do.
    """

    pool: Pool
    requested: IPAddress | None = None
    alternatives: tuple[Pool, ...] = ()

    @property
    def pools(self) -> tuple[Pool, ...]:
        """Every pool the address may be of."""
        return self.alternatives or (self.pool,)

    def next(self) -> Want | None:
        """Return the want of the alternative behind this one, None when there is none."""
        behind = self.pools[self.pools.index(self.pool) + 1 :]
        return replace(self, pool=behind[0]) if behind else None

    def pool_of(self, lease: Lease) -> Pool | None:
        """Return the pool that a lease is of, None when it does not satisfy this want."""
        if self.requested not in (None, lease.address):
            return None
        found = [pool for pool in self.pools if pool.space == lease.space and lease.address in pool.range.network]
        # Several may be parts of one network; a configuration may have changed its bounds since the lease was made.
        return next((pool for pool in found if pool.range.offers(lease.address)), next(iter(found), None))


@dataclass(frozen=True)
class Lease:
    """One address held by an owner, as the store has it.

    ``revision`` is the store's own mark of this very lease (a row, a UID, a revision): a later lease of the same
    address has another. ``allocated_at`` is in seconds since the epoch.
    """

    owner: Owner
    network_name: str
    space: str
    address: IPAddress
    allocated_at: float
    revision: str


@dataclass(frozen=True)
class Attempt:
    """What became of the candidates a store was offered, by their index.

    ``held``: ours, and stays so. ``taken``: somebody else has it. In neither: untouched, as when one transaction for
    all candidates failed because of another one.
    """

    held: frozenset[int] = frozenset()
    taken: frozenset[int] = frozenset()


Candidates = Mapping[int, IPAddress]


@dataclass(frozen=True)
class Outcome:
    """What became of several sets of candidates, of which a store was to claim the first one that is free.

    ``taken`` are the candidates that somebody else has, by their index.
    """

    held: Candidates
    taken: tuple[tuple[int, IPAddress], ...] = ()


# For so long, at least, is it remembered which address a pod's interface gave back.
REMEMBERED_S = 86400


class Moved(TryAgainLater):
    """The pools are in another datastore now, complete and for good: there it can be tried."""


class Deadline:
    """The moment at which a whole invocation must have ended."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._end = clock() + seconds

    def remaining_s(self) -> float:
        """Return the seconds left, 0 when there are none."""
        return max(self._end - self._clock(), 0.0)

    def require(self, what: str) -> None:
        """Raise TryAgainLater, saying what was not done in time."""
        if self.remaining_s() == 0:
            raise TryAgainLater(
                f"{what} was not done within {self.seconds:g} s",
                hint='other pods keep the store busy; "deadlineSeconds" raises the bound',
            )


class Store(Protocol):
    """One datastore, opened for one invocation with its deadline and cool-down; a context manager that closes it.

    ``pools`` are the configuration's, where it has any. A store with an index by owner ignores them; one without looks
    there first and then everywhere, because a DEL may come without a configuration.
    """

    name: str
    # Several nodes use it: GC then removes only what this node made.
    shared: bool
    # How addresses are chosen where the configuration does not say.
    allocation: Allocation

    def __enter__(self) -> Store: ...

    def __exit__(self, *_: object) -> None: ...

    def reserve(self, owner: Owner, wants: Sequence[Want], *, allocation: Allocation) -> tuple[Lease, ...]:
        """Return one lease per want, in their order: the owner's own where it has them, new ones otherwise.

        Raises: AddressesExhausted; TryAgainLater when a requested address is already allocated.
        Undo: release.
        """
        ...

    def release(self, owner: Owner, *, pools: Sequence[Pool] = ()) -> tuple[Lease, ...]:
        """Give back everything the owner holds, in every name space, and return it; the addresses cool down."""
        ...

    def find(self, owner: Owner, *, pools: Sequence[Pool] = ()) -> tuple[Lease, ...]:
        """Return everything the owner holds, in ascending order of address."""
        ...

    def leases(self, network_name: str | None = None, *, node: str | None = None) -> Iterable[Lease]:
        """Return every lease of one network_name, or of all, and made by one node, or by any.

        Cooling addresses are no leases.
        """
        ...

    def reap(self, lease: Lease) -> bool:
        """Give back exactly this lease; False when it is no longer there, or the address has a later one."""
        ...

    def probe(self) -> None:
        """Check that a reserve could be written, and write nothing.

        Raises: StoreUnavailable.
        """
        ...
