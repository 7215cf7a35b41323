"""The agent from outside: it answers as a cold executable does, and nobody can keep it from doing so.

Lost, hung and replaced agents are in test_agent_life, links and kills in test_agent_add.
"""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cni.agent.gate import MAX_READERS
from cni.start import offer
from conf.executables import EXECUTABLES, SUPPORTED_VERSIONS
from tests.contract.agent import (
    STATIC,
    Agent,
    Installed,
    connected,
    environ,
    static_add,
    wait_until,
)
from tests.contract.archive import call, python_of

# A delegate that tells on stderr what it was given, and fails.
TELLING = """#!/bin/sh
pwd >&2
env | grep -v -e '^_=' -e VFERRY_AGENT -e PWD | sort >&2
cat >&2
echo '{"code":77,"msg":"no"}'
exit 1
"""


# --- byte for byte


def requests(installed: Installed) -> list[tuple[str, dict[str, str], str]]:
    """Return requests of every kind that leave nothing behind: executable, environment, stdin."""
    ipam = {"type": "static", "addresses": [{"address": "10.9.0.5/24"}]}
    good = json.dumps(STATIC)
    asked = []
    for name in EXECUTABLES:
        conf = json.dumps(
            {"cniVersion": "1.1.0", "name": "rail", "type": name, "deviceID": "0000:99:00.1", "ipam": ipam}
        )
        asked += [(name, environ(installed, verb), conf) for verb in ("ADD", "DEL", "CHECK", "GC", "STATUS")]
    for version in SUPPORTED_VERSIONS:
        conf = json.dumps({**STATIC, "cniVersion": version, "dns": {"nameservers": ["10.9.0.1"]}})
        asked += [(name, environ(installed, verb), conf) for name, verb in (("static", "ADD"), ("static", "CHECK"))]
        asked += [(name, environ(installed), conf) for name in ("whereabouts", "host-local", "rdma")]
    asked += [("sriov", environ(installed), text) for text in ("no json", "", "[]", '{"cniVersion":"9.0"}')]
    asked += [("rdma", {"CNI_COMMAND": verb}, good) for verb in ("ADD", "DEL", "GC", "", "add")]
    asked += [
        ("static", environ(installed, CNI_ARGS="IP=10.9.0.7/24;IgnoreUnknown=1"), good),
        ("static", environ(installed, CNI_ARGS="IP=\udcff"), good),
        ("static", environ(installed, CNI_CONTAINERID="ü"), good),
        ("static", environ(installed), good.replace("rail", "r" * 300_000)),
        ("static", environ(installed), good + " " * 2_000_000),
        ("host-device", environ(installed, CNI_NETNS="/proc/self/ns/net"), json.dumps({**STATIC, "device": "lo"})),
    ]
    return asked


