"""The agent's figures of real attachments: where their time goes, and what had to be undone."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import netns_hindrance
from tests.contract.agent import Agent, wait_until
from tests.contract.archive import refusal
from tests.contract.host import Host, ip, leased, with_sleeper

pytestmark = pytest.mark.skipif(bool(netns_hindrance()), reason=netns_hindrance() or "-")


def samples(host: Host, agent: Agent) -> dict[str, float]:
    """Return the agent's figures, asked for from its own namespace."""
    port = agent.log().split("pages on port ")[1].split()[0]
    ask = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{port}/metrics').read().decode())"
    done = subprocess.run(
        [*host.installed.prefix, "/usr/bin/python3", "-c", ask], check=True, capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("vferry_")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_metrics_tell_where_an_add_spends_its_time_and_what_was_undone(host: Host, tmp_path: Path) -> None:
    ip("-n", host.name, "link", "set", "lo", "up")
    agent = host.installed.agent("--metrics", "127.0.0.1:0")
    began = time.monotonic()
    host.add(leased(tmp_path), host.pods[0])
    # The agent counts until the child has ended, which is a moment after its answer.
    agent.require_served(1)
    took = time.monotonic() - began
    host.delete(leased(tmp_path), host.pods[0])
    wait_until(lambda: agent.served() == 2, "both are counted")
    figures = samples(host, agent)
    about = 'plugin="host-device"'
    for step in ("queue", "find", "lock", "move", "ipam", "addresses", "other"):
        assert figures[f'vferry_step_seconds_count{{{about},step="{step}",verb="ADD"}}'] == 1, step
    seconds = figures[f'vferry_request_seconds_sum{{{about},verb="ADD"}}']
    steps = sum(value for name, value in figures.items() if "step_seconds_sum" in name and 'verb="ADD"' in name)
    assert 0 < seconds < took
    assert steps == pytest.approx(seconds)
    assert figures[f'vferry_requests_total{{{about},result="ok",verb="DEL"}}'] == 1
    assert not any(name.startswith("vferry_events_total") for name in figures)

    # An address that is not given, nor taken back: the link is home, and the record stays for the DEL.
    conf, found = with_sleeper(tmp_path)
    (tmp_path / "sleeper").write_text("#!/bin/sh\nexit 1\n")
    assert refusal(host.call("ADD", conf, host.pods[1], **found))["code"] != 0
    wait_until(lambda: agent.served() == 3, "it is counted")
    figures = samples(host, agent)
    assert figures[f'vferry_events_total{{event="rollback",{about}}}'] == 1
    assert figures[f'vferry_events_total{{event="undo_failure",{about}}}'] == 1
    assert "dev0" in host.links()
    (tmp_path / "sleeper").write_text("#!/bin/sh\n")
    host.delete(conf, host.pods[1], **found)
