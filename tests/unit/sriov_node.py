"""``sriov`` on a node in memory: pods, an IPAM plugin with leases, records in the test's own directory.

What is asked of the plugin is in the tests; how the node behaves is in fake_kernel.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cni import skel
from cni.attachments import Attachments
from cni.sriov import Sriov
from cni.upstream_sriov import GoSriovFiles
from conf.errors import AddressesExhausted, CheckFailed, IoFailure
from conf.result import Ip, Result, Route
from tests.unit.fake_kernel import kernel_of
from tests.unit.fake_node import FakeLink, FakeNet, FakeVf, Killed, Node

VF0, VF1 = "0000:3b:02.0", "0000:3b:02.1"
MAC = "02:00:5e:10:00:01"
IPAM = {"type": "fake"}


def config(pci_address: str = VF0, **keys: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "rail", "type": "sriov", "deviceID": pci_address, **keys}


# Every setting at once, and two addresses.
EVERYTHING = config(
    vlan=100,
    vlanQoS=3,
    vlanProto="802.1ad",
    mac=MAC,
    mtu=1400,
    min_tx_rate=10,
    max_tx_rate=100,
    spoofchk="off",
    trust="on",
    link_state="enable",
    promisc=True,
    allmulti=True,
    ipam=IPAM,
)


def differences(before: Any, after: Any, at: str = "") -> list[str]:
    """Say how two snapshots differ, a line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys([*before, *after])
        return [line for key in keys for line in differences(before.get(key), after.get(key), f"{at}/{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return differences(dict(enumerate(before)), dict(enumerate(after)), at)
    return [] if before == after else [f"{at}: {before!r} -> {after!r}"]


class FakeIpam:
    """Hands out one address of each family; a lease is an owner's until its DEL or GC."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.leases: dict[tuple[str, str], int] = {}
        self.free = iter(range(5, 1000))
        self.available = True
        self.silent = False  # it says success and gives no address
        self.dns: dict[str, Any] = {}

    def add(self, request: Any) -> Result:
        with self.node.call("ipam.add", error=AddressesExhausted("none left")):
            owner = request.container_id, request.ifname
            host = self.leases.setdefault(owner, next(self.free))
            ips = [
                Ip(address=f"10.7.7.{host}/24", gateway="10.7.7.1"),
                Ip(address=f"fd00::{host}/64", gateway="fd00::1"),
            ]
            if self.silent:
                return Result()
            return Result(ips=ips, routes=[Route(dst="10.8.0.0/16"), Route(dst="::/0", gw="fd00::2")], dns=self.dns)

    def delete(self, request: Any) -> None:
        with self.node.call("ipam.delete", error=IoFailure("the store is away")):
            self.leases.pop((request.container_id, request.ifname), None)

    def check(self, request: Any) -> None:
        if (request.container_id, request.ifname) not in self.leases:
            raise CheckFailed("no lease")

    def gc(self, request: Any) -> None:
        with self.node.call("ipam.gc", error=IoFailure("the store is away")):
            valid = request.valid_attachments()
            if valid is not None:
                self.leases = {owner: host for owner, host in self.leases.items() if owner in valid}

    def status(self, _request: Any) -> None:
        if not self.available:
            raise IoFailure("the store is away")


@dataclass(frozen=True)
class Answer:
    """What one invocation printed and returned."""

    status: int
    document: dict[str, Any]

    @property
    def code(self) -> int:
        return self.document.get("code", 0)

    @property
    def text(self) -> str:
        return f"{self.document.get('msg')}; {self.document.get('details')}"


class Machine:
    """A node with the plugin installed on it."""

    def __init__(self, folder: Path) -> None:
        self.node = Node()
        self.folder = folder
        self.ipam = FakeIpam(self.node)
        self.attachments = Attachments(folder / "attachments")
        self.go_files = GoSriovFiles(folder / "go")

    def plugin(self, *_name: str) -> Sriov:
        return Sriov(
            kernel=kernel_of(self.node),
            attachments=self.attachments,
            go_files=self.go_files,
            lock=self.node.lock,
            find_plugin=lambda _type, _path: self.ipam,
        )

    def pod(self, name: str) -> Pod:
        self.node.pod(f"/run/netns/{name}")
        return Pod(self, name)

    @property
    def vf(self) -> FakeVf:
        return self.node.vfs[0]

    @property
    def host_link(self) -> FakeLink:
        """The first VF's netdev while it is on the host."""
        return next(link for link in self.node.host.links if link.parent_dev == VF0)

    def records(self) -> list[str]:
        return sorted(
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if path.is_file() and path.suffix != ".lock"
        )

    def snapshot(self) -> dict[str, Any]:
        """Return all that must be as before: the node, the leases, the files."""
        return {**self.node.snapshot(), "leases": dict(self.ipam.leases), "records": self.records()}


@dataclass(frozen=True)
class Pod:
    """A sandbox, and the container ID that stands for it."""

    machine: Machine
    name: str

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    @property
    def net(self) -> FakeNet:
        return self.machine.node.nets[self.path]

    def link(self, ifname: str = "net1") -> FakeLink:
        found = self.net.find(name=ifname)
        assert found is not None
        return found

    def call(self, command: str, conf: Mapping[str, Any], *, ifname: str = "net1", **env: str) -> Answer:
        environ = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.name,
            "CNI_NETNS": self.path,
            "CNI_IFNAME": ifname,
            **env,
        }
        stdin, stdout = io.BytesIO(json.dumps(conf).encode()), io.BytesIO()
        status = skel.main("sriov", environ=environ, stdin=stdin, stdout=stdout, load=self.machine.plugin)
        assert not self.machine.node.locked
        return Answer(status, json.loads(stdout.getvalue() or b"{}"))

    def killed(self, command: str, conf: Mapping[str, Any]) -> bool:
        """Run a command that may be killed on its way, and tell whether it was."""
        try:
            self.call(command, conf)
        except Killed:
            self.machine.node.arm()
            return True
        return False

    def add(self, conf: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        answer = self.call("ADD", conf, **more)
        assert answer.status == 0, answer.document
        return answer.document

    def check(self, conf: Mapping[str, Any], result: Mapping[str, Any]) -> Answer:
        return self.call("CHECK", {**conf, "prevResult": result})

    def delete(self, conf: Mapping[str, Any], **more: Any) -> None:
        answer = self.call("DEL", conf, **more)
        assert (answer.status, answer.document) == (0, {})

    def refused(self, command: str, conf: Mapping[str, Any], **more: Any) -> Answer:
        """Return the answer of a call that must fail, and must not change anything."""
        before = self.machine.snapshot()
        answer = self.call(command, conf, **more)
        assert answer.status == 1
        assert self.machine.snapshot() == before
        return answer

    def destroy(self) -> None:
        self.machine.node.destroy(self.path)
