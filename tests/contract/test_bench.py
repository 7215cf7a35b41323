"""The measurements run to their end and write what they say: one round of each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stores.etcd_server import ETCD

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> str:
    """Run a measurement and return what it printed."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cells(printed: str) -> list[list[str]]:
    """Return the lines of a table of Markdown."""
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.skipif(os.geteuid() != 0, reason="it moves links")
def test_bench_measures_ours_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "bench/plugins.py", "--rounds", "1", "--at-once", "1,2"]
    files = ("--plot", tmp_path / "plot.svg", "--table", tmp_path / "table.md")
    with subprocess.Popen([*command, *files], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        stdout, stderr = process.communicate()
    assert process.returncode == 0, stdout + stderr
    rows = {tuple(map(str.strip, line.split("|")[1:5])) for line in stdout.splitlines() if line.startswith("| ")}
    stores = ["local", *(["etcd"] if ETCD else []), "kubernetes", "kubernetes-leases"]
    for chain in ("no address", "host-local", *(f"whereabouts ({store})" for store in stores)):
        assert {(chain, verb, n, way) for verb in ("ADD", "DEL") for n in "12" for way in ("warm", "cold")} <= rows
    assert ("no address", "VERSION", "1", "warm") in rows
    assert "step of a warm ADD" in stdout
    assert (tmp_path / "table.md").read_text() in stdout
    assert "polyline" in (tmp_path / "plot.svg").read_text()
    assert "2 at once: round 1 of 1" in stderr
    assert not [name for name in os.listdir("/sys/class/net") if name.startswith(f"vb{process.pid}")]


@pytest.mark.skipif(os.geteuid() != 0, reason="it moves links")
def test_cold_tells_whose_time_an_add_is(archives: Path) -> None:
    done = run("bench/cold.py", "--rounds", "1", "--folder", str(archives))
    rows = cells(done)
    parts = [name for name, *_ in rows[2:-1] if name != "others"]
    assert parts == ["interpreter", "standard library", "pydantic", "netaddr", "pyroute2", "ours", "the ADD itself"]
    assert sum(float(took) for _name, took, _share in rows[2:-1]) == pytest.approx(float(rows[-1][1]), abs=0.5)
    assert "`pydantic" in done.partition("slowest modules")[2]


@pytest.mark.skipif(ETCD is None, reason="needs etcd")
def test_broker_is_measured_beside_what_has_none() -> None:
    rows = cells(run("bench/broker.py", "--rounds", "1", "--at-once", "1,3", "--kept", "1,2"))
    heads = ["at once", "etcd by", "each its own: p50 / p95 ms", "CPU ms an ADD"]
    assert rows[0] == [*heads, "1 kept: p50 / p95 ms", "CPU", "2 kept: p50 / p95 ms", "CPU"]
    assert [row[:2] for row in rows[2:]] == [["1", "http"], ["3", "http"], ["1", "tls"], ["3", "tls"]]
    assert all(float(each) > 0 for row in rows[2:] for cell in row[2:] for each in cell.split(" / "))
