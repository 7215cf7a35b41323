"""Shims and children killed at random moments, many at once: no device and no lease may be lost, and none had twice."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import netns_hindrance
from tests.contract.agent import Agent, Installed, children_of, wait_until
from tests.contract.host import Host, config, ended, ip, scratch_host
from tests.contract.test_agent_metrics import samples

pytestmark = pytest.mark.skipif(bool(netns_hindrance()), reason=netns_hindrance() or "-")

ATTACHMENTS = Path("/var/lib/cni/vferry/attachments")
NETWORK = {"cniVersion": "1.1.0", "name": f"storm{os.getpid()}"}


class Storm:
    """Requests of many pods at once, one half with leases of each kind."""

    def __init__(self, host: Host, agent: Agent, folder: Path) -> None:
        self.host = host
        self.agent = agent
        self.folder = folder
        self.dice = random.Random(7)
        self.killed = 0

    def device(self, at: int) -> str:
        return f"{self.host.device}{at}"

    def conf(self, at: int) -> dict[str, Any]:
        """Return the configuration of one pod."""
        if at % 2:
            ipam = {"type": "host-local", "dataDir": f"{self.folder}/hl", "ranges": [[{"subnet": "10.6.0.0/20"}]]}
        else:
            ipam = {"type": "whereabouts", "datastore": "local", "dataDir": f"{self.folder}/store"}
            ipam |= {"cooldownSeconds": 0, "range": "10.7.0.0/20"}
        return {**config(at, **ipam), **NETWORK, "device": self.device(at)}

    def leased_to(self) -> list[str]:
        """Return whose the leases are, one entry for each."""
        owners = [path.read_text().split()[0] for path in (self.folder / "hl").glob("*/*.*.*.*") if path.stat().st_size]
        for database in (self.folder / "store").glob("leases.sqlite"):
            with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
                owners += [owner for (owner,) in db.execute("SELECT container_id FROM lease")]
        return owners

    def records(self) -> list[str]:
        """Return which attachments of this network are on record."""
        found = []
        for path in ATTACHMENTS.glob("host-device/[!.]*"):
            with suppress(FileNotFoundError):
                if NETWORK["name"] in path.read_text():
                    found.append(path.name)
        return found

    def unfinished(self) -> list[str]:
        """Return what is left of records whose writers were killed."""
        return [path.name for path in ATTACHMENTS.glob(f"host-device/.{self.host.name}-*")]

    def seen(self) -> str:
        """Return what there is, for whoever has to find out why."""
        records = {path.name: path.read_text() for path in ATTACHMENTS.glob(f"host-device/*{self.host.name}-*")}
        places = {pod: ip("-n", pod, "-o", "link") for pod in (self.host.name, *self.host.pods)}
        links = {place: found for place, found in places.items() if "net1" in found or place == self.host.name}
        return f"records: {records}; links: {links}"

    def everybody(self, command: str) -> dict[int, subprocess.CompletedProcess[str]]:
        """Have all pods ask at once, one process of ours being killed every 50 ms until all is over.

        Each kill ends one request at most, and there are fewer kills than requests: some go through, however slow the
        machine is.
        """
        shims = [self.host.start(command, self.conf(at), pod) for at, pod in enumerate(self.host.pods)]
        kills = len(shims) * 3 // 4
        while waiting := [shim.pid for shim in shims if shim.poll() is None]:
            time.sleep(0.05)
            if not kills:
                continue
            with suppress(ProcessLookupError, IndexError):
                os.kill(self.dice.choice(self.dice.choice([waiting, children_of(self.agent.pid)])), signal.SIGKILL)
                self.killed += 1
                kills -= 1
        return {at: ended(shim) for at, shim in enumerate(shims)}

    def calm(self) -> None:
        """Wait until the agent has done what is left to do: it takes back what killed shims had asked for.

        All shims have ended, and of one that has gone it takes no request any more.
        """

        def nothing_is_left() -> bool:
            assert self.agent.process.poll() is None, self.agent.log()[-20000:]
            figures = samples(self.host, self.agent)
            return figures["vferry_requests_running"] == figures["vferry_requests_waiting"] == 0

        wait_until(nothing_is_left, "the agent has nothing to do")

    def require_consistent(self, added: dict[int, subprocess.CompletedProcess[str]]) -> None:
        """Check after ADDs that who was told of an attachment has it, and that nothing is had without a record."""
        home, owners, records = self.host.links(), Counter(self.leased_to()), "".join(self.records())
        assert all(count == 1 for count in owners.values()), owners
        addresses = []
        for at, pod in enumerate(self.host.pods):
            if added[at].returncode == 0:
                result = json.loads(added[at].stdout)
                addresses += [each["address"] for each in result["ips"]]
                assert inet_addresses(pod) == [each["address"] for each in result["ips"]]
                assert self.device(at) not in home
                assert owners[pod] == 1
            else:
                # Killed together with its undo, or told so in vain: then there is a record to put it right by.
                assert (self.device(at) in home and not owners[pod]) or pod in records, added[at]
        assert len(set(addresses)) == len(addresses)

    def require_nothing_left(self) -> None:
        away = {self.device(at) for at in range(len(self.host.pods))} - self.host.links()
        assert not away, f"{away}; {self.seen()}; {self.agent.log()[-20000:]}"
        assert self.leased_to() == []
        assert self.records() == []


def inet_addresses(pod: str) -> list[str]:
    (link,) = json.loads(ip("-n", pod, "-4", "-j", "addr", "show", "dev", "net1"))
    return [f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"]]


def test_kills_leave_every_device_home_and_every_lease_accounted_for(
    installed: Installed, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pods, rounds = map(int, str(request.config.getoption("--agent-storm")).split("x"))
    outcomes: Counter[int] = Counter()
    with scratch_host(installed, pods=pods, device=f"v{os.getpid()}d") as host:
        ip("-n", host.name, "link", "set", "lo", "up")
        storm = Storm(host, installed.agent("--metrics", "127.0.0.1:0"), tmp_path)
        for number in range(rounds):
            added = storm.everybody("ADD")
            outcomes.update(each.returncode for each in added.values())
            storm.calm()
            storm.require_consistent(added)
            if number % 2:
                # As when the runtime has forgotten all of them: a GC of each kind of lease, no DEL.
                for at in (0, 1):
                    conf = {**storm.conf(at), "cni.dev/valid-attachments": []}
                    done = host.call("GC", conf, host.pods[at])
                    assert done.returncode == 0, done
                storm.require_nothing_left()
                # What a killed writer left of a record, which is none yet, a DEL takes away; a GC once it is old.
                for at, pod in enumerate(host.pods):
                    host.delete(storm.conf(at), pod)
            else:
                # DELs are killed as well, and then repeated as the runtime does.
                storm.everybody("DEL")
                storm.calm()
                for at, pod in enumerate(host.pods):
                    host.delete(storm.conf(at), pod)
            storm.require_nothing_left()
            assert storm.unfinished() == []
        assert storm.killed >= rounds
    # Enough of both kinds: shims that were killed, and ADDs that went through.
    assert outcomes[-signal.SIGKILL] and outcomes[0], outcomes
    print(f"{pods} pods, {rounds} rounds, {storm.killed} kills; ADDs by exit status: {dict(outcomes)}")
