"""A disk that fails as disks and their drivers do, at random with a seed, for one process at a time.

The kernel asks this process about each system call that the other one makes (seccomp's user notification), before it
does anything. Of those on files below a folder some are late, or answered with an error before or after they were done,
or done by half; and sometimes it is killed just then. Nothing of what the other process runs is replaced.

Source: seccomp_unotify(2), linux/seccomp.h, asm/unistd_64.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import platform
import random
import select
import signal
import socket
import struct
import threading
import time
from collections import Counter
from multiprocessing import get_context
from typing import NamedTuple

# Share of each mishap in the calls on these files, of which an ADD or DEL makes some sixty; the rest is done.
MISHAPS = {
    "fail": 0.003,
    "fail after the deed": 0.003,
    "write half and fail": 0.02,  # of writes alone, as the next one
    "be full": 0.005,
    "be read-only": 0.01,  # of what changes a directory, or opens for writing
    "be late": 0.01,
    "kill": 0.0008,
    "kill after the deed": 0.0008,
}


class Call(NamedTuple):
    """A system call: its number, where its path or descriptor is, and how it is done in another one's place."""

    number: int
    path_at: int | None


# Of x86-64.
_CALLS = {
    "pread64": Call(17, None),
    "pwrite64": Call(18, None),
    "stat": Call(4, 0),
    "fsync": Call(74, None),
    "fdatasync": Call(75, None),
    "ftruncate": Call(77, None),
    "mkdir": Call(83, 0),
    "link": Call(86, 1),
    "unlink": Call(87, 0),
    "openat": Call(257, 1),
    "newfstatat": Call(262, 1),
}
_NAMES = {call.number: name for name, call in _CALLS.items()}
_AUDIT_ARCH_X86_64 = 0xC000003E
_SYS_SECCOMP = 317
_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _FLAG_NEW_LISTENER = 1, 8
_RET_ALLOW, _RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
_CONTINUE = 1
_NOTIFICATION = struct.Struct("=QII iIQ 6Q")
_ANSWER = struct.Struct("=QqiI")
_RECEIVE = 3 << 30 | _NOTIFICATION.size << 16 | ord("!") << 8
_SEND = 3 << 30 | _ANSWER.size << 16 | ord("!") << 8 | 1


class Asked(NamedTuple):
    """One call that waits for our answer."""

    id: int
    pid: int
    name: str
    path: str
    args: tuple[int, ...]

    @property
    def changes(self) -> bool:
        """Whether it makes a file, or opens one for writing."""
        writes = self.name == "openat" and self.args[2] & (os.O_WRONLY | os.O_RDWR)
        return bool(writes) or self.name in ("mkdir", "link", "unlink")

    def do(self, share: float = 1.0) -> None:
        """Do it in the other one's place, with its own files; what only reads has no deed."""
        if self.name in ("pwrite64", "ftruncate", "fsync", "fdatasync"):
            fd = os.open(f"/proc/{self.pid}/fd/{self.args[0]}", os.O_RDWR | os.O_CLOEXEC)
            try:
                if self.name == "pwrite64":
                    _, where, size, offset = self.args[:4]
                    os.pwrite(fd, _memory(self.pid, where, int(size * share)), offset)
                elif self.name == "ftruncate":
                    os.ftruncate(fd, self.args[1])
                else:
                    os.fsync(fd)
            finally:
                os.close(fd)
        elif self.name == "openat" and self.args[2] & os.O_CREAT:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | self.args[2] & os.O_EXCL, self.args[3] & 0o777))
        elif self.name == "mkdir":
            os.mkdir(self.path, self.args[1] & 0o777)
        elif self.name == "unlink":
            os.unlink(self.path)
        elif self.name == "link":
            os.link(_text(self.pid, self.args[0]), self.path)


class Killed(Exception):
    """Who was to answer was killed before it did."""


