"""One invocation offered to the agent: what is sent, what it answers, and who has to run it when it does not.

Hot: on the way of every warm start. C modules only and Python 3.9; socket, signal and json would cost as much as the
interpreter itself. The agent reads the constants from here too.

A request is one frame with descriptors: stdin (a memfd, whole), a pipe for what goes to stderr, the working directory,
the sandbox. Until the agent has said TAKEN nothing of it has been run, and this process may still run it itself; from
then on it never does. The caller's own stderr stays here: a runtime waits until every process has closed it, and must
not wait for an agent that hangs.
"""

import _signal  # type: ignore[import-not-found]
import _socket
import posix
import select
import sys
import time

# Header: magic, build id, inode of our netns, which descriptors came along, length of the body.
MAGIC = b"VFR1"
BUILD_BYTES, INODE_BYTES, LENGTH_BYTES = 16, 8, 4
HEADER_BYTES = len(MAGIC) + BUILD_BYTES + INODE_BYTES + 1 + LENGTH_BYTES
# The body: the path we were called by, then NAME=value, each ended by a NUL. A runtime's is about 1 KB.
BODY_BYTES = 256 * 1024
STDIN, STDERR, DIRECTORY, SANDBOX = 1, 2, 4, 8

TAKEN, REFUSED, ANSWER = b"T", b"R", b"A"
# After ANSWER: the exit status, then the length of the document.
ANSWER_BYTES = 1 + LENGTH_BYTES

# Only these variables, and all CNI_*, go to the agent: what a delegate of ours or a foreign one may need.
PASSED = frozenset(
    (
        *(b"PATH", b"HOME", b"NODENAME", b"KUBECONFIG", b"SSL_CERT_FILE", b"SSL_CERT_DIR"),
        *(b"LANG", b"LC_ALL", b"LC_CTYPE", b"TZ"),
        *(b"TRACEPARENT", b"TRACESTATE", b"BAGGAGE"),
        *(b"HTTP_PROXY", b"HTTPS_PROXY", b"NO_PROXY", b"http_proxy", b"https_proxy", b"no_proxy"),
    )
)
OWN_NETNS = "/proc/self/ns/net"

# An agent takes a request in a millisecond; one that does not for so long is stopped or hung.
PATIENCE_TO_BE_TAKEN_S = 10.0
# Longer than the agent's own bound on a request, and than any runtime waits.
PATIENCE_S = 240.0
_SIGNALS = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP)
_PART_BYTES = 65536
# ENOMEM, ENFILE, EMFILE of asm-generic/errno-base.h: they tell nothing of what is at the path.
_OUT_OF = (12, 23, 24)


def offer(path: str, *, build_id: str, version: str) -> "int | None":
    """Have the agent at ``path`` run this invocation and return its exit status; None: run it here.

    ``version`` is the spec version of an answer of our own. Stdin can be read again when None is returned.
    """
    if sys.stdin is None or sys.stdout is None or sys.stderr is None:
        return None  # a descriptor below 3 is free, and what we open would take its place
    try:
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    except OSError:
        return None
    log: tuple[int, ...] = ()
    try:
        connection.settimeout(PATIENCE_TO_BE_TAKEN_S)
        connection.connect(path)
        log = posix.pipe()
        stdin = whole_stdin()
    except OSError:
        connection.close()
        for descriptor in log:
            posix.close(descriptor)
        return None
    exchange = Exchange(connection, *log)
    try:
        exchange.send(stdin, build_id)
        taken = exchange.is_taken()
        document = exchange.answer() if taken else b""
    finally:
        exchange.close()
    if not taken:
        posix.dup2(stdin, 0)
        posix.close(stdin)
        exchange.repeat_signals()
        return None
    return print_answer(document or lost(version))


def whole_stdin() -> int:
    """Read stdin to its end and return it as a file that can be read once more, by the agent or by us.

    Raises: OSError; a stdin that cannot be read is the skeleton's to answer for.
    """
    copy = posix.memfd_create("stdin")
    while True:
        part = posix.read(0, _PART_BYTES)
        if not part:
            break
        posix.write(copy, part)
    posix.lseek(copy, 0, 0)
    return copy


