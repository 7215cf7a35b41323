"""The measurement of the datastores runs to its end, and shows what it says: a small one of each kind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.stores.conftest import KUBERNETES, Lab, kubernetes_lab, reserve

ROOT = Path(__file__).resolve().parents[2]


def test_report_has_a_table_of_each_kind_and_a_plot(tmp_path, etcd_server):
    command = [sys.executable, ROOT / "bench" / "ipam.py", "--report", tmp_path / "report", "--stores", "local,etcd"]
    sizes = ["--curve", "1,4", "--nodes", "3", "--networks", "2", "--rounds", "2", "--taken", "500"]
    done = subprocess.run([*command, *sizes], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    for store in ("local", "etcd"):
        assert [row[2] for row in rows if row[:2] == [store, "ADD"]] == ["1", "4", "6"]
        assert [row[2] for row in rows if row[:2] == [store, "DEL"]] == ["1", "4", "6"]
        assert sum(row[:2] == [store, "/16"] and row[2:5] == ["with", "500", "taken"] for row in rows) == 2
    assert (tmp_path / "report" / "ipam-concurrency.svg").read_text().count("polyline") == 2


def test_another_api_server_is_left_without_leases_and_not_touched_where_it_has_some(tmp_path, api_server):
    def measure(stores):
        command = [sys.executable, ROOT / "bench" / "ipam.py", "--server", api_server.kubeconfig, "--stores", stores]
        return subprocess.run(
            [*command, "--nodes", "2", "--networks", "2"], capture_output=True, text=True, check=False
        )

    # The second store could not begin if the first had left anything.
    done = measure(",".join(KUBERNETES))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split()[:3] for line in done.stdout.splitlines()]
    assert [row for row in rows if row[1:2] == ["ADD"]] == [[store, "ADD", "4"] for store in KUBERNETES]

    reserve(Lab(kubernetes_lab(api_server, "kubernetes-leases", tmp_path)), "somebody", "10.0.0.0/24")
    api_server.switch(tokens=None)
    api_server.reset()
    refused = measure("kubernetes")
    assert "that is no server for tests" in refused.stderr
    assert refused.returncode == 1
    assert not any(request.startswith(("PATCH", "PUT", "DELETE")) for request in api_server.counts()["log"])


def test_a_node_that_fails_ends_the_measurement(tmp_path):
    command = [sys.executable, ROOT / "bench" / "ipam.py", "--stores", "local", "--nodes", "3", "--networks", "1"]
    # A /30 has two addresses.
    done = subprocess.run([*command, "--prefix", "30"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "failed: PoolExhausted" in done.stderr
