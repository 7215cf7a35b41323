"""The object IPLease: its name, its labels, and what it says as a Lease; which one is made or taken is the store's.

The name is the address in its name space, so that two can't be created: ``default.10.0.0.1``,
``blue.2001-0db8-0000-0000-0000-0000-0000-0001``; with ``enable_overlapping_ranges: false`` the range stands between:
``default.10.0.0.0-24.10.0.0.1``. Whatever two names might be confused, the one object has one holder.

Source: conf/deploy/crds/ipleases.yaml, reference 8.3.
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from netaddr import AddrFormatError, IPAddress, IPNetwork

from conf.errors import InvalidNetworkConfig
from ipam.ranges import Range
from ipam.stores.contract import Lease, Owner, Pool

Json = dict[str, Any]

GROUP = "ipam.vferry.io"
API_VERSION = f"{GROUP}/v1alpha1"
KIND = "IPLease"
COLLECTION = f"/apis/{API_VERSION}/ipleases"
NETWORK_LABEL, NODE_LABEL, OWNER_LABEL = f"{GROUP}/network", f"{GROUP}/node", f"{GROUP}/owner"
# On a cooling lease only; the same as its spec says, for lists of metadata: "1700000000.250-60.000".
COOLING_LABEL = f"{GROUP}/cooling"
# Likewise: the pod's interface that may have the address back at once (``Owner.pod_key``).
POD_LABEL = f"{GROUP}/pod"

# The network of a configuration without network_name.
DEFAULT_NETWORK = "default"
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_LABEL = re.compile(r"[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?\Z")
_V4 = re.compile(r"\d{1,3}(\.\d{1,3}){3}\Z")
_V6 = re.compile(r"[0-9a-f]{4}(-[0-9a-f]{4}){7}\Z")

log = logging.getLogger("vferry.ipam.kubernetes_leases")


@dataclass(frozen=True)
class Cooling:
    """A released lease that is still there: what a replacement must name, and until when it is not chosen."""

    uid: str
    resource_version: str
    released_at: float
    cooldown_s: float
    pod_key: str = ""

    def is_over(self, now: float) -> bool:
        """Whether the address may be chosen again; a clock that was set back must not make it cool for years."""
        return abs(now - self.released_at) >= self.cooldown_s

    def remaining_s(self, now: float) -> float:
        """Return for how long the address is not chosen yet."""
        return max(self.cooldown_s - abs(now - self.released_at), 0.0)


def network_of(network_name: str) -> str:
    """Return the network as leases have it."""
    return network_name or DEFAULT_NETWORK


def prefix_of(pool: Pool) -> str:
    """Return what the names of the pool's leases begin with, without the dot.

    Raises: InvalidNetworkConfig for a network_name that no object can have.
    """
    network = network_of(pool.network_name)
    if not _SUBDOMAIN.match(network) or len(network) > 150:
        raise InvalidNetworkConfig(
            f'ipam: "network_name": "{network}" is no name for an object',
            hint="lower-case letters, digits and '-', parts separated by single dots, 150 characters at most",
        )
    block = pool.range.network
    return network if pool.overlap_checked else f"{network}.{_spelled(block.network)}-{block.prefixlen}"


def name_of(prefix: str, address: IPAddress) -> str:
    """Return the name of an address's lease."""
    return f"{prefix}.{_spelled(address)}"


def address_in(name: str, prefix: str) -> IPAddress | None:
    """Return the address that a name is of, None when it is none of this prefix."""
    spelled = name.removeprefix(f"{prefix}.")
    if _V6.match(spelled):
        return IPAddress(int(spelled.replace("-", ""), 16), 6)
    return IPAddress(spelled, 4) if _V4.match(spelled) else None


def purpose_of(pool: Pool, address: IPAddress) -> str:
    """Return what meant_by needs to tell which lease was meant."""
    return f"{address} {pool.network_name or '-'} {'-' if pool.overlap_checked else pool.range.network}"


def meant_by(purpose: str) -> tuple[Pool, IPAddress]:
    """Return the pool and the address that purpose_of was told; of a pool without bounds of its own, that address."""
    address, network_name, block = purpose.split(" ")
    narrow = Range.of(IPNetwork(address if block == "-" else block))
    pool = Pool("" if network_name == "-" else network_name, narrow, overlap_checked=block == "-")
    return pool, IPAddress(address)


def label(value: str) -> str:
    """Return a value fit for a label: itself where it is one, else its digest."""
    return value if _LABEL.match(value) and len(value) <= 63 else hashlib.sha256(value.encode()).hexdigest()[:32]


def owner_label(owner: Owner) -> str:
    """Return the label by which an owner's leases are found; who the holder really is says the spec."""
    return hashlib.sha256(f"{owner.container_id}/{owner.ifname}".encode()).hexdigest()[:16]


