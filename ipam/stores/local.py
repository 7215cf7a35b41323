"""The ``local`` datastore: SQLite under ``dataDir``, for the pods of one host; no other host is asked or told.

The primary key (name space, address) is the proof of uniqueness; a reserve is one BEGIN IMMEDIATE transaction.
``dataDir`` must be on a local disk, never on a network filesystem (see ``ipam.stores.database``).

A row is a lease while ``released_at`` is NULL; afterwards it only cools, and whoever writes next removes it when done.

Source: ``ipam.stores.contract``.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from netaddr import IPAddress

from conf.whereabouts import StoreConf
from ipam.choice import choose, first_available, match
from ipam.stores.contract import (
    REMEMBERED_S,
    Allocation,
    Attempt,
    Candidates,
    Deadline,
    Lease,
    Owner,
    Pool,
    Store,
    Want,
)
from ipam.stores.database import Database
from ipam.stores.local_taken import Taken, address_of, key_of

DATABASE = "leases.sqlite"
SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE lease (
    space         TEXT NOT NULL,
    address       BLOB NOT NULL CHECK (length(address) = 16),
    revision      TEXT NOT NULL,
    network_name  TEXT NOT NULL,
    container_id  TEXT NOT NULL,
    ifname        TEXT NOT NULL,
    cni_network   TEXT NOT NULL,
    pod_namespace TEXT NOT NULL,
    pod_name      TEXT NOT NULL,
    pod_uid       TEXT NOT NULL,
    node          TEXT NOT NULL,
    allocated_at  REAL NOT NULL,
    released_at   REAL,
    cooldown_s    REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (space, address)
);
CREATE INDEX lease_by_owner ON lease (container_id, ifname) WHERE released_at IS NULL;
CREATE INDEX lease_cooling ON lease (released_at) WHERE released_at IS NOT NULL;
"""
_COLUMNS = (
    "space, address, revision, network_name, container_id, ifname, "
    "cni_network, pod_namespace, pod_name, pod_uid, node, allocated_at"
)
# Who asks for a cooling address by name gets it; a live lease is never overwritten.
_CLAIM = f"""
INSERT INTO lease ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (space, address) DO UPDATE SET
    revision = excluded.revision, network_name = excluded.network_name, container_id = excluded.container_id,
    ifname = excluded.ifname, cni_network = excluded.cni_network, pod_namespace = excluded.pod_namespace,
    pod_name = excluded.pod_name, pod_uid = excluded.pod_uid, node = excluded.node,
    allocated_at = excluded.allocated_at, released_at = NULL, cooldown_s = 0
WHERE lease.released_at IS NOT NULL
"""  # noqa: S608 - column names are ours
# What a pod's interface gave back. Not in the schema of version 1: made when it is first wanted.
_FORMER = """
CREATE TABLE IF NOT EXISTS former (
    pod_key     TEXT NOT NULL,
    space       TEXT NOT NULL,
    address     BLOB NOT NULL,
    released_at REAL NOT NULL,
    PRIMARY KEY (pod_key, space, address)
) WITHOUT ROWID
"""
# It may cool, but only of this very pod's having given it back.
_PREFERRED = """
SELECT former.address FROM former LEFT JOIN lease USING (space, address)
WHERE pod_key = ? AND former.space = ? AND (
    lease.address IS NULL
    OR (lease.released_at IS NOT NULL AND (pod_namespace, pod_name, ifname) = (?, ?, ?))
) ORDER BY former.released_at DESC
"""
# Not in the schema of version 1 either.
_FENCE = "CREATE TABLE IF NOT EXISTS fence (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL)"
_RAISE_FENCE = "INSERT INTO fence VALUES (1, 1) ON CONFLICT (one) DO UPDATE SET number = number + 1"


def open_store(conf: StoreConf, deadline: Deadline) -> Store:
    """Return the store a configuration names; nothing is opened or made yet."""
    return LocalStore(conf.data_dir, deadline=deadline, cooldown_s=conf.cooldown_s, sticky=conf.sticky)


