"""What the lab makes of a machine that does not come up, with a script in qemu's place."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.vm.lab import boot, kernel

pytestmark = pytest.mark.outside("runs a script in qemu's place")

UP = "echo VMLAB-BOOTED 1.0; echo hello; echo VMLAB-STATUS 7"


@dataclass
class Scripted:
    """A machine whose n-th boot runs the n-th script, the last one from then on."""

    place: Path
    scripts: tuple[str, ...]
    timeout_s: int = 30
    boots: int = 0
    vfs: int = 0
    nics: int = 0
    verbose: bool = False

    def qemu_command(self, _out: Path) -> list[str]:
        script = self.scripts[min(self.boots, len(self.scripts) - 1)]
        self.boots += 1
        return ["sh", "-c", script]


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch, tmp_path):
    monkeypatch.setattr(kernel, "modules", lambda: tmp_path)


def run(machine: Any) -> tuple[int, bytes]:
    printed = io.BytesIO()
    return boot.run(machine, ["true"], out=machine.place, env={}, stdout=printed), printed.getvalue()


def test_status_of_the_command_is_returned(tmp_path):
    assert run(Scripted(tmp_path, (UP,))) == (7, b"hello")
    assert list(tmp_path.iterdir()) == []


def test_emulation_that_dies_before_the_guest_is_up_is_tried_again(tmp_path):
    machine = Scripted(tmp_path, ("kill -ABRT $$", "kill -ABRT $$", UP))
    assert run(machine) == (7, b"hello")
    assert machine.boots == 3


def test_emulation_that_hangs_before_the_guest_is_up_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(boot, "BOOT_S", 4)
    machine = Scripted(tmp_path, ("exec sleep 600", UP))
    assert run(machine) == (7, b"hello")
    assert machine.boots == 2


def test_it_is_not_tried_for_ever(tmp_path):
    machine = Scripted(tmp_path, ("kill -ABRT $$",))
    assert run(machine)[0] == boot.MACHINE_FAILED
    assert machine.boots == boot.BOOT_TRIES


@pytest.mark.parametrize("script", ["exit 1", "echo VMLAB-BOOTED 1.0; kill -ABRT $$"])
def test_bad_machine_and_command_that_ran_are_not_tried_again(tmp_path, script):
    machine = Scripted(tmp_path, (script,))
    assert run(machine)[0] == boot.MACHINE_FAILED
    assert machine.boots == 1


def test_command_that_hangs_is_timed_out_and_not_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(boot, "BOOT_S", 4)
    machine = Scripted(tmp_path, ("echo VMLAB-BOOTED 1.0; exec sleep 600",), timeout_s=5)
    assert run(machine)[0] == boot.TIMED_OUT
    assert machine.boots == 1