def make(owner: Owner, pool: Pool, address: IPAddress, now: float) -> Json:
    """Return a new lease as it is created, or replaces a released one."""
    labels = {
        NETWORK_LABEL: label(network_of(pool.network_name)),
        OWNER_LABEL: owner_label(owner),
        **({NODE_LABEL: label(owner.node)} if owner.node else {}),
    }
    spec = {
        "ip": str(address),
        "network": network_of(pool.network_name),
        "range": "" if pool.overlap_checked else str(pool.range.network),
        "containerID": owner.container_id,
        "ifName": owner.ifname,
        "cniNetwork": owner.cni_network,
        "podNamespace": owner.pod_namespace,
        "podName": owner.pod_name,
        "podUID": owner.pod_uid,
        "node": owner.node,
        "allocatedAt": _timestamp(now),
    }
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name_of(prefix_of(pool), address), "labels": labels},
        "spec": {key: value for key, value in spec.items() if value},
    }


def released(obj: Json, now: float, cooldown_s: float) -> Json:
    """Return a lease as it cools: it has no owner to be found by, but says whose it was."""
    metadata, spec = obj["metadata"], obj["spec"]
    labels = {key: value for key, value in (metadata.get("labels") or {}).items() if key != OWNER_LABEL}
    labels[COOLING_LABEL] = f"{now:.3f}-{cooldown_s:.3f}"
    # Who lets an address cool that was another's before keeps whose it was.
    if not is_released(obj) and (pod_key := _holder(spec).pod_key):
        labels[POD_LABEL] = pod_key
    return {
        **obj,
        "metadata": {**metadata, "labels": labels},
        "spec": {**spec, "releasedAt": _timestamp(now), "cooldownSeconds": cooldown_s},
    }


def is_released(obj: Json) -> bool:
    """Whether nobody holds it any more."""
    return bool(obj["spec"].get("releasedAt"))


def is_held_by(obj: Json, owner: Owner) -> bool:
    """Whether this very owner holds it."""
    spec = obj["spec"]
    return not is_released(obj) and (spec["containerID"], spec["ifName"]) == (owner.container_id, owner.ifname)


def cooling(obj: Json) -> Cooling | None:
    """Return how a lease cools, by its label alone where the spec was not asked for; None for what may not be taken.

    That is a live one, and one that somebody deletes while a finalizer keeps it: whoever replaced it would take the
    finalizer away, and be told that it was done, with no object there any more.
    """
    metadata = obj["metadata"]
    if "deletionTimestamp" in metadata:
        return None
    try:
        if "spec" in obj:
            if not is_released(obj):
                return None
            spec = obj["spec"]
            released_at, cooldown_s = _seconds(spec["releasedAt"]), float(spec.get("cooldownSeconds", 0))
        else:
            spelled = (metadata.get("labels") or {}).get(COOLING_LABEL)
            if spelled is None:
                return None
            released_at, cooldown_s = map(float, spelled.split("-"))
    except (TypeError, ValueError):
        return None  # somebody's own: of a label, what the spec says is found out when it is wanted
    pod_key = (metadata.get("labels") or {}).get(POD_LABEL, "")
    return Cooling(metadata["uid"], metadata["resourceVersion"], released_at, cooldown_s, pod_key)


def listed_lease(obj: Json) -> Lease | None:
    """Return an object as a lease, None for somebody's own that is none: the schema cannot know an address."""
    try:
        return read_lease(obj)
    except (AddrFormatError, KeyError, TypeError, ValueError) as error:
        log.warning("IPLease %s is no lease: %s", obj["metadata"]["name"], error)
        return None


def read_lease(obj: Json) -> Lease:
    """Return an object as a lease; its revision changes whenever it is released and taken again."""
    metadata, spec = obj["metadata"], obj["spec"]
    network_name = "" if spec["network"] == DEFAULT_NETWORK else spec["network"]
    block = spec.get("range", "")
    return Lease(
        owner=_holder(spec),
        network_name=network_name,
        space=f"{network_name}/{block}" if block else network_name,
        address=IPAddress(spec["ip"]),
        allocated_at=_seconds(spec["allocatedAt"]),
        revision=f"{metadata['uid']}/{metadata.get('generation', 0)}",
    )


def _holder(spec: Json) -> Owner:
    return Owner(
        container_id=spec["containerID"],
        ifname=spec["ifName"],
        cni_network=spec.get("cniNetwork", ""),
        pod_namespace=spec.get("podNamespace", ""),
        pod_name=spec.get("podName", ""),
        pod_uid=spec.get("podUID", ""),
        node=spec.get("node", ""),
    )


def _spelled(address: IPAddress) -> str:
    if address.version == 4:
        return str(address)
    digits = f"{address.value:032x}"
    return "-".join(digits[at : at + 4] for at in range(0, 32, 4))


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _seconds(timestamp: str) -> float:
    # Python 3.10 knows no "Z", and only three or six digits of a second.
    moment, _, fraction = re.sub(r"[Zz]$", "+00:00", timestamp).partition(".")
    digits = re.match(r"\d*", fraction)[0]  # type: ignore[index]
    return datetime.fromisoformat(
        f"{moment}.{digits[:6]:0<6}{fraction[len(digits) :]}" if digits else moment
    ).timestamp()
