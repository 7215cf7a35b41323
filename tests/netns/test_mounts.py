"""Entering the host's mount namespace: its files, our modules, the directory we are in."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cni.linux import mounts
from conf.errors import InvalidEnvironment, KernelRefused
from tests.descriptors import none_left_open

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# In a mount namespace of its own, where the first argument is another directory than on the host.
SCRIPT = """
import os, sys
from pathlib import Path

here, host = Path(sys.argv[1]), sys.argv[2]
(here / "late.py").write_text("WORD = 'of the container'")
(here / "package").mkdir()
(here / "package/__init__.py").touch()
(here / "package/inner.py").write_text("WORD = 'of a package'")
sys.path[:0] = [str(here), sys.argv[3]]
import package
from cni.linux import mounts
from tests.descriptors import none_left_open

os.chdir(sys.argv[4])
mounts.enter(host)
assert os.listdir(here) == ["of the host"], os.listdir(here)
print(os.getcwd())
assert not Path("late.py").exists()
import late
from package import inner
import smtplib  # of the standard library, and of nobody here
print(late.WORD, inner.WORD)
print(os.readlink("/proc/self/ns/mnt"))
mounts.enter(host)  # once more: it is there already
print(len([each for each in sys.meta_path if type(each).__module__ == "cni.linux.mounts"]))
"""


def refused(act: Callable[[], None]) -> int:
    with pytest.raises(KernelRefused) as caught:
        act()
    assert caught.value.code == KernelRefused.code
    return caught.value.errno


@pytest.mark.parametrize("handed_over", [True, False], ids=["directory of the host", "root of the container"])
def test_files_are_the_hosts_and_modules_are_ours(tmp_path: Path, handed_over: bool) -> None:
    (tmp_path / "of the host").touch()
    inner = 'mount -t tmpfs none "$4" && exec "$@"'
    host = f"/proc/{os.getpid()}/ns/mnt"
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", inner, "sh"),
            *(sys.executable, "-c", SCRIPT, tmp_path, host, ROOT, f"/proc/{os.getpid()}/cwd" if handed_over else "/"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    directory = str(Path.cwd()) if handed_over else "/"
    assert done.stdout.splitlines() == [directory, "of the container of a package", os.readlink(host), "1"]


def test_own_namespace_is_not_entered() -> None:
    before = list(sys.meta_path)
    mounts.enter("/proc/self/ns/mnt")
    assert sys.meta_path == before
    with pytest.raises(InvalidEnvironment, match="of this process itself"):
        mounts.require_host("/proc/self/ns/mnt", shared=Path("/"))


@pytest.mark.parametrize(("mounted", "outcome"), [(False, "the host's"), (True, "is another directory")])
def test_host_is_told_by_a_directory_that_both_have(tmp_path: Path, mounted: bool, outcome: str) -> None:
    inner = 'mount -t tmpfs none "$0" && exec "$@"' if mounted else 'exec "$@"'
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[3]); from cni.linux import mounts; "
        'mounts.require_host(sys.argv[2], shared=Path(sys.argv[1])); print("the host\'s")'
    )
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", inner, tmp_path),
            *(sys.executable, "-c", script, tmp_path, f"/proc/{os.getpid()}/ns/mnt", ROOT),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome in done.stdout + done.stderr, done


@pytest.mark.parametrize(
    ("path", "number"), [("/nonexistent", errno.ENOENT), ("/proc/self/ns/net", errno.EINVAL), ("/", errno.EINVAL)]
)
def test_what_is_no_mount_namespace_is_refused(path: str, number: int) -> None:
    with none_left_open():
        assert refused(lambda: mounts.require_host(path, shared=Path("/"))) == number
        assert refused(lambda: mounts.enter(path)) == number
