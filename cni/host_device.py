"""``host-device``: any link of the host becomes an interface of a sandbox, and comes back untouched.

Here is the order of an ADD's steps and nothing else: finding the device is in cni/host_device_find.py, giving it back
in cni/holding.py, what sriov does too in cni/interface.py, the keys in conf/host_device.py.

While the link is in the sandbox its alias is its host name: so the Go plugin finds its way back from our ADD, and we
from its (cni/upstream_host_device.py). The administrator's own alias is in our record.

Source: containernetworking/plugins plugins/main/host-device/host-device.go; reference 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

from cni import addresses, rdma_device, upstream_host_device
from cni.delegate import ForeignPlugin
from cni.holding import give_back, give_back_virtual, require_dead, require_unheld
from cni.host_device_find import HostDevice as Device
from cni.host_device_find import find
from cni.interface import InterfacePlugin, Scene, lock_name, present
from cni.linux.link import Link
from cni.linux.rtnetlink import Rtnetlink
from cni.undo import Undo
from conf.attachment import Attachment, LinkRecord
from conf.errors import DeviceNotFound, TryAgainLater
from conf.host_device import HostDeviceConf, load
from conf.request import Request
from conf.result import Ip, Result, Route

_RT_TABLE_MAIN, _RT_SCOPE_LINK = 254, 253  # linux/rtnetlink.h


class HostDevice(InterfacePlugin):
    """The plugin."""

    name = "host-device"
    announce_wait_s = 0  # upstream announces nothing; a link without carrier must not cost time

    def add(self, request: Request) -> Result:
        """Attach the link. Raises: CniError; then everything is as it was, or the record says what is not."""
        conf = load(request)
        with self.scene(request) as scene, self._locked(scene, conf) as device, Undo() as undo:
            result = self._attach(scene, conf, device, undo)
            undo.commit()
        return result

    def upstreams_record(self, request: Request) -> Attachment | None:
        return upstream_host_device.load(self.kernel, request)

    @contextmanager
    def _locked(self, scene: Scene, conf: HostDeviceConf) -> Iterator[Device]:
        """Lock the device, take it from a dead holder, and yield it as it is then."""
        host = scene.host
        try:
            device = find(self.kernel, host, conf)
        except (TryAgainLater, DeviceNotFound):
            # A dead holder's sandbox may have it still, or the kernel returned it under another name.
            moved_away = self._moved_away(host, conf)
            if moved_away is None:
                raise
            device = moved_away
        name = lock_name(device.device_id, device.link)
        self.settle_earlier(scene.request, host, device=name)
        with self.lock(name):
            if device.device_id:
                require_unheld(
                    self.kernel,
                    host,
                    device.device_id,
                    attachments=self.attachments,
                    go_files=self.go_files,
                    link=device.link,
                )
            elif device.link:
                give_back_virtual(self.kernel, host, device.link, attachments=self.attachments)
            yield find(self.kernel, host, conf)

    def _moved_away(self, host: Rtnetlink, conf: HostDeviceConf) -> Device | None:
        """Return the device that a selector would find if it were on the host, as far as our records know it.

        Raises: TryAgainLater when a living sandbox has it and there is no device to lock.
        """
        if not (conf.device or conf.hwaddr or conf.kernelpath):
            return Device(conf.runtime_device_id or str(conf.pci_bus_id), None)
        for record in self.attachments.every():
            if record.link and not record.returned and _answers(record, conf):
                if record.device_id:
                    return Device(record.device_id, None)
                require_dead(self.kernel, host, record)
        return None

    def _attach(self, scene: Scene, conf: HostDeviceConf, device: Device, undo: Undo) -> Result:
        record = self.attach_record(scene, device.device_id, device.link).model_copy(
            update={
                "dpdk_driver": device.dpdk_driver,
                "rdma": rdma_device.isolated(self.kernel, device.device_id) if conf.rdma_isolation else None,
            }
        )
        undo.push_last("the record", lambda: self.forget(record))
        self.attachments.write(record)
        # Giving back sets only what differs, so it can be pushed before the first change.
        undo.push("the device", lambda: give_back(self.kernel, scene.host, record))
        link, assigned = self._move(scene, record, device.link, undo) if device.link else (None, None)
        if record.rdma:
            rdma_device.move_in(self.kernel, record.rdma, sandbox=scene.sandbox)
        return self.finish(
            scene,
            record,
            link,
            mac=link.mac if link else "",
            mtu_bytes=link.mtu_bytes if link else 0,
            dns=conf.dns,
            undo=undo,
            assigned=assigned,
            kept=_network_of(record.link) if conf.use_interface_network and record.link else None,
        )

    def _move(self, scene: Scene, record: Attachment, host_link: Link, undo: Undo) -> tuple[Link, Result | None]:
        ifname = scene.request.ifname
        scene.host.link_set_alias(host_link.index, host_link.ifname)
        assigned = self.move_in(scene, record, host_link, undo)
        addresses.announce_quietly(self.kernel, scene.sandbox, ifname)
        link = present(scene.inside, ifname)
        if not self.goes_up_with_addresses(scene.request):
            scene.inside.link_set_up(link.index)
        return link, assigned

    def goes_up_with_addresses(self, request: Request) -> bool:
        """Tell whether it may: a foreign IPAM plugin, dhcp say, may want the link up; ours do without it."""
        ipam = self._ipam(request, None)
        return ipam is not None and not isinstance(ipam, ForeignPlugin)


def _answers(record: Attachment, conf: HostDeviceConf) -> bool:
    """Tell whether the link of a record is what the configuration selects."""
    if record.link is None:
        return False
    if conf.device:
        return conf.device in (record.link.ifname, *(record.link.altnames or ()))
    if conf.hwaddr:
        return conf.hwaddr == record.link.mac
    return bool(record.device_id) and record.device_id in PurePath(conf.kernelpath or "").parts


def _network_of(link: LinkRecord) -> Result:
    """Return the addresses and routes that a link has on the host as the result that gives it them in the sandbox."""
    routes = [
        Route(
            dst=route.dst,
            gw=route.gateway or "",
            mtu=route.mtu or 0,
            advmss=route.advmss or 0,
            priority=route.priority,
            table=None if route.table == _RT_TABLE_MAIN else route.table,
            # Said, so that it gets no gateway of IPAM's.
            scope=None if route.gateway else _RT_SCOPE_LINK,
        )
        for route in link.routes
    ]
    return Result(ips=[Ip(address=address.address) for address in link.addresses], routes=routes)
