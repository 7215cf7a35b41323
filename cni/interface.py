"""What ``sriov`` and ``host-device`` do alike: addresses from IPAM onto the interface, and DEL, CHECK, GC, STATUS.

How a plugin finds and sets up its device is in its own module; how a device is given back in cni/holding.py.

Source: https://www.cni.dev/docs/spec/#cni-operations; reference 1.4, 1.9.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from cni import addresses, attach, delegate, device_info_file, rdma_device
from cni.aside import both
from cni.attachments import Attachments, private_folder
from cni.holding import belongs_to_another, give_back, require_dead
from cni.interface_check import check
from cni.kernel import Kernel
from cni.linux.link import Link
from cni.linux.netns import Netns
from cni.linux.rtnetlink import Rtnetlink
from cni.linux.sysfs import is_pci_address
from cni.locks import device_lock
from cni.plugins import Leasing, Plugin
from cni.recorded_sandbox import is_another_networks, sandbox_record
from cni.steps import timed
from cni.undo import EveryStep, Undo
from cni.upstream_sriov import GoSriovFiles
from conf.attachment import Attachment, LinkRecord, RdmaRecord
from conf.errors import CniError, DeviceNotFound, PluginNotAvailable
from conf.netconf import Dns
from conf.request import Request
from conf.result import Interface, Ip, Result, Route
from conf.section import lookup


@dataclass(frozen=True)
class Scene:
    """What one ADD works with, open for its time."""

    request: Request
    host: Rtnetlink
    inside: Rtnetlink
    sandbox: Netns


class InterfacePlugin(ABC):
    """A plugin that attaches a device; the kernel, the records and the lock come in here."""

    name = ""
    announce_wait_s = 0.2  # for the carrier, which a VF has a moment after it is set up

    def __init__(
        self,
        *,
        kernel: Kernel | None = None,
        attachments: Attachments | None = None,
        go_files: GoSriovFiles | None = None,
        lock: Callable[[str], AbstractContextManager[None]] = device_lock,
        find_plugin: Callable[[str, Sequence[str]], Plugin] = delegate.find,
    ) -> None:
        self.kernel = kernel or Kernel()
        self.attachments = attachments or Attachments()
        self.go_files = go_files or GoSriovFiles()
        self.lock = lock
        self.find_plugin = find_plugin

    def delete(self, request: Request) -> None:
        """Detach: every step is tried, the address is released even without a record or a sandbox."""
        if is_another_networks(self.attachments, request):
            return
        owner = request.container_id, request.ifname
        record = self.attachments.load_for_delete(self.name, *owner, upstreams=lambda: self._upstreams_word(request))
        if record is None:
            self.attachments.delete_unfinished(self.name, request.container_id, request.ifname)
        steps = EveryStep(f"DEL of {request.container_id} {request.ifname} is not complete")
        if record is not None:
            with steps.step("device"):
                self._detach(record)
        with steps.step("address"):
            ipam = self._ipam(request, record)
            if ipam is not None:
                ipam.delete(_with_record(request, record))
        if record is not None and not steps.failed:
            self.forget(record)
        steps.raise_any()

    def check(self, request: Request) -> None:
        """Verify what is really there against the record and prevResult. Raises: CheckFailed naming all differences."""
        record = self.load(request)
        check(self.kernel, request, record)
        ipam = self._ipam(request, record)
        if ipam is not None:
            ipam.check(_with_record(request, record))

    def gc(self, request: Request) -> None:
        """Give back what attachments of this network hold that the runtime does not know any more."""
        valid = request.valid_attachments()
        steps = EveryStep(f"GC of network {request.network} is not complete")
        stale = [
            record
            for record in self.attachments.every(self.name)
            if valid is not None and record.network == request.network and record.owner not in valid
        ]
        for record in stale:
            with steps.step(f"{record.container_id} {record.ifname}"):
                self._detach(record)
                # What the configuration says by now need not be where the ADD leased.
                if record.ipam_store and (ipam := self._ipam(request, record)) is not None:
                    ipam.delete(request.of_attachment(*record.owner, record.ipam_store))
        with steps.step("unfinished records"):
            self.attachments.delete_abandoned(self.name, now=time.time())
        with steps.step("addresses"):
            ipam = self._ipam(request, None)
            if ipam is not None:
                ipam.gc(request)
        failed = {what for what, _error in steps.failed}
        for record in stale:
            if not failed & {f"{record.container_id} {record.ifname}", "addresses"}:
                self.forget(record)
        steps.raise_any()

    def status(self, request: Request) -> None:
        """Say whether an ADD could work. Raises: PluginNotAvailable, or what the IPAM plugin raises."""
        root = self.attachments.root
        try:
            private_folder(root)
            with self.kernel.rtnetlink(None) as host:
                host.link_get("lo")
            if lookup(request.config, "rdmaIsolation") is True:
                with rdma_device.host_socket(self.kernel) as rdma:
                    rdma_device.require_exclusive_mode(rdma)
        except (OSError, CniError) as error:
            hint = error.hint if isinstance(error, CniError) else ""
            details = error.msg if isinstance(error, CniError) else str(error)
            raise PluginNotAvailable(f"{self.name} cannot serve an ADD", details=details, hint=hint) from error
        if not os.access(root, os.W_OK):
            raise PluginNotAvailable(f"{self.name} cannot write its records to {root}")
        ipam = self._ipam(request, None)
        if ipam is not None:
            ipam.status(request)

    # What a plugin may do in its own way

    def load(self, request: Request) -> Attachment | None:
        """Return the record of an attachment, ours or what upstream's plugin left. Raises: IoFailure."""
        own = self.attachments.load(self.name, request.container_id, request.ifname)
        return own or self.upstreams_record(request)

    @abstractmethod
    def upstreams_record(self, request: Request) -> Attachment | None:
        """Return what upstream's plugin left of an attachment, or we wrote for it. Raises: IoFailure."""

    def forget(self, record: Attachment) -> None:
        """Delete the record of an attachment whose device is back."""
        device_info_file.delete(record)
        self.attachments.delete(record)

    # The steps they share

    @contextmanager
    def scene(self, request: Request) -> Iterator[Scene]:
        """Open what an ADD works with; what would fail later is refused before anything is done.

        Raises: IfnameTaken, InvalidNetns, DecodeFailure, InvalidNetworkConfig.
        """
        self.require_usable(request)
        with (
            Netns.open(request.netns) as sandbox,
            self.kernel.rtnetlink(None) as host,
            self.kernel.rtnetlink(sandbox) as inside,
        ):
            attach.require_free(inside, request.ifname)
            yield Scene(request, host, inside, sandbox)

    def require_usable(self, request: Request) -> None:
        """Refuse, before anything is done, a malformed prevResult and an IPAM plugin that is not there.

        Raises: DecodeFailure, InvalidNetworkConfig.
        """
        request.prev_result()
        self._ipam(request, None)

    def attach_record(self, scene: Scene, device_id: str, link: Link | None) -> Attachment:
        """Return the record of an attachment that is about to be made, with what every plugin knows of it."""
        ipam = self._ipam(scene.request, None)
        return Attachment(
            plugin=self.name,
            network=scene.request.network,
            container_id=scene.request.container_id,
            ifname=scene.request.ifname,
            sandbox=sandbox_record(scene.sandbox),
            device_id=device_id,
            link=self._link_record(scene, device_id, link) if link else None,
            ipam_type=_ipam_type(scene.request),
            ipam_store=ipam.kept_in(scene.request) if isinstance(ipam, Leasing) else {},
            device_info_file=device_info_file.wanted_path(scene.request.config, device_id),
        )

    def _link_record(self, scene: Scene, device_id: str, link: Link) -> LinkRecord:
        recorded = attach.link_record(link, scene.host)
        if not is_pci_address(device_id):
            return recorded
        others = [name for name in self.kernel.sysfs.pci_netdevs(device_id) if name != link.ifname]
        others += [record.link.ifname for record in self.attachments.holding(device_id) if record.link]
        shares = bool(others and link.perm_mac)
        return recorded.model_copy(update={"shares_device": shares})

    def settle_earlier(self, request: Request, host: Rtnetlink, *, device: str) -> None:
        """Give back what a killed ADD of the same attachment took: its record is about to be written over.

        ``device``: what this ADD is for, as ``lock_name`` writes it; who holds that is asked for anyway.
        Raises: TryAgainLater when the earlier attachment stands, its link renamed in the sandbox.
        """
        earlier = self.attachments.load(self.name, request.container_id, request.ifname)
        if earlier is None or earlier.returned or lock_name(earlier.device_id, earlier.link) == device:
            return
        require_dead(self.kernel, host, earlier)
        self._detach(earlier)

    def finish(
        self,
        scene: Scene,
        record: Attachment,
        link: Link | None,
        *,
        mac: str,
        mtu_bytes: int,
        dns: Dns,
        undo: Undo,
        assigned: Result | None,
        kept: Result | None = None,
    ) -> Result:
        """Have addresses assigned, unless they are, and put on the link; return the result of the chain so far.

        ``kept`` is what the interface had on the host and shall have in the sandbox too.
        """
        request, previous = scene.request, scene.request.prev_result() or Result()
        at = len(previous.interfaces)
        if assigned is None:
            assigned = self._assigned(request, record, undo)
        kept = kept or Result()
        # An address that IPAM assigns too is IPAM's.
        by_address = {ip.address: ip for ip in [*kept.ips, *assigned.ips]}
        ips = [Ip(address=ip.address, gateway=ip.gateway, interface=at) for ip in by_address.values()]
        routes = [*kept.routes, *assigned.routes]
        if link is not None and ips:
            self._configure(scene, link, ips, routes)
        device_info_file.write(record, self.kernel.sysfs)
        interface = Interface(
            name=request.ifname,
            mac=mac,
            mtu=mtu_bytes,
            sandbox=request.netns,
            pciID=record.device_id if is_pci_address(record.device_id) else "",
        )
        return Result(
            interfaces=[*previous.interfaces, interface],
            ips=[*previous.ips, *ips],
            routes=[*previous.routes, *routes],
            dns=next((given for given in (dns, assigned.dns, previous.dns) if given.to_json()), previous.dns),
        )

    def move_in(self, scene: Scene, record: Attachment, link: Link, undo: Undo) -> Result | None:
        """Move the link into the sandbox; return the addresses that were assigned meanwhile, if they could be.

        The move is the kernel's waiting, and needs no address. A foreign plugin, dhcp say, may want the link there.
        Undo: ``attach.move_out`` for the move, pushed for the addresses. Raises: IfnameTaken, KernelRefused, and what
        IPAM raises.
        """

        def move() -> None:
            attach.move_in(self.kernel, scene.host, link, sandbox=scene.sandbox, ifname=scene.request.ifname)

        ipam = self._ipam(scene.request, record)
        if ipam is None or isinstance(ipam, delegate.ForeignPlugin):
            timed("move")(move)()
            return None
        return both(move, lambda: self._assigned(scene.request, record, undo))[1]

    @timed("ipam")
    def _assigned(self, request: Request, record: Attachment, undo: Undo) -> Result:
        ipam = self._ipam(request, record)
        if ipam is None:
            return Result()
        # Before the ADD: the spec has a delegate that failed called again with DEL.
        undo.push("the address", lambda: ipam.delete(request.as_command("DEL")))
        assigned = ipam.add(request)
        addresses.require_ips(assigned, record.ipam_type)
        return assigned

    def goes_up_with_addresses(self, _request: Request) -> bool:
        """Tell whether the link is down until it has its addresses: the kernel then announces them by itself."""
        return False

    def _configure(self, scene: Scene, link: Link, ips: list[Ip], routes: list[Route]) -> None:
        ifname = scene.request.ifname
        addresses.apply(
            self.kernel, scene.inside, scene.sandbox, index=link.index, ifname=ifname, ips=ips, routes=routes
        )
        if self.goes_up_with_addresses(scene.request):
            return
        self.kernel.announce(
            scene.sandbox,
            ifname=ifname,
            ifindex=link.index,
            mac=link.mac,
            addresses=[ip.address for ip in ips],
            running_wait_s=self.announce_wait_s,
        )

    def _detach(self, record: Attachment) -> None:
        """Give the device back unless it is another's by now. Raises: what failed."""
        with self.lock(lock_name(record.device_id, record.link)), self.kernel.rtnetlink(None) as host:
            # Read again under the lock: the next ADD may have found us dead and taken the device.
            current = self.attachments.load(self.name, *record.owner) or record
            if current.returned or belongs_to_another(current, self.go_files):
                return
            give_back(self.kernel, host, current)
            # While the lock is held: after it they may be the next owner's, whose sandbox may have the path of ours.
            self.go_files.delete(current)
            if self.attachments.load(self.name, *record.owner):
                self.attachments.write(current.model_copy(update={"returned": True}))

    def _upstreams_word(self, request: Request) -> Attachment | None:
        """Return upstream's record with the RDMA device that only ours would have named."""
        record = self.upstreams_record(request)
        if record is None or lookup(request.config, "rdmaIsolation") is not True or not record.device_id:
            return record
        names = self.kernel.sysfs.rdma_names(record.device_id)
        return record.model_copy(update={"rdma": RdmaRecord(name=names[0]) if names else None})

    def _ipam(self, request: Request, record: Attachment | None) -> Plugin | None:
        ipam_type = _ipam_type(request) or (record.ipam_type if record else "")
        return self.find_plugin(ipam_type, request.path) if ipam_type else None


def _ipam_type(request: Request) -> Any:
    ipam = lookup(request.config, "ipam")
    return lookup(ipam, "type", "") if isinstance(ipam, dict) else ""


def _with_record(request: Request, record: Attachment | None) -> Request:
    return replace(request, recorded_ipam=record.ipam_store) if record else request


def lock_name(device_id: str, link: Link | LinkRecord | None) -> str:
    """Return what a device is locked by: its id, or the host name of a link that has no device behind it."""
    return device_id or (f"link-{link.ifname}" if link else "")


def present(inside: Rtnetlink, ifname: str) -> Link:
    """Return a link that has just been moved in. Raises: DeviceNotFound when somebody took it away again."""
    link = inside.link_get(ifname)
    if link is None:
        raise DeviceNotFound(f"{ifname} has gone from the sandbox right after it came", hint="who else moves links?")
    return link