class FlappingFiles:
    """The files below ``folder`` as whoever ``start`` runs sees them; ``seen`` counts what became of the calls.

    With ``choose`` it is not chance that says what becomes of a call, but what that makes of it.
    """

    def __init__(self, folder, *, seed=0, mishaps=MISHAPS, delays_s=(0.0, 0.05), choose=None):
        self._folder = str(folder)
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._mishaps = mishaps
        self._delays_s = delays_s
        self._choose = choose or self._drawn
        self.seen = Counter()

    def call(self, function, *args):
        """Return what a function returns in a process of its own, or raise what it raises; Killed when it is."""
        ours, theirs = get_context("fork").Pipe(duplex=False)
        with ours:
            with theirs:
                self.start(_tell, theirs, function, args)
            try:
                returned, raised = ours.recv()
            except EOFError:
                raise Killed from None
        if raised is not None:
            raise raised
        return returned

    def start(self, function, *args):
        """Run a function in a process of its own, which never comes back from it, and return how that ended."""
        ours, theirs = socket.socketpair()
        process = get_context("fork").Process(target=_run, args=(theirs, function, args), daemon=True)
        with ours:
            with theirs:
                process.start()
            _, (listener,), _, _ = socket.recv_fds(ours, 1, 1)
        try:
            self._serve(listener)
        finally:
            os.close(listener)
            process.kill()
            code = exit_code(process)
        return code

    def _serve(self, listener):
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while poll.poll()[0][1] & select.POLLIN:
            # Who asked may have been killed since, by us or by the test.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                asked = _receive(listener)
                number = self._answer(asked) if asked.path.startswith(self._folder) else 0
                answer = (0, -number, 0) if number else (0, 0, _CONTINUE)
                fcntl.ioctl(listener, _SEND, _ANSWER.pack(asked.id, *answer))

    def _answer(self, asked):
        """Return the error of a call; 0 when it is to be done."""
        with self._lock:
            mishap = self._choose(asked)
            self.seen[mishap] += 1
            delay_s = self._random.uniform(*self._delays_s)
            share = self._random.random()
        if mishap == "be late":
            time.sleep(delay_s)
        if mishap.endswith("after the deed"):
            with contextlib.suppress(OSError):
                asked.do()
        if mishap.startswith("kill"):
            os.kill(asked.pid, signal.SIGKILL)
        if mishap == "write half and fail":
            with contextlib.suppress(OSError):
                asked.do(share)
            return errno.EIO
        return {"fail": errno.EIO, "fail after the deed": errno.EIO, "be full": errno.ENOSPC,
                "be read-only": errno.EROFS}.get(mishap, 0)  # fmt: skip

    def _drawn(self, asked):
        at = self._random.random()
        for mishap, share in self._mishaps.items():
            at -= share if _concerns(mishap, asked) else 0
            if at < 0:
                return mishap
        return "be done"


def exit_code(process):
    """Wait for its end and return how it ended."""
    process.join()
    # Another thread that starts a process just now may have seen the end first, and not yet said so.
    while (code := process.exitcode) is None:
        time.sleep(0.001)
    return code


def _concerns(mishap, asked):
    if mishap in ("write half and fail", "be full"):
        return asked.name == "pwrite64"
    return asked.changes if mishap == "be read-only" else True


def _tell(pipe, function, args):
    try:
        told = function(*args), None
    except Exception as error:
        told = None, error
    pipe.send(told)


def _run(sock, function, args):
    socket.send_fds(sock, [b"."], [listener := _listen()])
    os.close(listener)
    sock.close()
    function(*args)


def _listen():
    """Have the kernel ask about the calls of this process from now on, and return the descriptor that answers."""
    # struct sock_filter: of another architecture, or none of ours: allowed.
    numbers = [call.number for call in _CALLS.values()]
    program = [(0x20, 0, 0, 4), (0x15, 1, 0, _AUDIT_ARCH_X86_64), (0x06, 0, 0, _RET_ALLOW), (0x20, 0, 0, 0)]
    program += [(0x15, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    program += [(0x06, 0, 0, _RET_ALLOW), (0x06, 0, 0, _RET_USER_NOTIF)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    fprog = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    fd = libc.syscall(_SYS_SECCOMP, _SET_MODE_FILTER, _FLAG_NEW_LISTENER, fprog)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return fd


def _receive(listener):
    buffer = bytearray(_NOTIFICATION.size)
    fcntl.ioctl(listener, _RECEIVE, buffer)
    id_, pid, _, number, _, _, *args = _NOTIFICATION.unpack(buffer)
    name = _NAMES[number]
    path_at = _CALLS[name].path_at
    path = os.readlink(f"/proc/{pid}/fd/{args[0]}") if path_at is None else _text(pid, args[path_at])
    return Asked(id_, pid, name, path, tuple(args))


def _memory(pid, where, size):
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(where)
        return memory.read(size)


def _text(pid, where):
    # A page at most: the next one may not be there.
    return os.fsdecode(_memory(pid, where, 4096 - where % 4096).partition(b"\0")[0])


@functools.cache
def hindrance():
    """Return why this machine lets no process answer for the kernel, "" where it does."""
    if platform.machine() != "x86_64":
        return f"the numbers of system calls are those of x86-64, this is {platform.machine()}"
    ours, theirs = socket.socketpair()
    process = get_context("fork").Process(target=_try, args=(theirs,), daemon=True)
    with ours:
        with theirs:
            process.start()
        said = ours.recv(1000).decode()
    process.join()
    return said and f"no process may answer for the kernel here: {said}"


def _try(sock):
    try:
        _listen()
    except OSError as error:
        sock.send(str(error).encode())
