"""The ``etcd`` datastore: the leases of a cluster in etcd v3; one transaction is the proof of uniqueness.

There is no lock and no time to live on a lease. Each transaction compares the revision of the owner's record with the
one it was made for, so a request that is repeated, delayed or replayed after its caller has died changes nothing twice.
What lies where is etcd_keys', how an address is claimed etcd_claim's, how etcd is reached the gateway's.

Source: reference 8.2; ``ipam.stores.contract``.
"""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from conf.errors import InvalidNetworkConfig, StoreUnavailable
from conf.etcd import Etcd
from conf.whereabouts import StoreConf
from ipam.choice import first_available
from ipam.stores import etcd_full
from ipam.stores.contract import REMEMBERED_S, Allocation, Deadline, Lease, Owner, Pool, Store, Want
from ipam.stores.etcd_claim import Claim
from ipam.stores.etcd_cluster import Cluster
from ipam.stores.etcd_keys import (
    Keys,
    Record,
    cooling_value,
    former_value,
    in_order,
    lease_value,
    read_lease,
    read_record,
    record_value,
)
from ipam.stores.etcd_requests import (
    Json,
    beyond_prefix,
    decoded,
    delete,
    get,
    impossible,
    kvs,
    nested,
    page,
    put,
    transaction,
    unchanged,
)
from ipam.stores.etcd_view import Views
from ipam.stores.gateway import NOT_FOUND, Endpoint, Gateway, Login, Refused, ReplyLost
from ipam.stores.scratch import DIRECTORY, Scratch

# How long a released owner's empty record stays where nothing cools: longer than a request can be on its way.
FENCE_S = 60
_PAGE = 1000
_RECORDS = 100


def open_store(conf: StoreConf, deadline: Deadline) -> Store:
    """Return the store a configuration names; nothing is connected yet.

    Raises: InvalidNetworkConfig without endpoints.
    """
    if not conf.etcd.endpoints:
        raise InvalidNetworkConfig(
            'ipam: datastore "etcd" has no endpoints',
            hint='set "etcd": {"endpoints": ["https://192.0.2.1:2379"]} in the ipam object',
        )
    return EtcdStore(conf.etcd, deadline=deadline, cooldown_s=conf.cooldown_s, sticky=conf.sticky)


