"""The tree is clean: ruff, mypy, shellcheck, no module too long, no package registry named."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.outside("runs git and the linters")

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 400
# In parts: this file is one of those that must not name them.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("archive", "ubuntu", "com"),
        ("pypi", "org"),
        ("files", "pythonhosted", "org"),
        ("proxy", "golang", "org"),
        ("registry", "npmjs", "org"),
        ("crates", "io"),
    )
]


@functools.cache
def tracked() -> tuple[Path, ...]:
    """Return the files of the repository that are there, whoever owns the clone."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return tuple(ROOT / name for name in names if name and (ROOT / name).is_file())


def tracked_python() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py"]


def is_shell(path: Path) -> bool:
    with open(path, "rb") as file:
        return bool(re.match(rb"#!.*\b(ba|da)?sh\b", file.readline()))


def lint(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing():
    lint(sys.executable, "-m", "ruff", "check", "--quiet", *tracked_python())


def test_ruff_would_format_nothing():
    lint(sys.executable, "-m", "ruff", "format", "--check", "--quiet", *tracked_python())


def test_types_hold():
    lint(sys.executable, "-m", "mypy")


def test_shell_scripts_parse():
    scripts = [path for path in tracked() if is_shell(path)]
    assert scripts
    for script in scripts:
        lint("bash", "-n", script)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed: scripts/needs.sh test")
def test_shellcheck_finds_nothing():
    lint("shellcheck", "--external-sources", *(path for path in tracked() if is_shell(path)))


def test_no_module_is_too_long():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in tracked_python()}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def named_registries(text: str) -> list[str]:
    return [host for host in REGISTRIES if re.search(rf"\b{re.escape(host)}\b", text)]


def test_no_registry_is_named():
    found = {str(path.relative_to(ROOT)): named_registries(path.read_text(errors="replace")) for path in tracked()}
    assert {name: hosts for name, hosts in found.items() if hosts} == {}


def test_named_registry_would_be_found():
    assert named_registries(f"deb https://{REGISTRIES[0]}/debian bookworm main") == REGISTRIES[:1]
