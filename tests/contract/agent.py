"""An agent of the built archive, the same executables so that they look for it, and requests for it to serve."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from conf.executables import COMMAND, EXECUTABLES
from tests.contract.archive import ADD, call, restamped
from tests.processes import started


def wait_until(true_of_it: Callable[[], object], what: str, *, patience_s: float = 300) -> None:
    """Wait for what another process does in its own time."""
    until = time.monotonic() + patience_s
    while not true_of_it():
        if time.monotonic() > until:
            pytest.fail(f"never came true: {what}")
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started and not yet reaped."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def state_of(pid: int) -> str:
    """Return the letter of a process's state, "" when there is none; see proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_running(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    return state_of(pid) not in ("", "Z")


class Installed:
    """A directory of executables and the place where their agent is, or is not."""

    def __init__(self, archive: Path, folder: Path, **stamp: str) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.socket = folder / "run" / "agent.sock"
        self.bin.mkdir(parents=True)
        first = restamped(archive, self.bin / COMMAND, **{"agent_socket": str(self.socket), **stamp})
        for name in EXECUTABLES:
            (self.bin / name).hardlink_to(first)
        self.agents: list[Agent] = []
        # What every process is started by: "ip netns exec NAME", where another namespace plays the host.
        self.prefix: list[str] = []
        # What the agent is started by, where it is not the executable in ``bin``.
        self.command: list[str] = []

    def agent(self, *options: str) -> Agent:
        """Start an agent and return when it listens."""
        started = Agent(self, options)
        self.agents.append(started)
        return started

    def stop(self) -> None:
        """End every agent that is left; children that failed were made up for, and nobody else would notice."""
        for each in self.agents:
            if each.process.poll() is None:
                family = [each.pid]
                for pid in family:  # grows while it is walked
                    family += children_of(pid)
                for pid in family:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                each.process.wait(300)
            assert "exit status 70" not in each.log(), each.log()


class Agent:
    """One running agent; its log is ``log()``."""

    def __init__(self, installed: Installed, options: tuple[str, ...]) -> None:
        self._path = installed.folder / f"agent{len(installed.agents)}.log"
        with self._path.open("wb") as log:
            self.process = subprocess.Popen(
                [*installed.prefix, *(installed.command or (installed.bin / COMMAND, "agent")), *options],
                env={"PATH": os.defpath},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: self.process.poll() is not None or "listening" in self.log(), "the agent listens")
        assert self.process.poll() is None, self.log()

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self._path.read_text()

    def served(self) -> int:
        """Return how many requests the log tells of."""
        return self.log().count("took_ms")

    def require_served(self, count: int) -> None:
        """Wait until so many requests have ended; a shim has its answer a moment before."""
        wait_until(lambda: self.served() >= count, f"{count} requests have ended")
        assert self.served() == count, self.log()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def spares_ready(self) -> None:
        """Wait until nothing runs but children that wait for a request, and the agent has no more to do for them."""
        # In this order: behind the last fork it still closes what is the child's, and sleeps when that is done.
        count = len(os.sched_getaffinity(0))
        wait_until(lambda: len(children_of(self.pid)) == count and state_of(self.pid) == "S", "spare children")

    def stop(self) -> int:
        """Ask it to end and return its exit status."""
        self.process.terminate()
        return self.process.wait(300)


def connected(path: Path) -> socket.socket:
    """Return a connection to the agent, as a shim has it before it sends anything."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(300)
    client.connect(str(path))
    return client


STATIC = {
    "cniVersion": "1.0.0",
    "name": "rail",
    "type": "static",
    "ipam": {"type": "static", "addresses": [{"address": "10.9.0.5/24", "gateway": "10.9.0.1"}]},
}


def environ(installed: Installed, command: str = "ADD", **more: str) -> dict[str, str]:
    return {**ADD, "CNI_COMMAND": command, "CNI_PATH": str(installed.bin), **more}


def static_add(installed: Installed, **more: str) -> subprocess.CompletedProcess[str]:
    return call(installed.bin / "static", environ(installed, **more), stdin=json.dumps(STATIC))


def sleeping(installed: Installed, tmp_path: Path, command: str = "DEL") -> tuple[subprocess.Popen[str], Path]:
    """Start a request whose delegate sleeps until the returned file is there."""
    gate = tmp_path / "go on"
    delegate = tmp_path / "sleeper"
    delegate.write_text(
        f'#!/bin/sh\necho "$CNI_COMMAND" >> {tmp_path}/calls\nwhile ! [ -e "{gate}" ]; do sleep 0.05; done\n'
    )
    delegate.chmod(0o755)
    conf = {**STATIC, "type": "host-device", "device": "lo", "ipam": {"type": "sleeper"}}
    process = started(
        [installed.bin / "host-device"],
        conf,
        environ(installed, command, CNI_PATH=str(tmp_path), PATH="/usr/bin:/bin"),
    )
    wait_until((tmp_path / "calls").exists, "the delegate is called")
    return process, gate


def working_child(agent: Agent) -> int:
    """Return the child of the agent that runs a delegate."""
    found: list[int] = []
    # proc(5): a list of children may lack some when another one ends while it is read.
    wait_until(lambda: found.extend(pid for pid in children_of(agent.pid) if children_of(pid)) or found, "it works")
    return found[0]


def finished(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