class Exchange:
    """One request on its way to the agent and back.

    A signal that would end us is forwarded: the child undoes what it did and answers, as a cold plugin does.
    ``log`` and ``childs_log`` are the ends of a pipe; all descriptors are closed by ``close``.
    """

    def __init__(self, connection: "_socket.socket", log: int, childs_log: int) -> None:
        self._connection = connection
        self._log, self._childs_log = log, childs_log
        posix.set_blocking(self._log, False)
        self._poll = select.poll()
        for descriptor in (connection.fileno(), self._log):
            self._poll.register(descriptor, select.POLLIN)
        self._caught = b""
        self._is_sent = False
        self._before = [(number, _signal.signal(number, self._catch)) for number in _SIGNALS]

    def send(self, stdin: int, build_id: str) -> None:
        """Send the request, as far as the agent wants it."""
        opened: list[int] = []
        try:
            frame = request(build_id, opened)
            descriptors = [stdin, self._childs_log, *opened]
            rights = b"".join(descriptor.to_bytes(4, sys.byteorder) for descriptor in descriptors)
            rest = frame[self._connection.sendmsg([frame], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)]) :]
            # Not even nothing may be sent behind the frame: an agent that is quick has answered by then and gone.
            while rest:
                rest = rest[self._connection.send(rest) :]
        except OSError:
            return  # it did not want all of it, and so has not taken it
        finally:
            for descriptor in opened:  # a sandbox that we held open would not end with the others who hold it
                posix.close(descriptor)
        posix.close(self._childs_log)
        self._childs_log = -1
        self._is_sent = True
        self._forward(self._caught)

    def is_taken(self) -> bool:
        """Wait until the agent has taken the request, or surely never will."""
        try:
            if self._is_sent:
                return self._read(1, PATIENCE_TO_BE_TAKEN_S) == TAKEN
            return False
        except OSError:
            pass
        try:
            # From here on the agent cannot say it any more; it may have a moment ago.
            self._connection.shutdown(_socket.SHUT_RDWR)
            return self._connection.recv(1) == TAKEN
        except OSError:
            return False

    def answer(self) -> bytes:
        """Return the exit status and the document, nothing when the agent was lost."""
        try:
            head = self._read_exactly(len(ANSWER) + ANSWER_BYTES)
            size = int.from_bytes(head[-LENGTH_BYTES:], "little")
            document = self._read_exactly(size)
        except OSError:
            return b""
        if head[:1] != ANSWER or len(document) != size:
            return b""
        return head[1:2] + document

    def close(self) -> None:
        """Pass on what is left of the log, and have signals do again what they did before."""
        self._copy_log()
        for number, action in self._before:
            _signal.signal(number, action)
        self._connection.close()
        for descriptor in (self._log, self._childs_log):
            if descriptor >= 0:
                posix.close(descriptor)

    def repeat_signals(self) -> None:
        """Take the signals that came for a request the agent never took."""
        for number in self._caught:
            posix.kill(posix.getpid(), number)

    def _catch(self, number: int, _frame: object) -> None:
        self._caught += bytes((number,))
        if self._is_sent:
            self._forward(bytes((number,)))

    def _forward(self, numbers: bytes) -> None:
        try:
            if numbers:
                self._connection.send(numbers)
        except OSError as error:  # the agent has gone, and the answer will say so
            sys.stderr.write(f"cannot forward a signal: {error}\n")

    def _read_exactly(self, count: int) -> bytes:
        """Return so many bytes, fewer when the other side is done."""
        parts = []
        while count:
            part = self._read(min(count, _PART_BYTES), PATIENCE_S)
            if not part:
                break
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _read(self, count: int, patience_s: float) -> bytes:
        """Return what the agent says, passing its log on meanwhile. Raises: OSError, when the patience ends too."""
        until = time.monotonic() + patience_s
        while True:
            ready = [each for each, _events in self._poll.poll(max(0.0, until - time.monotonic()) * 1000)]
            if self._log in ready and not self._copy_log():
                self._poll.unregister(self._log)
            if self._connection.fileno() in ready:
                return self._connection.recv(count)
            if not ready and time.monotonic() >= until:
                raise OSError("no answer in time")

    def _copy_log(self) -> bool:
        """Pass on what the child has logged so far; false when there will be no more."""
        try:
            while True:
                part = posix.read(self._log, _PART_BYTES)
                if not part:
                    return False
                try:  # noqa: SIM105 contextlib is no C module
                    posix.write(2, part)
                except OSError:
                    pass  # a stderr that cannot be written has no reader, and the child must not wait for one
        except BlockingIOError:
            return True


def request(build_id: str, opened: "list[int]") -> bytes:
    """Return the frame of this process's invocation; append what has to go with it, behind stdin and log, to the list.

    Raises: OSError.
    """
    environ = posix.environ
    strings = [sys.argv[0].encode(sys.getfilesystemencoding(), "surrogateescape")]
    strings += [name + b"=" + environ[name] for name in environ if name[:4] == b"CNI_" or name in PASSED]
    body = b"\0".join(strings) + b"\0"
    which = STDIN | STDERR
    netns = environ.get(b"CNI_NETNS", b"")
    sandbox_flags = posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK | posix.O_NOCTTY
    for bit, path, flags in ((DIRECTORY, b".", posix.O_PATH | posix.O_CLOEXEC), (SANDBOX, netns, sandbox_flags)):
        try:
            opened.append(posix.open(path, flags))
        except OSError as error:
            if error.errno in _OUT_OF:
                raise
            continue  # what that means is the plugin's to say
        which |= bit
    header = (
        MAGIC
        + build_id.encode()[:BUILD_BYTES].ljust(BUILD_BYTES)
        + posix.stat(OWN_NETNS).st_ino.to_bytes(INODE_BYTES, "little")
        + bytes((which,))
        + len(body).to_bytes(LENGTH_BYTES, "little")
    )
    return header + body


def lost(version: str) -> bytes:
    """Return exit status and document for a request that was taken and never answered."""
    command = posix.environ.get(b"CNI_COMMAND", b"").decode("ascii", "replace")
    text = (
        f'{{"cniVersion":"{version}","code":11,"msg":"the agent was lost in the middle of {command}",'
        '"details":"it is not known how far it came; it is not repeated here; the next DEL, GC or ADD clears it up"}\n'
    )
    return b"\1" + text.encode()


def print_answer(answer: bytes) -> int:
    """Write the document behind the exit status to stdout, byte for byte, and return the exit status."""
    status, rest = answer[0], answer[1:]
    try:
        while rest:
            rest = rest[posix.write(1, rest) :]
    except OSError as error:
        sys.stderr.write(f"cannot write the answer: {error}\n")
        return 1
    return status
