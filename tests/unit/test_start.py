"""The archive's start: which tree it trusts, how it unpacks one, and what it says when it cannot."""

from __future__ import annotations

import errno
import fcntl
import importlib.machinery
import json
import os
import posix
import sys
from pathlib import Path

import pytest

from cni import shim
from cni.start import runtime, unpack
from cni.start.runtime import Unusable
from tests.unit.archives import BUILD, FILES, write_archive

NATIVE = importlib.machinery.EXTENSION_SUFFIXES[0]


def stamp(**changes: str) -> shim.Stamp:
    texts = {"build_id": BUILD, "tag": NATIVE, "runtime_dir": "/nonexistent", "command": "vferry"}
    texts["agent_socket"] = "/nonexistent/agent.sock"
    entries = {"plugin_entry": "cni.skel:main", "command_entry": "cni.cli.command:main"}
    return shim.Stamp(executables=("sriov",), versions=("1.0.0", "1.1.0"), **{**texts, **entries, **changes})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A whole tree, unpacked from a small archive."""
    tree = tmp_path / "runtime" / BUILD
    unpack.unpack(str(write_archive(tmp_path / "archive")), str(tree))
    return tree


@pytest.fixture
def open_markers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors that were opened and not closed: a held tree has one."""
    opened: list[int] = []
    really_open, really_close = os.open, os.close

    def watched_open(path: str, flags: int, mode: int = 0o777) -> int:
        opened.append(really_open(path, flags, mode))
        return opened[-1]

    def watched_close(descriptor: int) -> None:
        opened.remove(descriptor)
        really_close(descriptor)

    monkeypatch.setattr(runtime.os, "open", watched_open)
    monkeypatch.setattr(runtime.os, "close", watched_close)
    return opened


# --- the shim


