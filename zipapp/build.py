"""Build the one archive that is every executable: shebang, the start, and the rooms with their libraries as one member.

Run it with an interpreter that has exactly the libraries of requirements.lock, of the Python version and machine the
archive is for; ``scripts/install-binaries.sh`` does. Installing on a node is ``install.py``.

Same inputs, same bytes: members are sorted, times are SOURCE_DATE_EPOCH (1980 when unset), modules are compiled here.
zipimport reads the whole table of contents at every start, hence one packed member instead of two thousand.

Source: https://docs.python.org/3/library/zipapp.html, https://reproducible-builds.org/specs/source-date-epoch/.
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import importlib.machinery
import importlib.metadata
import io
import json
import os
import re
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from py_compile import PycInvalidationMode

ROOT = Path(__file__).resolve().parent.parent
# A script's import path begins with its own directory, not with the repository.
sys.path.insert(0, str(ROOT))

from cni.start.unpack import RUNTIME_MEMBER, STAMP_MEMBER, read_stamp  # noqa: E402
from conf import executables  # noqa: E402

LOCK = ROOT / "zipapp" / "requirements.lock"
RUNTIME_DIR = "/var/lib/cni/vferry/runtime"
AGENT_SOCKET = "/run/vferry/agent.sock"
ROOMS = ("conf", "ipam", "cni")
TAG = importlib.machinery.EXTENSION_SUFFIXES[0]

# What the kernel passes on of a first line: linux/binfmts.h BINPRM_BUF_SIZE.
_SHEBANG_BYTES = 256
_LICENCE = re.compile(r"(licen[cs]e|copying|notice|authors)", re.IGNORECASE)
_TYPING_ONLY = {".pyi", ".typed", ".pyx", ".pxd", ".c", ".h"}
# 5 MB of vendor names that netaddr opens when asked who made a MAC address; nobody here asks.
_UNUSED = {"netaddr/eui/oui.txt", "netaddr/eui/iab.txt"}

# How an invocation is offered, the agent reads as well.
_SHARED = ("cni/start/__init__.py", "cni/start/offer.py")

_ENTRY = """

if __name__ == "__main__":
    run(Stamp(**{stamp!r}))
"""
# What "python ARCHIVE" does, without runpy.
_RUN = "import sys,zipimport as z;del sys.argv[0];exec(z.zipimporter(sys.argv[0]).get_code('__main__'))"


class BuildError(Exception):
    """The archive cannot be built; the message says what to do."""


def build(
    output: Path,
    *,
    python: str,
    runtime_dir: str = RUNTIME_DIR,
    agent_socket: str = AGENT_SOCKET,
    force: bool = False,
) -> Path:
    """Write the archive into the directory ``output``, when stale, and return its path.

    Raises: BuildError when the libraries are not those of the lock or the first line would not work.
    """
    shebang = first_line(python)
    sources = runtime_sources()
    start = start_sources()
    build_id = digest({**sources, **{f"start:{name}": text for name, text in start.items()}, "tag": TAG.encode()})
    moment = timestamp()
    stamp = {
        "build_id": build_id,
        "tag": TAG,
        "python": python,
        "runtime_dir": runtime_dir,
        "agent_socket": agent_socket,
        "names": " ".join((*executables.EXECUTABLES, executables.COMMAND)),
        "timestamp": "-".join(map(str, moment)),
        "builder": digest({"build.py": Path(__file__).read_bytes(), "python": sys.version.encode()}),
    }
    archive = output / executables.COMMAND
    if force or not is_fresh(archive, stamp):
        note(f"packing {len(sources)} files for {TAG}")
        content = pack(stamp, start, sources, moment, shebang=shebang)
        output.mkdir(parents=True, exist_ok=True)
        write_beside(archive, content)
        note(f"built {archive}, {len(content) / 1e6:.1f} MB, build {build_id}")
    return archive


def pack(
    stamp: Mapping[str, str],
    start: Mapping[str, bytes],
    sources: Mapping[str, bytes],
    moment: tuple[int, ...],
    *,
    shebang: bytes,
) -> bytes:
    """Return the archive; nothing in it is compressed but the runtime's own members."""
    entry = _ENTRY.format(
        stamp={
            "build_id": stamp["build_id"],
            "tag": stamp["tag"],
            "runtime_dir": stamp["runtime_dir"],
            "agent_socket": stamp["agent_socket"],
            "executables": tuple(executables.EXECUTABLES),
            "command": executables.COMMAND,
            "versions": executables.SUPPORTED_VERSIONS,
            "plugin_entry": executables.PLUGIN_ENTRY,
            "command_entry": executables.COMMAND_ENTRY,
        }
    )
    modules = {**start, "__main__.py": start["__main__.py"] + entry.encode()}
    members = {
        **modules,
        **beside_sources(compiled(modules)),
        RUNTIME_MEMBER: zipped({**sources, **compiled(sources)}, moment, method=zipfile.ZIP_DEFLATED),
        STAMP_MEMBER: json.dumps(stamp, sort_keys=True).encode(),
    }
    return zipped(members, moment, method=zipfile.ZIP_STORED, prefix=shebang)


def runtime_sources() -> dict[str, bytes]:
    """Return what is unpacked on the node, by path: the rooms, the libraries, and everybody's licence."""
    sources = {"licenses/vferry/LICENSE": (ROOT / "LICENSE").read_bytes()}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            # The start is packed beside the runtime, not in it, but for what the agent has to know of it.
            if name in _SHARED or (name != "cni/shim.py" and not name.startswith("cni/start/")):
                sources[name] = path.read_bytes()
    for distribution in locked_distributions():
        sources.update(library_files(distribution))
    return sources


