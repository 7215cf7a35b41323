"""``rdma``: the RDMA device of an interface follows it into the sandbox; chained after the plugin that moved it.

Here is the order of the steps and nothing else: the move is in cni/rdma_device.py, the keys in conf/rdma.py.

Source: k8snetworkplumbingwg/rdma-cni cmd/rdma/main.go; reference 4.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from cni import rdma_device
from cni.attachments import Attachments
from cni.kernel import Kernel
from cni.linux.netns import Netns, boot_id
from cni.locks import device_lock
from cni.recorded_sandbox import is_another_networks, sandbox_record
from cni.undo import EveryStep, Undo
from cni.upstream_rdma import GoRdmaFiles
from conf.attachment import Attachment
from conf.errors import CheckFailed, CniError, DeviceNotFound, InvalidNetworkConfig, PluginNotAvailable, TryAgainLater
from conf.rdma import load
from conf.request import Request
from conf.result import Result

LOG = logging.getLogger("vferry.rdma")
NAME = "rdma"


class Rdma:
    """The plugin; the kernel, the records and the lock come in here."""

    def __init__(
        self,
        *,
        kernel: Kernel | None = None,
        attachments: Attachments | None = None,
        go_files: GoRdmaFiles | None = None,
        lock: Callable[[str], AbstractContextManager[None]] = device_lock,
    ) -> None:
        self.kernel = kernel or Kernel()
        self.attachments = attachments or Attachments()
        self.go_files = go_files or GoRdmaFiles()
        self.lock = lock

    def add(self, request: Request) -> Result:
        """Move the RDMA device; prevResult is passed on as it came."""
        conf = load(request)
        previous = _required_prev_result(request)
        with Netns.open(request.netns) as sandbox, rdma_device.host_socket(self.kernel) as host:
            if conf.shared_mode == "ignore" and host.system_get_netns_mode() != "exclusive":
                return previous
            rdma_device.require_exclusive_mode(host)
            device_id = conf.device_id or self._device_behind(request, sandbox)
            with self.lock(device_id):
                self._require_unheld(request, device_id)
                record = self._record(request, sandbox, device_id).model_copy(
                    update={"rdma": rdma_device.find(self.kernel, host, device_id)}
                )
                assert record.rdma is not None
                with Undo() as undo:
                    undo.push_last("the record", lambda: self._forget(record))
                    self.attachments.write(record)
                    self.go_files.write(record)
                    undo.push("the RDMA device", lambda: rdma_device.move_out(self.kernel, record))
                    rdma_device.move_in(self.kernel, record.rdma, sandbox=sandbox)
                    undo.commit()
        return previous

    def delete(self, request: Request) -> None:
        """Bring the RDMA device back; without a record, or with the sandbox gone, there is little or nothing to do."""
        if is_another_networks(self.attachments, request):
            return
        owner = request.container_id, request.ifname
        record = self.attachments.load_for_delete(NAME, *owner, upstreams=lambda: self._upstreams_record(request))
        if record is not None:
            self._detach(record)

    def check(self, request: Request) -> None:
        """Verify that the device is in the sandbox. Raises: CheckFailed."""
        _required_prev_result(request)
        record = self._load(request)
        if record is None:
            if load(request).shared_mode == "ignore":
                return
            raise CheckFailed(f"{request.container_id} has no RDMA device with {request.ifname}")
        with rdma_device.located(self.kernel, record) as place:
            if place is None or place.sandbox is None:
                name = record.rdma.name if record.rdma else ""
                raise CheckFailed(
                    f"RDMA device {name} of {record.device_id} is not in the sandbox",
                    details="it is on the host" if place else "it is nowhere to be found",
                )

    def gc(self, request: Request) -> None:
        """Bring back what attachments of this network hold that the runtime does not know any more."""
        valid = request.valid_attachments()
        steps = EveryStep(f"GC of network {request.network} is not complete")
        for record in self.attachments.every(NAME):
            if valid is not None and record.network == request.network and record.owner not in valid:
                with steps.step(f"{record.container_id} {record.ifname}"):
                    self._detach(record)
        steps.raise_any()

    def status(self, request: Request) -> None:
        """Say whether an ADD could work. Raises: PluginNotAvailable."""
        ignores = load(request).shared_mode == "ignore"
        try:
            with rdma_device.host_socket(self.kernel) as host:
                if not ignores:
                    rdma_device.require_exclusive_mode(host)
        except CniError as error:
            raise PluginNotAvailable("rdma cannot serve an ADD", details=error.msg, hint=error.hint) from error

    def _device_behind(self, request: Request, sandbox: Netns) -> str:
        """Return the device behind CNI_IFNAME; upstream searches all VFs for one with the same MAC."""
        with self.kernel.rtnetlink(sandbox) as inside:
            link = inside.link_get(request.ifname)
        if link is None or not link.parent_dev:
            raise InvalidNetworkConfig(
                f'no "deviceID" is given, and {request.ifname} in the sandbox has no device behind it',
                hint="set deviceID, or chain rdma after the plugin that moves the interface",
            )
        return link.parent_dev

    def _record(self, request: Request, sandbox: Netns, device_id: str) -> Attachment:
        return Attachment(
            plugin=NAME,
            network=request.network,
            container_id=request.container_id,
            ifname=request.ifname,
            sandbox=sandbox_record(sandbox),
            device_id=device_id,
        )

    def _require_unheld(self, request: Request, device_id: str) -> None:
        """Refuse a device that another attachment has moved; bring back one whose holder has died."""
        for record in self.attachments.holding(device_id):
            if record.rdma is None:
                continue
            if record.plugin != NAME and record.owner == (request.container_id, request.ifname):
                raise InvalidNetworkConfig(
                    f"the RDMA device of {device_id} is in the sandbox already: {record.plugin} moved it",
                    hint=f"use either rdmaIsolation in {record.plugin} or the rdma plugin, not both",
                )
            if record.sandbox.boot_id == boot_id():
                with rdma_device.located(self.kernel, record) as place:
                    held = place is not None and place.sandbox is not None
                if held:
                    raise TryAgainLater(
                        f"the RDMA device of {device_id} is already allocated",
                        details=f"container {record.container_id} has it with {record.ifname}",
                    )
            if record.plugin == NAME:
                self._give_back(record)
                self._forget(record)

    def _detach(self, record: Attachment) -> None:
        """Bring the device of a record back unless it is another's by now, and forget the record."""
        with self.lock(record.device_id) if record.device_id else nullcontext():
            if not self._belongs_to_another(record):
                self._give_back(record)
            self._forget(record)

    def _give_back(self, record: Attachment) -> None:
        if record.sandbox.boot_id in ("", boot_id()):
            try:
                rdma_device.move_out(self.kernel, record)
            except DeviceNotFound as error:
                LOG.info("nothing to bring back: %s", error)  # no subsystem any more, or no such function

    def _belongs_to_another(self, record: Attachment) -> bool:
        """Tell whether another attachment moved the device since: its own interface plugin does not know our record."""
        others = [other for other in self.attachments.holding(record.device_id) if record.device_id and other.rdma]
        return any(other.owner != record.owner for other in others)

    def _load(self, request: Request) -> Attachment | None:
        own = self.attachments.load(NAME, request.container_id, request.ifname)
        return own or self._upstreams_record(request)

    def _upstreams_record(self, request: Request) -> Attachment | None:
        return self.go_files.load(request.network, request.container_id, request.ifname, netns_path=request.netns)

    def _forget(self, record: Attachment) -> None:
        self.go_files.delete(record)
        self.attachments.delete(record)


def _required_prev_result(request: Request) -> Result:
    previous = request.prev_result()
    if previous is None:
        raise InvalidNetworkConfig(
            "rdma must be chained: there is no prevResult", hint="put it after sriov or host-device in a conflist"
        )
    return previous
