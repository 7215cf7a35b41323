"""The guest as a node: pods, the plugin called in this process, and all of the host that must come back as it was.

What is asked of a plugin is in the tests, the fixtures made of this are in node_fixtures.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cni import plugins, skel
from cni.attachments import ROOT as RECORDS
from cni.plugins import Plugin
from cni.upstream_sriov import ROOT as GO_FILES

PF = "eth0"
VFS = ("0000:01:10.0", "0000:01:10.2", "0000:01:10.4", "0000:01:10.6")
# Of what iproute2 tells of a host link, all but: what a move gives anew (ifindex), what the driver does on its own
# (operstate, qdisc; igbvf takes the MAC it has after a reset for the permanent one), and flags but these.
VOLATILE = {"ifindex", "operstate", "qdisc", "permaddr", "link_index"}
FLAGS = {"UP", "PROMISC", "ALLMULTI"}

Load = Callable[[str], Plugin]


def ip(*args: str, netns: str = "") -> str:
    command = ["ip", *(["-n", netns] if netns else []), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def links(netns: str = "") -> dict[str, dict[str, Any]]:
    """Return what iproute2 says of every link, by name."""
    return {link["ifname"]: link for link in json.loads(ip("-j", "-d", "link", "show", netns=netns))}


def vf_state(index: int) -> dict[str, Any]:
    """Return one VF as the PF lists it."""
    return next(vf for vf in links()[PF]["vfinfo_list"] if vf["vf"] == index)


def netdev(pci_address: str) -> str:
    """Return the name of a device's netdev on the host, "" when it is elsewhere."""
    return next(iter(os.listdir(f"/sys/bus/pci/devices/{pci_address}/net")), "")


def tell_addresses() -> None:
    """Have every VF's driver tell the PF its MAC.

    A VF that was made while the PF was busy starting chose its MAC itself, and the PF lists zeros until the VF's driver
    resets it for the first time, as after its first use; that would look like something an attachment left.
    """
    for index, pci_address in enumerate(VFS[: len(links()[PF].get("vfinfo_list", []))]):
        if vf_state(index)["address"] == "00:00:00:00:00:00" and (name := netdev(pci_address)):
            ip("link", "set", name, "up")
            ip("link", "set", name, "down")
            wait_until(partial(_is_told, index, name), f"{PF} lists the MAC of {name}")


def _is_told(index: int, name: str) -> bool:
    return bool(vf_state(index)["address"] == links()[name]["address"])


def wait_until(is_true: Callable[[], object], what: str) -> None:
    for _ in range(200):
        if is_true():
            return
        time.sleep(0.05)
    pytest.fail(f"never came true: {what}")


def snapshot() -> dict[str, Any]:
    """Return everything of the host that an attachment may not leave changed: links, VFs, records."""
    found: dict[str, Any] = {}
    for name, link in links().items():
        link["flags"] = sorted(FLAGS & {*link["flags"]})
        link["altnames"] = sorted(link.get("altnames", []))
        found[name] = {key: value for key, value in link.items() if key not in VOLATILE}
    for root in (RECORDS, GO_FILES):
        for path in root.rglob("*"):
            if path.is_file() and path.suffix != ".lock":
                found[str(path)] = path.read_text()
    return found


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Say how two snapshots differ, a line each."""
    told = []
    for name in sorted({*before, *after}):
        was, became = before.get(name), after.get(name)
        if isinstance(was, dict) and isinstance(became, dict):
            told += [f"{name}.{line}" for line in differences(was, became)]
        elif isinstance(was, list) and isinstance(became, list) and len(was) == len(became):
            told += [
                f"{name}.{line}"
                for line in differences(
                    dict(zip(map(str, range(len(was))), was, strict=True)),
                    dict(zip(map(str, range(len(was))), became, strict=True)),
                )
            ]
        elif was != became:
            told.append(f"{name}: {was!r} -> {became!r}")
    return told


@dataclass(frozen=True)
class Answer:
    """What one invocation printed and returned."""

    status: int
    document: dict[str, Any]


def config(pci_address: str = VFS[0], **keys: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "rail", "type": "sriov", "deviceID": pci_address, **keys}


@dataclass(frozen=True)
class Pod:
    """A network namespace, and the container ID that stands for it."""

    name: str

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def call(
        self, command: str, conf: Mapping[str, Any], *, ifname: str = "net1", load: Load = plugins.load, **env: str
    ) -> Answer:
        """Run the plugin as a runtime would, only in this process."""
        printed = io.BytesIO()
        environ = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.name,
            "CNI_NETNS": self.path,
            "CNI_IFNAME": ifname,
            **env,
        }
        stdin = io.BytesIO(json.dumps(conf).encode())
        status = skel.main(conf["type"], environ=environ, stdin=stdin, stdout=printed, load=load)
        return Answer(status, json.loads(printed.getvalue() or b"{}"))

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
        assert answer.status == 1, answer.document
        return answer.document

    def link(self, ifname: str = "net1") -> dict[str, Any]:
        return links(self.name)[ifname]

    def ip(self, *args: str) -> str:
        return ip(*args, netns=self.name)

    def pings(self, address: str, *, tries: int = 20) -> bool:
        """Ask until there is an answer: the carrier of an emulated VF comes late."""
        ping = ["ip", "netns", "exec", self.name, "ping", "-q", "-c", "1", "-W", "1", address]
        return any(subprocess.run(ping, capture_output=True, check=False).returncode == 0 for _ in range(tries))

    def destroy(self) -> None:
        """Delete the netns, as a runtime does that sends its DEL too late."""
        if Path(self.path).exists():
            ip("netns", "delete", self.name)


def in_child(act: Callable[[], object]) -> int:
    """Start a call in a process of its own and return its pid; ``joined`` tells whether it raised."""
    pid = os.fork()
    if pid:
        return pid
    try:
        act()
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def joined(*pids: int) -> list[int]:
    """Wait for children and return their exit statuses; that of a killed one is the signal's number below zero."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def side_by_side(*acts: Callable[[], object]) -> list[int]:
    """Run calls in processes at the same time and return their exit statuses."""
    return joined(*[in_child(act) for act in acts])