class LocalStore:
    """The leases of this host. Reading and releasing make no database where there is none."""

    name = "local"
    shared = False
    allocation: Allocation = "lowest"

    def __init__(
        self,
        data_dir: str | Path,
        *,
        deadline: Deadline,
        cooldown_s: float,
        sticky: bool | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = Database(Path(data_dir) / DATABASE, schema=_SCHEMA, version=SCHEMA_VERSION, deadline=deadline)
        self._deadline = deadline
        self._cooldown_s = cooldown_s
        self._sticky = sticky is not False
        self._clock = clock

    def __enter__(self) -> LocalStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def reserve(self, owner: Owner, wants: Sequence[Want], *, allocation: Allocation) -> tuple[Lease, ...]:
        """Reserve in one transaction; see the contract."""
        self._database.ensure()
        with self._database.transaction() as db:
            now = self._clock()
            # abs: a clock that was set back must not make an address cool for years.
            db.execute("DELETE FROM lease WHERE released_at IS NOT NULL AND abs(? - released_at) >= cooldown_s", (now,))
            if self._sticky:
                db.execute(_FORMER)
            leases = match(wants, self._held(db, owner))
            missing = [index for index in range(len(wants)) if index not in leases]
            claimed = first_available(
                [wants[index] for index in missing],
                lambda missed: self._claim(db, owner, missed, allocation=allocation, now=now),
            )
            leases |= dict(zip(missing, claimed, strict=True))
        return tuple(leases[index] for index in range(len(wants)))

    def _claim(
        self, db: sqlite3.Connection, owner: Owner, wants: Sequence[Want], *, allocation: Allocation, now: float
    ) -> list[Lease]:
        leases: dict[int, Lease] = {}

        def attempt(candidates: Candidates) -> Attempt:
            held = set()
            for at, address in candidates.items():
                lease = _new_lease(owner, wants[at].pool, address, now)
                if db.execute(_CLAIM, _row(lease)).rowcount == 1:
                    leases[at] = lease
                    held.add(at)
            return Attempt(frozenset(held), frozenset(candidates.keys() - held))

        def preferred(pool: Pool) -> list[IPAddress]:
            if not self._sticky or not owner.pod_key:
                return []
            pod = (owner.pod_namespace, owner.pod_name, owner.ifname)
            return [address_of(key) for (key,) in db.execute(_PREFERRED, (owner.pod_key, pool.space, *pod))]

        taken: dict[Pool, Taken] = {}

        def occupancy(pool: Pool) -> Taken:
            if pool not in taken:
                taken[pool] = Taken(db, pool)
            return taken[pool]

        choose(
            wants,
            occupancy=occupancy,
            attempt=attempt,
            allocation=allocation,
            deadline=self._deadline,
            preferred=preferred,
        )
        for each in taken.values():
            each.keep_marks()
        return [leases[at] for at in range(len(wants))]

    def release(self, owner: Owner, *, pools: Sequence[Pool] = ()) -> tuple[Lease, ...]:
        """Release in one transaction; see the contract."""
        if not self._database.exists():
            return ()
        with self._database.transaction() as db:
            leases = self._held(db, owner)
            for lease in leases:
                self._cool(db, lease)
            if not leases:
                # An ADD that was killed within its commit may have left it in the log, unseen until every process has
                # closed the file or died; only what is written now takes its place there.
                db.execute(_FENCE)
                db.execute(_RAISE_FENCE)
        return leases

    def _remember(self, db: sqlite3.Connection, lease: Lease) -> None:
        now = self._clock()
        db.execute(_FORMER)
        db.execute("DELETE FROM former WHERE abs(? - released_at) >= ?", (now, REMEMBERED_S))
        row = (lease.owner.pod_key, lease.space, key_of(lease.address), now)
        db.execute("INSERT OR REPLACE INTO former VALUES (?, ?, ?, ?)", row)

    def find(self, owner: Owner, *, pools: Sequence[Pool] = ()) -> tuple[Lease, ...]:
        """Return what the owner holds; see the contract."""
        if not self._database.exists():
            return ()
        with self._database.reading() as db:
            return self._held(db, owner)

    def leases(self, network_name: str | None = None, *, node: str | None = None) -> tuple[Lease, ...]:
        """Return every lease, or those asked for; see the contract."""
        if not self._database.exists():
            return ()
        with self._database.reading() as db:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM lease WHERE released_at IS NULL AND (? IS NULL OR network_name = ?) "  # noqa: S608
                "AND (? IS NULL OR node = ?) ORDER BY space, address",
                (network_name, network_name, node, node),
            )
            return tuple(map(_lease, rows))

    def reap(self, lease: Lease) -> bool:
        """Give back exactly this lease; see the contract."""
        if not self._database.exists():
            return False
        with self._database.transaction() as db:
            return self._cool(db, lease)

    def probe(self) -> None:
        """Check that a reserve could be written; see the contract."""
        self._database.require_writable()

    def _held(self, db: sqlite3.Connection, owner: Owner) -> tuple[Lease, ...]:
        rows = db.execute(
            f"SELECT {_COLUMNS} FROM lease WHERE container_id = ? AND ifname = ? AND released_at IS NULL "  # noqa: S608
            "ORDER BY space, address",
            (owner.container_id, owner.ifname),
        )
        return tuple(map(_lease, rows))

    def _cool(self, db: sqlite3.Connection, lease: Lease) -> bool:
        if not self._let_go(db, lease):
            return False
        if self._sticky and lease.owner.pod_key:
            self._remember(db, lease)
        return True

    def _let_go(self, db: sqlite3.Connection, lease: Lease) -> bool:
        row = (lease.space, key_of(lease.address), lease.revision)
        this_lease = "WHERE space = ? AND address = ? AND revision = ? AND released_at IS NULL"
        if self._cooldown_s == 0:
            return db.execute(f"DELETE FROM lease {this_lease}", row).rowcount == 1  # noqa: S608
        cool = f"UPDATE lease SET released_at = ?, cooldown_s = ? {this_lease}"  # noqa: S608
        return db.execute(cool, (self._clock(), self._cooldown_s, *row)).rowcount == 1


def _new_lease(owner: Owner, pool: Pool, address: IPAddress, now: float) -> Lease:
    return Lease(owner, pool.network_name, pool.space, address, now, secrets.token_hex(8))


def _row(lease: Lease) -> tuple[object, ...]:
    owner = lease.owner
    return (
        lease.space,
        key_of(lease.address),
        lease.revision,
        lease.network_name,
        owner.container_id,
        owner.ifname,
        owner.cni_network,
        owner.pod_namespace,
        owner.pod_name,
        owner.pod_uid,
        owner.node,
        lease.allocated_at,
    )


def _lease(row: Sequence[object]) -> Lease:
    space, key, revision, network_name, *owner, allocated_at = row
    return Lease(Owner(*owner), network_name, space, address_of(key), allocated_at, revision)  # type: ignore[arg-type]
