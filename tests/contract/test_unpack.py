"""An archive unpacks itself, once and whole; what is damaged, foreign or of another interpreter never runs."""

from __future__ import annotations

import importlib.machinery
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cni.start.unpack import prune
from conf.executables import SUPPORTED_VERSIONS
from tests.contract.agent import wait_until
from tests.contract.archive import (
    ADD,
    VERSION,
    alone,
    call,
    python_of,
    reaches_skeleton,
    read_entry,
    refusal,
    restamped,
    tree_of,
)

VERSIONS = {"cniVersion": "1.1.0", "supportedVersions": list(SUPPORTED_VERSIONS)}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def pythons() -> list[str]:
    """Every interpreter of this machine that is not the one the archives were built for."""
    found = [path for name in ("python3.9", "python3.10", "python3.12", "python3.13") if (path := shutil.which(name))]
    found += [str(path) for path in Path("/root/.pyenv/versions").glob("3.*/bin/python3")]
    return sorted({os.path.realpath(path) for path in found if minor_of(path) >= (3, 9)})


def minor_of(python: str) -> tuple[int, ...]:
    """Return the version as (3, 11); what is no working interpreter has none."""
    code = "import sys; print(*sys.version_info[:2])"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)
    return tuple(map(int, done.stdout.split()))


# --- unpacking


def test_copied_alone_it_unpacks_itself_once(lone: Path, runtime: Path) -> None:
    assert reaches_skeleton(call(lone, ADD, stdin="no json"))
    tree = tree_of(lone)
    assert sorted(path.name for path in runtime.iterdir()) == [".lock", tree.name]
    first = tree.stat().st_ino
    assert reaches_skeleton(call(lone, ADD, stdin="no json"))
    assert tree.stat().st_ino == first
    assert not [path for path in (runtime, *runtime.rglob("*")) if path.stat().st_mode & 0o022]


def test_unpacked_tree_is_whole_whatever_the_umask(lone: Path, runtime: Path) -> None:
    assert reaches_skeleton(call(lone, ADD, stdin="no json", umask=0))
    assert not [path for path in (runtime, *runtime.rglob("*")) if path.stat().st_mode & 0o022]


