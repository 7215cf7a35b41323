"""What tests do with a built archive: call it as a runtime does, and make other builds of it without building."""

from __future__ import annotations

import ast
import io
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What a runtime sets; no PATH, no HOME, no LANG.
ADD = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "net1", "CNI_NETNS": "/nonexistent/netns"}
VERSION = {"CNI_COMMAND": "VERSION"}


def call(
    executable: Path, env: Mapping[str, str], *, stdin: str = "", cwd: Path | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the executable with this environment and nothing else of ours."""
    return subprocess.run(
        [executable], env=dict(env), input=stdin, cwd=cwd, capture_output=True, text=True, check=False, **options
    )


def refusal(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the error object of a call that failed in the way the spec asks for: exactly that on stdout."""
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr, done.stderr
    error = json.loads(done.stdout)
    assert sorted(error) == ["cniVersion", "code", "details", "msg"]
    return dict(error)


def reaches_skeleton(done: subprocess.CompletedProcess[str]) -> bool:
    """Tell whether the call got as far as the rooms and their libraries: they refuse stdin that is no JSON."""
    return done.returncode == 1 and json.loads(done.stdout)["code"] == 6


def python_of(archive: Path) -> str:
    """Return the interpreter of the archive's first line."""
    with archive.open("rb") as file:
        return file.readline()[2:].split()[0].decode()


def read_entry(archive: Path) -> dict[str, Any]:
    """Return what the builder wrote into the archive's start."""
    with zipfile.ZipFile(archive) as members:
        return dict(ast.literal_eval(entry_of(members.read("__main__.py").decode()).group(1)))


def tree_of(archive: Path) -> Path:
    """Return the directory that the archive runs from."""
    entry = read_entry(archive)
    return Path(entry["runtime_dir"]) / entry["build_id"]


def entry_of(source: str) -> re.Match[str]:
    match = re.search(r"Stamp\(\*\*(\{.*\})\)", source)
    assert match, "the archive's entry has changed its form"
    return match


def restamped(archive: Path, target: Path, *, starts_with: str = "", **changes: object) -> Path:
    """Write a copy of the archive with another stamp: another build, place or interpreter to start with."""
    with archive.open("rb") as file:
        shebang = file.readline()
    python = python_of(archive)
    buffer = io.BytesIO()
    buffer.write(shebang.replace(python.encode(), (starts_with or python).encode()))
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            if name == "__main__.pyc":
                continue
            if name == "__main__.py":
                source = text.decode()
                match = entry_of(source)
                stamp = ast.literal_eval(match.group(1)) | changes
                text = (source[: match.start(1)] + repr(stamp) + source[match.end(1) :]).encode()
            if name == "stamp.json":
                text = json.dumps(json.loads(text) | changes).encode()
            new.writestr(name, text)
    target.parent.mkdir(parents=True, exist_ok=True)
    # By a new file: the target may be a hard link of something that is to stay.
    target.unlink(missing_ok=True)
    target.write_bytes(buffer.getvalue())
    target.chmod(0o755)
    return target


def alone(archive: Path, target: Path) -> Path:
    """Copy one executable to another place, with nothing beside it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(archive, target)
    return target
