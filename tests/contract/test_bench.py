"""The measurement runs to its end and writes what it says: one round of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(os.geteuid() != 0, reason="it moves links")
def test_bench_measures_ours_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "bench/plugins.py", "--rounds", "1", "--at-once", "1,2", "--stores", "local"]
    files = ("--plot", tmp_path / "plot.svg", "--table", tmp_path / "table.md")
    with subprocess.Popen([*command, *files], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        stdout, stderr = process.communicate()
    assert process.returncode == 0, stdout + stderr
    rows = {tuple(map(str.strip, line.split("|")[1:5])) for line in stdout.splitlines() if line.startswith("| ")}
    for chain in ("no address", "host-local", "whereabouts (local)"):
        assert {(chain, verb, n, way) for verb in ("ADD", "DEL") for n in "12" for way in ("warm", "cold")} <= rows
    assert ("no address", "VERSION", "1", "warm") in rows
    assert "step of a warm ADD" in stdout
    assert (tmp_path / "table.md").read_text() in stdout
    assert "polyline" in (tmp_path / "plot.svg").read_text()
    assert "2 at once: round 1 of 1" in stderr
    assert not [name for name in os.listdir("/sys/class/net") if name.startswith(f"vb{process.pid}")]
