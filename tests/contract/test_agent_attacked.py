"""What may befall an agent: no descriptors left, frames without an end, a wrong socket or port, a silent stderr."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from cni.agent.gate import own_netns_inode
from cni.start import offer
from conf.executables import COMMAND
from tests.contract.agent import (
    STATIC,
    Agent,
    Installed,
    connected,
    environ,
    finished,
    sleeping,
    static_add,
    wait_until,
)
from tests.contract.archive import call, read_entry


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- descriptors


def test_agent_without_descriptors_neither_spins_nor_floods_its_log(installed: Installed, tmp_path: Path) -> None:
    """Requests that wait hold all of them; further ones run on their own, and it serves again when some are free."""
    installed.prefix = ["prlimit", "--nofile=48:48"]
    agent = installed.agent("--max-children", "1")
    installed.prefix = []
    process, gate = sleeping(installed, tmp_path)
    waiting = [
        subprocess.Popen(
            [installed.bin / "static"], env=environ(installed),
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
        )
        for _each in range(20)
    ]  # fmt: skip
    for each in waiting:
        assert each.stdin is not None
        each.stdin.write(json.dumps(STATIC))
        each.stdin.close()
    wait_until(lambda: "no descriptors are left" in agent.log(), "no descriptor is left")
    wait_until(lambda: any(each.poll() == 0 for each in waiting), "one runs on its own")
    assert any(each.poll() is None for each in waiting)
    before = cpu_s(agent.pid)
    time.sleep(2)
    assert cpu_s(agent.pid) - before < 0.5
    assert agent.log().count("\n") < 50
    gate.touch()
    assert finished(process).returncode == 0
    assert [each.wait(300) for each in waiting] == [0] * len(waiting)
    served = agent.served()
    assert static_add(installed).returncode == 0
    wait_until(lambda: agent.served() > served, "it serves again")


def test_idle_connections_that_hold_all_descriptors_make_room(installed: Installed) -> None:
    installed.prefix = ["prlimit", "--nofile=48:48"]
    agent = installed.agent()
    idle = [connected(installed.socket) for _each in range(200)]
    assert static_add(installed).returncode == 0
    agent.require_served(1)
    for each in idle:
        each.close()


# --- frames without an end

GIGABYTE = 1 << 30
PART = b"x" * (64 * 1024)


class Flood(threading.Thread):
    """A client that sends a gigabyte behind a header, again and again, each time until nobody takes it any more."""

    def __init__(self, path: Path, header: bytes) -> None:
        super().__init__()
        self._path = path
        self._header = header
        self.enough = threading.Event()
        self.sent: list[int] = []

    def run(self) -> None:
        while not self.enough.is_set():
            self.sent.append(self._once())

    def _once(self) -> int:
        sent = 0
        with connected(self._path) as client, (Path(os.devnull)).open() as descriptor:
            try:
                socket.send_fds(client, [self._header], [descriptor.fileno()] * 2)
                while sent < GIGABYTE:
                    sent += client.send(PART)
            except (BrokenPipeError, ConnectionResetError):
                pass
        return sent

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.sent) >= count or not self.is_alive(), "it was refused so often")
        assert len(self.sent) >= count


def header(installed: Installed, announced: int) -> bytes:
    """Return what a shim sends ahead of its body."""
    build_id = read_entry(installed.bin / COMMAND)["build_id"].encode().ljust(offer.BUILD_BYTES)
    inode = own_netns_inode().to_bytes(offer.INODE_BYTES, "little")
    return offer.MAGIC + build_id + inode + b"\3" + announced.to_bytes(offer.LENGTH_BYTES, "little")


# What is announced and may be is read, of a few at a time, and is several times in memory for a moment.
@pytest.mark.parametrize(
    ("announced", "most_kb"), [(GIGABYTE, 2048), (offer.BODY_BYTES, 8192)], ids=["as announced", "more than announced"]
)
def test_gigabyte_is_not_taken_in_and_others_are_served_meanwhile(
    installed: Installed, agent: Agent, announced: int, most_kb: int
) -> None:
    assert static_add(installed).returncode == 0
    agent.spares_ready()
    process = Path(f"/proc/{agent.pid}")
    (process / "clear_refs").write_text("5")  # proc(5): VmHWM begins anew
    before = memory_kb(agent, "VmRSS")
    floods = [Flood(installed.socket, header(installed, announced)) for _each in range(4)]
    for flood in floods:
        flood.start()
    try:
        for count in range(1, 6):
            for flood in floods:
                flood.wait_for(count)
            assert static_add(installed).returncode == 0
    finally:
        for flood in floods:
            flood.enough.set()
    for flood in floods:
        flood.join(300)
    agent.require_served(6)
    # What the kernel holds of a connection, and no more.
    assert max(sent for flood in floods for sent in flood.sent) < 4 << 20
    assert memory_kb(agent, "VmHWM") - before < most_kb
    assert max(map(len, agent.log().splitlines())) < 500


def memory_kb(agent: Agent, what: str) -> int:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{agent.pid}/status").read_text().splitlines())
    return int(status[what].split()[0])


# --- what systemd hands over


@pytest.mark.parametrize("handed", ["file", "tcp", "datagram", "not listening", "nothing"])
def test_socket_that_is_none_of_ours_is_refused_in_one_line(installed: Installed, tmp_path: Path, handed: str) -> None:
    kinds = {
        "tcp": (socket.AF_INET, socket.SOCK_STREAM),
        "datagram": (socket.AF_UNIX, socket.SOCK_DGRAM),
        "not listening": (socket.AF_UNIX, socket.SOCK_STREAM),
    }
    with (tmp_path / "file").open("w") as file, socket.socket(*kinds.get(handed, ())) as opened:
        if handed == "tcp":
            opened.listen()
        number = file.fileno() if handed == "file" else opened.fileno()
        three = "3<&-" if handed == "nothing" else f"3<&{number}"
        done = subprocess.run(
            ["bash", "-c", f'exec {three}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" agent', installed.bin / "vferry"],
            pass_fds=[number], capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("vferry: "), done.stderr
    assert "LISTEN_FDS" in done.stderr


# --- agents one after the other


def test_agent_that_cannot_start_leaves_the_one_that_serves(installed: Installed, agent: Agent) -> None:
    """Another program has the port of its pages: it must not have taken the socket by then."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = subprocess.run(
            [installed.bin / "vferry", "agent", "--metrics", f"127.0.0.1:{other.getsockname()[1]}"],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    assert (done.returncode, "cannot listen" in done.stderr) == (1, True)
    assert static_add(installed).returncode == 0
    agent.require_served(1)


