"""The keys of ``static``: addresses given word for word, or by the runtime; giving them is ipam/static.py.

Source: containernetworking/plugins plugins/ipam/static/main.go; reference 4.
"""

from __future__ import annotations

from netaddr import IPAddress, IPNetwork

from conf.defaults import filled
from conf.errors import InvalidNetworkConfig
from conf.ipam import (
    IpamConf,
    StaticAddress,
    asked,
    cni_args_addresses,
    cni_args_gateways,
    ipam_object,
    require_expressible,
    with_gateways,
)
from conf.request import Request
from conf.section import Json, read, tell_misspelt


class StaticConf(IpamConf):
    """One ``ipam`` object of type ``static``."""


def read_keys(request: Request, defaults: Json) -> StaticConf:
    """Read the ``ipam`` object alone, as STATUS wants it: what a runtime adds for one attachment is not there.

    Raises: InvalidNetworkConfig.
    """
    conf = read(StaticConf, filled(ipam_object(request.config), defaults), where="ipam")
    tell_misspelt(conf, where="ipam")
    return conf


def read_static(request: Request, defaults: Json) -> StaticConf:
    """Read the plugin's keys, with the addresses from every source in ``addresses``.

    IP= of CNI_ARGS is appended, ``args.cni.ips`` replaces, ``runtimeConfig.ips`` replaces again. An address that
    replaces keeps what is known of gateways: that of the same configured address, else one in its subnet.
    Raises: InvalidNetworkConfig, InvalidEnvironment.
    """
    conf = read_keys(request, defaults)
    gateways = cni_args_gateways(request)
    addresses = with_gateways([*conf.addresses, *cni_args_addresses(request)], gateways)
    wanted = asked(request)
    if wanted.texts:
        addresses = [_replacing(host, addresses, gateways) for host in wanted.hosts()]
    once: dict[IPAddress, StaticAddress] = {}
    for given in addresses:
        once.setdefault(given.address.ip, given)
    if not once:
        raise InvalidNetworkConfig(
            "ipam: static has no address to give",
            hint='set "addresses", or declare the capability "ips" and let the runtime give them',
        )
    require_expressible((address.version for address in once), request.cni_version)
    return conf.model_copy(update={"addresses": list(once.values())})


def _replacing(host: IPNetwork, configured: list[StaticAddress], gateways: list[IPAddress]) -> StaticAddress:
    known = [given.gateway for given in configured if given.gateway is not None] + gateways
    same = [given.gateway for given in configured if given.address.ip == host.ip]
    gateway = next((gateway for gateway in [*same, *known] if gateway is not None and gateway in host), None)
    return StaticAddress(address=host, gateway=gateway or next(iter(same), None))
