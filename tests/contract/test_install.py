"""Installing on a node in use: every name is whole at every moment, and what stood there before can come back."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cni.start.unpack import read_stamp
from conf.executables import COMMAND
from tests.contract.agent import wait_until
from tests.contract.archive import ADD, VERSION, call, python_of, reaches_skeleton, restamped

ROOT = Path(__file__).resolve().parents[2]
GO = "#!/bin/sh\necho Go\n"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Node:
    """A node's directories, and the installer run on them with builds that are made of the real one in no time."""

    def __init__(self, place: Path, archive: Path) -> None:
        self.dest = place / "cni" / "bin"
        self.runtime = place / "runtime"
        self.kept = place / "cni" / "vferry-replaced"
        self.all_names = sorted(read_stamp(str(archive))["names"].split())
        self._archive = archive
        self._place = place

    def build(self, digit: str = "1") -> Path:
        """Return an archive of the build ``digit`` x 16."""
        target = self._place / "builds" / digit / COMMAND
        return restamped(self._archive, target, build_id=digit * 16, runtime_dir=str(self.runtime))

    def install(self, *options: str, build: str = "1", **run: object) -> subprocess.CompletedProcess[str]:
        return self.installer("--archive", str(self.build(build)), *options, **run)

    def installer(self, *options: str, **run: object) -> subprocess.CompletedProcess[str]:
        command = [python_of(self._archive), ROOT / "zipapp" / "install.py", "--dest", self.dest, *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, **run)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.dest.iterdir())

    def runtimes(self) -> list[str]:
        return sorted(path.name[0] for path in self.runtime.iterdir() if path.name[0] != ".")

    def foreign(self, name: str, content: str = GO, mode: int = 0o755) -> Path:
        self.dest.mkdir(parents=True, exist_ok=True)
        path = self.dest / name
        path.unlink(missing_ok=True)
        path.write_text(content)
        path.chmod(mode)
        return path


@pytest.fixture
def node(archives: Path, tmp_path: Path) -> Node:
    return Node(tmp_path, archives / COMMAND)


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def failed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


# --- what is installed


def test_every_name_is_a_copy_of_its_own(node: Node) -> None:
    succeeded(node.install())
    assert node.names() == node.all_names
    assert len({path.stat().st_ino for path in node.dest.iterdir()}) == len(node.all_names)
    assert len({path.read_bytes() for path in node.dest.iterdir()}) == 1
    assert {path.stat().st_mode & 0o7777 for path in node.dest.iterdir()} == {0o755}
    assert not node.kept.exists()


def test_install_leaves_nothing_to_unpack_or_compile(node: Node) -> None:
    succeeded(node.install())
    tree = node.runtime / ("1" * 16)
    before = sorted(tree.rglob("*"))
    sources = [path for path in before if path.suffix == ".py"]
    assert len([path for path in before if path.suffix == ".pyc"]) == len(sources) > 100
    for name in set(node.all_names) - {COMMAND}:
        assert reaches_skeleton(call(node.dest / name, ADD, stdin="no json"))
    assert sorted(tree.rglob("*")) == before


def test_only_the_asked_names_are_installed(node: Node) -> None:
    succeeded(node.install("--only", "static,sriov"))
    assert node.names() == ["sriov", "static"]


def test_unknown_name_changes_nothing(node: Node) -> None:
    error = failed(node.install("--only", "sriov,bandwidth"))
    assert "bandwidth" in error
    assert all(name in error for name in node.all_names)
    assert not node.dest.exists()
    assert not node.runtime.exists()


def test_no_archive_of_ours_is_refused(node: Node, tmp_path: Path) -> None:
    (tmp_path / "other").write_text(GO)
    assert "no archive of vferry" in failed(node.installer("--archive", str(tmp_path / "other")))


def test_destination_that_cannot_be_made_is_named(node: Node) -> None:
    node.dest.parent.mkdir()
    node.dest.write_text("a file")
    assert str(node.dest) in failed(node.install())


def test_runtime_that_does_not_load_is_not_installed(node: Node) -> None:
    tree = node.runtime / ("1" * 16)
    (tree / "cni").mkdir(parents=True)
    (tree / "cni" / "__init__.py").touch()
    (tree / ".complete").touch()
    node.runtime.chmod(0o755)
    tree.chmod(0o755)
    node.foreign("sriov")
    error = failed(node.install())
    assert "cni.skel" in error
    assert (node.dest / "sriov").read_text() == GO
    assert node.names() == ["sriov"]


# --- what stood there before


