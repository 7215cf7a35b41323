"""The archive starts as what it is called by, loads nothing foreign, and never runs from what is not whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conf.executables import COMMAND, EXECUTABLES, SUPPORTED_VERSIONS
from tests.contract.archive import ADD, VERSION, alone, call, python_of, reaches_skeleton, read_entry, refusal, tree_of

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = {"cniVersion": "1.1.0", "supportedVersions": list(SUPPORTED_VERSIONS)}
TRAPS = ("json", "conf", "cni", "ipam", "start", "pydantic", "sitecustomize", "usercustomize", "runpy")


# --- names and verbs


@pytest.mark.parametrize("name", EXECUTABLES)
def test_every_executable_is_isolated_and_answers_under_an_empty_environment(archives: Path, name: str) -> None:
    first_line = (archives / name).open("rb").readline()
    assert first_line.startswith(b"#!/") and b" -ISc" in first_line
    done = call(archives / name, VERSION)
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, VERSIONS, "")
    assert reaches_skeleton(call(archives / name, ADD, stdin="no json"))


def test_command_says_what_it_can_do_under_an_empty_environment(archives: Path) -> None:
    done = subprocess.run(
        [archives / COMMAND, "--help"], env={}, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: vferry" in done.stdout


def test_version_does_not_wait_for_stdin(archives: Path) -> None:
    with subprocess.Popen(
        [archives / "sriov"], env=VERSION, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        # The pipe stays open; communicate() would close it.
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == VERSIONS
        assert process.wait(60) == 0


def test_unknown_name_is_refused_with_the_known_ones(archives: Path, tmp_path: Path) -> None:
    error = refusal(call(alone(archives / "sriov", tmp_path / "sriov2"), VERSION))
    assert error["code"] == 4
    assert "sriov2" in error["msg"]
    assert all(name in error["details"] for name in (*EXECUTABLES, COMMAND))


def test_symbolic_link_selects_by_its_own_name(archives: Path, tmp_path: Path) -> None:
    (tmp_path / "static").symlink_to(archives / "sriov")
    assert call(tmp_path / "static", VERSION).returncode == 0


def test_closed_stdout_is_an_error_and_no_traceback(archives: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" >&-', archives / "sriov"], env=VERSION, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "cannot write the answer" in done.stderr
    assert "Traceback" not in done.stderr


# --- nothing foreign


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A directory of modules that tell when they are loaded."""
    directory = tmp_path / "trap"
    directory.mkdir()
    for name in TRAPS:
        (directory / f"{name}.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'a').write({name!r})\n")
    return directory