def serve(name: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", [f"/opt/cni/bin/{name}"])
    return shim.main(stamp())


def test_version_is_answered_with_nothing_but_the_stamp(monkeypatch, capfd):
    monkeypatch.setitem(posix.environ, b"CNI_COMMAND", b"VERSION")
    monkeypatch.setitem(sys.modules, "start.runtime", None)
    assert serve("sriov", monkeypatch) == 0
    assert json.loads(capfd.readouterr().out) == {"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]}


def test_start_that_cannot_be_loaded_says_try_again(monkeypatch, capfd):
    monkeypatch.setitem(posix.environ, b"CNI_COMMAND", b"ADD")
    # What an import statement meets when the archive is another file by now.
    monkeypatch.setitem(sys.modules, "start.runtime", None)
    assert serve("sriov", monkeypatch) == 1
    assert json.loads(capfd.readouterr().out)["code"] == 11


@pytest.mark.parametrize("name", ["sriov2", "", 'a"b', "SRIOV"])
def test_unknown_name_is_refused(monkeypatch, capfd, name):
    monkeypatch.setitem(sys.modules, "start.runtime", runtime)
    assert serve(name, monkeypatch) == 1
    error = json.loads(capfd.readouterr().out)
    assert (error["code"], error["msg"]) == (4, f'no executable is named "{name}"')
    assert "sriov, vferry" in error["details"]


# --- the interpreter


def test_fitting_interpreter_is_accepted():
    runtime.require_interpreter(stamp())


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 10, 0)])
def test_unfitting_interpreter_is_named_with_the_wanted_one(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(Unusable) as caught:
        runtime.require_interpreter(stamp(tag=".cpython-399-x86_64-linux-gnu.so"))
    assert caught.value.code == 107
    assert ".cpython-399" in caught.value.details and NATIVE in caught.value.details
    # An interpreter that can never do is not the one to install with.
    assert (f"--python {sys.executable}" in caught.value.details) == (version >= (3, 10))


# --- trust


def test_whole_tree_is_held(tree, open_markers):
    assert runtime.hold(str(tree))
    assert len(open_markers) == 1


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
@pytest.mark.parametrize("which", ["tree", "directory"])
def test_tree_that_others_may_change_is_not_held(tree, which, mode):
    (tree if which == "tree" else tree.parent).chmod(mode)
    assert not runtime.hold(str(tree))


def test_tree_of_another_user_is_not_held(tree, monkeypatch):
    monkeypatch.setattr(runtime.os, "geteuid", lambda: tree.stat().st_uid + 1)
    if tree.stat().st_uid == 0:
        assert runtime.hold(str(tree))  # root's tree is everybody's
    else:
        assert not runtime.hold(str(tree))


def test_incomplete_absent_or_linked_tree_is_not_held(tree, tmp_path):
    assert not runtime.hold(str(tree.with_name("absent")))
    link = tree.with_name("link")
    link.symlink_to(tree)
    assert not runtime.hold(str(link))
    (tree / ".complete").unlink()
    assert not runtime.hold(str(tree))


def test_tree_that_is_being_pruned_is_not_held(tree, open_markers):
    with (tree / ".complete").open() as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        assert not runtime.hold(str(tree))
    assert open_markers == []


def test_tree_pruned_between_opening_and_locking_is_not_held(tree, monkeypatch, open_markers):
    def prune_then_lock(_descriptor: int, _operation: int) -> None:
        (tree / ".complete").unlink()

    monkeypatch.setattr(runtime.fcntl, "flock", prune_then_lock)
    assert not runtime.hold(str(tree))
    assert open_markers == []


# --- places


def test_root_has_one_place_and_users_their_own(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runtime.os, "geteuid", lambda: 0)
    monkeypatch.setenv("HOME", "/home/a")
    assert list(runtime.places("/node")) == ["/node"]
    monkeypatch.setattr(runtime.os, "geteuid", lambda: 7)
    assert list(runtime.places("/node")) == ["/node", "/home/a/.cache/vferry/runtime", "/tmp/vferry-7"]
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert list(runtime.places("/node"))[1] == "/cache/vferry/runtime"
    # The specification wants relative ones ignored: they would lead into the working directory.
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert list(runtime.places("/node")) == ["/node", "/tmp/vferry-7"]


def test_second_place_is_taken_when_the_first_cannot_be_written(tmp_path, monkeypatch):
    archive = write_archive(tmp_path / "archive")
    (tmp_path / "file").touch()
    places = [str(tmp_path / "file" / "runtime"), str(tmp_path / "cache")]
    monkeypatch.setattr(runtime, "places", lambda _directory: places)
    assert runtime.provide(str(archive), build_id=BUILD, runtime_dir="x") == str(tmp_path / "cache" / BUILD)


def test_no_place_at_all_names_every_one_with_its_errno(tmp_path, monkeypatch):
    archive = write_archive(tmp_path / "archive")
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    places = [str(tmp_path / "file" / "runtime"), str(tmp_path / "open")]
    monkeypatch.setattr(runtime, "places", lambda _directory: places)
    with pytest.raises(Unusable) as caught:
        runtime.provide(str(archive), build_id=BUILD, runtime_dir="x")
    assert caught.value.code == 5
    assert f"{tmp_path}/file: EEXIST" in caught.value.details
    assert f"{tmp_path}/open: EPERM" in caught.value.details


# --- unpacking


def test_tree_holds_every_file_and_nobody_else_may_write(tree):
    found = {path.relative_to(tree).as_posix(): path for path in tree.rglob("*") if path.is_file()}
    assert {name: path.read_bytes() for name, path in found.items() if name != ".complete"} == FILES
    assert {path.stat().st_mode & 0o777 for path in found.values()} == {0o644}
    directories = [tree.parent, tree, *(path for path in tree.rglob("*") if path.is_dir())]
    assert {path.stat().st_mode & 0o777 for path in directories} == {0o755}


def test_missing_parent_of_the_runtime_directory_is_private(tmp_path):
    tree = tmp_path / "vferry" / "runtime" / BUILD
    unpack.unpack(str(write_archive(tmp_path / "archive")), str(tree))
    assert (tmp_path / "vferry").stat().st_mode & 0o777 == 0o700


def test_whole_tree_is_left_as_it_is(tree, tmp_path):
    before = tree.stat().st_ino
    unpack.unpack(str(tmp_path / "archive"), str(tree))
    assert tree.stat().st_ino == before


def test_leavings_of_a_killed_unpacking_are_removed(tree, tmp_path):
    for name in (f".new-{BUILD}", ".old-x"):
        (tree.with_name(name) / "sub").mkdir(parents=True)
    tree.with_name(".new-file").touch()
    tree.with_name(".old-link").symlink_to(tmp_path)
    unpack.unpack(str(tmp_path / "archive"), str(tree))
    assert sorted(path.name for path in tree.parent.iterdir()) == [".lock", BUILD]
    assert (tmp_path / "archive").exists()


@pytest.mark.parametrize("nth", range(1, 9))
def test_full_disk_at_any_write_leaves_no_tree(tmp_path, monkeypatch, nth):
    """Three files, the marker, four directories: eight waits for the disk before the tree gets its name."""
    archive = write_archive(tmp_path / "archive")
    tree = tmp_path / "runtime" / BUILD
    really_sync, count = os.fsync, iter(range(1, 100))

    def full(descriptor: int) -> None:
        if next(count) == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really_sync(descriptor)

    monkeypatch.setattr(unpack.os, "fsync", full)
    with pytest.raises(OSError, match="space") as caught:
        unpack.unpack(str(archive), str(tree))
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tree.parent.iterdir()] == [".lock"]
    unpack.unpack(str(archive), str(tree))
    assert runtime.hold(str(tree))


