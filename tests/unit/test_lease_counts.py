"""Counting leases: never while somebody waits, and what cannot be counted hides nothing else."""

from __future__ import annotations

import logging
import os
import selectors
import signal
from pathlib import Path

import pytest
from netaddr import IPAddress

from cni.agent import lease_counts
from cni.agent.lease_counts import PERIOD_S, Counts, LeaseCounts, count_leases
from conf.errors import InvalidNetworkConfig
from ipam.host_local_files import NetworkFiles, Owner
from tests.descriptors import none_left_open


class Scene:
    """Counts with a loop of their own; each count adds a line to a file, and finds as many as there are."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "counted"
        self.now = 1000.0
        self.selector = selectors.DefaultSelector()
        self.counts = LeaseCounts(
            selector=self.selector, count=self.count, clock=lambda: self.now, signals=frozenset({signal.SIGTERM})
        )
        self.dies = False

    def count(self) -> Counts:
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        with self.file.open("a") as file:
            file.write("x")
        return {("local", "blue"): len(self.file.read_text())}

    def turn(self) -> Counts:
        """Ask, then wait until nobody counts any more."""
        self.counts.refresh()
        while self.selector.get_map():
            for key, _events in self.selector.select(10):
                key.data()
        return self.counts.figures


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_figures_are_counted_anew_after_their_time(scene: Scene) -> None:
    assert scene.counts.figures == {}
    assert scene.turn() == {("local", "blue"): 1}
    scene.now += PERIOD_S - 1
    assert scene.turn() == {("local", "blue"): 1}
    scene.now += 1
    assert scene.turn() == {("local", "blue"): 2}


def test_nobody_counts_beside_another(scene: Scene) -> None:
    scene.counts.refresh()
    scene.now += 2 * PERIOD_S
    scene.turn()
    assert scene.file.read_text() == "x"


def test_killed_count_leaves_the_last_figures_and_no_descriptor(scene: Scene) -> None:
    scene.turn()
    scene.dies, scene.now = True, scene.now + PERIOD_S
    with none_left_open():
        assert scene.turn() == {("local", "blue"): 1}
    scene.dies, scene.now = False, scene.now + PERIOD_S
    assert scene.turn() == {("local", "blue"): 2}


def test_no_process_for_a_count_is_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fork(*_: object, **__: object) -> int:
        raise BlockingIOError(11, "no process left")

    with none_left_open(), monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(lease_counts, "fork", fork)
        scene.counts.refresh()
    assert "no process left" in caplog.text
    scene.now += PERIOD_S
    assert scene.turn() == {("local", "blue"): 1}


def test_unreadable_store_does_not_hide_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = NetworkFiles(tmp_path / "red")
    with files.locked(make=True):
        files.reserve([IPAddress("10.1.0.2"), IPAddress("10.1.0.3")], Owner("c1", "net1"))

    def defaults(name: str) -> dict[str, object]:
        if name == "whereabouts":
            raise InvalidNetworkConfig("cannot read the node's defaults")
        return {"dataDir": str(tmp_path)}

    with caplog.at_level(logging.WARNING):
        assert count_leases(defaults=defaults) == {("host-local", "red"): 2}
    assert "cannot read the node's defaults" in caplog.text
