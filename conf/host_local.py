"""The keys of ``host-local``, upstream's dialect; which address follows from them is the room ``ipam``'s.

Source: containernetworking/plugins plugins/ipam/host-local/backend/allocator/{config,range,range_set}.go; reference 3.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

from netaddr import IPAddress, IPNetwork
from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema, model_validator

from conf.address import BITS, OptionalAddress, parse_cidr
from conf.defaults import filled
from conf.errors import InvalidEnvironment, InvalidNetworkConfig
from conf.ipam import Asked, Routes, asked_under, cni_args_list, ipam_object, require_expressible
from conf.request import Request
from conf.section import Json, Section, lookup, read, shown, tell_misspelt

DEFAULT_DATA_DIR = "/var/lib/cni/networks"

log = logging.getLogger("vferry.conf.host_local")


def address_text(address: IPAddress) -> str:
    """Return the address as Go writes it: one text is one file name, whoever of the two plugins writes it.

    netaddr leaves ``::a00:1`` to the C library, which writes ``::10.0.0.1``.
    """
    return str(IPv4Address(address.value) if address.version == 4 else IPv6Address(address.value))


def _read_network(given: Any) -> IPNetwork:
    if isinstance(given, IPNetwork):
        return given
    if not isinstance(given, str):
        raise ValueError("it is not a string")
    network = parse_cidr(given)
    if network.ip != network.cidr.ip:
        raise ValueError(f"it has host bits set, the network address is {network.cidr.ip}")
    if network.size < 4:
        raise ValueError(f"it is too small to allocate from, the smallest is a /{BITS[network.version] - 2}")
    return network


def _absolute(path: str) -> str:
    if path and not path.startswith("/"):
        raise ValueError("it is not an absolute path")
    return path


Network = Annotated[Any, PlainValidator(_read_network), WithJsonSchema({"type": "string"})]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]


class _Bounds(Section):
    range_start: OptionalAddress = Field(
        default=None, alias="rangeStart", description="first address to give; absent: network address + 1"
    )
    range_end: OptionalAddress = Field(
        default=None,
        alias="rangeEnd",
        description="last address to give; absent: the last of an IPv6 subnet, broadcast - 1 of an IPv4 subnet",
    )
    gateway: OptionalAddress = Field(
        default=None, description="gateway of the subnet, never given to a pod; absent: network address + 1"
    )


class RangeConf(_Bounds):
    """One range of a set; the set gives one address out of one of its ranges."""

    subnet: Network = Field(description="network such as 192.0.2.0/24, without host bits")

    @model_validator(mode="after")
    def _lie_in_the_subnet(self) -> RangeConf:
        # Upstream's gateway may lie outside: some routed networks have it so.
        if self.gateway is not None and self.gateway.version != self.version:
            raise ValueError(f"{shown('gateway', str(self.gateway))} is not of the family of subnet {self.subnet}")
        for key, address in (("rangeStart", self.range_start), ("rangeEnd", self.range_end)):
            if address is not None and address not in self.subnet:
                raise ValueError(f"{shown(key, str(address))} is not in subnet {self.subnet}")
        if self.first > self.last:
            start, end = (address_text(IPAddress(value, self.version)) for value in (self.first, self.last))
            raise ValueError(f"the range ends before it starts: {start} to {end} of subnet {self.subnet}")
        return self

    @property
    def version(self) -> int:
        """4 or 6."""
        return int(self.subnet.version)

    @property
    def first(self) -> int:
        """The first address to give."""
        return int(self.subnet.first + 1 if self.range_start is None else self.range_start.value)

    @property
    def last(self) -> int:
        """The last address to give."""
        return int(self.subnet.last - (self.version == 4) if self.range_end is None else self.range_end.value)

    @property
    def router(self) -> IPAddress:
        """The gateway; there is always one."""
        return self.gateway or IPAddress(self.subnet.first + 1, self.version)

    def __contains__(self, address: IPAddress) -> bool:
        return bool(address.version == self.version and self.first <= address.value <= self.last)

    def overlaps(self, other: RangeConf) -> bool:
        """Whether both would give the same address."""
        return self.version == other.version and self.first <= other.last and other.first <= self.last

    def __str__(self) -> str:
        return "-".join(address_text(IPAddress(value, self.version)) for value in (self.first, self.last))


@dataclass(frozen=True)
class RangeSet:
    """Ranges of one family that stand in for each other: a pod gets one address out of the set."""

    ranges: tuple[RangeConf, ...]

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.ranges[0].version

    def range_of(self, address: IPAddress) -> RangeConf | None:
        """Return the range that gives the address."""
        return next((element for element in self.ranges if address in element), None)

    def __contains__(self, address: IPAddress) -> bool:
        return self.range_of(address) is not None

    def __str__(self) -> str:
        return ",".join(map(str, self.ranges))


class FolderConf(Section):
    """Where the reservations are: all that DEL and GC read, so that no other key can keep them from giving back."""

    data_dir: AbsolutePath = Field(
        default="",
        alias="dataDir",
        description=f"absolute path of all networks' reservations; absent: {DEFAULT_DATA_DIR}",
    )

    def folder(self, network: str) -> Path:
        """Return the directory of one network's reservations."""
        return Path(self.data_dir or DEFAULT_DATA_DIR, network)


