"""The keys of ``whereabouts``: upstream's dialect and ours; which address follows from them is the room ``ipam``'s.

Stricter than upstream where upstream silently ignores: an unreadable or outside ``range_start``, an ``exclude`` that is
no address. Keys of upstream's machinery (leader election, reconciler, controller) are tolerated and mean nothing here.

Source: whereabouts pkg/types/types.go, pkg/config/config.go, doc/extended-configuration.md; reference 1.1.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from netaddr import IPAddress, IPNetwork
from pydantic import AfterValidator, Field, PlainValidator, ValidationError, WithJsonSchema, model_validator

from conf.address import Block, OptionalAddress, parse_address, parse_cidr
from conf.etcd import AbsolutePath, Etcd, upstreams_etcd
from conf.ipam import IpamConf
from conf.section import Json, Section, lookup, read, shown, tell_misspelt

DEFAULT_DATA_DIR = "/var/lib/cni/vferry/local"
_DNS_1123 = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?\Z")

log = logging.getLogger("vferry.conf.whereabouts")


class RangeText(NamedTuple):
    """What the text of a ``range`` says: its network and, for START-END/LENGTH, the bounds."""

    network: IPNetwork
    start: IPAddress | None = None
    end: IPAddress | None = None


def parse_range(text: str) -> RangeText:
    """Read ADDRESS/LENGTH, host bits masked away, or START-END/LENGTH; leading zeros of IPv4 count for nothing."""
    first, dash, last = text.partition("-")
    if not dash:
        return RangeText(parse_cidr(text, sloppy=True).cidr)
    start, end = parse_address(first.strip(), sloppy=True), parse_cidr(last.strip(), sloppy=True)
    if start not in end:
        raise ValueError(f"{start} is not in {end.cidr}")
    if start > end.ip:
        raise ValueError("it ends before it starts")
    return RangeText(end.cidr, start, end.ip)


def _read_range(given: Any) -> RangeText | None:
    if given == "":
        return None
    if not isinstance(given, str):
        raise ValueError("it is not a string")
    return parse_range(given)


def _dns_1123(name: str) -> str:
    if name and not _DNS_1123.match(name):
        raise ValueError("it holds other than lower-case letters, digits, '-' and '.'")
    return name


def _slice_size(size: str) -> str:
    digits = size.removeprefix("/")
    if size and not (digits.isascii() and digits.isdigit() and int(digits) <= 128):
        raise ValueError("it is no prefix length")
    return size


OptionalRange = Annotated[Any, PlainValidator(_read_range), WithJsonSchema({"type": "string"})]


class RangeConf(Section):
    """One range; the pod gets one address out of it."""

    range: OptionalRange = Field(
        default=None, description="CIDR such as 192.0.2.0/24, or START-END/LENGTH such as 192.0.2.10-192.0.2.20/24"
    )
    range_start: OptionalAddress = Field(default=None, description="lowest address to hand out, within range")
    range_end: OptionalAddress = Field(default=None, description="highest address to hand out, within range")
    exclude: list[Block] = Field(default=[], description="CIDRs and addresses never to hand out")
    gateway: OptionalAddress = Field(
        default=None, description="gateway of the addresses whose subnet it is in; never handed out"
    )

    @model_validator(mode="after")
    def _has_bounds_within(self) -> RangeConf:
        bounds = {"range_start": self.range_start, "range_end": self.range_end}
        for key, bound in bounds.items():
            if bound is None:
                continue
            if self.range is None:
                raise ValueError(f'{shown(key, str(bound))} is given without a "range"')
            if bound not in self.range.network:
                raise ValueError(f"{shown(key, str(bound))} is not in range {self.range.network}")
        start, end = self.bounds if self.range else (None, None)
        if start is not None and end is not None and start > end:
            raise ValueError(f"{shown('range_end', str(end))} is below range_start {start}")
        return self

    @property
    def bounds(self) -> tuple[IPAddress | None, IPAddress | None]:
        """Lowest and highest address; those of the dash form come first, as upstream has it."""
        if self.range.start is not None:
            return self.range.start, self.range.end
        return self.range_start, self.range_end


class Kubernetes(Section):
    """Where the API server is."""

    kubeconfig: str = Field(default="", description="path of a kubeconfig")


class StoreConf(Section):
    """Where leases are kept: all that a DEL, a GC or a STATUS needs."""

    datastore: str = Field(
        default="", description="local, kubernetes, kubernetes-leases or etcd; absent: kubernetes, given a kubeconfig"
    )
    data_dir: AbsolutePath = Field(
        default=DEFAULT_DATA_DIR,
        alias="dataDir",
        description="directory of datastore local; on a local disk, never on a network filesystem",
    )
    cooldown_s: Annotated[float, Field(ge=0, le=86400)] = Field(
        default=60, alias="cooldownSeconds", description="seconds before a released address is handed out again"
    )
    deadline_s: Annotated[float, Field(gt=0, le=240)] = Field(
        default=30, alias="deadlineSeconds", description="seconds after which an invocation gives up"
    )
    sticky: bool | None = Field(
        default=None,
        description="a pod that comes again under its name gets its former address while nobody else has it; absent: "
        "as far as that costs no request; false: never",
    )
    network_name: Annotated[str, AfterValidator(_dns_1123)] = Field(
        default="", description="name space of addresses: the same range under two names is allocated twice"
    )
    configuration_path: str = Field(
        default="", description="path of a flat file; in a flat file, the directory of the file nodename"
    )
    kubernetes: Kubernetes = Field(default=Kubernetes(), description="access to the API server")
    etcd: Etcd = Field(default=Etcd(), description="access to etcd")

    @model_validator(mode="before")
    @classmethod
    def _takes_upstreams_etcd(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or lookup(given, "etcd") is not None:
            return given
        return {**given, "etcd": upstreams_etcd(given)}

    @property
    def chosen(self) -> str:
        """The datastore's name, empty when nothing says which."""
        return self.datastore or ("kubernetes" if self.kubernetes.kubeconfig else "")

    @property
    def place(self) -> Json:
        """The keys that say where leases are kept: known ones only, so that no secret is among them."""
        if self.chosen == "local":
            return {"datastore": "local", "dataDir": self.data_dir}
        key, access = ("etcd", self.etcd) if self.chosen == "etcd" else ("kubernetes", self.kubernetes)
        told = access.model_dump(include={*type(access).model_fields}, exclude_defaults=True)
        return {"datastore": self.chosen, **({key: told} if told else {})}


