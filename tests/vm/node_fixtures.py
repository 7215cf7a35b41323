"""Fixtures of the tests that attach VFs: pods, and the host that must be as before; what they are made of is node."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cni import plugins
from tests.vm.node import Pod, differences, ip, snapshot, tell_addresses


@pytest.fixture
def pods() -> Iterator[Callable[[str], Pod]]:
    """Make a pod by its name; its netns goes after the test."""
    made: list[Pod] = []

    def make(name: str) -> Pod:
        ip("netns", "add", name)
        made.append(Pod(name))
        return made[-1]

    yield make
    for pod in made:
        pod.destroy()


@pytest.fixture
def blue(pods: Callable[[str], Pod]) -> Pod:
    return pods("blue")


@pytest.fixture
def green(pods: Callable[[str], Pod]) -> Pod:
    return pods("green")


@pytest.fixture(scope="module")
def own_state() -> None:
    """Hide the machine's own records: the guest sees its files live, and what others do there is no test's doing."""
    Path("/var/lib/cni").mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/var/lib/cni"], check=True)


@pytest.fixture(scope="module")
def baseline(own_state: None) -> list[dict[str, Any]]:
    for name in ("sriov", "static", "whereabouts"):
        plugins.load(name)  # imported once, and not by every child that a test forks
    tell_addresses()
    return [snapshot()]


@pytest.fixture
def host_is_as_before(baseline: list[dict[str, Any]]) -> Iterator[Callable[[], list[str]]]:
    """After every test the host is as it was before; a test may ask for the differences in between."""
    yield lambda: differences(baseline[0], snapshot())
    after = snapshot()
    told = differences(baseline[0], after)
    baseline[0] = after  # one test's fault is not the next one's
    assert not told
