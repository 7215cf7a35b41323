"""The door to the datastores: opening one by the name a configuration gives; only the one asked for is imported."""

from __future__ import annotations

import importlib
from typing import cast

from conf.errors import InvalidNetworkConfig
from conf.section import shown
from conf.whereabouts import StoreConf
from ipam.stores.contract import Deadline, Store

# Name -> its open_store(conf, deadline). Only what exists stands here.
STORES: dict[str, str] = {
    "etcd": "ipam.stores.etcd:open_store",
    "kubernetes": "ipam.stores.moved:open_store",
    "kubernetes-leases": "ipam.stores.kubernetes_leases:open_store",
    "local": "ipam.stores.local:open_store",
}
# The names that the dialect has, in this build or not.
NAMES = ("local", "kubernetes", "kubernetes-leases", "etcd")


def open_store(conf: StoreConf, deadline: Deadline) -> Store:
    """Open the chosen datastore; a network is not yet touched.

    Raises: InvalidNetworkConfig when none is chosen, or one that there isn't.
    """
    available = ", ".join(STORES)
    if not conf.chosen:
        raise InvalidNetworkConfig(
            'ipam: no "datastore" is chosen',
            details=f"available in this build: {available}",
            hint='set "datastore" in the ipam object, in the flat file, or under [whereabouts] in '
            '/etc/vferry/vferry.toml; "local" is for one host',
        )
    if conf.chosen not in STORES:
        reason = "is not available in this build" if conf.chosen in NAMES else "is not known"
        raise InvalidNetworkConfig(
            f"ipam: {shown('datastore', conf.chosen)} {reason}", hint=f"available in this build: {available}"
        )
    module, _, attribute = STORES[conf.chosen].partition(":")
    return cast(Store, getattr(importlib.import_module(module), attribute)(conf, deadline))


def preload() -> None:
    """Import every store, for a process that is to serve many requests."""
    for target in STORES.values():
        importlib.import_module(target.partition(":")[0])
