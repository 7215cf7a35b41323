"""The builder and the installer: first line, times, choice of files, a file for every name."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import os
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from types import ModuleType

import pytest

from tests.unit.archives import BUILD, write_archive

ZIPAPP = Path(__file__).resolve().parents[2] / "zipapp"


def script(name: str) -> ModuleType:
    """Load a script of zipapp/, which is no package: it bears the name of a module of the stdlib."""
    spec = importlib.util.spec_from_file_location(f"zipapp_{name}", ZIPAPP / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


build = script("build")
install = script("install")


# --- building


@pytest.mark.parametrize("python", ["python3", "bin/python3", "/opt/my python/bin/python3", "/" + "x" * 256, "/a\nb"])
def test_first_line_that_the_kernel_cannot_use_is_refused(python):
    with pytest.raises(build.BuildError, match="absolute path"):
        build.first_line(python)


def test_first_line_isolates():
    line = build.first_line("/usr/bin/python3")
    assert line.startswith(b"#!/usr/bin/python3 -ISc")
    assert len(line) < 128, "what kernels before Linux 5.1 pass on"


@pytest.mark.parametrize(
    ("epoch", "moment"),
    [
        (None, (1980, 1, 1, 0, 0, 0)),
        ("0", (1980, 1, 1, 0, 0, 0)),
        ("1700000000", (2023, 11, 14, 22, 13, 20)),
    ],
)
def test_members_have_the_time_of_the_source(monkeypatch, epoch, moment):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    if epoch is not None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    assert build.timestamp() == moment


def test_zip_does_not_depend_on_order(tmp_path):
    moment = (1980, 1, 1, 0, 0, 0)
    one = build.zipped({"b": b"2", "a": b"1"}, moment, method=zipfile.ZIP_STORED, prefix=b"#!x\n")
    assert one == build.zipped({"a": b"1", "b": b"2"}, moment, method=zipfile.ZIP_STORED, prefix=b"#!x\n")
    assert one.startswith(b"#!x\n")
    with zipfile.ZipFile(BytesIO(one)) as members:
        assert members.testzip() is None
        assert members.namelist() == ["a", "b"]


def test_digest_tells_names_from_contents():
    assert build.digest({"a": b"bc"}) != build.digest({"ab": b"c"})
    assert build.digest({"a": b"1", "b": b"2"}) == build.digest({"b": b"2", "a": b"1"})
    assert len(build.digest({})) == 16


class Library:
    """An installed distribution as importlib.metadata shows it."""

    def __init__(self, place: Path, name: str, files: dict[str, str]) -> None:
        self.version = "1.0"
        self.metadata = {"Name": name}
        self.files = []
        for file, content in files.items():
            path = place / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            packed = importlib.metadata.PackagePath(file)
            packed.dist = self
            self.files.append(packed)
        self._place = place

    def locate_file(self, path: os.PathLike[str]) -> Path:
        return self._place / path


def test_only_what_runs_and_the_licence_is_taken_of_a_library(tmp_path):
    library = Library(
        tmp_path / "site",
        "Some-Lib",
        {
            "some/__init__.py": "code",
            "some/native.cpython-311.so": "native",
            "some/table.txt": "data",
            "some/py.typed": "",
            "some/native.pyi": "",
            "some/tests/test_it.py": "",
            "some/__pycache__/x.pyc": "",
            "../../bin/some": "",
            "some-1.0.dist-info/METADATA": "",
            "some-1.0.dist-info/licenses/LICENSE.txt": "MIT",
        },
    )
    assert build.library_files(library) == {
        "some/__init__.py": b"code",
        "some/native.cpython-311.so": b"native",
        "some/table.txt": b"data",
        "licenses/some-lib/LICENSE.txt": b"MIT",
    }


def test_library_of_another_version_is_refused(tmp_path, monkeypatch):
    lock = tmp_path / "lock"
    lock.write_text("# comment\nsome-lib==1.1 \\\n    --hash=sha256:00\n")
    monkeypatch.setattr(build, "LOCK", lock)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Library(tmp_path / "site", name, {}))
    with pytest.raises(build.BuildError, match=r"some-lib 1\.0, .* says 1\.1"):
        list(build.locked_distributions())


def test_missing_library_is_refused_unless_a_marker_may_leave_it_out(tmp_path, monkeypatch):
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    lock = tmp_path / "lock"
    monkeypatch.setattr(build, "LOCK", lock)
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    lock.write_text('tomli==2.0 ; python_version < "3.11" \\\n    --hash=sha256:00\n')
    assert list(build.locked_distributions()) == []
    lock.write_text("some-lib==1.1\n")
    with pytest.raises(build.BuildError, match="has no some-lib"):
        list(build.locked_distributions())


def test_every_line_of_the_lock_is_pinned_and_hashed():
    names = {"pydantic", "pydantic-core", "pyroute2", "netaddr", "click", "rich"}
    text = build.LOCK.read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert names <= {line.split("==")[0] for line in lines}
    assert [line for line in lines if "==" not in line or "--hash=sha256:" not in line] == []


# --- installing


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(install.os, "link", refuse)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    archive = write_archive(tmp_path / "archive")
    archive.chmod(0o755)
    return archive


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    dest = tmp_path / "bin"
    dest.mkdir()
    return dest


def test_every_name_is_a_file_of_its_own(archive, dest):
    install.put_copies(archive, dest, ["sriov", "static"])
    assert sorted(path.name for path in dest.iterdir()) == ["sriov", "static"]
    assert {path.stat().st_nlink for path in dest.iterdir()} == {1}
    assert {path.stat().st_mode & 0o777 for path in dest.iterdir()} == {0o755}
    assert {path.read_bytes() for path in dest.iterdir()} == {archive.read_bytes()}
    assert install.installed_builds(dest) == {BUILD}


def test_names_that_are_the_archive_already_stay_as_they_are(archive, dest):
    names = ["linked", "linked2", "mode", "old", "right", "symlink"]
    for name in names:
        (dest / name).write_bytes(b"old" if name == "old" else archive.read_bytes())
        (dest / name).chmod(0o700 if name == "mode" else 0o755)
    for name, target in (("linked2", dest / "linked"), ("symlink", archive)):
        (dest / name).unlink()
        (dest / name).symlink_to(target) if name == "symlink" else (dest / name).hardlink_to(target)
    before = {name: (dest / name).lstat().st_ino for name in names}
    install.put_copies(archive, dest, names)
    assert [name for name in names if (dest / name).lstat().st_ino == before[name]] == ["right"]
    assert {path.lstat().st_nlink for path in dest.iterdir()} == {1}
    assert not (dest / "symlink").is_symlink()
    assert archive.read_bytes() == (dest / "old").read_bytes()


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EOPNOTSUPP])
def test_content_is_copied_where_none_can_be_shared(archive, dest, monkeypatch, code):
    def refuse(*_args: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(install.os, "copy_file_range", refuse)
    install.put_copies(archive, dest, ["sriov"])
    assert (dest / "sriov").read_bytes() == archive.read_bytes()


def test_full_disk_at_the_second_copy_changes_no_name(archive, dest, monkeypatch):
    really_copy, count = os.copy_file_range, iter(range(1, 100))

    def full(source: int, target: int, length: int) -> int:
        if next(count) == 3:  # each copy is asked twice: for all of it, and for its end
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really_copy(source, target, length)

    monkeypatch.setattr(install.os, "copy_file_range", full)
    (dest / "sriov").write_text("old")
    with pytest.raises(OSError, match="space"):
        install.put_copies(archive, dest, ["sriov", "static"])
    assert {path.name: path.read_text() for path in dest.iterdir()} == {"sriov": "old"}


def test_symbolic_link_is_copied_as_one(tmp_path, no_links):
    (tmp_path / "link").symlink_to("target")
    install.link_or_copy(tmp_path / "link", tmp_path / "copy")
    assert os.readlink(tmp_path / "copy") == "target"


def test_destinations_are_remembered_once_and_forgotten_when_gone(tmp_path):
    runtime, one, two = (tmp_path / name for name in ("runtime", "one", "two"))
    for path in (runtime, one, two):
        path.mkdir()
    assert install.destinations(runtime, one) == [one]
    assert sorted(install.destinations(runtime, two)) == [one, two]
    assert sorted(install.destinations(runtime, two)) == [one, two]
    assert len((runtime / ".destinations").read_text().splitlines()) == 2
    one.rmdir()
    assert install.destinations(runtime, two) == [two]


def test_first_free_number_is_taken(tmp_path):
    assert install.unused_name(tmp_path / "sriov").name == "sriov.1"
    (tmp_path / "sriov.1").touch()
    (tmp_path / "sriov.2").symlink_to("nowhere")
    assert install.unused_name(tmp_path / "sriov").name == "sriov.3"


def test_asked_names_are_checked_and_taken_once():
    assert install.chosen("", known=("a", "b")) == ("a", "b")
    assert install.chosen("b,,b", known=("a", "b")) == ("b",)
    with pytest.raises(install.InstallError, match="no executable is named c, d; there are a, b"):
        install.chosen("a,c,d", known=("a", "b"))
