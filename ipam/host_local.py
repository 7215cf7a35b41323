"""``host-local``: addresses that no other pod of this node has, out of ranges, one file per address.

Dialect, order of addresses and files are upstream's, and both plugins may serve one network at the same time. What is
more: reservations that survive a power cut, a CHECK that looks at prevResult, GC, STATUS, no address of one ADD lost or
left behind by the failure of another.

Source: containernetworking/plugins plugins/ipam/host-local/main.go; reference 3.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path

from netaddr import IPAddress

from conf.address import parse_cidr
from conf.defaults import read_table
from conf.errors import (
    AddressesExhausted,
    CheckFailed,
    CniError,
    InvalidNetworkConfig,
    IoFailure,
    PluginNotAvailable,
    TryAgainLater,
)
from conf.host_local import HostLocalOrder, RangeConf, RangeSet, address_text, read_folder, read_host_local, read_keys
from conf.netconf import Dns
from conf.request import Request
from conf.result import Ip, Result
from conf.section import Json
from ipam.host_local_files import NetworkFiles, Owner, Reservation
from ipam.prev_result import require_given, require_prev_result
from ipam.resolv_conf import read_resolv_conf
from ipam.round_robin import next_free

log = logging.getLogger("vferry.ipam.host_local")


class HostLocal:
    """The IPAM plugin ``host-local``."""

    def __init__(
        self,
        *,
        open_files: Callable[[Path], NetworkFiles] = NetworkFiles,
        defaults: Callable[[str], Json] = read_table,
    ) -> None:
        self._open_files = open_files
        self._defaults = defaults

    def add(self, request: Request) -> Result:
        """Reserve one address of every set, all or none.

        Raises: AddressesExhausted, TryAgainLater for an address that is taken or an attachment that has one,
        InvalidNetworkConfig, InvalidEnvironment, IoFailure.
        Undo: delete.
        """
        order = read_host_local(request, self._defaults("host-local"))
        wanted = _requested_of(order)
        dns = read_resolv_conf(order.conf.resolv_conf) if order.conf.resolv_conf else Dns()
        files = self._open_files(order.conf.folder(request.network))
        owner = _owner(request)
        with ExitStack() as undo:
            with files.locked(make=True):
                given = _choose(order, wanted, files, owner)
                files.reserve(given, owner)
                undo.callback(_give_back, files, owner, given)
            files.sync(given)
            undo.pop_all()
        log.info("%s: %s reserved for %s", request.network, ", ".join(map(address_text, given)), owner)
        ips = [_to_ip(each, address) for each, address in zip(order.sets, given, strict=True)]
        return Result(ips=ips, routes=order.conf.routes, dns=dns)

    def delete(self, request: Request) -> None:
        """Give back what the attachment holds; nothing held is success.

        A file that names no interface, as old versions wrote it, is given back only when none names this one.
        Raises: IoFailure, TryAgainLater: the runtime then calls again.
        """
        files = self._open_files(read_folder(request, self._known(request)))
        if not files.folder.is_dir():
            return
        owner = _owner(request)
        with files.locked():
            held = [each for each in files.reservations() if each.is_of(owner)]
            mine = [each for each in held if each.ifname] or held
            files.release(mine)
        if mine:
            files.sync()
            log.info("%s: %s released by %s", request.network, _listed(mine), owner)

    def check(self, request: Request) -> None:
        """Compare reservations and prevResult: one of every set held, those told, none told that is not held.

        Raises: CheckFailed, InvalidNetworkConfig, IoFailure.
        """
        order = read_host_local(request, self._known(request))
        result = require_prev_result(request)
        files = self._open_files(order.conf.folder(request.network))
        owner = _owner(request)
        held = [each.address for each in files.reservations() if each.is_of(owner)]
        for each in order.sets:
            mine = [address for address in held if address in each]
            if not mine:
                raise CheckFailed(
                    f"{owner} holds no address of range set {each}",
                    details=f"it holds {', '.join(map(address_text, held)) or 'none'} in {files.folder}",
                    hint="delete the pod, so that it starts anew",
                )
            require_given((_to_ip(each, address) for address in mine), result)
        for ip in result.ips:
            address = parse_cidr(ip.address).ip
            if address not in held and any(address in each for each in order.sets):
                raise CheckFailed(
                    f"address {ip.address} of prevResult is not reserved for {owner}",
                    hint="delete the pod, so that it starts anew",
                )

    def gc(self, request: Request) -> None:
        """Give back what attachments hold that are gone; without a list of attachments do nothing.

        A file that names no interface stays: people reserve addresses by hand in this way.
        Raises: InvalidNetworkConfig, IoFailure, TryAgainLater.
        """
        valid = request.valid_attachments()
        files = self._open_files(read_folder(request, self._defaults("host-local")))
        if valid is None or not files.folder.is_dir():
            return
        with files.locked():
            stale = [
                each for each in files.reclaimed() if each.ifname and (each.container_id, each.ifname) not in valid
            ]
            files.release(stale)
        files.sync()
        if stale:
            log.info("%s: %s released, their attachments are gone", request.network, _listed(stale))

    def kept_in(self, request: Request) -> Json:
        """Return the key of ``ipam`` that says where this request reserves, for the record of its attachment.

        Raises: InvalidNetworkConfig.
        """
        return {"dataDir": str(read_folder(request, self._defaults("host-local")).parent)}

    def _known(self, request: Request) -> Json:
        """Return what the node says of a key that is not given, and before it where the ADD reserved."""
        return {**self._defaults("host-local"), **request.recorded_ipam}

    def status(self, request: Request) -> None:
        """Check the configuration, and that a reservation could be written; nothing is.

        That there is no range is no fault here, the runtime may add it to an ADD.
        Raises: PluginNotAvailable, InvalidNetworkConfig.
        """
        conf = read_keys(request, self._defaults("host-local")).conf
        try:
            self._open_files(conf.folder(request.network)).require_writable()
            if conf.resolv_conf:
                read_resolv_conf(conf.resolv_conf)
        except IoFailure as error:
            raise PluginNotAvailable(
                "host-local is not available", details=f"{error.msg}: {error.details}", hint=error.hint
            ) from error


def _requested_of(order: HostLocalOrder) -> dict[int, IPAddress]:
    """Return which requested address is to come out of which set.

    Raises: InvalidNetworkConfig for one that no set, or no set that is left, can give.
    """
    wanted: dict[int, IPAddress] = {}
    for address in order.requested:
        text = address_text(address)
        containing = [at for at, each in enumerate(order.sets) if address in each]
        if address in order.gateways:
            raise InvalidNetworkConfig(f"requested ip {text} is subnet's gateway", hint="ask for another address")
        if not containing or containing[0] in wanted:
            raise InvalidNetworkConfig(
                f"failed to allocate all requested IPs: {text}",
                details=f"range set {order.sets[containing[0]]} is asked for {wanted[containing[0]]} already"
                if containing
                else f"it is in none of the range sets {'; '.join(map(str, order.sets))}",
                hint="ask for one address of a range set",
            )
        wanted[containing[0]] = address
    return wanted


def _choose(
    order: HostLocalOrder, wanted: dict[int, IPAddress], files: NetworkFiles, owner: Owner
) -> tuple[IPAddress, ...]:
    reservations = files.reclaimed()
    held = [each for each in reservations if each.is_of(owner)]
    for range_set in order.sets:
        for each in (each for each in held if each.address in range_set):
            raise TryAgainLater(
                f"{address_text(each.address)} has been allocated to {owner.container_id}, "
                "duplicate allocation is not allowed",
                details=f"{each.path} is of {owner}",
                hint="DEL of this container and interface releases it",
            )
    taken = {each.address for each in reservations}
    given = []
    for at, range_set in enumerate(order.sets):
        address = wanted.get(at)
        if address in taken:
            raise TryAgainLater(
                f"requested IP address {address_text(address)} is not available in range set {range_set}",
                details=f"{files.folder / address_text(address)} says whose it is",
                hint="free it, or ask for another one",
            )
        address = address or next_free(range_set, files.last_reserved(at), taken=taken | order.gateways)
        if address is None:
            raise _exhausted(at, range_set, taken, files)
        given.append(address)
    return tuple(given)


def _exhausted(at: int, range_set: RangeSet, taken: Collection[IPAddress], files: NetworkFiles) -> AddressesExhausted:
    size = sum(element.last - element.first + 1 for element in range_set.ranges)
    return AddressesExhausted(
        f"failed to allocate for range {at}: no IP addresses available in range set: {range_set}",
        details=f"size {size}, used {sum(address in range_set for address in taken)}, gateways are not given",
        hint=f"the files in {files.folder} say who holds the addresses: free some, or widen the range",
    )


def _give_back(files: NetworkFiles, owner: Owner, given: Collection[IPAddress]) -> None:
    try:
        with files.locked():
            files.release(each for each in files.reservations() if each.is_of(owner) and each.address in given)
    except CniError as error:
        log.warning("the addresses of an ADD that failed are left for its DEL: %s", error)


def _to_ip(range_set: RangeSet, address: IPAddress) -> Ip:
    element = range_set.range_of(address)
    assert isinstance(element, RangeConf)
    return Ip(
        address=f"{address_text(address)}/{element.subnet.prefixlen}",
        gateway=address_text(element.router),
    )


def _listed(reservations: Collection[Reservation]) -> str:
    return ", ".join(each.path.name for each in reservations)


def _owner(request: Request) -> Owner:
    return Owner(request.container_id, request.ifname)