def start_sources() -> dict[str, bytes]:
    """Return the modules that run from the archive itself, by member name."""
    start = {f"start/{path.name}": path.read_bytes() for path in sorted((ROOT / "cni" / "start").glob("*.py"))}
    return {"__main__.py": (ROOT / "cni" / "shim.py").read_bytes(), **start}


def locked_distributions() -> Iterator[importlib.metadata.Distribution]:
    """Yield the installed distribution for each line of the lock; a marker may leave one out."""
    for line in LOCK.read_text(encoding="ascii").splitlines():
        match = re.match(r"([\w.-]+)==(\S+)(\s*;)?", line)
        if match is None:
            continue
        name, version, has_marker = match.groups()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if has_marker:
                continue
            raise BuildError(f"{sys.executable} has no {name}; install {LOCK} there") from None
        if distribution.version != version:
            raise BuildError(f"{sys.executable} has {name} {distribution.version}, {LOCK} says {version}")
        yield distribution


def library_files(distribution: importlib.metadata.Distribution) -> dict[str, bytes]:
    """Return the files of one library that are needed at run time, and its licences."""
    name = distribution.metadata["Name"].lower()
    files = {}
    for path in distribution.files or ():
        parts = path.parts
        if ".." in parts or "__pycache__" in parts:
            continue
        if parts[0].endswith((".dist-info", ".data")):
            if _LICENCE.match(path.name):
                files[f"licenses/{name}/{path.name}"] = path.read_binary()
        elif path.suffix not in _TYPING_ONLY and path.as_posix() not in _UNUSED and not {"test", "tests"} & set(parts):
            files[path.as_posix()] = path.read_binary()
    return files


def compiled(sources: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the bytecode of every module, by the path the import system looks at.

    Unchecked: the tree is private and named by its content, so no import needs to look at the source's time.
    """
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        for name, content in sources.items():
            if name.endswith(".py"):
                path = tree / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        if not compileall.compile_dir(
            tree, maxlevels=99, quiet=1, stripdir=directory, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH
        ):
            raise BuildError("some modules do not compile")
        return {path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("*.pyc")}


def beside_sources(bytecode: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the bytecode by the names that zipimport looks for."""
    suffix = f".{sys.implementation.cache_tag}.pyc"
    return {name.replace("__pycache__/", "").replace(suffix, ".pyc"): code for name, code in bytecode.items()}


def zipped(members: Mapping[str, bytes], moment: tuple[int, ...], *, method: int, prefix: bytes = b"") -> bytes:
    """Return a zip file of the members, sorted, all of one time and mode."""
    buffer = io.BytesIO()
    buffer.write(prefix)
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(members):
            member = zipfile.ZipInfo(name, moment)  # type: ignore[arg-type]
            member.create_system = 3  # Unix, whatever this machine is
            member.external_attr = 0o100644 << 16
            archive.writestr(member, members[name], method, 9)
    return buffer.getvalue()


def digest(contents: Mapping[str, bytes]) -> str:
    """Return 16 hexadecimal digits that stand for all names and contents."""
    total = hashlib.sha256()
    for name in sorted(contents):
        total.update(f"{len(name)} {name} {len(contents[name])} ".encode())
        total.update(contents[name])
    return total.hexdigest()[:16]


def timestamp() -> tuple[int, ...]:
    """Return the time of every member; a zip file knows none before 1980."""
    earliest = (1980, 1, 1, 0, 0, 0)
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return max(earliest, time.gmtime(int(epoch))[:6]) if epoch else earliest


def first_line(python: str) -> bytes:
    """Return the shebang: isolated from the environment and the working directory, and without site-packages.

    The kernel hands over all behind the interpreter as one argument, and the archive's path as the next.
    """
    line = f"#!{python} -ISc{_RUN}\n".encode()
    if not Path(python).is_absolute() or re.search(r"\s", python) or len(line) >= _SHEBANG_BYTES:
        raise BuildError(f"the kernel cannot start {python!r}: give an absolute path without spaces, not too long")
    return line


def is_fresh(archive: Path, stamp: Mapping[str, str]) -> bool:
    """Tell whether the archive was built from these inputs."""
    try:
        return read_stamp(str(archive)) == stamp
    except (OSError, ValueError):
        return False


def write_beside(path: Path, content: bytes) -> None:
    """Replace the executable in one step: what runs from the old file keeps it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.chmod(0o755)
    beside.rename(path)


def note(text: str) -> None:
    """Tell how far it is; the path of the archive is all that goes to stdout."""
    print(f"build: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Build as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bin", metavar="DIR")
    parser.add_argument("--python", default=os.path.realpath(sys.executable), metavar="PATH", help="for the first line")
    parser.add_argument("--runtime-dir", default=RUNTIME_DIR, metavar="DIR", help="where nodes unpack it")
    parser.add_argument("--agent-socket", default=AGENT_SOCKET, metavar="PATH", help="where the agent listens")
    parser.add_argument("--force", action="store_true", help="build even when nothing changed")
    options = parser.parse_args()
    try:
        print(
            build(
                options.output,
                python=options.python,
                runtime_dir=options.runtime_dir,
                agent_socket=options.agent_socket,
                force=options.force,
            )
        )
    except BuildError as error:
        note(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
