"""``sriov``: a VF becomes an interface of a sandbox, set up through its PF, with addresses; and comes back untouched.

Here is the order of an ADD's steps and nothing else: finding the device is in cni/sriov_device.py, giving it back in
cni/holding.py, what host-device does too in cni/interface.py, the keys in conf/sriov.py.

Source: k8snetworkplumbingwg/sriov-cni cmd/sriov/main.go; reference 2.
"""

from __future__ import annotations

import logging

from cni import addresses, rdma_device
from cni.holding import give_back, require_unheld
from cni.interface import InterfacePlugin, Scene, present
from cni.linux.link import Link
from cni.mac import ZERO, VfMac, another
from cni.sriov_device import Device, find
from cni.undo import Undo
from cni.vf import settings
from conf.attachment import Attachment, Wanted
from conf.request import Request
from conf.result import Result
from conf.sriov import KEEP, SriovConf, load

LOG = logging.getLogger("vferry.sriov")


class Sriov(InterfacePlugin):
    """The plugin."""

    name = "sriov"

    def add(self, request: Request) -> Result:
        """Attach the VF. Raises: CniError; then everything is as it was, or the record says what is not."""
        conf = load(request)
        with self.scene(request) as scene:
            self.settle_earlier(request, scene.host, device=conf.device_id)
            with self.lock(conf.device_id):
                require_unheld(
                    self.kernel,
                    scene.host,
                    conf.device_id,
                    attachments=self.attachments,
                    go_files=self.go_files,
                )
                with Undo() as undo:
                    result = self._attach(scene, conf, undo)
                    undo.commit()
        return result

    def upstreams_record(self, request: Request) -> Attachment | None:
        return self.go_files.load(request.container_id, request.ifname)

    def forget(self, record: Attachment) -> None:
        self.go_files.delete_state(record)
        super().forget(record)

    def _attach(self, scene: Scene, conf: SriovConf, undo: Undo) -> Result:
        wanted = _wanted(conf)
        device = find(self.kernel, scene.host, conf.device_id, wanted)
        record = self._record(scene, device, conf, wanted)  # the undo steps take the one that is current then
        undo.push_last("the record", lambda: self.forget(record))
        undo.push_last("the Go plugin's record", lambda: self.go_files.delete(record))
        self.attachments.write(record)
        self.go_files.write(record)
        # Giving back sets only what differs, so it can be pushed before the first change, and a change that fails
        # half-way is taken back too.
        undo.push("the device", lambda: give_back(self.kernel, scene.host, record))
        mac = VfMac(device.port, self.kernel.sleep)
        record = self._choose_mac(scene, record, mac)
        self._set_on_pf(device, record, mac)
        link, assigned = None, None
        if device.link:
            assigned = self.move_in(scene, record, device.link, undo)
            link = self._set_inside(scene, wanted, mac)
        else:
            _tell_what_is_not_set(device, wanted)
        if record.rdma:
            rdma_device.move_in(self.kernel, record.rdma, sandbox=scene.sandbox)
        return self.finish(
            scene,
            record,
            link,
            mac=link.mac if link else _dpdk_mac(device),
            mtu_bytes=link.mtu_bytes if link else device.pf_mtu_bytes,
            dns=conf.dns,
            undo=undo,
            assigned=assigned,
        )

    def _record(self, scene: Scene, device: Device, conf: SriovConf, wanted: Wanted) -> Attachment:
        about_the_vf = {
            "pf_pci_address": device.pf_pci_address,
            "pf_ifname": device.port.pf_ifname if device.port else None,
            "vf_index": device.port.vf_index if device.port else None,
            "dpdk_driver": device.dpdk_driver,
            "vf": device.vf_record(),
            "rdma": rdma_device.isolated(self.kernel, device.pci_address) if conf.rdma_isolation else None,
            "wanted": wanted,
        }
        return self.attach_record(scene, device.pci_address, device.link).model_copy(update=about_the_vf)

    def _choose_mac(self, scene: Scene, record: Attachment, mac: VfMac) -> Attachment:
        """Have the VF take the wanted MAC by itself where it may, and record that its old one was its own choice.

        A trusted VF may in any case, so there it tells nothing.
        """
        vf, link, wanted = record.vf, record.link, record.wanted.mac
        if vf is None or link is None or wanted is None or vf.trust or vf.mac != link.mac:
            return record
        # Setting the MAC it has would tell nothing, so one that is wanted already is left for a moment.
        for step in (wanted,) if wanted != link.mac else (another(wanted), wanted):
            if not mac.choose(scene.host, link.index, step):
                return record
        chosen = record.model_copy(update={"vf": vf.model_copy(update={"mac_is_administrative": False})})
        self.attachments.write(chosen)
        return chosen

    def _set_on_pf(self, device: Device, record: Attachment, mac: VfMac) -> None:
        if device.port is None or record.vf is None:
            return
        for setting in settings(device.port, record.vf, record.wanted):
            if setting.name == "VLAN":
                setting.apply()
        if record.wanted.mac:
            mac.set_admin(record.wanted.mac)
        for setting in settings(device.port, record.vf, record.wanted):
            if setting.name != "VLAN":
                setting.apply()

    def _set_inside(self, scene: Scene, wanted: Wanted, mac: VfMac) -> Link:
        inside, ifname = scene.inside, scene.request.ifname
        index = present(inside, ifname).index
        addresses.announce_quietly(self.kernel, scene.sandbox, ifname)
        if wanted.mtu_bytes:
            inside.link_set_mtu(index, wanted.mtu_bytes)
        if wanted.mac:
            mac.set_effective(inside, index, wanted.mac)
        if wanted.promisc:
            inside.link_set_promisc(index, on=True)
        if wanted.allmulti:
            inside.link_set_allmulti(index, on=True)
        inside.link_set_up(index)
        return present(inside, ifname)


def _wanted(conf: SriovConf) -> Wanted:
    rated = conf.min_tx_rate is not None or conf.max_tx_rate is not None
    on_off = {"on": True, "off": False, None: None}
    return Wanted(
        vlan_id=None if conf.vlan in (None, KEEP) else int(conf.vlan),
        vlan_qos=conf.vlan_qos,
        vlan_proto=conf.vlan_proto or "802.1q",
        mac=conf.mac,
        min_tx_rate_mbps=(conf.min_tx_rate or 0) if rated else None,
        max_tx_rate_mbps=(conf.max_tx_rate or 0) if rated else None,
        spoofchk=on_off[conf.spoofchk],
        trust=on_off[conf.trust],
        link_state=conf.link_state,
        mtu_bytes=conf.mtu,
        promisc=conf.promisc,
        allmulti=conf.allmulti,
    )


def _tell_what_is_not_set(device: Device, wanted: Wanted) -> None:
    """Warn of keys that need a netdev; no error, because one NAD may serve VFs of either kind."""
    asked = {"mtu": wanted.mtu_bytes, "promisc": wanted.promisc, "allmulti": wanted.allmulti}
    keys = [key for key, value in asked.items() if value]
    if keys:
        LOG.warning("%s is driven by %s: %s not set", device.pci_address, device.dpdk_driver, ", ".join(keys))


def _dpdk_mac(device: Device) -> str:
    mac = device.port.state().mac if device.port else ""
    return "" if mac == ZERO else mac
