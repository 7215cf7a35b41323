"""``host-local`` under failing calls and kills: what a crash leaves behind, and who takes it away."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
from pathlib import Path

import pytest

from conf.errors import (
    IoFailure,
    TryAgainLater,
)
from ipam.host_local import HostLocal
from ipam.host_local_files import NetworkFiles
from tests.unit.host_local_fixtures import POOL, POOL6, content

pytest_plugins = ["tests.unit.host_local_fixtures"]


@pytest.mark.parametrize("left", [b"", b"\0" * 12, b"\r\n"])
def test_what_a_crash_left_without_an_owner_is_given_again(add, folder, left):
    folder.mkdir(parents=True)
    (folder / "10.1.2.2").write_bytes(left)
    assert add("c1") == ["10.1.2.2/29"]
    assert content(folder) == {"10.1.2.2": "c1\r\nnet1"}


def test_a_file_that_cannot_be_read_is_never_taken_for_free(add, folder):
    (folder / "10.1.2.2").mkdir(parents=True)
    with pytest.raises(IoFailure, match="EISDIR"):
        add("c1")


def test_a_lock_held_by_another_ends_in_try_again(request_of, folder, add, delete):
    add("c1")
    impatient = HostLocal(open_files=lambda path: NetworkFiles(path, timeout_s=0), defaults=lambda _: {})
    with open(folder / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for verb, command in ((impatient.add, "ADD"), (impatient.delete, "DEL")):
            with pytest.raises(TryAgainLater, match="lock"):
                verb(request_of(command, "c1"))
    impatient.delete(request_of("DEL", "c1"))
    assert content(folder) == {}


class Fault:
    """Calls ``act`` in place of the n-th change of the disk by this process."""

    def __init__(self, monkeypatch, n, act):
        self._left, self._act = n, act
        for owner, name in ((os, "link"), (os, "unlink"), (os, "fsync"), (Path, "write_text")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))
        opened, created = os.open, self._counted(os.open)
        monkeypatch.setattr(
            os, "open", lambda path, flags, *args: (created if flags & os.O_CREAT else opened)(path, flags, *args)
        )

    @property
    def is_reached(self):
        return self._left <= 0

    def _counted(self, real):
        def step(*args, **kwargs):
            self._left -= 1
            if self._left == 0:
                self._act()
            return real(*args, **kwargs)

        return step


def no_space():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failure_at_any_step_gives_everything_back(add, delete, folder, monkeypatch):
    both = {"ranges": [[POOL], [POOL6]]}
    add("c0", ipam=both)
    failures = 0
    for n in range(1, 50):
        with monkeypatch.context() as patch:
            fault = Fault(patch, n, no_space)
            try:
                add("c1", ipam=both)
            except IoFailure as failure:
                assert "ENOSPC" in failure.details
                failures += 1
                assert set(content(folder).values()) == {"c0\r\nnet1"}, n
        if not fault.is_reached:
            break
        delete("c1")
    # lock, two drafts and links, two round robins, two reservations and two directories on the disk
    assert failures >= 11


def killed(act):
    """Run in a child and return whether it was killed before the end."""
    child = os.fork()
    if child == 0:
        try:
            act()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def test_a_kill_at_any_step_leaves_nothing_that_a_del_does_not_take(add, delete, folder, monkeypatch):
    both = {"ranges": [[POOL], [POOL6]]}
    add("c0", ipam=both)

    def add_and_die():
        Fault(monkeypatch, n, lambda: os.kill(os.getpid(), signal.SIGKILL))
        add("c1", ipam=both)

    for n in range(1, 50):
        was_killed = killed(add_and_die)
        assert set(content(folder).values()) <= {"c0\r\nnet1", "c1\r\nnet1"}, n  # none is empty
        delete("c1")
        assert not any(b"c1" in path.read_bytes() for path in folder.iterdir()), n
        add("c2", ipam=both)
        assert sorted(content(folder).values()) == ["c0\r\nnet1"] * 2 + ["c2\r\nnet1"] * 2, n
        delete("c2")
        if not was_killed:
            break
    assert 11 < n < 49


def test_many_at_once_get_one_address_each(add, folder, monkeypatch):
    # Each writes to the disk several times while it has the lock: where that is slow, the last one waits long.
    monkeypatch.setitem(NetworkFiles.__init__.__kwdefaults__, "timeout_s", 600.0)
    wide = {"subnet": "10.1.2.0/26"}  # 61 addresses
    children = []
    for n in range(61):
        if (child := os.fork()) == 0:
            try:
                add(f"c{n}", ipam=wide)
                os._exit(0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 61
    assert sorted(content(folder).values()) == sorted(f"c{n}\r\nnet1" for n in range(61))


def test_what_is_reported_is_on_the_disk_first(add, folder, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), real(descriptor)))
    add("c1")
    assert {(folder / "10.1.2.2").stat().st_ino, folder.stat().st_ino} <= set(synced)
