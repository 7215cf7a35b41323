"""A scratch namespace that plays the host, its veths and pods, and what is asked of the executables there."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.contract.agent import Installed
from tests.processes import started

# Sleeps until there is a file "go on" beside it, as ADD; tells what it was called for.
SLEEPER = """#!/bin/sh
here=$(dirname "$0")
echo "$CNI_COMMAND" >>"$here/calls"
if [ "$CNI_COMMAND" = ADD ]; then
    while ! [ -e "$here/go on" ]; do sleep 0.05; done
    echo '{"cniVersion":"1.0.0","ips":[{"address":"10.7.0.2/24"}]}'
fi
"""


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Host:
    """A namespace with veths ``dev0`` … and one pod for each, and the executables installed for it."""

    name: str
    pods: tuple[str, ...]
    installed: Installed
    device: str = "dev"

    def start(self, command: str, conf: dict[str, Any], pod: str, **env: str) -> subprocess.Popen[str]:
        """Start one executable as a runtime does."""
        return self.spawn([self.installed.bin / conf["type"]], command, conf, pod, **env)

    def spawn(
        self, words: Sequence[str | Path], command: str, conf: dict[str, Any], pod: str, **env: str
    ) -> subprocess.Popen[str]:
        """Start, as a process of this host, what stands for one executable."""
        environ = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod,
            "CNI_NETNS": f"/run/netns/{pod}",
            "CNI_IFNAME": "net1",
            "CNI_PATH": str(self.installed.bin),
            "PATH": os.defpath,
            **env,
        }
        return started([*self.installed.prefix, *words], conf, environ)

    def call(self, command: str, conf: dict[str, Any], pod: str, **env: str) -> subprocess.CompletedProcess[str]:
        return ended(self.start(command, conf, pod, **env))

    def add(self, conf: dict[str, Any], pod: str, **env: str) -> str:
        done = self.call("ADD", conf, pod, **env)
        assert done.returncode == 0, done
        return done.stdout

    def delete(self, conf: dict[str, Any], pod: str, **env: str) -> None:
        done = self.call("DEL", conf, pod, **env)
        assert (done.returncode, done.stdout) == (0, ""), done

    def links(self) -> set[str]:
        """Return which of its links are at home."""
        found = {link["ifname"] for link in json.loads(ip("-n", self.name, "-j", "link"))}
        return {name for name in found if name.startswith(self.device)}


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@contextmanager
def scratch_host(installed: Installed, *, pods: int = 8, device: str = "dev") -> Iterator[Host]:
    """Make the namespaces; every process of ``installed`` is started in the host's.

    Two at once that share the node's records must not have links of one name, ``device`` and a number.
    """
    name = f"vfagent{uuid.uuid4().hex[:8]}"  # by chance: one of this pid may have been left by a run that was killed
    names = tuple(f"{name}-pod{number}" for number in range(pods))
    made = []
    try:
        for each in (name, *names):
            ip("netns", "add", each)
            made.append(each)
        for number in range(pods):
            ip("-n", name, "link", "add", f"{device}{number}", "type", "veth", "peer", "name", f"peer{number}")
        installed.prefix = ["ip", "netns", "exec", name]
        yield Host(name, names, installed, device)
    finally:
        installed.stop()
        for each in made:
            ip("netns", "del", each)


def config(number: int = 0, **ipam: Any) -> dict[str, Any]:
    given = {"ipam": ipam} if ipam else {}
    return {"cniVersion": "1.0.0", "name": "rail", "type": "host-device", "device": f"dev{number}", **given}


def leased(folder: Path, number: int = 0) -> dict[str, Any]:
    return config(
        number, type="whereabouts", datastore="local", dataDir=str(folder / "store"), cooldownSeconds=0,
        range="10.7.0.0/24", routes=[{"dst": "10.8.0.0/16"}],
    )  # fmt: skip


def with_sleeper(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a configuration whose ADD stops in its IPAM, and the environment that finds it."""
    (folder / "sleeper").write_text(SLEEPER)
    (folder / "sleeper").chmod(0o755)
    return config(type="sleeper"), {"CNI_PATH": str(folder)}