class WhereaboutsConf(IpamConf, StoreConf, RangeConf):
    """One ``ipam`` object of type ``whereabouts``, after flat file and node defaults were filled in."""

    ip_ranges: list[RangeConf] = Field(
        default=[], alias="ipRanges", description="several ranges, one address out of each; range comes before them"
    )
    enable_overlapping_ranges: bool = Field(
        default=True, description="an address is unique among all ranges of network_name, not only in its own"
    )
    allocation: Literal["lowest", "window", ""] = Field(
        default="",
        description="lowest free address, or one of the 64 lowest at random; absent: what suits the datastore",
    )

    ip_ranges_allocation: Literal["all", "first_available", ""] = Field(
        default="",
        alias="ipRangesAllocation",
        description="all: one address out of each range; first_available: one address, out of the first range that "
        "has a free one; absent: all",
    )

    node_slice_size: Annotated[str, AfterValidator(_slice_size)] = Field(
        default="",
        description="prefix length, such as /26: addresses come out of the slice of the first range that upstream's "
        "controller has given to this node",
    )

    @model_validator(mode="after")
    def _every_element_has_a_range(self) -> WhereaboutsConf:
        if any(element.range is None for element in self.ip_ranges):
            raise ValueError('an element of "ipRanges" has no "range"')
        return self

    @property
    def ranges(self) -> list[RangeConf]:
        """Every range in the order of the result."""
        return [self, *self.ip_ranges] if self.range else self.ip_ranges


def read_store_conf(ipam: Mapping[str, Any]) -> StoreConf:
    """Read where leases are kept, and take the default of a key that is not valid.

    For DEL and GC, which must not fail because of a configuration with which no ADD can have succeeded.
    """
    usable = dict(ipam)
    try:
        return StoreConf.model_validate(usable)
    except ValidationError as error:
        invalid = {str(item["loc"][0]).lower() for item in error.errors() if item["loc"]}
    if "etcd" in invalid:
        invalid |= {key.lower() for key in usable if key.lower().startswith("etcd_")}
    log.warning("ipam: keys that are not valid are ignored: %s", ", ".join(sorted(invalid)))
    return read(StoreConf, {key: value for key, value in usable.items() if key.lower() not in invalid}, where="ipam")


def read_whereabouts(ipam: Mapping[str, Any]) -> WhereaboutsConf:
    """Read the whole of the plugin's keys.

    Raises: InvalidNetworkConfig with key and value.
    """
    conf = read(WhereaboutsConf, ipam, where="ipam")
    tell_misspelt(conf, where="ipam")
    for element in conf.ranges:
        _tell_overridden(element)
    return conf


def _tell_overridden(element: RangeConf) -> None:
    """Warn of bounds that the dash form overrides: upstream is silent, and more addresses go out than they allow."""
    for key, given, counts in zip(
        ("range_start", "range_end"), (element.range_start, element.range_end), element.bounds, strict=True
    ):
        if given is not None and given != counts:
            log.warning(
                'ipam: %s counts for nothing: the bounds of "range" are %s and %s',
                shown(key, str(given)),
                *element.bounds,
            )