def test_concurrent_first_runs_unpack_one_tree(lone: Path, runtime: Path) -> None:
    started = [
        subprocess.Popen([lone], env=ADD, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    answers = [process.communicate()[0] for process in started]
    assert [json.loads(answer)["code"] for answer in answers] == [6] * 4
    assert sorted(path.name for path in runtime.iterdir()) == [".lock", tree_of(lone).name]


def test_killed_unpacking_is_done_again(lone: Path, runtime: Path) -> None:
    """Whenever it is killed, there is no tree or a whole one, and the next start has one."""
    for delay_s in (0.05, 0.15, 0.25, 0.35):
        with subprocess.Popen([lone], env=ADD, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            time.sleep(delay_s)
            process.send_signal(signal.SIGKILL)
        assert not tree_of(lone).exists() or (tree_of(lone) / ".complete").exists()
    assert reaches_skeleton(call(lone, ADD, stdin="no json"))
    assert sorted(path.name for path in runtime.iterdir()) == [".lock", tree_of(lone).name]


def plant(tree: Path, sprung: Path) -> None:
    """Make a tree of the right name that tells when something is loaded from it."""
    (tree / "cni").mkdir(parents=True)
    (tree / "cni" / "__init__.py").write_text("")
    (tree / "cni" / "skel.py").write_text(f"open({str(sprung)!r}, 'w')\n")
    (tree / ".complete").write_text(f"{tree.name}\n")
    for path in (tree.parent, tree):
        path.chmod(0o755)


def test_half_unpacked_tree_is_replaced_and_not_loaded(lone: Path, tmp_path: Path) -> None:
    plant(tree_of(lone), tmp_path / "sprung")
    (tree_of(lone) / ".complete").unlink()
    assert reaches_skeleton(call(lone, ADD, stdin="no json"))
    assert not (tmp_path / "sprung").exists()


def test_tree_that_others_may_write_is_replaced_and_not_loaded(lone: Path, tmp_path: Path) -> None:
    plant(tree_of(lone), tmp_path / "sprung")
    tree_of(lone).chmod(0o777)
    assert reaches_skeleton(call(lone, ADD, stdin="no json"))
    assert not (tmp_path / "sprung").exists()
    assert tree_of(lone).stat().st_mode & 0o777 == 0o755


@as_root
def test_tree_of_another_user_is_replaced_and_not_loaded(lone: Path, tmp_path: Path) -> None:
    plant(tree_of(lone), tmp_path / "sprung")
    os.chown(tree_of(lone), 12345, 12345)
    assert reaches_skeleton(call(lone, ADD, stdin="no json"))
    assert not (tmp_path / "sprung").exists()
    assert tree_of(lone).stat().st_uid == 0


def test_link_in_the_place_of_the_tree_is_replaced_and_not_followed(lone: Path, runtime: Path, tmp_path: Path) -> None:
    plant(tmp_path / "elsewhere" / tree_of(lone).name, tmp_path / "sprung")
    runtime.mkdir(0o755)
    tree_of(lone).symlink_to(tmp_path / "elsewhere" / tree_of(lone).name)
    assert reaches_skeleton(call(lone, ADD, stdin="no json"))
    assert not (tmp_path / "sprung").exists()
    assert not tree_of(lone).is_symlink()


def test_runtime_directory_that_others_may_write_is_refused(lone: Path, runtime: Path) -> None:
    runtime.mkdir()
    runtime.chmod(0o777)
    if os.geteuid() != 0:
        pytest.skip("a user has a second place to go to")
    error = refusal(call(lone, ADD))
    assert (error["code"], str(runtime) in error["details"]) == (5, True)
    assert list(runtime.iterdir()) == []


def test_tree_that_does_not_load_is_a_clear_error(lone: Path, tmp_path: Path) -> None:
    plant(tree_of(lone), tmp_path / "sprung")
    error = refusal(call(lone, ADD))
    assert error["code"] == 107
    assert str(tree_of(lone)) in error["msg"]
    assert "remove the directory" in error["details"]


@as_root
def test_place_that_cannot_be_written_is_a_clear_error(archives: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lone = restamped(archives / "sriov", tmp_path / "sriov", runtime_dir=str(tmp_path / "file" / "runtime"))
    error = refusal(call(lone, ADD))
    assert error["code"] == 5
    assert f"{tmp_path}/file: EEXIST" in error["details"]


@pytest.fixture
def public(archives: Path) -> Iterator[Path]:
    """An executable where any user can reach it, its runtime directory root's alone."""
    place = Path(tempfile.mkdtemp(prefix="vferry-test-", dir="/tmp"))
    place.chmod(0o755)
    (place / "root").mkdir(0o700)
    yield restamped(archives / "static", place / "static", runtime_dir=str(place / "root" / "runtime"))
    shutil.rmtree(place)


@as_root
def test_user_unpacks_into_a_private_cache(public: Path) -> None:
    home = public.parent / "home"
    home.mkdir()
    os.chown(home, 54321, 54321)
    done = call(public, ADD | {"HOME": str(home)}, stdin="no json", user=54321, group=54321, extra_groups=[])
    assert reaches_skeleton(done), done
    assert (home / ".cache/vferry/runtime" / tree_of(public).name / ".complete").exists()


@as_root
def test_user_without_home_unpacks_below_tmp_unless_somebody_took_the_place(public: Path) -> None:
    place = Path("/tmp/vferry-54321")
    shutil.rmtree(place, ignore_errors=True)
    try:
        place.mkdir()  # root's, and so no user's to write
        error = refusal(call(public, ADD, user=54321, group=54321, extra_groups=[]))
        assert error["code"] == 5
        assert str(place) in error["details"]
        os.chown(place, 12345, 12345)
        place.chmod(0o777)
        assert str(place) in refusal(call(public, ADD, user=54321, group=54321, extra_groups=[]))["details"]
        assert list(place.iterdir()) == []
        place.rmdir()
        assert reaches_skeleton(call(public, ADD, stdin="no json", user=54321, group=54321, extra_groups=[]))
        assert place.stat().st_uid == 54321
    finally:
        shutil.rmtree(place, ignore_errors=True)


# --- damage and upgrades


def test_truncated_archive_fails_and_says_nothing_on_stdout(archives: Path, tmp_path: Path) -> None:
    content = (archives / "sriov").read_bytes()
    short = tmp_path / "sriov"
    first_line = content.index(b"\n") + 1
    for length in (len(content) - 1, len(content) // 2, first_line, first_line // 2):
        short.write_bytes(content[:length])
        short.chmod(0o755)
        done = call(short, ADD, stdin="{}")
        assert (done.returncode, done.stdout) == (1, "")
        assert str(short) in done.stderr or length < first_line


def test_damaged_archive_writes_no_tree(lone: Path, runtime: Path) -> None:
    with zipfile.ZipFile(lone) as members:
        offset = members.getinfo("runtime.zip").header_offset
    with lone.open("r+b") as file:
        file.seek(offset + 100_000)
        file.write(b"damage")
    error = refusal(call(lone, ADD))
    assert (error["code"], "damaged" in error["msg"]) == (107, True)
    assert not runtime.exists()


def test_archive_replaced_between_start_and_unpacking_says_try_again(lone: Path, archives: Path) -> None:
    """The start is read, then an upgrade takes the name: its table of contents no longer fits the file."""
    code = """
import os, sys, zipimport
archive, other = sys.argv[1:]
start = zipimport.zipimporter(archive).get_code("__main__")
sys.argv = [archive]
os.replace(other, archive)
exec(start)
"""
    for other in (b"not an archive at all", (archives / "sriov").read_bytes()[:-50], None):
        upgrade = lone.with_name("upgrade")
        if other is None:
            restamped(archives / "sriov", upgrade, build_id="0" * 16, runtime_dir=read_entry(lone)["runtime_dir"])
        else:
            upgrade.write_bytes(other)
        keep = alone(lone, lone.with_name("keep"))
        done = subprocess.run(
            [python_of(archives / "sriov"), "-IS", "-c", code, lone, upgrade],
            env=ADD, capture_output=True, text=True, check=False,
        )  # fmt: skip
        error = refusal(done)
        assert (error["code"], "replaced" in error["msg"]) == (11, True)
        keep.replace(lone)


def test_running_executable_survives_its_replacement(lone: Path, runtime: Path, archives: Path) -> None:
    """It has started and waits for stdin; the archive changes, and old runtimes are pruned under it."""
    tree = tree_of(lone)
    with subprocess.Popen(
        [lone], env=ADD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for_descriptor(process.pid, tree / ".complete")
        upgrade = restamped(archives / "sriov", lone.with_name("upgrade"), build_id="1" * 16, runtime_dir=str(runtime))
        upgrade.replace(lone)
        assert reaches_skeleton(call(lone, ADD, stdin="no json"))
        assert prune(runtime, keep=frozenset({"1" * 16})) == []
        out, err = process.communicate('{"cniVersion": "1.0.0", "name": "n", "type": "sriov", "deviceID": "x"}')
    error = json.loads(out)
    assert error["code"] not in {5, 11, 107, 999}, (error, err)
    assert prune(runtime, keep=frozenset({"1" * 16})) == [tree.name]
    assert not tree.exists()


def wait_for_descriptor(pid: int, path: Path) -> None:
    def is_open() -> bool:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it may be closed while it is looked at
                if descriptor.readlink() == path:
                    return True
        return False

    wait_until(is_open, f"process {pid} opens {path}")


# --- interpreters


def test_archive_of_another_interpreter_is_a_clear_error(lone: Path) -> None:
    restamped(lone, lone, tag=".cpython-399-riscv64-linux-gnu.so")
    error = refusal(call(lone, ADD))
    assert error["code"] == 107
    assert ".cpython-399-riscv64-linux-gnu.so" in error["details"]
    assert importlib.machinery.EXTENSION_SUFFIXES[0] in error["details"]
    assert "install-binaries.sh --python /" in error["details"]
    assert json.loads(call(lone, VERSION).stdout) == VERSIONS


@pytest.mark.parametrize("python", pythons())
def test_other_interpreters_answer_version_and_refuse_the_rest(lone: Path, runtime: Path, python: str) -> None:
    def run(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command = [python, "-IS", lone]
        return subprocess.run(command, env=env, input="no json", capture_output=True, text=True, check=False)

    done = run(VERSION)
    assert (json.loads(done.stdout), done.stderr) == (VERSIONS, "")
    if minor_of(python) == minor_of(python_of(lone)):
        # Another build of the same version loads the same libraries.
        assert reaches_skeleton(run(ADD))
        return
    error = refusal(run(ADD))
    assert error["code"] == 107
    assert python in error["details"]
    assert not runtime.exists()