class HostLocalConf(_Bounds, FolderConf):
    """One ``ipam`` object of type ``host-local``; subnet and bounds beside ``ranges`` are one more set, the first."""

    type: str = Field(default="", description="file name of the IPAM plugin")
    subnet: Network = Field(default=None, description="network such as 192.0.2.0/24, without host bits")
    ranges: list[list[RangeConf]] = Field(
        default=[], description="a list of sets; the pod gets one address of every set, out of any of its ranges"
    )
    routes: Routes = Field(default=[], description="routes of the pod, passed to the interface plugin")
    resolv_conf: AbsolutePath = Field(
        default="", alias="resolvConf", description="absolute path of a resolv.conf, read into the result's dns"
    )


class _RuntimeConf(Section):
    ip_ranges: list[list[RangeConf]] = Field(
        default=[], alias="ipRanges", description="sets that stand before the configured ones"
    )


@dataclass(frozen=True)
class HostLocalOrder:
    """What one attachment is to get: one address of every set, the requested ones where there are any."""

    conf: HostLocalConf
    sets: tuple[RangeSet, ...]
    requested: tuple[IPAddress, ...]

    @property
    def gateways(self) -> frozenset[IPAddress]:
        """The gateways of all ranges; no set gives one of them, even when it is another range's."""
        return frozenset(element.router for each in self.sets for element in each.ranges)


def read_host_local(request: Request, defaults: Json) -> HostLocalOrder:
    """Read the plugin's keys and what the runtime asks for.

    Sets stand in this order: ``runtimeConfig.ipRanges``, the keys beside ``ranges``, ``ranges``.
    Raises: InvalidNetworkConfig, InvalidEnvironment.
    """
    order = read_keys(request, defaults)
    if not order.sets:
        raise InvalidNetworkConfig(
            "ipam: host-local has no range to give addresses from",
            hint='set "ranges" or "subnet", or declare the capability "ipRanges" and let the runtime give them',
        )
    require_expressible((each.version for each in order.sets), request.cni_version)
    return order


def read_keys(request: Request, defaults: Json) -> HostLocalOrder:
    """Read the same without the demand for a set, as STATUS wants it: the runtime adds sets to an ADD only.

    Raises: InvalidNetworkConfig, InvalidEnvironment.
    """
    ipam = filled(ipam_object(request.config), defaults)
    conf = read(HostLocalConf, ipam, where="ipam")
    tell_misspelt(conf, where="ipam")
    return HostLocalOrder(conf, _sets_of(request, conf, ipam), _requested(request))


def read_folder(request: Request, defaults: Json) -> Path:
    """Return the directory of the network's reservations, whatever the other keys are.

    Raises: InvalidNetworkConfig when ``dataDir`` itself is malformed.
    """
    given = lookup(request.config, "ipam")
    ipam = filled(given if isinstance(given, dict) else {}, defaults)
    return read(FolderConf, ipam, where="ipam").folder(request.network)


def _sets_of(request: Request, conf: HostLocalConf, ipam: Mapping[str, Any]) -> tuple[RangeSet, ...]:
    runtime = lookup(request.config, "runtimeConfig", {})
    if not isinstance(runtime, dict):
        raise InvalidNetworkConfig(f"{shown('runtimeConfig', runtime)} is not an object")
    listed = list(read(_RuntimeConf, runtime, where="runtimeConfig").ip_ranges)
    if conf.subnet is not None:
        listed.append([read(RangeConf, ipam, where="ipam")])
    elif any(bound is not None for bound in (conf.range_start, conf.range_end, conf.gateway)):
        # Upstream is silent, and a gateway beside "ranges" is a common slip.
        log.warning('ipam: rangeStart, rangeEnd and gateway count for nothing without "subnet" beside them')
    listed += conf.ranges
    for at, ranges in enumerate(listed):
        _require_set(at, ranges)
    for (one, ranges), (other, others) in combinations(enumerate(listed), 2):
        clash = next(((a, b) for a in ranges for b in others if a.overlaps(b)), None)
        if clash:
            raise InvalidNetworkConfig(
                f"ipam: range set {one} overlaps with {other}",
                details=f"{clash[0]} and {clash[1]}",
                hint="sets count from 0: first runtimeConfig.ipRanges, then subnet, then ranges",
            )
    return tuple(RangeSet(tuple(ranges)) for ranges in listed)


def _require_set(at: int, ranges: list[RangeConf]) -> None:
    if not ranges:
        raise InvalidNetworkConfig(f"ipam: range set {at} is empty", hint="give it a range, or leave the set out")
    if len({element.version for element in ranges}) > 1:
        raise InvalidNetworkConfig(
            f"ipam: range set {at} has mixed address families",
            details=", ".join(str(element.subnet) for element in ranges),
            hint="for an address of each family give each a set of its own: [[{IPv4}], [{IPv6}]]",
        )
    for one, other in combinations(ranges, 2):
        if one.overlaps(other):
            raise InvalidNetworkConfig(f"ipam: range set {at}: {one} and {other} overlap")


def _requested(request: Request) -> tuple[IPAddress, ...]:
    try:
        from_args = Asked("IP", tuple(cni_args_list(request, "IP"))).addresses()
    except InvalidNetworkConfig as error:
        raise InvalidEnvironment(
            "CNI_ARGS: IP is not valid", details=error.msg, hint="addresses joined by ','"
        ) from error
    conventions = [asked_under(request, path).addresses() for path in ("args.cni.ips", "runtimeConfig.ips")]
    return tuple(dict.fromkeys([*from_args, *conventions[0], *conventions[1]]))