def test_hostile_environment_and_directory_load_nothing(lone: Path, trap: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    # The trap works: without isolation it is sprung.
    subprocess.run(
        [sys.executable, "-c", "import json"], env={"PYTHONPATH": str(trap)}, capture_output=True, check=False
    )
    assert sprung.exists()
    sprung.unlink()

    shutil.copytree(trap, lone.parent, dirs_exist_ok=True)
    names = ("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONPLATLIBDIR", "PYTHONPYCACHEPREFIX", "HOME")
    hostile = dict.fromkeys(names, str(trap)) | {"PYTHONSTARTUP": str(trap / "json.py"), "PYTHONINSPECT": "1"}
    assert json.loads(call(lone, VERSION | hostile, cwd=trap).stdout) == VERSIONS
    assert reaches_skeleton(call(lone, ADD | hostile, stdin="no json", cwd=trap))
    assert reaches_skeleton(call(lone, ADD | hostile, stdin="no json", cwd=trap))
    assert not sprung.exists(), sprung.read_text()


def test_runs_from_a_read_only_directory(lone: Path, runtime: Path) -> None:
    before = sorted(lone.parent.iterdir())
    lone.parent.chmod(0o555)
    command = [lone]
    if os.geteuid() == 0:
        # Root may write where the mode forbids it, but not on a read-only mount.
        script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && ! touch "$0/x" 2>&- && exec "$0/sriov"'
        command = ["unshare", "--mount", "sh", "-c", script, lone.parent]
    done = subprocess.run(
        command, env=ADD | {"PATH": os.defpath}, input="no json", capture_output=True, text=True, check=False
    )
    lone.parent.chmod(0o755)
    assert reaches_skeleton(done), done
    assert sorted(lone.parent.iterdir()) == before
    assert runtime.is_dir()


def test_all_that_is_packed_loads_from_the_runtime_and_the_stdlib_alone(archives: Path) -> None:
    """Every module of the rooms: a library that the lock forgot would only be missed by some verb of some pod."""
    tree = tree_of(archives / "sriov")
    code = """
import importlib, pathlib, sys
tree = pathlib.Path(sys.argv[1])
stdlib = pathlib.Path(importlib.__file__).parents[1]
sys.path.insert(0, str(tree))
for room in ("conf", "ipam", "cni"):
    for path in sorted((tree / room).rglob("*.py")):
        parts = path.relative_to(tree).with_suffix("").parts
        if parts[-1] != "__main__":
            importlib.import_module(".".join(part for part in parts if part != "__init__"))
for name, module in sorted(sys.modules.items()):
    path = getattr(module, "__file__", None)
    if path and not path.startswith((str(tree), str(stdlib))):
        sys.exit(f"{name} comes from {path}")
"""
    python = python_of(archives / "sriov")
    done = subprocess.run([python, "-IS", "-c", code, tree], env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_only_what_is_needed_is_packed(archives: Path) -> None:
    files = [path.relative_to(tree_of(archives / "sriov")) for path in tree_of(archives / "sriov").rglob("*")]
    assert {path.parts[0] for path in files if path.suffix == ".so"} == {"pydantic_core", "yaml"}
    assert not [path for path in files if {"tests", "test"} & set(path.parts) or ".dist-info" in str(path)]
    assert not [path for path in files if path.parts[0] in {"pip", "pytest", "pygments", "hypothesis"}]
    lock = (ROOT / "zipapp" / "requirements.lock").read_text()
    locked = {line.split("==")[0].replace("-", "_") for line in lock.splitlines() if "==" in line and ";" not in line}
    licensed = {
        path.parts[1].replace("-", "_") for path in files if path.parts[0] == "licenses" and len(path.parts) > 2
    }
    assert licensed == locked | {"vferry"}


# --- the start stays small


def imported(command: list[str | Path], env: dict[str, str]) -> list[str]:
    """Return every module that is imported, in the order in which they are complete."""
    done = subprocess.run(command, env=env, input="no json", capture_output=True, text=True, check=False)
    return re.findall(r"^import '?([\w.]+)'? #", done.stderr, re.MULTILINE)


def started(executable: Path) -> list[str | Path]:
    """Return the command that the kernel makes of the executable's first line, with every import told."""
    python, flags = executable.open("rb").readline()[2:].decode().rstrip("\n").split(" ", 1)
    return [python, "-v", flags, executable]


def test_start_loads_no_more_than_it_must(archives: Path) -> None:
    python = python_of(archives / "sriov")
    known = set(imported([python, "-ISvc", "pass"], {}))
    assert "zipimport" in known and "runpy" not in known
    assert set(imported(started(archives / "sriov"), VERSION)) == known

    # Into this process: only what the rooms import anyway, and nothing of what unpacks.
    later = "import collections.abc, errno, fcntl, gc, importlib.machinery, json, typing"
    known |= {*imported([python, "-ISvc", later], {}), "start", "start.runtime"}
    cold = imported(started(archives / "sriov"), ADD)
    assert "cni.skel" in cold
    assert set(cold[: cold.index("start.runtime")]) - known == set()
    assert "start.unpack" not in cold


@pytest.mark.parametrize("name", EXECUTABLES)
def test_plugin_imports_nothing_that_no_attachment_needs(archives: Path, name: str) -> None:
    code = f"import sys; sys.path[:0] = sys.argv[1:]; from cni import skel; skel.plugins.load({name!r}); " + (
        "print(*sys.modules)"
    )
    command = [python_of(archives / name), "-ISc", code, tree_of(archives / name)]
    loaded = set(subprocess.run(command, env={}, capture_output=True, text=True, check=True).stdout.split())
    assert "conf.result" in loaded
    unneeded = {"asyncio", "email", "http", "importlib.metadata", "rich", "sqlite3", "ssl", "unittest", "yaml"}
    assert loaded & unneeded == set()


# --- reproducible


def test_same_inputs_give_the_same_bytes(archives: Path, tmp_path: Path) -> None:
    """From two copies of the sources, so that nobody edits them meanwhile and no path of the builder's gets in."""
    built = []
    for seed, zone, umask in (("1", "UTC", 0o022), ("2", "Asia/Tokyo", 0o077)):
        copy = tmp_path / f"copy{seed}"
        for room in ("conf", "ipam", "cni", "zipapp"):
            shutil.copytree(ROOT / room if seed == "1" else tmp_path / "copy1" / room, copy / room)
        shutil.copy2(ROOT / "LICENSE", copy)
        subprocess.run(
            [venv_of(archives), copy / "zipapp/build.py", "--output", copy / "bin", "--python", "/usr/bin/python3"],
            env={"PYTHONHASHSEED": seed, "TZ": zone, "SOURCE_DATE_EPOCH": "1700000000"},
            cwd=copy, umask=umask, check=True, capture_output=True,
        )  # fmt: skip
        built.append((copy / "bin" / COMMAND).read_bytes())
    assert built[0] == built[1]
    with zipfile.ZipFile(tmp_path / "copy1" / "bin" / COMMAND) as members:
        assert {info.date_time for info in members.infolist()} == {(2023, 11, 14, 22, 13, 20)}


def venv_of(archives: Path) -> Path:
    """Return the interpreter that the script builds with."""
    tag = str(read_entry(archives / COMMAND)["tag"]).strip(".").removesuffix(".so")
    return ROOT / "build" / f"venv-{tag}" / "bin" / "python"


def test_table_of_contents_is_short_and_without_dates(archives: Path) -> None:
    with zipfile.ZipFile(archives / COMMAND) as members:
        assert {info.date_time for info in members.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.compress_type for info in members.infolist()} == {zipfile.ZIP_STORED}
        assert len(members.namelist()) <= 12
