"""Upstream's NodeSlicePool: which part of a range its controller has given to which node. Only read here.

Source: whereabouts pkg/node-controller, pkg/storage/kubernetes/ipam.go GetNodeSlicePoolRange; reference 1.5.
"""

from __future__ import annotations

from typing import Any, Protocol

from netaddr import AddrFormatError, IPNetwork

from conf.errors import InvalidNetworkConfig, StoreUnavailable, TryAgainLater, UnsupportedField
from ipam.stores.contract import NodeSlice, Store

_COLLECTION = "/apis/whereabouts.cni.cncf.io/v1alpha1/namespaces/{}/nodeslicepools/{}"


class _Access(Protocol):
    @property
    def namespace(self) -> str: ...


class _Api(Protocol):
    """What is used of the API server's client; this module does not pull it in."""

    @property
    def access(self) -> _Access: ...

    def get(self, path: str) -> dict[str, Any] | None: ...


def find_node_slice(store: Store, name: str, node: str) -> NodeSlice:
    """Return the node's part of the range that the NodeSlicePool of this name divides. One GET.

    Raises: UnsupportedField with a store that is not on an API server, TryAgainLater while the node has none,
    InvalidNetworkConfig for an object that cannot be read, StoreUnavailable.
    """
    api: _Api | None = getattr(store, "api", None)
    if api is None:
        raise UnsupportedField(
            f'ipam: "node_slice_size" cannot be used with datastore {store.name}',
            details="slices are handed out by upstream's controller, in the API server",
            hint='use "datastore": "kubernetes" or "kubernetes-leases", or leave it out',
        )
    found = api.get(_COLLECTION.format(api.access.namespace, name))
    if found is None:
        raise StoreUnavailable(
            f"there is no NodeSlicePool {api.access.namespace}/{name}",
            hint="upstream's whereabouts-controller makes it from the NAD; see that it runs, or leave out "
            '"node_slice_size"',
        )
    return _read(found, name, node)


def _read(found: dict[str, Any], name: str, node: str) -> NodeSlice:
    allocations = (found.get("status") or {}).get("allocations") or []
    part = next((each.get("sliceRange", "") for each in allocations if each.get("nodeName") == node), None)
    if part is None:
        raise TryAgainLater(
            f"node {node} has no slice in NodeSlicePool {name}",
            details=f"{sum(bool(each.get('nodeName')) for each in allocations)} of {len(allocations)} slices are given",
            hint="see the whereabouts-controller; is the node's name in NODENAME or the file nodename another one?",
        )
    try:
        whole, piece = IPNetwork(found["spec"]["range"]).cidr, IPNetwork(part).cidr
        if piece not in whole:
            raise ValueError(f"{piece} is not in {whole}")
    except (AddrFormatError, ValueError, KeyError, TypeError) as error:
        raise InvalidNetworkConfig(
            f"the slice of node {node} in NodeSlicePool {name} cannot be used", details=str(error)
        ) from error
    return NodeSlice(node, whole, piece)
