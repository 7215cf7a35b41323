"""ADDs of real links through the agent: what is killed in the middle comes back.

A scratch namespace plays the host, agent and shims run in it; the links are veths. Records and locks are in the node's
own places, as the archives have them.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from conf.executables import SUPPORTED_VERSIONS
from tests.conftest import netns_hindrance
from tests.contract.agent import Agent, children_of, wait_until, working_child
from tests.contract.archive import refusal
from tests.contract.host import Host, config, ended, leased, with_sleeper
from tests.contract.test_agent import outcome

pytestmark = pytest.mark.skipif(bool(netns_hindrance()), reason=netns_hindrance() or "-")

# --- byte for byte, with links


def test_add_check_and_del_answer_as_a_cold_start_does(host: Host, tmp_path: Path) -> None:
    """Exit status, stdout and stderr of every verb, with each kind of addresses and in each spec version."""
    kinds: list[dict[str, Any]] = [
        config(),
        config(type="static", addresses=[{"address": "10.7.0.9/24", "gateway": "10.7.0.1"}]),
        config(type="host-local", dataDir=str(tmp_path / "hl"), ranges=[[{"subnet": "10.7.1.0/24"}]]),
        *({**leased(tmp_path), "cniVersion": version} for version in SUPPORTED_VERSIONS),
    ]
    cold = [every_verb(host, conf, tmp_path) for conf in kinds]
    agent = host.installed.agent()
    for conf, answers in zip(kinds, cold, strict=True):
        assert every_verb(host, conf, tmp_path) == answers, conf
        assert [answer[0] for answer in answers[:2]] == [0, 1]
        assert answers[-1][:2] == (0, "")
    agent.require_served(sum(map(len, cold)))


def every_verb(host: Host, conf: dict[str, Any], folder: Path) -> list[tuple[int, str, str]]:
    """Return what the executables answer to ADD, the same again, CHECK of what is and is not true, STATUS, GC, DEL."""
    pod = host.pods[0]
    answers = [outcome(host.call("ADD", conf, pod))]
    added = json.loads(answers[0][1])
    untrue = {**added, "ips": [{"address": "10.9.9.9/24", "interface": 0}]}
    others = {"cni.dev/valid-attachments": [{"containerID": pod, "ifname": "net1"}]}
    for verb, more in (
        ("ADD", {}),
        ("CHECK", {"prevResult": added}),
        ("CHECK", {"prevResult": untrue}),
        ("STATUS", {}),
        ("GC", others),
        ("DEL", {}),
        ("DEL", {}),
    ):
        answers.append(outcome(host.call(verb, {**conf, **more}, pod)))
    # host-local goes on from the last address it gave.
    (folder / "hl" / "rail" / "last_reserved_ip.0").unlink(missing_ok=True)
    return answers


# --- killed in the middle


def test_killed_shim_has_its_add_taken_back(host: Host, warm: Agent, tmp_path: Path) -> None:
    conf, found = with_sleeper(tmp_path)
    shim = host.start("ADD", conf, host.pods[0], **found)
    wait_until((tmp_path / "calls").exists, "IPAM is asked, the link is in the pod")
    assert "dev0" not in host.links()
    shim.kill()
    ended(shim)
    wait_until(lambda: "dev0" in host.links(), "the link is home again")
    wait_until(lambda: warm.served() == 1, "the child is done")
    assert (tmp_path / "calls").read_text().split() == ["ADD", "DEL"]
    # Nothing is left that another ADD would stumble upon.
    host.add(config(), host.pods[1])
    host.delete(config(), host.pods[1])


def test_killed_agent_and_child_leave_what_the_next_del_clears(host: Host, warm: Agent, tmp_path: Path) -> None:
    conf, found = with_sleeper(tmp_path)
    shim = host.start("ADD", conf, host.pods[0], **found)
    wait_until((tmp_path / "calls").exists, "IPAM is asked")
    child = working_child(warm)
    (sleeper,) = children_of(child)
    for pid in (warm.pid, child, sleeper):
        os.kill(pid, signal.SIGKILL)
    warm.process.wait(30)
    assert refusal(ended(shim))["code"] == 11
    assert "dev0" not in host.links()
    host.delete(conf, host.pods[0], **found)
    assert "dev0" in host.links()
    assert (tmp_path / "calls").read_text().split() == ["ADD", "DEL"]


def test_cold_and_warm_exclude_each_other_on_one_device(host: Host, warm: Agent) -> None:
    for _round in range(5):
        both = [
            host.start("ADD", config(), host.pods[0]),
            host.start("ADD", config(), host.pods[1], VFERRY_AGENT="off"),
        ]
        done = [ended(each) for each in both]
        (lost,) = [each for each in done if each.returncode]
        assert refusal(lost)["code"] in (11, 100)
        for pod in host.pods[:2]:
            host.delete(config(), pod)
        assert "dev0" in host.links()
    assert warm.served() >= 5


def test_too_long_a_request_is_interrupted_and_undone(host: Host, tmp_path: Path) -> None:
    defaults = Path("/etc/vferry/vferry.toml")
    if defaults.exists():
        pytest.skip("this machine has its own vferry.toml")
    agent = host.installed.agent("--request-timeout", "2")
    conf, found = with_sleeper(tmp_path)
    done = host.call("ADD", conf, host.pods[0], **found)
    assert refusal(done)["code"] == 11
    assert "SIGTERM" in done.stdout
    assert "dev0" in host.links()
    assert "is interrupted" in agent.log()
