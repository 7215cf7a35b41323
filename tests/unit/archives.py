"""A small archive in the form that the builder gives them, for tests of what unpacks and installs it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

BUILD = "0123456789abcdef"
FILES = {"conf/__init__.py": b"", "cni/linux/vf.py": b"answer = 42\n", "native.so": b"\x7fELF"}


def write_archive(path: Path, *, build_id: str = BUILD, files: Mapping[str, bytes] = FILES, **stamp: str) -> Path:
    runtime = io.BytesIO()
    with zipfile.ZipFile(runtime, "w") as inner:
        for name, content in files.items():
            inner.writestr(name, content)
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr("stamp.json", json.dumps({"build_id": build_id, **stamp}))
        outer.writestr("runtime.zip", runtime.getvalue())
    return path
