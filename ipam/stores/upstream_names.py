"""How upstream's whereabouts names its objects and counts its addresses; pure, and exact to the letter.

Where upstream's name is none that an API server accepts (``::1`` becomes ``--1``), upstream can have no object, and the
uncompressed text is taken.

Source: whereabouts pkg/storage/kubernetes/ipam.go IPPoolName, normalizeRange, normalizeIP; reference 1.2.
"""

from __future__ import annotations

import ipaddress

from netaddr import AddrFormatError, IPAddress, IPNetwork

from conf.errors import InvalidNetworkConfig
from ipam.stores.contract import Pool

# Upstream reads an offset as a signed number of 64 bits, and what does not fit is invisible to it.
OFFSETS = 2**63


def object_of(pool: Pool) -> tuple[str, IPNetwork]:
    """Return name and range of the IPPool that a pool is kept in: a node's slice has one of its own."""
    if pool.node_slice is None:
        return pool_name(pool.network_name, pool.range.network), pool.range.network
    node, part = pool.node_slice.node, pool.node_slice.part
    return pool_name(f"{pool.network_name}-{node}" if pool.network_name else node, part), part


def pool_name(network_name: str, network: IPNetwork) -> str:
    """Return the name of the IPPool of a range."""
    return _named(
        network_name, f"{text(network.network)}/{network.prefixlen}", network.network, f"-{network.prefixlen}"
    )


def reservation_name(network_name: str, address: IPAddress) -> str:
    """Return the name of the OverlappingRangeIPReservation of an address."""
    return _named(network_name, text(address), address, "")


def network_name_of(name: str, network: IPNetwork) -> str:
    """Return the network_name that a pool's name begins with; of a node's slice, the node with it."""
    unnamed = pool_name("", network)
    # With a network_name in front, upstream's own text is a legal name.
    for suffix in (unnamed, _dashed(f"{text(network.network)}/{network.prefixlen}")):
        if name.endswith(f"-{suffix}"):
            return name.removesuffix(f"-{suffix}")
    return "" if name == unnamed else name


def reserved_address(name: str, network_name: str) -> IPAddress | None:
    """Return the address that a reservation's name is of, None when it is of another network_name."""
    spelled = name.removeprefix(f"{network_name}-") if network_name else name
    try:
        return IPAddress(spelled.replace("-", ":") if "-" in spelled else spelled)
    except (AddrFormatError, ValueError):
        return None


def offset_of(network: IPNetwork, address: IPAddress) -> int:
    """Return an address's key in the allocations of its pool.

    Raises: InvalidNetworkConfig for one that upstream could not read.
    """
    offset = int(address.value) - int(network.first)
    if not 0 <= offset < OFFSETS:
        raise InvalidNetworkConfig(
            f"address {address} of range {network} cannot be kept in an IPPool",
            details="it is 2^63 or more above the network address, which upstream's whereabouts takes for another one",
            hint='use the lower half of the /64, or "datastore": "kubernetes-leases"',
        )
    return offset


def text(address: IPAddress) -> str:
    """Return an address as Go prints it, which has no dots in an IPv6 address."""
    return str(address) if address.version == 4 else str(ipaddress.IPv6Address(int(address.value)))


def cidr(network: IPNetwork) -> str:
    """Return a range as upstream writes it into its pool."""
    return f"{text(network.network)}/{network.prefixlen}"


def _named(network_name: str, spelled: str, address: IPAddress, suffix: str) -> str:
    name = _dashed(spelled)
    if network_name:
        return f"{network_name}-{name}"
    if not name.startswith("-"):
        return name
    return "-".join(f"{hextet:x}" for hextet in address.words) + suffix


def _dashed(spelled: str) -> str:
    return (f"{spelled}0" if spelled.endswith(":") else spelled).replace(":", "-").replace("/", "-")