def test_first_sigterm_after_a_takeover_interrupts_nothing(installed: Installed, agent: Agent, tmp_path: Path) -> None:
    process, gate = sleeping(installed, tmp_path)
    installed.agent()
    wait_until(lambda: "taken over" in agent.log(), "the first one knows")
    agent.signal(signal.SIGTERM)
    agent.signal(signal.SIGHUP)
    assert static_add(installed).returncode == 0
    gate.touch()
    assert finished(process).returncode == 0
    assert agent.process.wait(300) == 0


def test_agents_that_start_together_leave_one_that_serves(installed: Installed) -> None:
    processes = [
        subprocess.Popen([installed.bin / "vferry", "agent"], stderr=subprocess.PIPE, text=True) for _each in range(4)
    ]
    try:
        wait_until(lambda: sum(each.poll() is None for each in processes) == 1, "one is left")
        assert [each.poll() for each in processes if each.poll()] == []
        assert static_add(installed).returncode == 0
    finally:
        for each in processes:
            each.terminate()
    assert sum(each.communicate(timeout=300)[1].count("static ADD") for each in processes) == 1
    assert [path.name for path in installed.socket.parent.iterdir()] == ["agent.sock.lock"]


def test_place_without_room_is_told_in_one_line_and_plugins_run_on_their_own(installed: Installed) -> None:
    installed.socket.parent.mkdir(mode=0o700)
    full = f"mount -t tmpfs -o nr_inodes=1 none {installed.socket.parent} && exec {installed.bin}"
    environment = environ(installed, PATH=os.defpath)
    for command, stdin, status in (("/vferry agent", "", 1), ("/static", json.dumps(STATIC), 0)):
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", full + command],
            env=environment, input=stdin, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == status, done
        assert "Traceback" not in done.stderr
        assert ("No space left" in done.stderr) == (status == 1)


def test_what_lies_at_the_path_of_the_socket(installed: Installed) -> None:
    """A file, or the socket of somebody who has died, is replaced; a directory is not."""
    installed.socket.parent.mkdir(mode=0o700)
    installed.socket.touch()
    assert static_add(installed).returncode == 0  # it is no socket: on its own
    installed.agent().stop()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(installed.socket))
    assert static_add(installed).returncode == 0
    agent = installed.agent()
    assert static_add(installed).returncode == 0
    agent.require_served(1)
    agent.stop()
    installed.socket.mkdir()
    done = subprocess.run(
        [installed.bin / "vferry", "agent"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "cannot listen on" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
    assert [path.name for path in installed.socket.parent.iterdir() if ".new" in path.name] == []


# --- the caller's stderr


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_stderr_that_nobody_reads_holds_nobody_up(installed: Installed, tmp_path: Path, start: str) -> None:
    """More than a pipe holds, from a delegate that does not mind."""
    delegate = tmp_path / "chatty"
    delegate.write_text("#!/bin/sh\ntrap '' PIPE\nhead -c 300000 /dev/zero >&2\ntouch " + f"{tmp_path}/done\nexit 0\n")
    delegate.chmod(0o755)
    if start == "warm":
        installed.agent()
    conf = {**STATIC, "type": "host-device", "device": "lo", "ipam": {"type": "chatty"}}
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [installed.bin / "host-device"],
        env=environ(installed, "DEL", CNI_PATH=str(tmp_path), PATH="/usr/bin:/bin"),
        input=json.dumps(conf), stdout=subprocess.PIPE, stderr=writing, text=True, timeout=300, check=False,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "done").exists()


# --- what a caller says of itself


def test_log_has_one_line_for_a_request_whatever_it_is_called(installed: Installed, agent: Agent) -> None:
    name = "c1\n2026-01-01 CRITICAL agent: forged\x1b[31m"
    done = call(installed.bin / "static", environ(installed, CNI_CONTAINERID=name), stdin=json.dumps(STATIC))
    assert done.returncode == 1
    agent.require_served(1)
    (line,) = [line for line in agent.log().splitlines() if "static ADD" in line]
    assert "forged" in line
    assert "\x1b" not in agent.log()
