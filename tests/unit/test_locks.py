"""Device locks: one holder at a time among all descriptors, a bounded wait, nothing left locked."""

from __future__ import annotations

import fcntl
import os
import threading

import pytest

from cni.locks import device_lock
from conf.errors import IoFailure, TryAgainLater

VF = "0000:3b:02.0"


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "run/locks", tmp_path / "cni/sriov/pci/vf_lock"


def hold(path):
    descriptor = os.open(path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def test_lock_is_held_in_every_folder_and_released(folders):
    with device_lock(VF, folders):
        for folder in folders:
            with pytest.raises(BlockingIOError), open(folder / f"{VF}.lock") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for folder in folders:
        os.close(hold(folder / f"{VF}.lock"))


def test_lock_is_released_when_the_block_fails(folders):
    with pytest.raises(ZeroDivisionError), device_lock(VF, folders):
        raise ZeroDivisionError
    with device_lock(VF, folders, timeout_s=0):
        pass


@pytest.mark.parametrize("which", [0, 1])
def test_somebody_else_s_lock_is_waited_for_no_longer_than_told(folders, which):
    with device_lock(VF, folders):
        pass
    descriptor = hold(folders[which] / f"{VF}.lock")
    with pytest.raises(TryAgainLater) as refused, device_lock(VF, folders, timeout_s=0.02):
        pytest.fail("two holders")
    assert (refused.value.code, VF in refused.value.msg) == (11, True)
    # The one that was free was let go of.
    os.close(hold(folders[1 - which] / f"{VF}.lock"))
    os.close(descriptor)


def test_waiting_ends_when_the_holder_does(folders):
    held, release, order = threading.Event(), threading.Event(), []

    def first():
        with device_lock(VF, folders):
            held.set()
            release.wait(120)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert held.wait(120)
    release.set()
    with device_lock(VF, folders, timeout_s=120):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_devices_do_not_wait_for_each_other(folders):
    with device_lock(VF, folders), device_lock("0000:3b:02.1", folders, timeout_s=0):
        pass


def test_lock_and_its_folders_are_private_and_no_child_inherits_it(folders, tmp_path):
    before = os.umask(0)
    try:
        with device_lock(VF, folders):
            descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
            inherited = [each for each in descriptors if each > 2 and _is_lock(each) and os.get_inheritable(each)]
            assert inherited == []
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")} == {0o700, 0o600}


def _is_lock(descriptor):
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").endswith(".lock")
    except OSError:
        return False


def test_lock_that_cannot_be_opened_names_its_file(folders, tmp_path):
    folders[0].mkdir(parents=True)
    (folders[0] / f"{VF}.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IoFailure) as refused, device_lock(VF, folders):
        pytest.fail("it followed a link")
    assert f"{VF}.lock" in refused.value.msg
    assert not (tmp_path / "elsewhere").exists()
