"""One boot: starts qemu, hands the guest its command, follows the console, returns the command's status.

What the machine consists of is in machine, what the guest does with the command in guest/.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from tests.vm.lab import kernel
from tests.vm.lab.artefacts import say, search_path
from tests.vm.lab.machine import Machine

TIMED_OUT = 124
MACHINE_FAILED = 125

MARK = re.compile(rb"VMLAB-(BOOTED|STATUS) ([0-9.]+)$")
POWER_OFF_S = 2
# QEMU's emulation sometimes dies (an assertion in physmem.c) or stops while a guest boots on busy processors; nothing
# of the command has run by then. A boot takes 5-15 s.
BOOT_TRIES = 4
BOOT_S = 75


def run(machine: Machine, command: Sequence[str], *, out: Path, env: Mapping[str, str], stdout: BinaryIO) -> int:
    """Boot, run the command as root in the current directory's place, copy the console to stdout.

    Returns the command's status, TIMED_OUT or MACHINE_FAILED. qemu dies with the calling thread.
    """
    job = _write_job(machine, command, out, env)
    deadline = time.monotonic() + machine.timeout_s
    try:
        for tries_left in reversed(range(BOOT_TRIES)):
            status = _boot(machine, out, stdout, deadline=deadline)
            if status is not None:
                return status
            say("the emulation failed before the guest was up" + ("; trying again" if tries_left else ""))
        return MACHINE_FAILED
    finally:
        for path in job:
            path.unlink(missing_ok=True)


def _boot(machine: Machine, out: Path, stdout: BinaryIO, *, deadline: float) -> int | None:
    """Return what run() does, or None when another try may boot."""
    console = Console(stdout, verbose=machine.verbose)
    begin = time.monotonic()
    with tempfile.TemporaryFile() as complaints:
        # No process of the lab outlives the one that asked for it, however that one ends.
        qemu = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *machine.qemu_command(out)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env={**os.environ, "PATH": search_path()},
        )
        try:
            assert qemu.stdout
            in_time = _follow(console, qemu.stdout.fileno(), deadline, boot_by=begin + BOOT_S)
        finally:
            _end(qemu, wait_s=POWER_OFF_S if console.status is not None else 0)
        if console.booted_s is not None:
            say(f"booted in {console.booted_s:.0f} s, ended after {time.monotonic() - begin:.0f} s")
        if not in_time and (console.booted_s is not None or time.monotonic() >= deadline):
            say(f"timed out after {machine.timeout_s} s")
            return TIMED_OUT
        if console.status is None:
            complaints.seek(0)
            say("the machine stopped without a status; qemu said:\n" + complaints.read().decode(errors="replace"))
            if console.booted_s is None:
                say("and the console last:\n" + console.last_lines())
            # Killed by us or by an assertion of its own; a guest that gave up ends qemu in order.
            return None if console.booted_s is None and qemu.returncode < 0 else MACHINE_FAILED
    return console.status


class Console:
    """The guest's serial line: marks of our scripts are taken out, the rest is passed on once the guest is up."""

    def __init__(self, stdout: BinaryIO, *, verbose: bool) -> None:
        self.booted_s: float | None = None
        self.status: int | None = None
        self._begin = time.monotonic()
        self._stdout = stdout
        self._verbose = verbose
        self._unfinished = b""
        self._passed_any = False
        self._last: deque[bytes] = deque(maxlen=40)

    def feed(self, received: bytes) -> None:
        *lines, self._unfinished = (self._unfinished + received).split(b"\n")
        for line in lines:
            if self.status is not None:  # what follows is the kernel going down
                return
            self._line(line.rstrip(b"\r"))

    def _line(self, line: bytes) -> None:
        mark = MARK.match(line)
        if mark and mark.group(1) == b"BOOTED":
            self.booted_s = time.monotonic() - self._begin
        elif mark:
            self.status = int(mark.group(2))
        else:
            self._last.append(line)
            if self._verbose or self.booted_s is not None:
                # Joined, not ended: the guest adds a line end of its own before its status.
                self._stdout.write(b"\n" * self._passed_any + line)
                self._stdout.flush()
                self._passed_any = True

    def last_lines(self) -> str:
        return b"\n".join(self._last).decode(errors="replace")


def _write_job(machine: Machine, command: Sequence[str], out: Path, env: Mapping[str, str]) -> tuple[Path, Path]:
    """Write what guest/job reads from the shared directory."""
    settings = {
        "VMLAB_CWD": str(Path.cwd()),
        "VMLAB_MODULES": str(kernel.modules().resolve()),
        "VMLAB_NICS": str(machine.nics),
        "VMLAB_VFS": str(machine.vfs),
        **env,
    }
    env_file, command_file = out / ".vmlab-env", out / ".vmlab-command"
    env_file.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(settings.items())))
    command_file.write_text(f"exec {shlex.join(command)}\n")
    return env_file, command_file


def _follow(console: Console, fd: int, deadline: float, *, boot_by: float) -> bool:
    """Read the console until a status or the end; False when the time is up first, or the time to boot."""
    while console.status is None:
        left = (deadline if console.booted_s is not None else min(deadline, boot_by)) - time.monotonic()
        if left <= 0:
            return False
        if not select.select([fd], [], [], left)[0]:
            continue
        received = os.read(fd, 65536)
        if not received:
            break
        console.feed(received)
    return True


def _end(qemu: subprocess.Popen[bytes], *, wait_s: float) -> None:
    try:
        qemu.wait(wait_s)
    except subprocess.TimeoutExpired:
        qemu.kill()
        qemu.wait()
