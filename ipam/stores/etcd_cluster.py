"""One etcd with the keys of one prefix in it: the calls that all verbs share."""

from __future__ import annotations

from collections.abc import Sequence

from ipam.stores.contract import Owner
from ipam.stores.etcd_keys import Keys, Record, read_record
from ipam.stores.etcd_requests import Json, get, kvs, transaction
from ipam.stores.gateway import Gateway


class Cluster:
    """One etcd and one prefix in it, with the few calls that several verbs share."""

    def __init__(self, gateway: Gateway, keys: Keys) -> None:
        self.gateway = gateway
        self.keys = keys

    def record(self, owner: Owner) -> Record:
        """Read what an owner holds."""
        reply = self.gateway.read("/v3/kv/range", get(self.keys.own(owner))["request_range"])
        return read_record(kvs(reply))

    def ask(self, requests: Sequence[Json]) -> list[Json]:
        """Read several things as of one moment."""
        return list(self.gateway.read("/v3/kv/txn", transaction((), requests))["responses"])

    def change(self, body: Json) -> Json:
        """Run one transaction.

        Raises: ReplyLost.
        """
        return self.gateway.write("/v3/kv/txn", body)
