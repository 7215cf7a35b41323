"""``whereabouts``: addresses that no other pod has, out of ranges, leased by a datastore.

What the keys mean is conf.whereabouts', how an address is chosen ``ipam.choice``'s, how it is claimed the store's.
Unlike upstream's, an ADD takes no cluster-wide lock, a DEL fails when its store does, and CHECK, GC and STATUS do what
the specification says.

Source: reference 1 and 8; design section 6.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from conf import flat_file
from conf.address import parse_cidr
from conf.defaults import filled, read_table
from conf.errors import (
    CheckFailed,
    CniError,
    PluginNotAvailable,
    StoreUnavailable,
    TryAgainLater,
    UndoneInPart,
)
from conf.ipam import ipam_object
from conf.node_name import read_node_name
from conf.request import Request
from conf.result import Result
from conf.section import Json, lookup
from conf.whereabouts import StoreConf, WhereaboutsConf, read_store_conf, read_whereabouts
from ipam.choice import match
from ipam.order import Order, order_of, pools_of
from ipam.prev_result import require_given, require_prev_result
from ipam.reaping import give_back
from ipam.stores import door
from ipam.stores.contract import Deadline, Owner, Store
from ipam.stores.node_slices import find_node_slice

OpenStore = Callable[[StoreConf, Deadline], Store]

log = logging.getLogger("vferry.ipam.whereabouts")


class Whereabouts:
    """The IPAM plugin ``whereabouts``."""

    def __init__(
        self,
        *,
        open_store: OpenStore = door.open_store,
        defaults: Callable[[str], Json] = read_table,
        flat_files: Sequence[Path] = flat_file.PATHS,
    ) -> None:
        self._open_store = open_store
        self._defaults = defaults
        self._flat_files = flat_files

    def add(self, request: Request) -> Result:
        """Lease one address of every range, all or none; the same ones again for the same container and interface.

        Raises: AddressesExhausted, TryAgainLater, StoreUnavailable, InvalidNetworkConfig, InvalidEnvironment.
        Undo: delete.
        """
        order = order_of(request, self._read(request))
        if not order.wants:
            return order.conf.to_result(order.ips(()))
        owner = _owner(request, order.conf)
        with self._open(order.conf) as store:
            order = _of_node(store, request, order, owner.node)
            leases = store.reserve(owner, order.wants, allocation=order.conf.allocation or store.allocation)
        log.info("%s: %s leased to %s", request.network, ", ".join(str(lease.address) for lease in leases), owner)
        return order.conf.to_result(order.ips(leases))

    def delete(self, request: Request) -> None:
        """Give back what the container's interface holds; nothing held, or no ADD possible, is success.

        Raises: StoreUnavailable, TryAgainLater: the runtime then calls again.
        """
        conf = self._read_store(request)
        owner = _owner(request, conf)
        with self._open(conf) as store:
            leases = store.release(owner)
        if leases:
            log.info("%s: %s released by %s", request.network, ", ".join(str(each.address) for each in leases), owner)

    def check(self, request: Request) -> None:
        """Compare leases and prevResult: every want leased, every leased address told, none told that is not leased.

        Raises: CheckFailed, StoreUnavailable, InvalidNetworkConfig.
        """
        order = order_of(request, self._read(request))
        result = require_prev_result(request)
        owner = _owner(request, order.conf)
        with self._open(order.conf) as store:
            leases = store.find(owner, pools=order.pools) if order.wants else ()
        matched = match(order.wants, leases)
        for at, want in enumerate(order.wants):
            if at not in matched:
                raise CheckFailed(
                    f"{owner} holds no lease in range {want.pool.range}",
                    details=f"datastore {order.conf.chosen} has lost it, or somebody gave it back",
                    hint="before another pod gets its address, delete the pod, so that it starts anew",
                )
        require_given(order.ips(matched[at] for at in range(len(matched))), result)
        given = {lease.address for lease in leases} | {static.address.ip for static in order.static}
        for ip in result.ips:
            address = parse_cidr(ip.address).ip
            if address not in given and any(address in pool.range.network for pool in order.pools):
                raise CheckFailed(
                    f"address {ip.address} of prevResult is not leased to {owner}",
                    hint="delete the pod, so that it starts anew",
                )

    def gc(self, request: Request) -> None:
        """Give back the leases of this network whose attachments are gone; without a list of attachments do nothing.

        Raises: UndoneInPart when some could not be given back, StoreUnavailable, InvalidNetworkConfig.
        """
        valid = request.valid_attachments()
        if valid is None:
            return
        conf = self._read_store(request)
        failures: list[str] = []
        with self._open(conf) as store:
            for lease in store.leases(conf.network_name, node=_node(request, conf) if store.shared else None):
                owner = lease.owner
                if (owner.container_id, owner.ifname) in valid or owner.cni_network != request.network:
                    continue
                try:
                    if give_back(store, lease):
                        log.info("%s: %s reaped, %s is no valid attachment", request.network, lease.address, owner)
                except CniError as error:
                    failures.append(f"{lease.address}: {error}")
        if failures:
            raise UndoneInPart(
                f"{len(failures)} stale leases of network {request.network} could not be given back",
                details="; ".join(failures),
                hint="the next GC tries again",
            )

    def status(self, request: Request) -> None:
        """Check the configuration, and that the store could write a lease; nothing is written.

        Raises: PluginNotAvailable, InvalidNetworkConfig.
        """
        conf = self._read(request)
        pools_of(conf)
        if not conf.ranges:
            return
        try:
            with self._open(conf) as store:
                store.probe()
                if conf.node_slice_size:
                    slice_name = conf.network_name or request.network
                    pools_of(conf, node_slice=find_node_slice(store, slice_name, _node(request, conf)))
        except (StoreUnavailable, TryAgainLater) as error:
            raise PluginNotAvailable(
                f"datastore {conf.chosen} is not available", details=f"{error.msg}; {error.details}", hint=error.hint
            ) from error

    def kept_in(self, request: Request) -> Json:
        """Return the keys of ``ipam`` that say where this request leases, for the record of its attachment.

        Raises: InvalidNetworkConfig, DecodeFailure when the node's own files cannot be read.
        """
        return self._read_store(request).place

    def _read(self, request: Request) -> WhereaboutsConf:
        return read_whereabouts(self._merged(request, ipam_object(request.config)))

    def _read_store(self, request: Request) -> StoreConf:
        # With no valid choice of a datastore no ADD can have succeeded, but one may have when the node's defaults were
        # still there: then the local store knows, and it makes nothing when it is not there.
        given = lookup(request.config, "ipam")
        conf = read_store_conf(self._merged(request, given if isinstance(given, dict) else {}))
        reachable = conf.chosen in door.NAMES and (conf.chosen != "etcd" or conf.etcd.endpoints)
        return conf if reachable else conf.model_copy(update={"datastore": "local"})

    def _merged(self, request: Request, ipam: Json) -> Json:
        """Fill in the node's own files, and where the ADD leased: they may have changed or gone since."""
        recorded = request.recorded_ipam
        ipam = filled(ipam, {key: recorded[key] for key in ("datastore", "dataDir") if key in recorded})
        flat = flat_file.read_flat_file(ipam, paths=self._flat_files)
        merged = filled(flat_file.fill(ipam, flat), self._defaults("whereabouts"))
        if any(lookup(merged, key) for key in ("etcd", "etcd_host", "kubernetes")):
            return merged  # the same store may have moved to other servers
        return filled(merged, recorded)

    def _open(self, conf: StoreConf) -> Store:
        return self._open_store(conf, Deadline(conf.deadline_s))


def _of_node(store: Store, request: Request, order: Order, node: str) -> Order:
    """Return the order out of this node's slice, where the configuration has slices."""
    conf = order.conf
    if not conf.node_slice_size:
        return order
    return order_of(request, conf, node_slice=find_node_slice(store, conf.network_name or request.network, node))


def _owner(request: Request, conf: StoreConf) -> Owner:
    return Owner(
        container_id=request.container_id,
        ifname=request.ifname,
        cni_network=request.network,
        pod_namespace=request.args.get("K8S_POD_NAMESPACE", ""),
        pod_name=request.args.get("K8S_POD_NAME", ""),
        pod_uid=request.args.get("K8S_POD_UID", ""),
        node=_node(request, conf),
    )


def _node(request: Request, conf: StoreConf) -> str:
    return read_node_name(request.environ, conf.configuration_path)
