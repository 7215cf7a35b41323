"""Tens of thousands of leases at once, written past the stores as ADDs of other owners would have written them."""

from __future__ import annotations

import sqlite3
from multiprocessing import get_context

from netaddr import IPAddress

from ipam.stores import iplease
from ipam.stores.contract import Deadline, Lease, Owner
from ipam.stores.etcd_keys import Keys, lease_value
from ipam.stores.etcd_requests import put, transaction
from ipam.stores.kubeconfig import find_access
from ipam.stores.kubernetes_api import KubernetesApi
from ipam.stores.local import DATABASE, LocalStore
from ipam.stores.upstream_names import offset_of, pool_name
from ipam.stores.upstream_pool import API_VERSION, POOL_KIND, entry_of

OTHER = Owner("other", "net1", node="elsewhere")
# etcd's --max-txn-ops is 128 by default.
_AT_ONCE = 120


def fill_etcd(server, prefix, pool, values):
    """Write the leases of these addresses, as numbers."""
    keys, version = Keys(prefix), pool.range.version
    leases = [
        Lease(OTHER, pool.network_name, pool.space, IPAddress(value, version), allocated_at=0.0, revision="")
        for value in values
    ]
    puts = [put(keys.lease("ip", lease), lease_value(lease)) for lease in leases]
    for at in range(0, len(puts), _AT_ONCE):
        server.call("/v3/kv/txn", transaction((), puts[at : at + _AT_ONCE]))


def fill_local(data_dir, pool, values):
    with LocalStore(data_dir, deadline=Deadline(60), cooldown_s=60) as store:
        store._database.ensure()
    with sqlite3.connect(data_dir / DATABASE) as db:
        db.executemany(
            "INSERT INTO lease VALUES (?, ?, 'r', ?, 'other', ?, 'n', '', '', '', '', 0, NULL, 0)",
            (
                (pool.space, bytes(10) + b"\xff\xff" + value.to_bytes(4, "big"), pool.network_name, str(value))
                for value in values
            ),
        )


def fill_ippool(kubeconfig, pool, values):
    """Write one object; reservations are not looked at for a choice."""
    network = pool.range.network
    api = _api(kubeconfig)
    entry, name = entry_of(OTHER), pool_name(pool.network_name, network)
    allocations = {str(offset_of(network, IPAddress(value, network.version))): entry for value in values}
    spec = {"range": str(network), "allocations": allocations}
    body = {"apiVersion": API_VERSION, "kind": POOL_KIND, "metadata": {"name": name}, "spec": spec}
    api.create(f"/apis/{API_VERSION}/namespaces/{api.access.namespace}/ippools", body)
    api.close()


def fill_ipleases(kubeconfig, pool, values):
    """Create object by object, in two processes."""
    processes = [
        get_context("fork").Process(target=_create, args=(kubeconfig, pool, values[half::2])) for half in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def _create(kubeconfig, pool, values):
    api = _api(kubeconfig)
    for value in values:
        address = IPAddress(value, pool.range.version)
        api.create(iplease.COLLECTION, iplease.make(OTHER, pool, address, 1_700_000_000.0))


def _api(kubeconfig):
    return KubernetesApi(find_access(kubeconfig), deadline=Deadline(3600), crds="", rbac="")
