"""What a person sees of bars and tables on a terminal, and what a program reads in a pipe."""

from __future__ import annotations

import json

import pytest

from ipam.stores.contract import Deadline, Want
from ipam.stores.local import LocalStore
from tests.stores.conftest import owner, pool
from tests.stores.move import Move, filled
from tests.stores.terminal import on_terminal, piped

BLOCK = "192.0.2.0/28"
BAR = "#####~~............."


@pytest.fixture
def words(tmp_path):
    """Ask for the pools of a store where three of fourteen addresses are leased and one cools."""
    with LocalStore(tmp_path / "data", deadline=Deadline(30), cooldown_s=3600) as store:
        for name in "abcd":
            store.reserve(owner(name), [Want(pool(BLOCK))], allocation="lowest")
        store.release(owner("d"))
    ipam = {"type": "whereabouts", "range": BLOCK, "datastore": "local", "dataDir": str(tmp_path / "data")}
    network = {"cniVersion": "1.0.0", "name": "rail", "type": "macvlan", "ipam": ipam}
    (tmp_path / "rail.conf").write_text(json.dumps(network))
    return ["ipam", "pools", "--conf-dir", str(tmp_path), "--network", "rail"]


def test_pools_are_drawn_where_there_is_room(words):
    done = on_terminal(*words, columns=120)
    (line,) = (line for line in done.lines() if BLOCK in line)
    assert [cell.strip() for cell in line.split("│")[1:-1]] == ["-", BLOCK, "14", "3", "1", "10", "2", BAR]
    assert max(map(len, done.lines())) <= 120


@pytest.mark.parametrize("columns", [60, 40])
def test_pools_are_folded_and_no_bar_is_cut_where_there_is_none(words, columns):
    done = on_terminal(*words, columns=columns)
    assert "│" not in done.stdout
    assert max(map(len, done.lines())) <= columns
    assert [line.split()[-1] for line in done.lines() if "#" in line] == [BAR]


def test_pools_are_plain_words_in_a_pipe(words):
    done = piped(*words)
    assert (done.status, done.stderr) == (0, "")
    header, line = done.stdout.splitlines()
    assert header.split()[-1] == "USE"
    assert line.split() == ["-", BLOCK, "14", "3", "1", "10", "2", BAR]
    assert "\x1b" not in done.stdout


@pytest.fixture
def migration(api_server, tmp_path):
    """Copy four leases."""
    move = Move(api_server, tmp_path)
    filled(move)
    options = ["--kubeconfig", move.kubeconfig, "--datastore", "kubernetes-leases", "--conf-dir", str(move.conf_dir)]
    return ["ipam", "migrate", "--to", "kubernetes-leases", *options]


@pytest.mark.parametrize("columns", [100, 50])
def test_migration_shows_how_far_it_is(migration, columns):
    done = on_terminal(*migration, columns=columns)
    assert done.status == 0, done.stdout
    shown = [line for line in done.lines() if line.startswith("to kubernetes-leases")]
    assert " 0%" in shown[0]
    assert "100%" in shown[-1] and "━" in shown[-1]
    assert max(map(len, shown)) <= columns
    # The bar goes when it is full: its line is erased, and what follows begins there.
    before, _, after = done.stdout.rpartition("100%")
    assert "to kubernetes-leases" in before and "\x1b[2K" in after
    assert "copied 4; 4 of 4 leases are in kubernetes-leases" in done.lines()


def test_migration_shows_no_bar_in_a_pipe(migration):
    done = piped(*migration)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.startswith("2 IPPools frozen")
