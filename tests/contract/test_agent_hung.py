"""Agents that hang behind a request they have taken: the shim's patience ends, and nothing is done twice."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cni.agent.crew import answer
from cni.start import offer
from conf.executables import COMMAND
from tests.conftest import netns_hindrance
from tests.contract.agent import Agent, Installed, children_of, environ, finished, wait_until
from tests.contract.archive import read_entry, refusal
from tests.contract.host import Host, config, ended
from tests.contract.test_agent_interrupted import records

ROOT = Path(__file__).resolve().parents[2]
# The shim's part of an executable, with less patience than four minutes.
HASTY = """
import sys
_, root, patience_s, socket, build_id, executable = sys.argv
sys.path.insert(0, root)
from cni.start import offer
offer.PATIENCE_S = float(patience_s)
sys.argv = [executable]
status = offer.offer(socket, build_id=build_id, version="1.1.0")
sys.exit(99 if status is None else status)
"""


def hasty(installed: Installed, plugin: str, patience_s: float) -> list[str]:
    """Return the command that offers an invocation of this plugin."""
    build_id = read_entry(installed.bin / COMMAND)["build_id"]
    words = (ROOT, patience_s, installed.socket, build_id, installed.bin / plugin)
    return [sys.executable, "-c", HASTY, *map(str, words)]


@pytest.mark.parametrize("said", [b"", offer.ANSWER, answer(0, b"{}")[:-1]], ids=["nothing", "one byte", "a part"])
def test_agent_that_takes_a_request_and_hangs_is_answered_for(installed: Installed, said: bytes) -> None:
    """Wherever it stopped after it took it."""
    installed.socket.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(installed.socket))
        listening.listen()
        listening.settimeout(300)  # a shim that fails to start does not come
        shim = subprocess.Popen(
            hasty(installed, "static", 1),
            env=environ(installed), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        connection, _address = listening.accept()
        with connection:
            connection.sendall(offer.TAKEN + said)
            done = finished(shim)
    assert refusal(done)["code"] == 11
    assert "lost in the middle of ADD" in done.stdout


# Notes what it is called for; is held up by a file "CONTAINER VERB" for as long as that is there.
IPAM = """#!/bin/sh
here=$(dirname "$0")
echo "$CNI_COMMAND" >>"$here/$CNI_CONTAINERID"
while [ -e "$here/$CNI_CONTAINERID $CNI_COMMAND" ]; do sleep 0.05; done
[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"10.7.0.2/24"}]}'
"""


class Held:
    """One request that is held up in its IPAM, offered by a shim with a few seconds of patience."""

    def __init__(self, host: Host, number: int, folder: Path) -> None:
        self._host = host
        self._folder = folder
        self.device, self.pod = f"dev{number}", host.pods[number]
        self.conf: dict[str, Any] = config(number, type="held")
        self.found = {"CNI_PATH": str(folder)}

    def start(self, verb: str) -> None:
        """Start it and return when its IPAM is called."""
        self._gate = self._folder / f"{self.pod} {verb}"
        self._gate.touch()
        # Long enough for a child to get there on a slow machine, and for the test to stop it.
        words = hasty(self._host.installed, "host-device", 8)
        self.shim = self._host.spawn(words, verb, self.conf, self.pod, **self.found)
        wait_until(lambda: verb in self.calls(), "IPAM is called")

    def go_on(self) -> None:
        self._gate.unlink()

    def calls(self) -> list[str]:
        path = self._folder / self.pod
        return path.read_text().split() if path.exists() else []

    def child(self, agent: Agent) -> int:
        """Return the child of the agent that has it."""
        mine = f"CNI_CONTAINERID={self.pod}".encode()
        (found,) = [
            pid
            for pid in children_of(agent.pid)
            for delegate in children_of(pid)
            if mine in Path(f"/proc/{delegate}/environ").read_bytes().split(b"\0")
        ]
        return found

    def is_home(self) -> bool:
        return self.device in self._host.links()

    def delete(self) -> None:
        self._host.delete(self.conf, self.pod, **self.found)
        assert (self.is_home(), records(self.pod)) == (True, [])


@pytest.mark.skipif(bool(netns_hindrance()), reason=netns_hindrance() or "-")
def test_stopped_agent_is_answered_for_and_nothing_is_done_twice(host: Host, warm: Agent, tmp_path: Path) -> None:
    """It and its children, in the middle of two ADDs and a DEL; one of the children never goes on."""
    (tmp_path / "held").write_text(IPAM)
    (tmp_path / "held").chmod(0o755)
    added, killed, deleted = requests = [Held(host, number, tmp_path) for number in range(3)]
    host.add(deleted.conf, deleted.pod, **deleted.found)
    for each, verb in zip(requests, ("ADD", "ADD", "DEL"), strict=True):
        each.start(verb)
    children = [each.child(warm) for each in requests]
    for pid in (warm.pid, *children):
        os.kill(pid, signal.SIGSTOP)
    assert [each.shim.poll() for each in requests] == [None] * 3  # else this machine is too slow for their patience
    for each in requests:
        done = ended(each.shim)
        assert refusal(done)["code"] == 11
        assert "lost in the middle of" in done.stdout
    assert [each.calls() for each in requests] == [["ADD"], ["ADD"], ["ADD", "DEL"]]
    # Whatever is not at home is on record.
    assert [each.is_home() or records(each.pod) != [] for each in requests] == [True] * 3
    # The runtime comes again, with the agent out of the way, and waits for the one that still has the device.
    again = host.start("DEL", added.conf, added.pod, VFERRY_AGENT="off", **added.found)
    time.sleep(1)
    assert (again.poll(), added.calls()) == (None, ["ADD"])
    os.kill(children[1], signal.SIGKILL)
    for pid in (warm.pid, children[0], children[2]):
        os.kill(pid, signal.SIGCONT)
    for each in requests:
        each.go_on()
    assert ended(again).returncode == 0
    warm.require_served(4)
    assert added.calls() == ["ADD", "DEL", "DEL"]
    assert (killed.calls(), killed.is_home(), len(records(killed.pod))) == (["ADD"], False, 1)
    assert (deleted.calls(), deleted.is_home(), records(deleted.pod)) == (["ADD", "DEL"], True, [])
    for each in requests:
        each.delete()
    assert [each.calls().count("ADD") for each in requests] == [1, 1, 1]
