"""What every IPAM plugin is told beside its own keys: static addresses, routes, dns, and the addresses asked for.

The keys of one IPAM plugin are in that plugin's own module; which address is given is decided in the room ``ipam``.

Source: containernetworking/plugins plugins/ipam/static/main.go LoadIPAMConfig; CNI conventions "ips", "args".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from netaddr import IPAddress, IPNetwork
from pydantic import AfterValidator, Field, model_validator

from conf.address import Host, OptionalAddress, parse_address, parse_cidr, parse_host
from conf.errors import InvalidEnvironment, InvalidNetworkConfig
from conf.netconf import Dns
from conf.request import Request
from conf.result import Ip, Result, Route
from conf.section import Json, Section, lookup, shown

_ONE_PER_FAMILY = ("0.1.0", "0.2.0")


class StaticAddress(Section):
    """One address that the configuration gives word for word."""

    address: Host = Field(description="address with prefix length, such as 192.0.2.7/24")
    gateway: OptionalAddress = Field(default=None, description="default gateway of the address's subnet")

    @model_validator(mode="after")
    def _is_of_one_family(self) -> StaticAddress:
        if self.gateway is not None and self.gateway.version != self.address.version:
            raise ValueError(
                f"{shown('gateway', str(self.gateway))} is not of the family of {shown('address', str(self.address))}"
            )
        return self

    def to_ip(self) -> Ip:
        """Return it as a result has it."""
        return Ip(address=str(self.address), gateway=str(self.gateway or ""))


def _hold_addresses(routes: list[Route]) -> list[Route]:
    for route in routes:
        dst = parse_cidr(route.dst)
        if route.gw and parse_address(route.gw).version != dst.version:
            raise ValueError(f"gw {route.gw} is not of the family of dst {route.dst}")
    return routes


Routes = Annotated[list[Route], AfterValidator(_hold_addresses)]


class IpamConf(Section):
    """The keys that ``static`` and ``whereabouts`` share."""

    type: str = Field(default="", description="file name of the IPAM plugin")
    addresses: list[StaticAddress] = Field(default=[], description="addresses given word for word")
    routes: Routes = Field(default=[], description="routes of the pod, passed to the interface plugin")
    dns: Dns = Field(default=Dns(), description="copied into the result")

    def to_result(self, ips: Iterable[Ip]) -> Result:
        """Return the answer to an ADD that gave these addresses."""
        return Result(ips=list(ips), routes=self.routes, dns=self.dns)


@dataclass(frozen=True)
class Asked:
    """The addresses that the runtime asked for, and the key it asked under."""

    key: str
    texts: tuple[str, ...]

    def hosts(self) -> list[IPNetwork]:
        """Return them with their prefix length.

        Raises: InvalidNetworkConfig, for one without prefix length too.
        """
        return [self._parsed(text) for text in self.texts]

    def addresses(self) -> list[IPAddress]:
        """Return them without prefix length; it may be given and counts for nothing.

        Raises: InvalidNetworkConfig.
        """
        return [self._parsed(text if "/" in text else f"{text}/{128 if ':' in text else 32}").ip for text in self.texts]

    def _parsed(self, text: str) -> IPNetwork:
        try:
            return parse_host(text)
        except ValueError as error:
            raise InvalidNetworkConfig(f'"{self.key}" is not valid: {error}') from error


def ipam_object(config: Mapping[str, Any]) -> Json:
    """Return the ``ipam`` object.

    Raises: InvalidNetworkConfig when there is none.
    """
    found = lookup(config, "ipam")
    if not isinstance(found, dict):
        raise InvalidNetworkConfig(
            '"ipam" is missing' if found is None else f"{shown('ipam', found)} is not an object",
            hint='add an "ipam" object with at least a "type"',
        )
    return found


def asked(request: Request) -> Asked:
    """Return the addresses of ``runtimeConfig.ips`` or else ``args.cni.ips``; none of the two: an empty list.

    Raises: InvalidNetworkConfig when a list is malformed.
    """
    from_runtime = asked_under(request, "runtimeConfig.ips")
    return from_runtime if from_runtime.texts else asked_under(request, "args.cni.ips")


def asked_under(request: Request, path: str) -> Asked:
    """Return the addresses of one key of the configuration; the key absent: an empty list.

    Raises: InvalidNetworkConfig when the list is malformed.
    """
    found: Any = request.config
    for key in path.split("."):
        found = lookup(found, key, {}) if isinstance(found, dict) else {}
    if found == {}:
        return Asked(path, ())
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise InvalidNetworkConfig(f"{shown(path, found)} is not valid", hint="a list of addresses, each a string")
    return Asked(path, tuple(text.strip() for text in found))


def cni_args_list(request: Request, key: str) -> list[str]:
    """Return the values of one key of CNI_ARGS that holds several, joined by commas."""
    return [text.strip() for text in request.args.get(key, "").split(",") if text.strip()]


def cni_args_addresses(request: Request) -> list[StaticAddress]:
    """Return the addresses of IP= in CNI_ARGS.

    Raises: InvalidEnvironment.
    """
    try:
        return [StaticAddress(address=parse_host(text)) for text in cni_args_list(request, "IP")]
    except ValueError as error:
        raise InvalidEnvironment(
            "CNI_ARGS: IP is not valid", details=str(error), hint="ADDRESS/LENGTH, several joined by ','"
        ) from error


def cni_args_gateways(request: Request) -> list[IPAddress]:
    """Return the gateways of GATEWAY= in CNI_ARGS.

    Raises: InvalidEnvironment.
    """
    try:
        return [parse_address(text) for text in cni_args_list(request, "GATEWAY")]
    except ValueError as error:
        raise InvalidEnvironment(
            "CNI_ARGS: GATEWAY is not valid", details=str(error), hint="addresses joined by ','"
        ) from error


def with_gateways(addresses: Iterable[StaticAddress], gateways: Iterable[IPAddress]) -> list[StaticAddress]:
    """Return the addresses, each with the last of the gateways that lies in its subnet, if any does."""
    listed = list(gateways)
    return [
        next(
            (
                StaticAddress(address=given.address, gateway=gateway)
                for gateway in reversed(listed)
                if gateway in given.address
            ),
            given,
        )
        for given in addresses
    ]


def require_expressible(versions: Iterable[int], cni_version: str) -> None:
    """Refuse more than one address per family for a cniVersion whose result holds only one.

    Raises: InvalidNetworkConfig.
    """
    families = list(versions)
    if cni_version in _ONE_PER_FAMILY and len(families) != len(set(families)):
        raise InvalidNetworkConfig(
            f"cniVersion {cni_version} does not support more than one address per family",
            hint="use cniVersion 0.3.0 or later",
        )
