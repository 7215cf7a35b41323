"""A scratch namespace as a node for the built executables: its own /var/lib, /opt, /etc/cni, and a link to give away.

What runs there is in the tests. Nothing that they write is seen by this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.contract.agent import wait_until

# Mounts of its own, then the netns, whose sysfs 'ip netns exec' mounts.
_ENTER = """
set -e
mount --bind "$1/lib" /var/lib
mkdir -p /run/vferry
mount --bind "$1/run" /run/vferry
mount -t tmpfs none /opt
mkdir -p /opt/cni
ln -s "$1/bin" /opt/cni/bin
mount -t overlay none -o "lowerdir=$1/etc:/etc" /etc
netns=$2
shift 2
exec ip netns exec "$netns" "$@"
"""


@dataclass(frozen=True)
class Node:
    """``name`` is its netns; files of it are below ``folder``."""

    name: str
    folder: Path

    def command(self, *words: str | Path) -> list[str | Path]:
        """Return the command that runs ``words`` as a process of this node."""
        return ["unshare", "--mount", "sh", "-c", _ENTER, "sh", self.folder, self.name, *words]

    def run(self, *words: str | Path, **env: str) -> str:
        done = subprocess.run(
            self.command(*words), env={**os.environ, **env}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def agent(self) -> Iterator[Path]:
        """Run its plugins warm for so long; the agent's log is the path."""
        log = self.folder / "agent.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(self.command("/opt/cni/bin/vferry", "agent"), stderr=stderr)
        try:
            wait_until(lambda: "listening" in log.read_text(), "the agent listens")
            yield log
        finally:
            process.terminate()
            process.wait(300)

    def configure(self, network: dict[str, Any]) -> None:
        """Replace the network of this node."""
        (self.folder / "etc/cni/net.d/10-net.conflist").write_text(json.dumps(network))

    def link(self, ifname: str) -> dict[str, Any]:
        """Return what an attachment may not leave changed of a link."""
        (link,) = json.loads(self.run("ip", "-j", "-d", "addr", "show", "dev", ifname))
        for address in link["addr_info"]:
            address.pop("tentative", None)  # for the second of duplicate address detection, which each way up begins
        return {key: value for key, value in link.items() if key not in {"ifindex", "link_index", "operstate", "qdisc"}}

    def records(self) -> list[str]:
        """Return the files that an attachment leaves, of ours and of libcni."""
        places = (self.folder / "lib/cni/vferry/attachments", self.folder / "lib/cni/results")
        return [path.name for place in places for path in place.rglob("*") if path.is_file()]


@contextmanager
def node(folder: Path, *, plugins: list[Path], network: dict[str, Any]) -> Iterator[Node]:
    """Make a node with a veth ``ens1v0``, these plugins installed and this network configured."""
    name = f"vferry-node-{uuid.uuid4().hex[:8]}"  # by chance: one of this pid may have been left by a killed run
    for place in ("lib/cni", "run", "bin", "etc/cni/net.d"):
        (folder / place).mkdir(parents=True)
    for plugin in plugins:
        (folder / "bin" / plugin.name).symlink_to(plugin)
    made = Node(name, folder)
    made.configure(network)
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        made.run("ip", "link", "set", "lo", "up")
        made.run("ip", "link", "add", "ens1v0", "type", "veth", "peer", "name", "ens1p0")
        made.run("ip", "link", "set", "ens1p0", "up")
        made.run("ip", "link", "set", "ens1v0", "up", "mtu", "1450", "alias", "rail 1")
        yield made
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)
