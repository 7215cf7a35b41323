"""The agent in a container of the DaemonSet's making, without a container runtime: two mount namespaces, one inside the
other's network.

The host is a namespace in which ``sleep`` plays process 1. The container has of it what the manifest mounts, its own
Python that the host has not, read-only /, /sys and /proc/sys as container runtimes make them, and the manifest's
capabilities. Both are private: they end with their processes, and nothing of them is seen by this machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from conf.executables import COMMAND
from tests.contract.agent import Installed, wait_until
from tests.contract.archive import python_of, read_entry, restamped

ROOT = Path(__file__).resolve().parents[2]
# Where the image has what the repository has here.
SOURCES = "/usr/src/vferry"
MANIFEST = ROOT / "conf" / "deploy" / "daemonset.yaml"
# Of util-linux: what becomes of these is seen in this namespace alone.
_PRIVATE = ("unshare", "--mount", "--propagation", "private")
_HOST = """
set -e
mkdir -p /run/vferry
mount -t tmpfs none /run/vferry
mount -t tmpfs none /var/lib/cni
mount -t tmpfs none /opt
mkdir -p /opt/cni/bin
mount --bind "$1/bin" /opt/cni/bin
mount -t overlay none -o "lowerdir=$1/etc:/etc" /etc
exec ip netns exec "$2" sleep infinity
"""
# The image, its mounts in their order, what to make read-only, the capabilities; then what is run.
_CONTAINER = """
set -e
image=$1 mounted=$2 read_only=$3 capabilities=$4
shift 4
mount -t tmpfs none /mnt
for path in $mounted; do
    mkdir -p "/mnt$path"
    mount --rbind "$path" "/mnt$path"
done
mount --bind "$image" /opt
for path in /run /tmp /etc /usr/lib/cni /var/lib; do
    mount -t tmpfs none "$path"
done
for path in $mounted; do
    mkdir -p "$path"
    mount --move "/mnt$path" "$path"
done
for path in /sys /proc/sys; do
    mount --bind "$path" "$path"
done
for path in /sys /proc/sys $read_only; do
    mount -o remount,bind,ro "$path"
done
cd /
exec setpriv --inh-caps=-all --bounding-set="-all,$capabilities" "$@"
"""


def copied() -> list[tuple[str, str]]:
    """Return what the Dockerfile copies, source and target."""
    lines = (ROOT / "conf/deploy/Dockerfile").read_text().splitlines()
    words = [line.split() for line in lines if line.startswith("COPY ")]
    return [(source, target) for _copy, source, target in words]


def documents() -> dict[str, dict[str, Any]]:
    """Return the objects of the manifest by their kind."""
    return {each["kind"]: each for each in yaml.safe_load_all(MANIFEST.read_text())}


def pod() -> dict[str, Any]:
    """Return the specification of the DaemonSet's pod."""
    return dict(documents()["DaemonSet"]["spec"]["template"]["spec"])


def capabilities(container: Mapping[str, Any]) -> list[str]:
    """Return what a container of the manifest keeps, as setpriv names it."""
    return [f"+{name.lower()}" for name in container["securityContext"]["capabilities"]["add"]]


def image(archive: Path, folder: Path) -> Path:
    """Make what the image has below /opt: the executables, their libraries, and an interpreter of its own."""
    python = python_of(archive)
    stdlib = subprocess.run(
        [python, "-IS", "-c", "import os; print(os.path.dirname(os.__file__))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    interpreter = folder / "python/bin" / Path(python).resolve().name
    interpreter.parent.mkdir(parents=True)
    shutil.copy2(python, interpreter)
    unused = shutil.ignore_patterns("dist-packages", "site-packages", "test", "idlelib", "config-*", "ensurepip")
    shutil.copytree(stdlib, folder / "python/lib" / Path(stdlib).name, ignore=unused)
    entry = read_entry(archive)
    shutil.copytree(
        Path(entry["runtime_dir"], entry["build_id"]), folder / "runtime" / entry["build_id"], symlinks=True
    )
    restamped(
        archive,
        folder / "cni/bin" / COMMAND,
        starts_with=f"/opt/python/bin/{interpreter.name}",
        runtime_dir="/opt/runtime",
    )
    return folder


@contextmanager
def host(installed: Installed, netns: str) -> Iterator[int]:
    """Be a host with these executables in /opt/cni/bin and the links of a netns; yield its process 1."""
    (installed.folder / "etc/vferry").mkdir(parents=True)
    with subprocess.Popen(
        [*_PRIVATE, "sh", "-c", _HOST, "sh", installed.folder, netns], stdin=subprocess.DEVNULL
    ) as process:
        try:
            wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", "the host is up")
            yield process.pid
        finally:
            process.kill()


def on_host(pid: int) -> list[str]:
    """Return the words that run what follows as a process of the host."""
    return ["nsenter", f"--target={pid}", "--mount", "--net", "--"]


def agents(name: str = "agent") -> dict[str, Any]:
    """Return the agent's container, or the one beside it."""
    (found,) = (each for each in pod()["containers"] if each["name"] == name)
    return dict(found)


def installers() -> dict[str, Any]:
    """Return the container that comes before it."""
    (found,) = pod()["initContainers"]
    return dict(found)


def in_container(pid: int, made: Path, container: Mapping[str, Any], *, dropped: str = "") -> list[str]:
    """Return the words that run what follows in a container of the manifest, on the host whose process 1 is ``pid``."""
    # The sources too, which may lie in a folder that is hidden.
    mounted = " ".join([*(each["mountPath"] for each in container.get("volumeMounts", ())), str(ROOT)])
    read_only = "/opt /tmp /var/lib /etc /" if container["securityContext"].get("readOnlyRootFilesystem") else ""
    kept = ",".join(each for each in capabilities(container) if each != f"+{dropped}")
    return [*on_host(pid), *_PRIVATE, "sh", "-c", _CONTAINER, "sh", str(made), mounted, read_only, kept]


def command(pid: int, container: Mapping[str, Any]) -> list[str]:
    """Return what a container runs, with that process in the place of 1, a free port, and a log that the tests read."""
    changed = {"--metrics=127.0.0.1:9477": "--metrics=127.0.0.1:0", "--log-format=json": "--log-format=text"}
    words = [changed.get(each, each) for each in (*container["command"], *container["args"])]
    return [each.replace("/proc/1/", f"/proc/{pid}/") for each in words]


def mounts_of(pid: int) -> str:
    """Return which mount namespace a process is in."""
    return os.readlink(f"/proc/{pid}/ns/mnt")