def test_foreign_files_are_kept_and_come_back(node: Node, tmp_path: Path) -> None:
    node.foreign("sriov", mode=0o775)
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr" / "static").write_text(GO)
    (node.dest / "static").symlink_to("../../usr/static")
    node.foreign("macvlan")
    succeeded(node.install())
    assert call(node.dest / "sriov", VERSION).stdout.startswith('{"cniVersion"')
    assert sorted(path.name for path in node.kept.iterdir()) == ["sriov", "static"]

    # An upgrade of ours must not take the place of what is kept.
    succeeded(node.install(build="2"))
    assert (node.kept / "sriov").read_text() == GO

    told = succeeded(node.installer("--restore"))
    assert (node.dest / "sriov").read_text() == GO
    assert (node.dest / "sriov").stat().st_mode & 0o7777 == 0o775
    assert os.readlink(node.dest / "static") == "../../usr/static"
    assert (node.dest / "macvlan").read_text() == GO
    assert not node.kept.exists()
    # Pods of ours may still need these to be deleted.
    assert f"{node.dest / 'whereabouts'} replaced nothing" in told
    assert call(node.dest / "whereabouts", VERSION).returncode == 0


def test_restore_of_one_name_leaves_the_others(node: Node) -> None:
    node.foreign("sriov")
    node.foreign("static")
    succeeded(node.install())
    succeeded(node.installer("--restore", "--only", "sriov"))
    assert (node.dest / "sriov").read_text() == GO
    assert call(node.dest / "static", VERSION).returncode == 0
    assert [path.name for path in node.kept.iterdir()] == ["static"]


def test_second_foreign_file_does_not_displace_the_first(node: Node) -> None:
    node.foreign("sriov")
    succeeded(node.install())
    node.foreign("sriov", content="newer\n")
    succeeded(node.install())
    assert (node.kept / "sriov").read_text() == "newer\n"
    assert (node.kept / "sriov.1").read_text() == GO
    # The same file once more is the same file.
    node.foreign("sriov", content="newer\n")
    succeeded(node.install())
    assert sorted(path.name for path in node.kept.iterdir()) == ["sriov", "sriov.1"]


def test_directory_in_the_place_of_a_name_is_left_alone(node: Node) -> None:
    (node.dest / "sriov").mkdir(parents=True)
    assert "is a directory" in failed(node.install())
    assert node.names() == ["sriov"]


def test_program_that_writes_into_one_name_changes_no_other(node: Node, tmp_path: Path) -> None:
    """The image of the Go sriov plugin starts with a cp -f into the CNI directory."""
    succeeded(node.install())
    (tmp_path / "go").write_text(GO)
    subprocess.run(["cp", "-f", tmp_path / "go", node.dest / "sriov"], check=True)
    assert call(node.dest / "sriov", {}).stdout == "Go\n"
    for name in set(node.all_names) - {"sriov", COMMAND}:
        assert call(node.dest / name, VERSION).returncode == 0
    succeeded(node.install())
    assert call(node.dest / "sriov", VERSION).returncode == 0
    assert (node.kept / "sriov").read_text() == GO


def test_names_of_one_build_know_each_other_as_theirs(node: Node) -> None:
    """So that an IPAM plugin of the same build needs no second start; of another build it is a foreign program."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from cni.delegate import find
print(type(find("static", [sys.argv[2]], archive=sys.argv[2] + "/sriov")).__name__)
"""

    def found() -> str:
        command = [python_of(node.build()), "-IS", "-c", code, node.runtime / ("1" * 16), node.dest]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    succeeded(node.install())
    assert found() == "Static"
    succeeded(node.install("--only", "static", build="2"))
    assert found() == "ForeignPlugin"


# --- while in use


def test_upgrade_changes_no_file_that_is_open(node: Node) -> None:
    succeeded(node.install())
    with (node.dest / "sriov").open("rb") as running:
        before = running.read()
        succeeded(node.install(build="2"))
        running.seek(0)
        assert running.read() == before
    assert (node.dest / "sriov").read_bytes() != before
    assert node.names() == node.all_names


def test_every_call_during_upgrades_is_answered(node: Node) -> None:
    succeeded(node.install())
    done = threading.Event()
    answers: list[subprocess.CompletedProcess[str]] = []

    def keep_calling() -> None:
        while not done.is_set():
            answers.append(call(node.dest / "sriov", ADD, stdin="no json"))

    thread = threading.Thread(target=keep_calling)
    thread.start()
    try:
        for build in itertools.cycle("23"):
            succeeded(node.install(build=build))
            if build == "3" and len(answers) > 3:
                break
            assert thread.is_alive()
    finally:
        done.set()
        thread.join()
    for answer in answers:
        # Python itself reads the archive twice; between the two there is no second chance for anybody.
        assert reaches_skeleton(answer) or "replaced" in answer.stdout or "zipimport" in answer.stderr, answer


