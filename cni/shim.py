"""The first code of every executable: whose name was called, and the answers that need no library.

Hot: a runtime starts this for every verb of every network of every pod, so it imports nothing that a bare interpreter
has not imported already; each module here costs every pod 0.2-1 ms. It runs on Python 3.9 too. The builder writes it
into the archive as ``__main__``, and ``cni/start/``, which finds the rest, as ``start``. The archive's first line runs
it without runpy, whose own imports take 4 ms.

Source: https://www.cni.dev/docs/spec/#version, containernetworking/cni pkg/skel/skel.go.
"""

# No "from __future__ import annotations" in the modules of the archive's start: it would be one more file to load.
import posix  # os, which is this and much more, takes 1 ms
import sys

# What an agent is for; everything else is an answer to a person or a refusal.
OFFERED = (b"ADD", b"DEL", b"CHECK", b"GC", b"STATUS")


class Stamp:
    """What the builder wrote into one archive; constant for its life.

    ``tag`` is the file name suffix of the native parts, which says interpreter, version, machine and C library.
    """

    def __init__(
        self,
        *,
        build_id: str,
        tag: str,
        runtime_dir: str,
        agent_socket: str,
        executables: "tuple[str, ...]",
        command: str,
        versions: "tuple[str, ...]",
        plugin_entry: str,
        command_entry: str,
    ) -> None:
        self.build_id = build_id
        self.tag = tag
        self.runtime_dir = runtime_dir
        self.agent_socket = agent_socket
        self.executables = executables
        self.command = command
        self.versions = versions
        self.plugin_entry = plugin_entry
        self.command_entry = command_entry


def run(stamp: Stamp) -> None:
    """Serve the one invocation of this process and end it."""
    if sys.path[:1] != sys.argv[:1]:
        sys.path.insert(0, sys.argv[0])  # as runpy does
    status = main(stamp)
    if called_as() == stamp.command:
        sys.exit(status)
    # A plugin is done when it has answered; to take the interpreter apart is 1 ms, 10 with the libraries.
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            status = status or 1
    posix._exit(status)


def called_as() -> str:
    """Return the name of the executable that this process is."""
    return sys.argv[0].rpartition("/")[2]


def main(stamp: Stamp) -> int:
    """Serve the executable this process was called as and return its exit status."""
    name = called_as()
    if name != stamp.command and name not in stamp.executables:
        return start("refuse_name", name, stamp)
    if name != stamp.command and posix.environ.get(b"CNI_COMMAND") == b"VERSION":
        return print_versions(stamp.versions)
    if name != stamp.command and (status := offered(stamp)) is not None:
        return status
    return start("run", name, stamp)


def offered(stamp: Stamp) -> "int | None":
    """Let the agent run this invocation, where there is one, and return its exit status; None: run it here."""
    if posix.environ.get(b"CNI_COMMAND") not in OFFERED or posix.environ.get(b"VFERRY_AGENT") == b"off":
        return None
    try:
        posix.stat(stamp.agent_socket)
    except OSError:
        return None
    try:
        offer = __import__("start.offer", fromlist=("offer",)).offer
    except (ImportError, ValueError, EOFError):
        return None  # replaced while it was starting: start() says so
    status: int | None = offer(stamp.agent_socket, build_id=stamp.build_id, version=stamp.versions[-1])
    return status


def start(step: str, name: str, stamp: Stamp) -> int:
    """Leave the hot file: take a step of ``start/runtime.py`` and return the exit status."""
    try:
        runtime = __import__("start.runtime", fromlist=(step,))
    except (ImportError, ValueError, EOFError):
        # An upgrade replaced the archive after this process had read its table of contents.
        return answer(
            f'{{"cniVersion":"{stamp.versions[-1]}","code":11,"msg":"the archive was replaced while it was starting",'
            '"details":"an upgrade is under way; try again"}',
            status=1,
        )
    return int(getattr(runtime, step)(name, stamp))


def print_versions(versions: "tuple[str, ...]") -> int:
    """Answer VERSION without reading stdin, as the Go skeleton does: a caller may leave it open."""
    quoted = ",".join(f'"{version}"' for version in versions)
    return answer(f'{{"cniVersion":"{versions[-1]}","supportedVersions":[{quoted}]}}', status=0)


def answer(document: str, *, status: int) -> int:
    """Write the one document to stdout and return the exit status."""
    try:
        posix.write(1, document.encode() + b"\n")
    except OSError as error:
        sys.stderr.write(f"cannot write the answer: {error}\n")
        return 1
    return status