def test_archive_of_another_build_is_try_again(tmp_path):
    archive = write_archive(tmp_path / "archive", build_id="f" * 16)
    with pytest.raises(Unusable, match="replaced") as caught:
        unpack.unpack(str(archive), str(tmp_path / "runtime" / BUILD))
    assert caught.value.code == 11
    assert not (tmp_path / "runtime").exists()


@pytest.mark.parametrize("damage", ["cut", "no zip", "no stamp", "flipped"])
def test_damaged_archive_is_named_and_nothing_written(tmp_path, damage):
    archive = write_archive(tmp_path / "archive")
    content = archive.read_bytes()
    archive.write_bytes(
        {
            "cut": content[:-10],
            "no zip": b"#!/bin/sh\n",
            "no stamp": content.replace(b"stamp.json", b"stump.json"),
            "flipped": content.replace(b"answer = 42", b"answer = 43"),
        }[damage]
    )
    with pytest.raises(Unusable, match="damaged") as caught:
        unpack.unpack(str(archive), str(tmp_path / "runtime" / BUILD))
    assert caught.value.code == 107
    assert str(archive) in caught.value.msg
    assert not (tmp_path / "runtime").exists()


def test_lock_that_stays_busy_is_try_again(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "_PATIENCE_S", 0.0)
    with tree.with_name(".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Unusable) as caught:
            unpack.unpack(str(tmp_path / "archive"), str(tree.with_name(BUILD)))
    assert caught.value.code == 11


# --- pruning


def test_prune_removes_what_is_neither_kept_nor_in_use(tree, tmp_path):
    for build in "abc":
        unpack.unpack(str(write_archive(tmp_path / build, build_id=build)), str(tree.with_name(build)))
    tree.with_name("unfinished").mkdir()
    tree.with_name("notes.txt").touch()
    assert runtime.hold(str(tree.with_name("b")))
    assert unpack.prune(tree.parent, keep=frozenset({"c"})) == [BUILD, "a", "unfinished"]
    assert sorted(path.name for path in tree.parent.iterdir()) == [".lock", "b", "c", "notes.txt"]


# --- entering


def test_tree_takes_the_place_of_the_archive(tree, monkeypatch):
    (tree / "vferry_probe.py").write_text("def main(name):\n    return len(name)\n")
    monkeypatch.setattr(sys, "path", ["/opt/cni/bin/sriov", *sys.path[1:]])
    assert runtime.enter(str(tree), "vferry_probe:main")("four") == 4
    assert sys.path[0] == str(tree)
    del sys.modules["vferry_probe"]


@pytest.mark.parametrize(
    "source", ["import nothing_of_this_name", "def main(", "main_is_missing = 1", "raise OSError(28, 'No space')"]
)
def test_tree_that_does_not_load_is_an_error_with_its_cause(tree, monkeypatch, source):
    (tree / "vferry_broken.py").write_text(source)
    monkeypatch.setattr(sys, "path", ["/opt/cni/bin/sriov", *sys.path[1:]])
    with pytest.raises(Unusable) as caught:
        runtime.enter(str(tree), "vferry_broken:main")
    assert caught.value.code == 107
    assert str(tree) in caught.value.msg
    assert "Error: " in caught.value.details
    sys.modules.pop("vferry_broken", None)


def test_person_is_told_in_words_and_a_runtime_in_json(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "path", ["/opt/cni/bin/x", *sys.path[1:]])
    foreign = stamp(tag=".other.so")
    assert runtime.run("vferry", foreign) == 1
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.startswith("vferry: this Python cannot run the archive /opt/cni/bin/x")
    assert runtime.run("sriov", foreign) == 1
    assert sorted(json.loads(capfd.readouterr().out)) == ["cniVersion", "code", "details", "msg"]
