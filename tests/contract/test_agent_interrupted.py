"""ADDs that are interrupted, cold and warm: an undo that has begun is done to its end, whoever is killed meanwhile."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import netns_hindrance
from tests.contract.agent import Agent, wait_until
from tests.contract.archive import refusal
from tests.contract.host import Host, config, ended

pytestmark = pytest.mark.skipif(bool(netns_hindrance()), reason=netns_hindrance() or "-")

# Its ADD fails, or waits for the end; its DEL waits until there is a file "go on", complains and tells that it is done.
IPAM = """#!/bin/sh
here=$(dirname "$0")
echo "$CNI_COMMAND" >>"$here/calls"
if [ "$CNI_COMMAND" = ADD ]; then
    [ "$ADDS" = wait ] && while :; do sleep 0.05; done
    echo '{"code":77,"msg":"no"}'
    exit 1
fi
while ! [ -e "$here/go on" ]; do sleep 0.05; done
echo "something to tell" >&2
echo released >>"$here/calls"
"""


class Ipam:
    """A foreign IPAM plugin, and what it was called for."""

    def __init__(self, folder: Path, *, adds: str) -> None:
        self._folder = folder
        (folder / "slow").write_text(IPAM.replace("$ADDS", adds))
        (folder / "slow").chmod(0o755)
        self.conf = config(type="slow")

    def calls(self) -> list[str]:
        path = self._folder / "calls"
        return path.read_text().split() if path.exists() else []

    def go_on(self) -> None:
        (self._folder / "go on").touch()

    def start(self, host: Host, **env: str) -> subprocess.Popen[str]:
        return host.start("ADD", self.conf, host.pods[0], CNI_PATH=str(self._folder), **env)


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_interrupted_undo_is_done_to_its_end(host: Host, warm: Agent, tmp_path: Path, start: str) -> None:
    ipam = Ipam(tmp_path, adds="fail")
    process = ipam.start(host, VFERRY_AGENT="off" if start == "cold" else "")
    wait_until(lambda: "DEL" in ipam.calls(), "the failed ADD is undone")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    ipam.go_on()
    done = ended(process)
    # The answer is what made it fail, and nothing of it is left for the DEL.
    assert refusal(done)["code"] == 77
    assert "not undone" not in done.stdout
    assert ipam.calls() == ["ADD", "DEL", "released"]
    assert "dev0" in host.links()
    assert records(host.pods[0]) == []
    warm.require_served(int(start == "warm"))


def test_undo_goes_on_when_its_caller_is_killed(host: Host, warm: Agent, tmp_path: Path) -> None:
    ipam = Ipam(tmp_path, adds="fail")
    process = ipam.start(host)
    wait_until(lambda: "DEL" in ipam.calls(), "the failed ADD is undone")
    process.kill()
    ended(process)
    time.sleep(0.3)
    ipam.go_on()
    warm.require_served(1)
    assert ipam.calls() == ["ADD", "DEL", "released"]
    assert "dev0" in host.links()
    assert records(host.pods[0]) == []


def test_interrupted_add_is_undone_when_its_caller_is_killed_then(host: Host, warm: Agent, tmp_path: Path) -> None:
    """SIGTERM, then SIGKILL: what the undo has called must not die of a stderr that nobody reads any more."""
    ipam = Ipam(tmp_path, adds="wait")
    process = ipam.start(host)
    wait_until(lambda: "ADD" in ipam.calls(), "IPAM is asked")
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: "DEL" in ipam.calls(), "it is undone")
    process.kill()
    ended(process)
    time.sleep(0.3)
    ipam.go_on()
    warm.require_served(1)
    assert ipam.calls() == ["ADD", "DEL", "released"]
    assert "dev0" in host.links()
    assert records(host.pods[0]) == []


def records(container_id: str) -> list[str]:
    """Return what the plugins still have on record for a container."""
    folder = Path("/var/lib/cni/vferry/attachments")
    found = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in found if container_id in json.dumps(path.read_text())]
