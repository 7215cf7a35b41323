"""CHECK of the plugins that attach a device: what is really there, against the record and against prevResult.

What plugins after us in the chain may have changed (MAC, MTU, more addresses and routes) is taken from prevResult,
which is the result of the whole chain. Nothing here changes anything.
"""

from __future__ import annotations

from cni import addresses, rdma_device
from cni.attach import Place, located
from cni.kernel import Kernel
from cni.linux.rtnetlink import Rtnetlink
from cni.sriov_device import port_of
from cni.vf import settings
from conf.attachment import Attachment
from conf.errors import CheckFailed, InvalidNetworkConfig
from conf.request import Request
from conf.result import Interface, Result


def check(kernel: Kernel, request: Request, record: Attachment | None) -> None:
    """Raise CheckFailed naming every difference; InvalidNetworkConfig without a prevResult."""
    previous = request.prev_result()
    if previous is None:
        raise InvalidNetworkConfig("CHECK needs prevResult", hint="the runtime passes the result of the ADD")
    if record is None or record.returned:
        raise CheckFailed(
            f"{request.container_id} has no attachment {request.ifname}", hint="it was deleted, or never added"
        )
    at, interface = _ours(previous, request)
    found: list[str] = []
    with kernel.rtnetlink(None) as host:
        if record.link is not None:
            with located(kernel, host, record) as place:
                found += _of_link(place, request, record, interface)
                if place is not None and place.sandbox is not None:
                    found += _of_addresses(place, previous, at)
        found += _of_vf(kernel, host, record)
    found += _of_rdma(kernel, record)
    if found:
        raise CheckFailed(
            f"{request.ifname} of {request.container_id} is not as it was made",
            details="; ".join(found),
            hint="delete the pod and let it be made again",
        )


def _of_rdma(kernel: Kernel, record: Attachment) -> list[str]:
    if record.rdma is None:
        return []
    with rdma_device.located(kernel, record) as place:
        if place is not None and place.sandbox is not None:
            return []
        where = "on the host" if place else "nowhere to be found"
    return [f"RDMA device {record.rdma.name} is not in the sandbox: it is {where}"]


def _ours(previous: Result, request: Request) -> tuple[int, Interface]:
    for at, interface in enumerate(previous.interfaces):
        if interface.name == request.ifname and interface.sandbox:
            return at, interface
    raise CheckFailed(f"prevResult has no interface {request.ifname} in a sandbox")


def _of_link(place: Place | None, request: Request, record: Attachment, interface: Interface) -> list[str]:
    if place is None or place.sandbox is None:
        where = "nowhere to be found" if place is None else f"on the host as {place.link.ifname}"
        return [f"{record.device_id} is not in the sandbox: it is {where}"]
    link, found = place.link, []
    if link.ifname != request.ifname:
        found.append(f"it is called {link.ifname}")
    if not link.up:
        found.append("it is down")
    if interface.mac and link.mac.lower() != interface.mac.lower():
        found.append(f"MAC is {link.mac}, prevResult says {interface.mac}")
    # A later plugin may have set another one; Go's tuning does, and passes ours on in the result.
    if record.wanted.mtu_bytes and link.mtu_bytes not in (record.wanted.mtu_bytes, interface.mtu):
        found.append(f"MTU is {link.mtu_bytes}, wanted {record.wanted.mtu_bytes}")
    for name in ("promisc", "allmulti"):
        if getattr(record.wanted, name) and not getattr(link, name):
            found.append(f"{name} is off")
    return found


def _of_addresses(place: Place, previous: Result, at: int) -> list[str]:
    ips = [ip for ip in previous.ips if ip.interface in (at, None)]
    # A route names no interface; only those that ours could carry are looked for on it.
    families = {ip.family for ip in ips}
    routes = [route for route in previous.routes if route.family in families] if _alone(previous) else []
    return addresses.differences(place.rtnl, index=place.link.index, ips=ips, routes=routes)


def _alone(previous: Result) -> bool:
    return len([interface for interface in previous.interfaces if interface.sandbox]) == 1


def _of_vf(kernel: Kernel, host: Rtnetlink, record: Attachment) -> list[str]:
    if record.vf is None:
        return []
    port = port_of(kernel, host, record.device_id)
    if port is None:
        return [f"the PF of {record.device_id} has gone"]
    state, found = port.state(), []
    if record.wanted.mac and state.mac != record.wanted.mac:
        found.append(f"VF MAC is {state.mac}, wanted {record.wanted.mac}")
    return found + [text for setting in settings(port, record.vf, record.wanted) if (text := setting.difference(state))]