def outcome(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    return done.returncode, done.stdout, re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+", "TIME", done.stderr)


def test_answers_are_those_of_a_cold_start_byte_for_byte(installed: Installed) -> None:
    asked = requests(installed)
    cold = [outcome(call(installed.bin / name, env, stdin=stdin)) for name, env, stdin in asked]
    agent = installed.agent()
    warm = [outcome(call(installed.bin / name, env, stdin=stdin)) for name, env, stdin in asked]
    for request, one, other in zip(asked, cold, warm, strict=True):
        assert one == other, (request, one, other)
    offered = [request for request in asked if request[1]["CNI_COMMAND"] in offer_verbs()]
    agent.require_served(len(offered))


def offer_verbs() -> tuple[str, ...]:
    return ("ADD", "DEL", "CHECK", "GC", "STATUS")


def test_delegate_and_logs_go_where_a_cold_start_sends_them(installed: Installed, tmp_path: Path) -> None:
    """The working directory, the environment, stderr and stdin of a foreign delegate are the caller's."""
    (tmp_path / "foreign").mkdir()
    delegate = tmp_path / "foreign" / "mine"
    delegate.write_text(TELLING)
    delegate.chmod(0o755)
    conf = {**STATIC, "type": "host-device", "device": "lo", "ipam": {"type": "mine"}}
    log = {"logFile": "request.log", "logLevel": "debug"}
    passed = {"CNI_PATH": "foreign", "PATH": "/usr/bin:/bin", "TRACEPARENT": "00-1-2-3", "CNI_ARGS": "K8S_POD_UID=u"}
    outcomes = []
    for _start in ("cold", "warm"):
        # DEL: the delegate is called although there is no netns and no device.
        done = call(
            installed.bin / "host-device",
            environ(installed, "DEL", **passed),
            stdin=json.dumps({**conf, **log}),
            cwd=tmp_path,
        )
        outcomes.append((outcome(done), len((tmp_path / "request.log").read_text().splitlines()) > 0))
        (tmp_path / "request.log").unlink()
        if len(outcomes) == 1:
            installed.agent()
    assert str(tmp_path) in outcomes[0][0][2] and "TRACEPARENT" in outcomes[0][0][2]
    assert outcomes[0] == outcomes[1]


# A delegate that tells what it has inherited: signals, descriptors, limits, priority.
SEEING = """#!/bin/sh
ls -l /proc/$$/fd >"$0.fds"
{ grep -E '^(Sig(Blk|Ign|Cgt|Pnd)|NoNewPrivs|Groups)' /proc/self/status
awk '{print $9, $10, $11}' "$0.fds" | sed 's/[0-9]*\\]//'
ulimit -a; nice; cat /proc/self/oom_score_adj; } >&2
"""


def test_delegate_inherits_what_a_cold_start_gives_it(installed: Installed, tmp_path: Path) -> None:
    """No descriptor, no blocked or ignored signal of the agent's; umask and capabilities are, as documented."""
    (tmp_path / "seer").write_text(SEEING)
    (tmp_path / "seer").chmod(0o755)
    conf = json.dumps({**STATIC, "type": "host-device", "device": "lo", "ipam": {"type": "seer"}})
    env = environ(installed, "DEL", CNI_PATH=str(tmp_path), PATH="/usr/bin:/bin")
    cold = call(installed.bin / "host-device", env, stdin=conf).stderr
    assert "SigIgn:" in cold
    assert "2 -> pipe:[" in cold
    agent = installed.agent()
    agent.spares_ready()
    # By a spare, by one that may have been, and by a child of its own.
    for _each in range(2 + len(os.sched_getaffinity(0))):
        assert call(installed.bin / "host-device", env, stdin=conf).stderr == cold
    agent.require_served(2 + len(os.sched_getaffinity(0)))


def test_netns_is_what_the_caller_sees_at_its_path(installed: Installed, tmp_path: Path) -> None:
    """In its mount namespace, not in the agent's: something else may lie there, or nothing."""
    (tmp_path / "ns").touch()
    subprocess.run(["unshare", f"--net={tmp_path}/ns", "true"], check=True)
    conf = json.dumps({**STATIC, "type": "host-device", "device": "no-such-link"})
    hide = f"mount -t tmpfs none {tmp_path} && exec {installed.bin}/host-device"
    answers = []
    try:
        for start in ("cold", "warm"):
            if start == "warm":
                installed.agent()
            env = environ(installed, CNI_NETNS=f"{tmp_path}/ns", PATH=os.defpath)
            seen = call(installed.bin / "host-device", env, stdin=conf)
            hidden = subprocess.run(
                ["unshare", "--mount", "sh", "-c", hide],
                env=env, input=conf, capture_output=True, text=True, check=False,
            )  # fmt: skip
            answers.append([outcome(seen), outcome(hidden)])
    finally:
        subprocess.run(["umount", tmp_path / "ns"], check=True)
    assert "no-such-link" in answers[0][0][1]
    assert "does not exist" in answers[0][1][1]
    assert answers[0] == answers[1]


def test_off_is_off(installed: Installed, agent: Agent) -> None:
    assert static_add(installed, VFERRY_AGENT="off").returncode == 0
    assert agent.served() == 0
    assert static_add(installed).returncode == 0
    agent.require_served(1)


def test_shim_starts_with_c_modules_alone(installed: Installed, agent: Agent) -> None:
    python = python_of(installed.bin / "static")
    done = subprocess.run(
        [python, "-ISv", installed.bin / "static"],
        env=environ(installed), input=json.dumps(STATIC), capture_output=True, text=True, check=False,
    )  # fmt: skip
    warm = set(re.findall(r"^import '?([\w.]+)'? #", done.stderr, re.MULTILINE))
    bare = subprocess.run(
        [python, "-ISv", "-c", "import runpy, zipimport, importlib"], capture_output=True, text=True, check=True
    )
    known = set(re.findall(r"^import '?([\w.]+)'? #", bare.stderr, re.MULTILINE))
    agent.require_served(1)
    assert warm - known <= {"_signal", "_socket", "select", "start", "start.offer"}


# --- who is not served


def test_other_build_runs_cold(installed: Installed, agent: Agent, archives: Path) -> None:
    (installed.folder / "other").mkdir()
    stamp = {"build_id": "0123456789abcdef", "runtime_dir": str(installed.folder / "runtime")}
    other = Installed(archives / "vferry", installed.folder / "other", **stamp)
    (installed.folder / "other" / "run").symlink_to(installed.folder / "run")
    assert static_add(other).returncode == 0
    assert "of build" in agent.log()
    assert agent.served() == 0


def test_caller_in_another_netns_runs_cold(installed: Installed, agent: Agent) -> None:
    done = subprocess.run(
        ["unshare", "--net", installed.bin / "static"],
        env={**environ(installed), "PATH": os.defpath}, input=json.dumps(STATIC),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert "another network namespace" in agent.log()


def test_other_user_is_not_let_in(installed: Installed, agent: Agent) -> None:
    connect = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(30); "
        "sys.exit(len(s.recv(1)))"
    )
    command = [
        "setpriv",
        "--reuid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        "/usr/bin/python3",
        "-c",
        connect,
        installed.socket,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Permission denied" in done.stderr
    # Even with the directory and the socket wide open.
    installed.folder.chmod(0o755)
    installed.socket.parent.chmod(0o755)
    installed.socket.chmod(0o666)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "user 65534 is not let in" in agent.log()


# --- what is no request


def is_closed(client: socket.socket) -> bool:
    """Wait until the agent says something or closes the connection; true when it closed it."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100,
        offer.MAGIC + b"0" * 24 + b"\3" + (1 << 30).to_bytes(4, "little") + b"x" * 1000,
        offer.MAGIC + b"0" * 24 + b"\3" + bytes(4),
        offer.MAGIC + b"0" * 24 + b"\3" + (4).to_bytes(4, "little") + b"abc\0",
    ],
    ids=["another protocol", "1 GB", "nothing", "no descriptors"],
)
def test_malformed_frame_is_closed_at_once(installed: Installed, agent: Agent, sent: bytes) -> None:
    with connected(installed.socket) as client:
        client.sendall(sent)
        assert is_closed(client)
    assert static_add(installed).returncode == 0
    agent.require_served(1)


@pytest.fixture
def descriptors_for_a_thousand() -> Iterator[None]:
    """Allow this process more than the 1,024 descriptors that a login of Debian 12 has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("descriptors_for_a_thousand")
def test_thousand_silent_and_slow_clients_do_not_keep_others_out(installed: Installed, agent: Agent) -> None:
    clients = [connected(installed.socket) for _each in range(1000)]
    try:
        for client in clients[::2]:
            with suppress(BrokenPipeError, ConnectionResetError):  # made room for those behind it
                client.send(offer.MAGIC[:2])
        assert static_add(installed).returncode == 0
        agent.require_served(1)
        held = len(os.listdir(f"/proc/{agent.pid}/fd"))
        assert held < MAX_READERS + 50
        # In the end all of them are turned away.
        for client in clients:
            assert is_closed(client)
    finally:
        for client in clients:
            client.close()


def test_descriptors_of_refused_frames_are_closed(installed: Installed, agent: Agent) -> None:
    agent.spares_ready()
    before = len(os.listdir(f"/proc/{agent.pid}/fd"))
    for _each in range(50):
        with connected(installed.socket) as client:
            socket.send_fds(client, [b"not ours" * 10], [1, 2, 0, 1, 2, 0])
            assert is_closed(client)
    assert len(os.listdir(f"/proc/{agent.pid}/fd")) <= before


def test_shim_without_descriptors_leaves_the_request_to_its_own_process(installed: Installed, agent: Agent) -> None:
    """However few it has, it answers as the cold one does with as few, or better; what it cannot open is there."""
    pod = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    conf = {**STATIC, "type": "host-device", "device": "nodev"}
    try:
        wait_until(lambda: os.readlink(f"/proc/{pod.pid}/ns/net") != os.readlink("/proc/self/ns/net"), "a pod")
        codes = []
        for limit in range(4, 12):
            cold, warm = (
                subprocess.run(
                    ["prlimit", f"--nofile={limit}", installed.bin / "host-device"],
                    env=environ(installed, CNI_NETNS=f"/proc/{pod.pid}/ns/net", **more), input=json.dumps(conf),
                    capture_output=True, text=True, timeout=300, check=False,
                )
                for more in ({"VFERRY_AGENT": "off"}, {})
            )  # fmt: skip
            codes.append((json.loads(cold.stdout)["code"], json.loads(warm.stdout)["code"]))
    finally:
        pod.kill()
        pod.wait()
    # 8 would be a netns that does not exist, 11 is the device that does not.
    assert all(warm in (cold, 11) for cold, warm in codes), codes
    assert codes[-1] == (11, 11)
    assert 0 < agent.served() < len(codes)  # both ways were gone