def test_interrupted_install_leaves_nothing_for_long(node: Node) -> None:
    succeeded(node.install())
    (node.dest / ".vferry-new-sriov").write_text("half")
    succeeded(node.install(build="2"))
    assert node.names() == node.all_names


def test_runtimes_in_use_and_of_the_previous_build_stay(node: Node) -> None:
    succeeded(node.install(build="1"))
    with subprocess.Popen(
        [node.dest / "sriov"], env=ADD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: process.poll() is not None or ".complete" in open_files(process.pid), "it holds its runtime")
        assert process.poll() is None
        succeeded(node.install(build="2"))
        assert node.runtimes() == ["1", "2"]
        succeeded(node.install(build="3"))
        assert node.runtimes() == ["1", "2", "3"]
        process.communicate("no json")
    told = succeeded(node.install(build="4"))
    assert node.runtimes() == ["3", "4"]
    assert "1" * 16 in told and "2" * 16 in told


def open_files(pid: int) -> set[str]:
    """Return the names of a process's open files; it may close one while it is looked at."""
    names = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            names.add(path.readlink().name)
    return names


def test_runtime_of_a_name_that_was_not_upgraded_stays(node: Node) -> None:
    succeeded(node.install(build="1"))
    for build in "23":
        succeeded(node.install("--only", "sriov", build=build))
    assert node.runtimes() == ["1", "2", "3"]
    assert reaches_skeleton(call(node.dest / "static", ADD, stdin="no json"))


def test_runtime_of_another_destination_stays(node: Node) -> None:
    succeeded(node.install(build="1"))
    node.dest = node.dest.with_name("bin2")
    for build in "234":
        succeeded(node.install("--only", "sriov", build=build))
    assert node.runtimes() == ["1", "3", "4"]


# --- who installs


@pytest.fixture
def public(archives: Path) -> Iterator[Node]:
    """A node in a place that any user can reach."""
    place = Path(tempfile.mkdtemp(prefix="vferry-test-", dir="/tmp"))
    place.chmod(0o755)
    yield Node(place, archives / COMMAND)
    shutil.rmtree(place)


@as_root
def test_user_installs_into_a_directory_of_his_own(public: Node) -> None:
    for path in (public.dest, public.runtime):
        path.mkdir(parents=True)
        os.chown(path, 54321, 54321)
    if subprocess.run(["test", "-r", ROOT / "zipapp" / "install.py"], user=54321, check=False).returncode:
        pytest.skip("another user cannot read this checkout")
    succeeded(public.install(user=54321, group=54321, extra_groups=[]))
    assert reaches_skeleton(call(public.dest / "static", ADD, stdin="no json", user=54321, extra_groups=[]))
    assert {path.stat().st_uid for path in public.dest.iterdir()} == {54321}


# --- the script


def script(*arguments: object, **run: object) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "scripts" / "install-binaries.sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **run)


def test_script_explains_its_options() -> None:
    told = succeeded(script("--help"))
    for option in ("--dest", "--python", "--only", "--runtime-dir", "--backup", "--restore"):
        assert option in told


@pytest.mark.parametrize("arguments", [("--destination", "x"), ("--dest",), ("--dest", "")])
def test_script_refuses_what_it_does_not_know(arguments: tuple[str, ...]) -> None:
    done = script(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert arguments[0] in done.stderr


@pytest.mark.parametrize("python", ["/bin/false", "/nonexistent", "nonexistent"])
def test_script_refuses_what_is_no_fitting_python(python: str) -> None:
    done = script("--python", python)
    assert done.returncode == 1
    assert python in done.stderr and "3.10" in done.stderr


def test_script_installs_and_restores_relative_to_its_caller(archives: Path, tmp_path: Path) -> None:
    node = Node(tmp_path, archives / COMMAND)
    node.foreign("sriov")
    # The runtime of the fixture: no second build for this test.
    options = ("--dest=cni/bin", "--only", "sriov", "--runtime-dir", archives.parent / "runtime")
    succeeded(script(*options, cwd=tmp_path))
    assert node.names() == ["sriov"]
    assert call(node.dest / "sriov", VERSION).returncode == 0
    succeeded(script("--dest", "cni/bin", "--restore", cwd=tmp_path))
    assert (node.dest / "sriov").read_text() == GO
