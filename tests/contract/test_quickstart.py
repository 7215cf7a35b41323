"""The one command that shows vferry at work, as a person types it: without a NIC, in the VM, and where it cannot."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAB_UNAVAILABLE = 3


def quickstart(*words: str) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "scripts" / "quickstart.sh", *words]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def addresses(text: str) -> list[str]:
    return re.findall(r'"address": "([^/]+)/', text)


def test_here_shows_unique_addresses_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = quickstart("--here")
    assert done.returncode == 0, done.stderr
    assert addresses(done.stdout) == ["192.168.100.8", "192.168.100.9"]
    assert done.stdout.rstrip().endswith("done")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("--nowhere",), 2, "unknown option --nowhere"),
        (("--pf",), 2, "--pf needs the interface of a PF"),
        (("--pf", "lo"), 1, "lo is no PF" if os.geteuid() == 0 else "run it as root"),
    ],
)
def test_refusals_say_why(words, status, told):
    done = quickstart(*words)
    assert (done.returncode, told in done.stderr) == (status, True), done.stderr


def test_in_the_vm_two_pods_come_and_go_without_a_trace():
    lab = subprocess.run(
        [ROOT / "tests" / "vm" / "vmlab", "build"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    if lab.returncode == LAB_UNAVAILABLE and not os.environ.get("VFERRY_REQUIRE_VM"):
        pytest.skip(f"no VM lab: {lab.stderr.strip()}")
    assert lab.returncode == 0, lab.stderr
    done = quickstart()
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert sorted(addresses(done.stdout)) == ["192.168.100.8", "192.168.100.9"]
    assert done.stdout.count("as it should be") == 2
    assert "2 packets transmitted, 2 received" in done.stdout
    assert "no difference in" in done.stdout
