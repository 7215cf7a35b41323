"""``host-device`` with addresses from a shared store, cold and then warm: the same answers, byte for byte.

etcd is a real one, the API server the stand-in of tests/stores; both listen where the plugins are called, in the
scratch namespace that plays the host.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cni.linux.netns import Netns
from conf.executables import SUPPORTED_VERSIONS
from tests.conftest import netns_hindrance
from tests.contract.host import Host, config, ended, ip
from tests.contract.test_agent import outcome
from tests.stores.api_server import ApiServer
from tests.stores.etcd_server import ETCD, EtcdServer

pytestmark = pytest.mark.skipif(bool(netns_hindrance()), reason=netns_hindrance() or "-")

LATEST = SUPPORTED_VERSIONS[-1]
CHECKED = SUPPORTED_VERSIONS[SUPPORTED_VERSIONS.index("0.4.0") :]
BLOCK = "10.7.0.0/24"
VALID = "cni.dev/valid-attachments"


def etcd(folder: Path) -> tuple[EtcdServer, dict[str, Any]]:
    if ETCD is None:
        pytest.skip("etcd is not installed (Debian: etcd-server)")
    server = EtcdServer(folder)
    return server, {"etcd": {"endpoints": [server.url]}}


def kubernetes(folder: Path) -> tuple[ApiServer, dict[str, Any]]:
    server = ApiServer(folder)
    return server, {"kubernetes": {"kubeconfig": str(server.kubeconfig)}}


STORES = {"etcd": etcd, "kubernetes": kubernetes, "kubernetes-leases": kubernetes}
# Of every_verb, every_version and outage below.
CODES = (
    [0, 0, 103, 0, 11, 0, 104, 0, 0, 0]
    + [0] * (2 * len(SUPPORTED_VERSIONS[:-1]) + 2)
    + [0, 0, 106, 106, 106, 50, 108, 0, 0, 0]
)


def wanting(number: int) -> dict[str, Any]:
    return {"runtimeConfig": {"ips": [f"10.7.0.{number}/24"]}}


class Conversation:
    """What the executables are asked, and what they answered: exit status and stdout."""

    def __init__(self, host: Host, server: EtcdServer | ApiServer, ipam: dict[str, Any]) -> None:
        self._host = host
        self._server = server
        self._ipam = {"type": "whereabouts", "cooldownSeconds": 0, "allocation": "lowest", "range": BLOCK, **ipam}
        self.answers: list[tuple[str, int, str]] = []

    def ask(self, verb: str, number: int = 0, **more: Any) -> str:
        return self.ask_at_once([(verb, number, more)])[0]

    def ask_at_once(self, asked: list[tuple[str, int, dict[str, Any]]]) -> list[str]:
        """Ask for a link and pod each, with more keys of the configuration, and return what is printed."""
        started = []
        for verb, number, more in asked:
            keys = {"cniVersion": LATEST, **more, "ipam": {**self._ipam, **more.get("ipam", {})}}
            process = self._host.start(verb, {**config(number), **keys}, self._host.pods[number])
            started.append((f"{verb} {number} {more}", process))
        answers = [(what, *outcome(ended(process))[:2]) for what, process in started]
        self.answers += answers
        return [stdout for _what, _status, stdout in answers]

    def everything(self) -> None:
        self.every_verb()
        self.every_version()
        self.outage()

    def every_verb(self) -> None:
        """Ask for what is granted and what is refused while the store answers."""
        added = json.loads(self.ask("ADD"))
        self.ask("CHECK", prevResult=added)
        self.ask("CHECK", prevResult={**added, "ips": [{"address": "10.9.9.9/24", "interface": 0}]})
        self.ask("STATUS")
        self.ask("ADD", 1, **wanting(1))  # dev0 has it
        self.ask("ADD", 1, **wanting(9))
        self.ask("ADD", 2, ipam={"range": "10.7.0.1/32"})  # there is no other one
        self.ask("GC", **{VALID: [{"containerID": self._host.pods[0], "ifname": "net1"}]})  # dev1 comes home
        self.ask("DEL")
        self.ask("DEL")

    def every_version(self) -> None:
        """Ask in all older versions at once: what each says is its own, the stores do not know of them."""
        older = list(enumerate(SUPPORTED_VERSIONS[:-1]))
        asked = [{"cniVersion": version, **wanting(10 + number)} for number, version in older]
        added = self.ask_at_once([("ADD", number, asked[number]) for number, _version in older])
        self.ask_at_once(
            [("CHECK", at, {**asked[at], "prevResult": json.loads(added[at])}) for at, each in older if each in CHECKED]
        )
        self.ask_at_once([("DEL", number, asked[number]) for number, _version in older])

    def outage(self) -> None:
        """Ask for what has to wait for a store that has gone, of attachments made before and of a new one."""
        was, _other = self.ask_at_once([("ADD", at, wanting(20 + at)) for at in (1, 2)])
        self._server.stop()
        soon = {"ipam": {"deadlineSeconds": 1}}
        self.ask_at_once(
            [
                ("ADD", 0, soon),
                ("CHECK", 1, {**soon, "prevResult": json.loads(was)}),
                ("DEL", 2, soon),
                ("STATUS", 3, soon),
            ]
        )
        self.ask("GC", **soon, **{VALID: []})
        self._server.start()
        self.ask_at_once([("DEL", number, {}) for number in range(3)])


@contextmanager
def served(host: Host, server: EtcdServer | ApiServer) -> Iterator[None]:
    """Run a server where the plugins are called; this thread is there meanwhile, to ask it too."""
    ip("-n", host.name, "link", "set", "lo", "up")
    with Netns.open(f"/run/netns/{host.name}") as netns, netns.entered():
        server.start()
        try:
            yield
        finally:
            server.stop()


@pytest.mark.parametrize("store", STORES)
def test_answers_at_a_shared_store_are_those_of_a_cold_start(host: Host, tmp_path: Path, store: str) -> None:
    server, access = STORES[store](tmp_path)
    said = []
    with served(host, server):
        for start in ("cold", "warm"):
            if start == "warm":
                agent = host.installed.agent()
            conversation = Conversation(host, server, {"datastore": store, **access})
            conversation.everything()
            said.append(conversation.answers)
            assert len(host.links()) == len(host.pods)
    for cold, warm in zip(*said, strict=True):
        assert cold == warm
    assert [json.loads(stdout)["code"] if status else 0 for _what, status, stdout in said[0]] == CODES
    agent.require_served(len(CODES))
