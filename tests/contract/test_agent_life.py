"""The agent's life from outside: lost, hung, replaced, stopped, and what it tells of itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.contract.agent import (
    STATIC,
    Agent,
    Installed,
    environ,
    finished,
    is_running,
    sleeping,
    static_add,
    wait_until,
    working_child,
)
from tests.contract.archive import call, refusal

ROOT = Path(__file__).resolve().parents[2]


def test_killed_child_is_answered_with_try_again_and_not_repeated(
    installed: Installed, agent: Agent, tmp_path: Path
) -> None:
    process, gate = sleeping(installed, tmp_path)
    os.kill(working_child(agent), signal.SIGKILL)
    assert refusal(finished(process))["code"] == 11
    assert (tmp_path / "calls").read_text().split() == ["DEL"]
    assert static_add(installed).returncode == 0
    wait_until(lambda: "SIGKILL" in agent.log(), "the agent has noticed")
    gate.touch()  # the delegate outlives the child, as it would outlive a cold plugin


def test_killed_agent_lets_its_children_finish(installed: Installed, agent: Agent, tmp_path: Path) -> None:
    process, gate = sleeping(installed, tmp_path)
    agent.process.kill()
    agent.process.wait(300)
    gate.touch()
    assert finished(process).returncode == 0
    # A socket nobody listens on is no agent.
    assert installed.socket.exists()
    assert static_add(installed).returncode == 0


def test_interrupted_shim_answers_as_an_interrupted_plugin(installed: Installed, tmp_path: Path) -> None:
    answers = []
    for start in ("cold", "warm"):
        folder = tmp_path / start
        folder.mkdir()
        if start == "warm":
            installed.agent()
        process, gate = sleeping(installed, folder)
        process.send_signal(signal.SIGTERM)
        process.wait(300)  # by the signal: the delegate still waits, and holds stderr
        gate.touch()
        done = finished(process)
        answers.append((done.returncode, done.stdout))
    assert json.loads(answers[0][1])["code"] == 11
    assert answers[0] == answers[1]


def test_hung_agent_has_taken_nothing(installed: Installed, agent: Agent) -> None:
    """Stopped before it took the request: the shim runs it itself, and the agent never does."""
    agent.signal(signal.SIGSTOP)
    assert static_add(installed).returncode == 0
    agent.signal(signal.SIGCONT)
    assert static_add(installed).returncode == 0
    agent.require_served(1)


def test_sigterm_finishes_what_runs_and_takes_nothing_more(installed: Installed, agent: Agent, tmp_path: Path) -> None:
    process, gate = sleeping(installed, tmp_path)
    agent.signal(signal.SIGTERM)
    wait_until(lambda: not installed.socket.exists(), "the socket has gone")
    assert static_add(installed).returncode == 0
    assert agent.process.poll() is None
    gate.touch()
    assert finished(process).returncode == 0
    assert agent.process.wait(300) == 0
    agent.require_served(1)


def test_agent_that_is_stopped_while_idle_says_no_more_than_that_it_is_done(agent: Agent) -> None:
    agent.spares_ready()
    assert agent.stop() == 0
    assert "CRITICAL" not in agent.log()
    assert agent.log().splitlines()[-1].endswith("done"), agent.log()


def test_new_agent_takes_over_without_a_gap(installed: Installed, agent: Agent, tmp_path: Path) -> None:
    """The socket leads to an agent at every moment: whoever is not served by the old one is by the new one.

    But for the one, if there is one, who had connected and not asked when the agents changed: he runs on his own.
    """
    process, gate = sleeping(installed, tmp_path)
    loop = f'for i in $(seq 60); do "{installed.bin}/static" <"{tmp_path}/conf" || exit 1; done'
    (tmp_path / "conf").write_text(json.dumps(STATIC))
    callers = subprocess.Popen(
        ["/bin/sh", "-c", loop], env={**environ(installed), "PATH": os.defpath}, stdout=subprocess.DEVNULL
    )
    second = installed.agent()
    assert callers.wait(600) == 0
    assert agent.process.poll() is None
    gate.touch()
    assert finished(process).returncode == 0
    assert agent.process.wait(300) == 0
    wait_until(lambda: agent.served() + second.served() >= 60, "all of them were served warm")
    assert agent.served() + second.served() <= 61
    assert installed.socket.exists()
    assert static_add(installed).returncode == 0
    wait_until(lambda: second.served() > 0, "the new agent serves")


def test_twenty_takeovers_under_load_fail_no_request(installed: Installed, tmp_path: Path) -> None:
    """Several runtimes ask all the time; each agent is replaced while it serves, and ends by itself."""
    (tmp_path / "conf").write_text(json.dumps(STATIC))
    loop = (
        f'while ! [ -e "{tmp_path}/enough" ]; do '
        f'"{installed.bin}/static" <"{tmp_path}/conf" || exit 1; echo; done >"{tmp_path}/$0"'
    )
    installed.agent()
    callers = [
        subprocess.Popen(["/bin/sh", "-c", loop, f"caller{number}"], env={**environ(installed), "PATH": os.defpath})
        for number in range(3)
    ]
    for _each in range(20):
        latest = installed.agent()
        wait_until(lambda: latest.served() > 5, "the new one serves")  # noqa: B023 called at once
    (tmp_path / "enough").touch()
    assert [caller.wait(300) for caller in callers] == [0, 0, 0]
    assert [each.process.wait(300) for each in installed.agents[:-1]] == [0] * 20
    answers = [line for path in tmp_path.glob("caller*") for line in path.read_text().split("\n") if line]
    assert len(set(answers)) == 1
    # Hardly one of them runs on its own: only who had connected and not asked when its agent was replaced.
    alone = 20 * len(callers)
    assert len(answers) >= 2 * alone
    wait_until(lambda: sum(each.served() for each in installed.agents) >= len(answers) - alone, "all were served warm")
    assert sum(each.served() for each in installed.agents) <= len(answers)


def test_socket_of_systemd_is_served_and_left_alone(installed: Installed) -> None:
    installed.socket.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(installed.socket))
        listening.listen()
        script = f'exec 3<&{listening.fileno()}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" agent'
        process = subprocess.Popen(
            ["bash", "-c", script, installed.bin / "vferry"],
            pass_fds=[listening.fileno()],
            stderr=subprocess.PIPE,
        )
        # Before it is ready too: the kernel's queue holds them.
        assert static_add(installed).returncode == 0
        process.terminate()
        assert process.stderr is not None
        log = process.stderr.read().decode()
        assert process.wait(300) == 0
    assert "static ADD" in log, log
    assert installed.socket.exists()


def test_service_manager_is_told(installed: Installed, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(installed.folder / "notify"))
        manager.settimeout(300)
        process = subprocess.Popen(
            [installed.bin / "vferry", "agent"],
            env={"NOTIFY_SOCKET": str(installed.folder / "notify"), "WATCHDOG_USEC": "400000"},
            stderr=subprocess.PIPE,
        )
        said = []

        def heard(word: str) -> None:
            while not any(word in each for each in said):
                said.append(manager.recv(4096).decode())

        heard("READY=1")
        heard("WATCHDOG=1")
        said.clear()
        process.send_signal(signal.SIGHUP)
        heard("RELOADING=1\nMONOTONIC_USEC=")
        heard("READY=1")
        process.terminate()
        heard("STOPPING=1")
        assert process.wait(300) == 0
        assert process.stderr is not None
        process.stderr.close()


def test_sighup_reads_the_configuration_again_unless_it_is_broken(installed: Installed, tmp_path: Path) -> None:
    """Its own /etc, in a mount namespace: [agent] of vferry.toml."""
    conf = tmp_path / "etc" / "vferry" / "vferry.toml"
    conf.parent.mkdir(parents=True)
    conf.write_text("[agent]\nrequest_timeout_s = 170\n")
    script = f'mount -t overlay none -o "lowerdir={tmp_path}/etc:/etc" /etc && exec "$@"'
    installed.prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    agent = installed.agent()
    for text, told in (
        ("[agent\n", "stays as it was: cannot read the node's defaults"),
        ("[agent]\nmax_children = 0\n", "stays as it was: "),
        ("[agent]\nmax_children = 2\n", "was read again"),
    ):
        conf.write_text(text)
        before = len(agent.log())
        agent.signal(signal.SIGHUP)
        wait_until(lambda: "the configuration" in agent.log()[before:], told)  # noqa: B023 called at once
        assert told in agent.log()[before:]
    assert "Traceback" not in agent.log()
    assert static_add(installed).returncode == 0
    agent.require_served(1)


# Where requests would meet it: the record of an attachment of the node, with its end missing.
DAMAGED = """
mount -t tmpfs none /var/lib && mkdir -p /var/lib/cni/vferry/attachments/sriov &&
echo "{" >/var/lib/cni/vferry/attachments/sriov/c1:net1.json && exec "$@"
"""


def test_log_as_json(installed: Installed) -> None:
    """Every line, also where a child that only rehearses meets what a request would complain of."""
    installed.prefix = ["unshare", "--mount", "sh", "-c", DAMAGED, "sh"]
    agent = installed.agent("--log-format", "json")
    agent.spares_ready()
    assert static_add(installed).returncode == 0
    call(installed.bin / "static", environ(installed), stdin="no json")
    wait_until(lambda: agent.log().count("took_ms") == 2, "two requests in the log")
    events: list[dict[str, Any]] = [json.loads(line) for line in agent.log().splitlines()]
    served = [event for event in events if "took_ms" in event]
    assert [(event["message"], event["code"], event["container"], event["level"]) for event in served] == [
        ("static ADD", 0, "c1", "info"),
        ("static ADD", 6, "c1", "warning"),
    ]


def test_capabilities_are_few(agent: Agent) -> None:
    status = dict(
        line.split(":\t") for line in Path(f"/proc/{agent.pid}/status").read_text().splitlines() if ":\t" in line
    )
    held = int(status["CapEff"], 16)
    for dropped in (16, 17, 22, 24, 25, 27, 33):  # module, rawio, boot, resource, time, mknod, mac_admin
        assert not held >> dropped & 1
    assert status["CapBnd"] == status["CapPrm"] == status["CapEff"]
    assert is_running(agent.pid)


# --- what it tells of itself


def page(agent: Agent, path: str) -> tuple[int, str]:
    """Return status and body of one of the agent's pages."""
    port = int(agent.log().split("pages on port ")[1].split()[0])
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=300) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_metrics_tell_of_requests_steps_and_health(installed: Installed, tmp_path: Path) -> None:
    agent = installed.agent("--metrics", "127.0.0.1:0")
    assert static_add(installed).returncode == 0
    call(installed.bin / "static", environ(installed), stdin="no json")
    process, gate = sleeping(installed, tmp_path)
    # The others have their answers, but their children may still be about to end.
    wait_until(lambda: "vferry_requests_running 1.0" in page(agent, "/metrics")[1], "one is running")
    os.kill(working_child(agent), signal.SIGKILL)
    finished(process)
    wait_until(lambda: agent.served() == 3, "three requests have ended")
    status, text = page(agent, "/metrics")
    assert status == 200
    for line in (
        'vferry_requests_total{plugin="static",result="ok",verb="ADD"} 1.0',
        'vferry_requests_total{plugin="static",result="6",verb="ADD"} 1.0',
        'vferry_requests_total{plugin="host-device",result="lost",verb="DEL"} 1.0',
        'vferry_step_seconds_count{plugin="static",step="queue",verb="ADD"} 2.0',
    ):
        assert line in text
    assert page(agent, "/healthz") == (200, "ok\n")
    assert page(agent, "/readyz") == (200, "ok\n")
    assert page(agent, "/nowhere")[0] == 404
    (tmp_path / "calls").unlink()
    process, gate = sleeping(installed, tmp_path)
    agent.signal(signal.SIGTERM)
    wait_until(lambda: page(agent, "/readyz")[0] == 503, "draining is not ready")
    gate.touch()
    assert finished(process).returncode == 0


