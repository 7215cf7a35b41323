"""What is the ``local`` store's own: its file, its locks, kills, damage."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import stat
import time
from contextlib import suppress

import pytest
from netaddr import IPAddress, IPNetwork

from conf.errors import StoreUnavailable, TryAgainLater
from ipam.stores.contract import Deadline, Want
from ipam.stores.local import DATABASE, SCHEMA_VERSION, LocalStore
from tests.stores.conftest import Clock, Lab, LocalLab, owner, pool, release, reserve
from tests.stores.flapping_files import FlappingFiles, Killed, hindrance


@pytest.fixture
def lab(tmp_path):
    return Lab(LocalLab(tmp_path / "made" / "by" / "us"))


@pytest.fixture
def database(lab):
    return lab.make.data_dir / DATABASE


def test_directory_and_file_are_private(lab, database):
    before = os.umask(0)
    try:
        with lab.open() as store:
            store.reserve(owner("a"), [Want(pool("10.0.0.0/24"))], allocation="lowest")
            modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in database.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {DATABASE: 0o600, f"{DATABASE}-wal": 0o600, f"{DATABASE}-shm": 0o600}
    assert stat.S_IMODE(database.parent.stat().st_mode) == 0o700


def test_what_reads_or_releases_makes_nothing(lab, database):
    release(lab, "a")
    with lab.open() as store:
        store.find(owner("a"))
        store.leases()
        store.probe()
    assert not database.parent.exists()


def test_the_file_is_wal_and_every_commit_is_synced(lab, database):
    reserve(lab, "a", "10.0.0.0/24")
    with lab.open() as store:
        store.find(owner("a"))
        (synchronous,) = store._database._connection().execute("PRAGMA synchronous").fetchone()
    with sqlite3.connect(database) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert synchronous == 2


def test_the_primary_key_refuses_what_no_code_would_write(lab, database):
    reserve(lab, "a", "10.0.0.0/24")
    with sqlite3.connect(database) as db, pytest.raises(sqlite3.IntegrityError):
        db.execute("INSERT INTO lease SELECT * FROM lease")


def test_choice_counts_in_the_index_alone(lab, database):
    reserve(lab, "a", "10.0.0.0/24")
    with sqlite3.connect(database) as db:
        query = "EXPLAIN QUERY PLAN SELECT count(*) FROM lease WHERE space = '' AND address BETWEEN x'00' AND x'ff'"
        plan = " ".join(row[3] for row in db.execute(query))
    assert "COVERING INDEX" in plan


def test_a_newer_schema_is_refused(lab, database):
    reserve(lab, "a", "10.0.0.0/24")
    with sqlite3.connect(database) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with lab.open() as store:
        for call in (lambda: store.find(owner("a")), lambda: store.release(owner("a")), store.probe):
            with pytest.raises(StoreUnavailable, match=f"schema version {SCHEMA_VERSION + 1}"):
                call()


@pytest.mark.parametrize("damage", [b"no database at all", b"", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_file_is_an_error_with_a_remedy_and_is_kept(lab, database, damage):
    reserve(lab, "a", "10.0.0.0/24")
    database.write_bytes(damage)
    for call in (lambda: reserve(lab, "b", "10.0.0.0/24"), lambda: release(lab, "a")):
        with pytest.raises(StoreUnavailable) as raised:
            call()
        assert raised.value.hint
        assert str(database) in raised.value.msg
    assert database.read_bytes() == damage


def test_damage_in_the_middle_is_an_error_too(lab, database):
    for n in range(200):
        reserve(lab, f"c{n}", "10.0.0.0/24")
    content = bytearray(database.read_bytes())
    content[4096:] = random.Random(0).randbytes(len(content) - 4096)
    database.write_bytes(content)
    with pytest.raises(StoreUnavailable) as raised:
        reserve(lab, "late", "10.0.0.0/24")
    assert "drain" in raised.value.hint


def test_a_directory_that_cannot_be_made_is_named_with_its_errno(tmp_path):
    (tmp_path / "file").write_text("")
    lab = Lab(LocalLab(tmp_path / "file" / "below" / "data"))
    with pytest.raises(StoreUnavailable) as raised:
        reserve(lab, "a", "10.0.0.0/24")
    assert "ENOTDIR" in raised.value.details
    with lab.open() as store, pytest.raises(StoreUnavailable, match="cannot be made"):
        store.probe()


def test_a_busy_database_is_left_at_the_deadline(lab, database):
    reserve(lab, "a", "10.0.0.0/24")
    with sqlite3.connect(database, isolation_level=None) as rival:
        rival.execute("BEGIN IMMEDIATE")
        for call in (
            lambda: reserve(lab, "b", "10.0.0.0/24", deadline_s=0.2),
            lambda: release(lab, "a", deadline_s=0.2),
        ):
            with pytest.raises(TryAgainLater, match=r"busy for 0\.2 s"):
                call()
        with lab.open() as store:  # readers wait for no writer
            assert len(store.find(owner("a"))) == 1
    assert reserve(lab, "b", "10.0.0.0/24") == ["10.0.0.2"]


def test_a_reserve_that_is_interrupted_leaves_nothing(lab):
    class Interrupt(BaseException):
        pass

    class Clockwork(Clock):
        def __call__(self):
            raise Interrupt

    reserve(lab, "a", "10.0.0.0/24")
    with lab.make(clock=Clockwork(), cooldown_s=60, deadline_s=30) as store:
        with pytest.raises(Interrupt):
            store.release(owner("a"))
        assert len(store.find(owner("a"))) == 1


def test_a_full_disk_is_an_error_and_nothing_is_reserved(lab, database):
    reserve(lab, "a", "10.0.0.0/24")
    with lab.open() as store:
        connection = store._database._connection
        with store._database.reading() as db:
            (pages,) = db.execute("PRAGMA page_count").fetchone()
            db.execute(f"PRAGMA max_page_count = {pages}")
        assert connection() is db
        wants = [Want(pool("10.1.0.0/16"))] * 500
        with pytest.raises(StoreUnavailable) as raised:
            store.reserve(owner("b"), wants, allocation="lowest")
        assert "SQLITE_FULL" in raised.value.details
        assert "space" in raised.value.hint
        assert store.find(owner("b")) == ()
    assert reserve(lab, "c", "10.0.0.0/24") == ["10.0.0.2"]


def test_cooling_rows_go_away(lab, database):
    for n in range(20):
        reserve(lab, f"c{n}", "10.0.0.0/24")
        release(lab, f"c{n}")
    lab.clock.now += 61
    reserve(lab, "late", "10.0.0.0/24")
    with sqlite3.connect(database) as db:
        assert db.execute("SELECT count(*) FROM lease").fetchone() == (1,)


def _fill(database, space, values):
    with sqlite3.connect(database) as db:
        db.executemany(
            "INSERT INTO lease VALUES (?, ?, 'r', '', 'other', ?, 'n', '', '', '', '', 0, NULL, 0)",
            ((space, bytes(10) + b"\xff\xff" + value.to_bytes(4, "big"), str(value)) for value in values),
        )


def test_marks_of_what_is_full_never_hide_a_free_address(lab, database):
    """Against all rows, whichever way an address becomes free, with two ranges that begin alike."""
    rng = random.Random(5)
    network = IPNetwork("10.1.0.0/22")
    narrow = pool("10.1.0.0/22", exclude=[IPNetwork("10.1.2.0/25")])
    reserve(lab, "first", "10.1.0.0/22")
    _fill(database, "", range(network.first + 2, network.first + 700))
    held = []
    for number in range(400):
        lab.clock.now += rng.choice((0, 0, 5, 61))
        with sqlite3.connect(database) as db:
            condition = "released_at IS NULL OR abs(? - released_at) < cooldown_s"
            rows = db.execute(f"SELECT address FROM lease WHERE {condition}", (lab.clock.now,)).fetchall()
        taken = {int.from_bytes(key[12:], "big") for (key,) in rows}
        block = rng.choice((pool("10.1.0.0/22"), narrow))
        values = (value for first, last in block.range.spans for value in range(first, last + 1))
        lowest = next(value for value in values if value not in taken)
        assert reserve(lab, f"c{number}", Want(block)) == [str(IPAddress(lowest))]
        held.append(f"c{number}")
        for _ in range(rng.choice((0, 1, 2))):
            release(lab, held.pop(rng.randrange(len(held))), cooldown_s=rng.choice((0.0, 60.0))) if held else None
        if rng.random() < 0.05:
            with sqlite3.connect(database) as db:
                db.execute("DELETE FROM lease WHERE ifname = ?", (str(network.first + rng.randrange(2, 700)),))
    with sqlite3.connect(database) as db:
        assert db.execute("SELECT count(*) FROM full").fetchone()[0] >= 1


@pytest.mark.skipif(bool(hindrance()), reason=hindrance())
@pytest.mark.parametrize("mishap", ["fail", "fail after the deed", "kill", "kill after the deed"])
def test_whichever_call_fails_while_the_database_is_made_the_next_add_finds_a_sound_one_or_makes_it(tmp_path, mishap):
    number, is_over = 0, False
    while not is_over:
        number += 1
        lab, calls = Lab(LocalLab(tmp_path / str(number) / "data")), iter(range(1, 10_000))

        def choose(asked, number=number, calls=calls):
            # What is not yet linked into place is a hidden file.
            return mishap if "/." in asked.path and next(calls) == number else "be done"

        files = FlappingFiles(tmp_path, choose=choose)
        with suppress(StoreUnavailable, Killed):
            files.call(reserve, lab, "a", "10.0.0.0/24")
        is_over = not files.seen[mishap]
        assert reserve(lab, "a", "10.0.0.0/24", deadline_s=300.0) == ["10.0.0.1"]
    assert number > 20


# Kills.


def _churn(lab, number, reports, seed):
    rng = random.Random(seed)
    lab = Lab(lab.make, clock=time.time)
    while True:
        name = f"{number}-{rng.randrange(20)}"
        given = reserve(lab, name, "10.2.0.0/24", "2001:db8::/64", cooldown_s=0.0)
        os.write(reports, f"+{name} {given[0]} {given[1]}\n".encode())
        if rng.random() < 0.5:
            os.write(reports, f"-{name}\n".encode())
            release(lab, name, cooldown_s=0.0)


def test_kill_at_any_moment_leaves_no_duplicate_no_half_and_no_lost_success(lab, tmp_path):
    context = multiprocessing.get_context("fork")
    rng = random.Random(7)
    reports = [os.open(tmp_path / f"reports{n}", os.O_CREAT | os.O_APPEND | os.O_RDWR) for n in range(4)]
    for round_number in range(12):
        workers = [
            context.Process(target=_churn, args=(lab, n, reports[n], round_number * 10 + n), daemon=True)
            for n in range(4)
        ]
        for worker in workers:
            worker.start()
        while round_number == 0 and not any(os.fstat(report).st_size for report in reports):
            assert all(worker.is_alive() for worker in workers)
            time.sleep(0.01)
        time.sleep(rng.uniform(0.02, 0.3))
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
    with sqlite3.connect(lab.make.data_dir / DATABASE) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with lab.open() as store:
        held = {}
        for lease in store.leases():
            held.setdefault(lease.owner.container_id, []).append(str(lease.address))
    assert all(len(addresses) == 2 for addresses in held.values())
    promised = {}
    for n in range(4):
        for line in (tmp_path / f"reports{n}").read_text().splitlines():
            name, *given = line[1:].split()
            if line[0] == "+":
                promised[name] = given
            else:
                promised.pop(name, None)
    assert promised
    for name, given in promised.items():
        assert sorted(held[name]) == sorted(given)


def _keep_open(database, is_open):
    db = sqlite3.connect(database)
    db.execute("SELECT count(*) FROM lease").fetchone()
    is_open.set()
    time.sleep(3600)


def test_an_add_that_was_killed_within_its_commit_does_not_come_true_after_its_del(lab, database):
    """What it had written to the log would count for the first process that finds nobody else there."""
    reserve(lab, "other", "10.0.0.0/24")
    context = multiprocessing.get_context("fork")
    is_open = context.Event()
    keeper = context.Process(target=_keep_open, args=(database, is_open), daemon=True)
    keeper.start()
    assert is_open.wait(300)
    index = database.with_name(f"{database.name}-shm")
    header = index.read_bytes()[:136]
    assert reserve(lab, "a", "10.0.0.0/24") == ["10.0.0.2"]
    with open(index, "r+b") as file:
        file.write(header)  # as if killed before it told the others
    assert release(lab, "a") == []
    keeper.kill()
    keeper.join()
    with lab.open() as store:
        assert [lease.owner.container_id for lease in store.leases()] == ["other"]


def _reserve(lab, name):
    reserve(lab, name, "10.0.0.0/24", deadline_s=300.0)


def test_many_processes_make_the_database_once(tmp_path):
    lab = Lab(LocalLab(tmp_path / "data"), clock=Clock())
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        processes = [context.Process(target=_reserve, args=(lab, f"c{n}")) for n in range(10)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 10
        assert [entry.name for entry in lab.make.data_dir.iterdir()] == [DATABASE]
        with lab.open() as store:
            assert len(store.leases()) == 10
        (lab.make.data_dir / DATABASE).unlink()


def test_a_store_that_is_never_used_opens_nothing(tmp_path):
    with LocalStore(tmp_path / "data", deadline=Deadline(1), cooldown_s=0):
        pass
    assert list(tmp_path.iterdir()) == []
