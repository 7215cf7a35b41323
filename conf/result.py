"""The success result: one neutral form (1.1.0), read from and written for every version of the specification.

Nothing here knows which plugin made the result.

Source: https://www.cni.dev/docs/spec/#add-success, containernetworking/cni pkg/types/{020,040,100}; reference 1.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_interface
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from conf.errors import DecodeFailure, IncompatibleCniVersion, InvalidNetworkConfig
from conf.executables import SUPPORTED_VERSIONS
from conf.netconf import Dns
from conf.section import Json, Section, lookup, read, shown

_ONE_PER_FAMILY = ("0.1.0", "0.2.0")
_WITH_IP_VERSION = ("0.3.0", "0.3.1", "0.4.0")


def _cidr(text: str) -> str:
    if "/" not in text:
        raise ValueError("write it as ADDRESS/PREFIX")
    ip_interface(text)
    return text


def _address(text: str) -> str:
    return str(ip_address(text)) if text else text


Cidr = Annotated[str, AfterValidator(_cidr)]
Address = Annotated[str, AfterValidator(_address)]


class Interface(Section):
    """One interface, in the sandbox or on the host."""

    name: str = Field(description="interface name")
    mac: str = Field(default="", description="hardware address")
    mtu: int = Field(default=0, description="MTU in bytes, 0: not said (1.1.0)")
    sandbox: str = Field(default="", description="path of the netns, empty for a host interface")
    socket_path: str = Field(default="", alias="socketPath", description="path of the interface's socket (1.1.0)")
    pci_id: str = Field(default="", alias="pciID", description="PCI address (1.1.0)")

    def to_json(self, cni_version: str) -> Json:
        keys = ["name", "mac", "sandbox"]
        if cni_version not in _WITH_IP_VERSION:
            keys[2:2] = ["mtu"]
            keys += ["socketPath", "pciID"]
        by_key = self.model_dump(by_alias=True)
        return {key: by_key[key] for key in keys if by_key[key]}


class Ip(Section):
    """One address of one interface."""

    address: Cidr = Field(description="address with prefix length")
    gateway: Address = Field(default="", description="default gateway of the subnet")
    interface: int | None = Field(default=None, description="index into interfaces")

    @property
    def family(self) -> int:
        """4 or 6."""
        return ip_interface(self.address).version


class Route(Section):
    """One route; everything beside dst and gw came with 1.1.0."""

    dst: Cidr = Field(description="destination, a CIDR")
    gw: Address = Field(default="", description="next hop; absent: the first gateway of its family")
    mtu: int = Field(default=0, description="path MTU in bytes")
    advmss: int = Field(default=0, description="MSS in bytes to advertise")
    priority: int = Field(default=0, description="metric")
    table: int | None = Field(default=None, description="routing table")
    scope: int | None = Field(default=None, description="scope, as in rtnetlink.h")

    @property
    def family(self) -> int:
        """4 or 6."""
        return ip_interface(self.dst).version

    def to_json(self) -> Json:
        every = self.model_dump(include=set(type(self).model_fields))
        # 0 is a table and a scope of its own (unspec, universe), so only None is left out there.
        return {
            key: value for key, value in every.items() if value or (key in ("table", "scope") and value is not None)
        }


class Result(Section):
    """What an ADD made, independent of version."""

    interfaces: list[Interface] = []
    ips: list[Ip] = []
    routes: list[Route] = []
    dns: Dns = Dns()

    def to_json(self, cni_version: str) -> Json:
        """Return the JSON object of the asked version.

        Raises: InvalidNetworkConfig for 0.1.0 and 0.2.0 when there is no address, which those versions cannot say;
        IncompatibleCniVersion for a version we do not speak.
        """
        _require_supported(cni_version)
        if cni_version in _ONE_PER_FAMILY:
            return self._one_per_family(cni_version)
        with_version = cni_version in _WITH_IP_VERSION
        ips = []
        for ip in self.ips:
            entry: Json = {"version": str(ip.family)} if with_version else {}
            if ip.interface is not None:
                entry["interface"] = ip.interface
            entry["address"] = ip.address
            if ip.gateway:
                entry["gateway"] = ip.gateway
            ips.append(entry)
        parts: Json = {
            "interfaces": [interface.to_json(cni_version) for interface in self.interfaces],
            "ips": ips,
            "routes": [route.to_json() for route in self.routes],
        }
        document = {"cniVersion": cni_version, **{key: value for key, value in parts.items() if value}}
        if with_version or self.dns.to_json():
            document["dns"] = self.dns.to_json()
        return document

    def _one_per_family(self, cni_version: str) -> Json:
        document: Json = {"cniVersion": cni_version}
        for family in (4, 6):
            ip = next((ip for ip in self.ips if ip.family == family), None)
            if ip is None:
                continue
            routes = [
                {"dst": route.dst, **({"gw": route.gw} if route.gw else {})}
                for route in self.routes
                if route.family == family
            ]
            part: Json = {"ip": ip.address, "gateway": ip.gateway, "routes": routes}
            document[f"ip{family}"] = {key: value for key, value in part.items() if value}
        if len(document) == 1:
            raise InvalidNetworkConfig(
                f"a result without an address cannot be written for cniVersion {cni_version}",
                hint="use cniVersion 0.3.0 or later, or configure ipam",
            )
        document["dns"] = self.dns.to_json()
        return document


class _FamilyPart(Section):
    ip: Cidr
    gateway: Address = ""
    routes: list[Route] = []


class _OldResult(Section):
    ip4: _FamilyPart | None = None
    ip6: _FamilyPart | None = None
    dns: Dns = Dns()


def parse(document: Mapping[str, Any], *, cni_version: str, what: str) -> Result:
    """Read a result that another plugin, or an earlier call, wrote.

    A result without cniVersion is of ``cni_version``, the configuration's.
    Raises: DecodeFailure when its shape is wrong, IncompatibleCniVersion when we don't speak its version.
    """
    version = lookup(document, "cniVersion") or cni_version
    _require_supported(version)
    if version not in _ONE_PER_FAMILY:
        return read(Result, document, where=what, error=DecodeFailure)
    old = read(_OldResult, document, where=what, error=DecodeFailure)
    parts = [part for part in (old.ip4, old.ip6) if part]
    return Result(
        ips=[Ip(address=part.ip, gateway=part.gateway) for part in parts],
        routes=[route for part in parts for route in part.routes],
        dns=old.dns,
    )


def _require_supported(version: object) -> None:
    if version not in SUPPORTED_VERSIONS:
        raise IncompatibleCniVersion(
            f"{shown('cniVersion', version)} is not supported", hint=f"use one of {', '.join(SUPPORTED_VERSIONS)}"
        )
