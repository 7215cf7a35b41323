"""A scratch namespace as a node: ``host-device`` run in it by a child of this process, with records of the test's own.

What is asked of the plugin is in the tests, the namespaces are conftest's. The child sees the sysfs of its namespace,
as a process of the host would.
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import pickle
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cni import delegate, plugins, skel
from cni.attachments import Attachments
from cni.host_device import HostDevice
from cni.kernel import Kernel
from cni.linux.netlink import NetlinkSocket
from cni.linux.netns import Netns
from cni.linux.rdma import NETLINK_RDMA, RdmaNetlink
from cni.linux.rtnetlink import Rtnetlink
from cni.linux.rtnetlink_socket import NETLINK_ROUTE
from cni.locks import device_lock
from cni.upstream_sriov import GoSriovFiles
from conf.errors import KernelRefused
from tests.netns.conftest import ScratchNetns

CLONE_NEWNS, MS_REC, MS_SLAVE = 0x20000, 0x4000, 0x80000  # linux/sched.h, linux/mount.h
# Of what iproute2 tells of a link, all but what a move gives anew or the kernel does in its own time.
VOLATILE = {"ifindex", "operstate", "qdisc", "link_index", "flags"}
FLAGS = {"UP", "PROMISC", "ALLMULTI"}

_libc = ctypes.CDLL(None, use_errno=True)
Build = Callable[..., HostDevice]


class Orders:
    """The orders given to the kernel; one of them fails, ``late``: after it was carried out, ``killed``: for good."""

    def __init__(self, failing: int = 0, *, late: bool = False, killed: bool = False) -> None:
        self.given: list[str] = []
        self.failing, self.late, self.killed = failing, late, killed

    def kernel(self) -> Kernel:
        return Kernel(
            rtnetlink=lambda netns: Rtnetlink(netns, netlink=_Socket(NETLINK_ROUTE, netns, self)),
            rdma=lambda netns: RdmaNetlink(netns, netlink=_Socket(NETLINK_RDMA, netns, self)),
        )

    def obeyed(self, operation: str, target: str, order: Callable[[], None]) -> None:
        self.given.append(operation)
        fails = len(self.given) == self.failing
        if not fails or self.late:
            order()
        if fails and self.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        if fails:
            raise KernelRefused(operation, target, errno.EIO)


class _Socket(NetlinkSocket):
    """A real socket that tells of every order."""

    def __init__(self, protocol: int, netns: Netns | None, orders: Orders) -> None:
        super().__init__(protocol, netns)
        self._orders = orders

    def command(self, message: Any, kind: int, *, operation: str, target: str, flags: int = 0) -> None:
        given = partial(super().command, message, kind, operation=operation, target=target, flags=flags)
        self._orders.obeyed(operation, target, given)


@dataclass(frozen=True)
class Answer:
    """What one invocation printed and returned, and the orders it gave; status -9: it was killed."""

    status: int
    document: dict[str, Any] = field(default_factory=dict)
    orders: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return f"{self.document.get('msg')}; {self.document.get('details')}"


class Node:
    """The namespace ``net`` as a host whose records are below ``folder``."""

    def __init__(self, net: ScratchNetns, folder: Path) -> None:
        self.net = net
        self.folder = folder
        self.attachments = Attachments(folder / "attachments")

    def plugin(self, **more: Any) -> HostDevice:
        return HostDevice(
            **{
                "attachments": self.attachments,
                "go_files": GoSriovFiles(self.folder / "go"),
                "lock": lambda name: device_lock(name, (self.folder / "locks",)),
                **more,
            }
        )

    def inside(self, act: Callable[[], object]) -> Any:
        """Run ``act`` in a child that is a process of this host, and return what it returns; None when it died."""
        receiving, sending = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(receiving)
            status = 1
            try:
                _become_host(self.net.netns.fd)
                answer = pickle.dumps(act())
                while answer:
                    answer = answer[os.write(sending, answer) :]
                status = 0
            except BaseException as error:
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(status)
        os.close(sending)
        with open(receiving, "rb") as answers:
            answer = answers.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, -signal.SIGKILL)
        return pickle.loads(answer) if status == 0 else None

    def records(self) -> list[str]:
        """Return the names of the files that an attachment leaves."""
        return sorted(path.name for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".lock")

    def snapshot(self) -> dict[str, Any]:
        """Return everything of the host that an attachment may not leave changed."""
        found: dict[str, Any] = {"records": self.records()}
        for link in json.loads(self.net.ip("-j", "-d", "addr", "show")):
            addresses = [
                {key: value for key, value in address.items() if key != "index"}
                for address in link.pop("addr_info", [])
                if address["scope"] == "global"
            ]
            kept = {key: value for key, value in link.items() if key not in VOLATILE}
            kept["altnames"] = sorted(link.get("altnames", []))
            found[link["ifname"]] = {**kept, "flags": sorted(FLAGS & {*link["flags"]}), "addresses": addresses}
        for family in ("-4", "-6"):
            found[f"routes {family}"] = sorted(
                line.strip()
                for line in self.net.ip(family, "route", "show", "table", "all", "proto", "static").splitlines()
            )
        return found


@dataclass(frozen=True)
class Pod:
    """A sandbox of a node; its name is the container ID."""

    node: Node
    net: ScratchNetns

    def call(
        self,
        command: str,
        conf: Mapping[str, Any],
        *,
        ifname: str = "net1",
        orders: Orders | None = None,
        more: Mapping[str, Any] | None = None,
        **env: str,
    ) -> Answer:
        """Run the plugin as a runtime would, in a child."""
        environ = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.net.name,
            "CNI_NETNS": self.net.path,
            "CNI_IFNAME": ifname,
            **env,
        }
        stdin = json.dumps(conf).encode()

        def run() -> tuple[int, bytes, list[str]]:
            obeying = orders or Orders()
            printed = io.BytesIO()
            status = skel.main(
                "host-device",
                environ=environ,
                stdin=io.BytesIO(stdin),
                stdout=printed,
                load=lambda _name: self.node.plugin(**{"kernel": obeying.kernel(), **(more or {})}),
            )
            return status, printed.getvalue(), obeying.given

        answer = self.node.inside(run)
        if answer is None:
            return Answer(-signal.SIGKILL)
        status, printed, given = answer
        return Answer(status, json.loads(printed or b"{}"), tuple(given))

    def add(self, conf: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        answer = self.call("ADD", conf, **more)
        assert answer.status == 0, answer.document
        return answer.document

    def check(self, conf: Mapping[str, Any], result: Mapping[str, Any], **more: Any) -> None:
        answer = self.call("CHECK", {**conf, "prevResult": result}, **more)
        assert (answer.status, answer.document) == (0, {}), answer

    def delete(self, conf: Mapping[str, Any], **more: Any) -> None:
        answer = self.call("DEL", conf, **more)
        assert (answer.status, answer.document) == (0, {}), answer

    def refused(self, command: str, conf: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """Return the error object of a call that must fail."""
        answer = self.call(command, conf, **more)
        assert answer.status == 1, answer
        return answer.document

    def destroy(self) -> None:
        """End the netns, as a runtime does that sends its DEL too late."""
        self.net.rtnl.close()
        self.net.netns.close()
        os.system(f"ip netns del {self.net.name}")


def config(**keys: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "rail", "type": "host-device", **keys}


def _become_host(netns_fd: int) -> None:
    for done in (
        _libc.setns(netns_fd, 0),
        _libc.unshare(CLONE_NEWNS),
        _libc.mount(None, b"/", None, MS_REC | MS_SLAVE, None),
        _libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None),
    ):
        if done != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture
def node(host_ns: ScratchNetns, tmp_path: Path) -> Node:
    for name in ("static", "whereabouts"):
        delegate.find(name, ())  # imported once, and not by every child
    plugins.load("host-device")
    return Node(host_ns, tmp_path / "node")


@pytest.fixture
def pods(node: Node, scratch_netns: Callable[[], ScratchNetns]) -> Callable[[], Pod]:
    return lambda: Pod(node, scratch_netns())


@pytest.fixture
def pod(pods: Callable[[], Pod]) -> Pod:
    return pods()