class EtcdStore:
    """The leases of a cluster; ``gateway`` counts what it cost."""

    name = "etcd"
    shared = True
    allocation: Allocation = "window"

    def __init__(
        self,
        conf: Etcd,
        *,
        deadline: Deadline,
        cooldown_s: float,
        sticky: bool | None = None,
        clock: Callable[[], float] = time.time,
        scratch: Path = DIRECTORY,
        try_s: float = 5.0,
    ) -> None:
        self._scratch = Scratch(scratch)
        self._deadline = deadline
        self._cooldown_s = cooldown_s
        self._sticky = sticky is not False
        self._clock = clock
        self._about_memory = f"memory in {' '.join(sorted(conf.endpoints))} {conf.prefix}"
        self._name = f"etcd {' '.join(sorted(conf.endpoints))} {conf.prefix}"
        self.gateway = Gateway(
            [Endpoint(*address) for address in conf.addresses],
            deadline=deadline,
            tls=lambda: _tls(conf),
            login=self._login(conf) if conf.username else None,
            try_s=try_s,
        )
        self._keys = Keys(conf.prefix)
        self._cluster = Cluster(self.gateway, self._keys)

    def __enter__(self) -> EtcdStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.gateway.close()

    def reserve(self, owner: Owner, wants: Sequence[Want], *, allocation: Allocation) -> tuple[Lease, ...]:
        """Reserve in one transaction; see the contract."""
        views = Views(
            self._scratch,
            keys=self._keys,
            ask=self._cluster.ask,
            cluster=self._name,
            clock=self._clock,
            allocation=allocation,
        )
        claim = Claim(
            self._cluster,
            owner,
            allocation=allocation,
            deadline=self._deadline,
            views=views,
            clock=self._clock,
            sticky=self._sticky,
        )
        return first_available(wants, claim.run)

    def release(self, owner: Owner, *, pools: Sequence[Pool] = ()) -> tuple[Lease, ...]:
        """Release in one transaction; see the contract.

        Where nothing is held, an empty record is written all the same: the ADD it may have lost to can still arrive,
        made for the record that is there now.
        """
        released: tuple[Lease, ...] = ()
        record = self._cluster.record(owner)
        while True:
            self._deadline.require(f"releasing the addresses of {owner}")
            after = self._give_back(owner, record, record.leases)
            released = record.leases or released
            if after is None or (not after.leases and after.revision not in (0, record.revision)):
                return released
            record = after

    def find(self, owner: Owner, *, pools: Sequence[Pool] = ()) -> tuple[Lease, ...]:
        """Return what the owner holds; see the contract. An address whose own key is gone is held no more."""
        record = self._cluster.record(owner)
        if not record.leases:
            return ()
        answers = self._cluster.ask([get(self._keys.lease("ip", lease)) for lease in record.leases])
        held = [
            lease
            for lease, answer in zip(record.leases, answers, strict=True)
            if any(int(kv["mod_revision"]) == record.revision for kv in kvs(answer))
        ]
        return in_order(held)

    def leases(self, network_name: str | None = None, *, node: str | None = None) -> Iterator[Lease]:
        """Yield page by page; see the contract."""
        if node is None:
            yield from map(read_lease, self._all(self._keys.networks_leases(network_name), keys_only=False))
            return
        index = [decoded(kv["key"]) for kv in self._all(self._keys.nodes_owners(node), keys_only=True)]
        for at in range(0, len(index), _RECORDS):
            requests = [get(self._keys.owner_in_index(key)) for key in index[at : at + _RECORDS]]
            for response in self._cluster.ask(requests):
                leases = read_record(kvs(response)).leases
                yield from (lease for lease in leases if network_name in (None, lease.network_name))

    def reap(self, lease: Lease) -> bool:
        """Give back exactly this lease; see the contract."""
        sent = False
        while True:
            self._deadline.require(f"giving back {lease.address}")
            record = self._cluster.record(lease.owner)
            this = [held for held in record.leases if held == lease]
            if not this:
                # Gone, or written anew since: by our own request when its reply was lost.
                return sent and not any(_same_address(held, lease) for held in record.leases)
            sent = True
            if self._give_back(lease.owner, record, this) is None:
                return True

    def probe(self) -> None:
        """Check that a reserve could be written: a transaction with a change that is never made; see the contract."""
        key = self._keys.never()
        # etcd checks permission, space and a leader for it as for any other change.
        self.gateway.read("/v3/kv/txn", transaction([impossible(key)], [put(key, "")]), patient=False)

    def _give_back(self, owner: Owner, record: Record, leases: Sequence[Lease]) -> Record | None:
        """Take leases out of a record; None when done, else the record as it is meanwhile."""
        ttl_s = math.ceil(self._cooldown_s)
        expires = self._expiry(ttl_s or FENCE_S)
        own = self._keys.own(owner)
        kept = [lease for lease in record.leases if lease not in leases]
        changes = [put(own, record_value(owner, kept), expires_with="0" if kept else expires)]
        changes += [put(self._keys.lease("ip", lease), lease_value(lease)) for lease in kept]
        if not kept:
            # Who gives back may not know on which node it was made; the record does.
            changes += [delete(self._keys.node(lease.owner)) for lease in leases[:1]]
        remembers = bool(self._sticky and leases and leases[0].owner.pod_key)
        if remembers:
            changes.append(
                put(self._keys.former(leases[0].owner), former_value(leases), expires_with=self._memory_lease())
            )
        cooling = cooling_value(self._clock(), self._cooldown_s)
        for lease in leases:
            ip = self._keys.lease("ip", lease)
            cool = [put(self._keys.lease("cool", lease), cooling, expires_with=expires)] if ttl_s else []
            # Somebody's repair by hand may have given the address to another one.
            changes.append(nested([unchanged(ip, record.revision)], [delete(ip), *cool]))
        changes += etcd_full.released(self._keys, leases)
        try:
            reply = self._cluster.change(transaction([unchanged(own, record.revision)], changes, [get(own)]))
        except ReplyLost:
            return self._cluster.record(owner)
        except Refused as refused:
            if refused.code != NOT_FOUND:
                raise
            self._scratch.keep(self._about_memory, {})
            return record  # an etcd lease expired before it was used
        return None if reply.get("succeeded", False) else read_record(kvs(reply["responses"][0]))

    def _expiry(self, ttl_s: int) -> str:
        # One that is never used, because a reply was lost, goes away by itself.
        return str(self.gateway.read("/v3/lease/grant", {"TTL": str(ttl_s)})["ID"])

    def _memory_lease(self) -> str:
        """Return the etcd lease of what is remembered today; one serves every DEL of this node."""
        kept, now = self._scratch.read(self._about_memory), self._clock()
        if isinstance(kept.get("at"), int | float) and abs(now - kept["at"]) < REMEMBERED_S:
            return str(kept["lease"])
        lease = self._expiry(2 * REMEMBERED_S)
        self._scratch.keep(self._about_memory, {"lease": lease, "at": now})
        return lease

    def _all(self, prefix: str, *, keys_only: bool) -> Iterator[Json]:
        first, beyond = prefix, beyond_prefix(prefix)
        while True:
            reply = self.gateway.read("/v3/kv/range", page(first, beyond, limit=_PAGE, keys_only=keys_only))
            found = kvs(reply)
            yield from found
            if not reply.get("more", False) or not found:
                return
            first = decoded(found[-1]["key"]) + "\0"

    def _login(self, conf: Etcd) -> Login:
        about = f"token of {conf.username} at {self._name}"
        return Login(
            conf.username,
            password=lambda: _password(conf),
            kept=lambda: str(self._scratch.read(about).get("token", "")),
            keep=lambda token: self._scratch.keep(about, {"token": token}),
        )


def _same_address(one: Lease, other: Lease) -> bool:
    return (one.space, one.address) == (other.space, other.address)


def _password(conf: Etcd) -> str:
    try:
        return Path(conf.password_file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreUnavailable(
            f'etcd "password_file" {conf.password_file} cannot be read',
            details=getattr(error, "strerror", None) or type(error).__name__,
            hint="make it readable for root",
        ) from error


def _tls(conf: Etcd) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=conf.ca_cert_file or None)
        if conf.cert_file:
            # Without a word of its own an encrypted key would be asked for at the terminal.
            context.load_cert_chain(conf.cert_file, conf.key_file, password="")
    except (OSError, ValueError) as error:
        raise StoreUnavailable(
            "the certificates of etcd cannot be loaded",
            details=f"{conf.ca_cert_file} {conf.cert_file} {conf.key_file}: {getattr(error, 'strerror', '') or error}",
            hint='check "ca_cert_file", "cert_file" and "key_file" of "etcd"; all are PEM, the key without a password',
        ) from error
    return context
