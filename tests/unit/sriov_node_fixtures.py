"""Fixtures of the tests of ``sriov`` in memory; what they are made of is sriov_node."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import cni.attachments
import cni.holding
import cni.upstream_sriov
from cni.linux.netns import Netns
from cni.undo import Undo
from conf.errors import IoFailure
from tests.unit.fake_node import Killed, Node
from tests.unit.sriov_node import Machine, Pod


def _dies_with_the_process(undo: Undo, kind: Any, error: Any, trace: Any, *, really: Any = Undo.__exit__) -> None:
    if kind is not Killed:
        really(undo, kind, error, trace)


def _counted(node: Node, what: str, really: Any) -> Any:
    def act(path: Path, *content: bytes) -> None:
        with node.call(what, error=IoFailure(f"cannot write {path}")):
            really(path, *content)

    return act


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    node = machine.node
    monkeypatch.setattr(Netns, "open", node.open)
    monkeypatch.setattr(Netns, "current", node.current)
    monkeypatch.setattr(cni.holding, "boot_id", lambda: node.boot)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)  # it costs most of the time here
    monkeypatch.setattr(Undo, "__exit__", _dies_with_the_process)
    for module in (cni.attachments, cni.upstream_sriov):
        for name in ("write_durably", "delete_durably"):
            monkeypatch.setattr(module, name, _counted(node, name, getattr(cni.attachments, name)))
    return machine


@pytest.fixture
def blue(machine: Machine) -> Pod:
    return machine.pod("blue")


@pytest.fixture
def green(machine: Machine) -> Pod:
    return machine.pod("green")