def test_new_agent_takes_the_address_of_the_pages_over(installed: Installed, tmp_path: Path) -> None:
    first = installed.agent("--metrics", "127.0.0.1:0")
    address = f"127.0.0.1:{first.log().split('pages on port ')[1].split()[0]}"
    assert static_add(installed).returncode == 0
    process, gate = sleeping(installed, tmp_path)
    second = installed.agent("--metrics", address)
    wait_until(lambda: "draining: 1 running" in first.log(), "the first one has left the address to it")
    # The old agent has still something to do, but nobody is told of it as of the new one.
    for _each in range(20):
        status, text = page(second, "/metrics")
        assert status == 200 and "vferry_requests_running 0.0" in text
        assert 'plugin="static"' not in text
        assert page(second, "/readyz") == (200, "ok\n")
    gate.touch()
    assert finished(process).returncode == 0
    assert first.process.wait(300) == 0


def test_pages_do_not_wait_for_a_visitor(installed: Installed) -> None:
    agent = installed.agent("--metrics", "127.0.0.1:0")
    assert page(agent, "/healthz")[0] == 200
    port = int(agent.log().split("pages on port ")[1].split()[0])
    silent = [socket.create_connection(("127.0.0.1", port)) for _each in range(100)]
    assert static_add(installed).returncode == 0
    assert page(agent, "/healthz")[0] == 200
    for each in silent:
        each.close()
