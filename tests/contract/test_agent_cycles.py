"""ADDs and DELs by the thousand through one agent: memory, descriptors, children and threads stay as they are."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from tests.conftest import netns_hindrance
from tests.contract.agent import Agent, children_of, is_running, wait_until
from tests.contract.host import Host, leased

pytestmark = pytest.mark.skipif(bool(netns_hindrance()), reason=netns_hindrance() or "-")

# One shell for all of them, as processes of the host: pytest would cost as much as the plugin.
SCRIPT = (
    'i=0; while [ $i -lt "$1" ]; do for CNI_COMMAND in ADD DEL; do export CNI_COMMAND; '
    '"$0" <"$2" >/dev/null || exit 1; done; i=$((i+1)); done'
)
PARTS = 9


class Cycles:
    """One agent, and the cycles of one configuration that it has served."""

    def __init__(self, host: Host, agent: Agent, conf: dict[str, Any], folder: Path) -> None:
        self._host = host
        self._agent = agent
        self._conf = folder / "conf"
        self._conf.write_text(json.dumps(conf))
        self._executable = host.installed.bin / conf["type"]

    def run(self, count: int) -> dict[str, int]:
        """Run so many, wait until the agent has no more to do for them, and return its figures."""
        environ = {
            "CNI_CONTAINERID": "many", "CNI_NETNS": f"/run/netns/{self._host.pods[0]}", "CNI_IFNAME": "net1",
            "CNI_PATH": str(self._host.installed.bin), "PATH": os.defpath,
        }  # fmt: skip
        command = ["/bin/sh", "-c", SCRIPT, self._executable, str(count), self._conf]
        served = self._agent.served() + 2 * count
        subprocess.run([*self._host.installed.prefix, *command], env=environ, check=True)
        wait_until(lambda: self._agent.served() == served, "the last child is reaped")
        self._agent.spares_ready()
        return figures(self._agent)


def figures(agent: Agent) -> dict[str, int]:
    """Return what an agent has of the machine while nobody asks."""
    process = Path(f"/proc/{agent.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    shares = dict(line.split(":", 1) for line in (process / "smaps_rollup").read_text().splitlines()[1:])
    return {
        "anon_kb": int(status["RssAnon"].split()[0]),
        "pss_kb": int(shares["Pss"].split()[0]),
        "threads": int(status["Threads"]),
        "fds": len(os.listdir(process / "fd")),
        "children": len(children_of(agent.pid)),
    }


@pytest.mark.parametrize(
    ("plugin", "option"), [("whereabouts", "--agent-cycles"), ("host-device", "--agent-link-cycles")]
)
def test_many_requests_leave_the_agent_as_it_was(
    host: Host, warm: Agent, tmp_path: Path, request: pytest.FixtureRequest, plugin: str, option: str
) -> None:
    """Each with a lease, and for ``host-device`` with a link that goes and comes."""
    cycles = Cycles(host, warm, {**leased(tmp_path), "type": plugin}, tmp_path)
    count = int(request.config.getoption(option))
    before = cycles.run(count // PARTS)
    seen = [cycles.run(count // PARTS) for _part in range(PARTS)]
    print(f"{count} cycles of {plugin}; before: {before}; then: {seen}")
    for each in seen:
        assert {**each, "anon_kb": 0, "pss_kb": 0} == {**before, "anon_kb": 0, "pss_kb": 0}
    assert before["threads"] == 1
    # Allocators keep a few pages of a busy moment; what each request left would add up, and go on doing so.
    early, late = (mean(each["anon_kb"] for each in part) for part in (seen[: PARTS // 3], seen[-(PARTS // 3) :]))
    assert late - early < 256, seen
    assert is_running(warm.pid)
    assert "dev0" in host.links()
