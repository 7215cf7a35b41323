"""``vferry`` as a person types it: its output on a terminal of some width, or in pipes."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from typing import NamedTuple

_VFERRY = (sys.executable, "-c", "import sys; from cni.cli.command import main; main('vferry')")
# ECMA-48: control sequences, of which a terminal shows nothing.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Shown(NamedTuple):
    """What came out: ``stderr`` is empty on a terminal, which has both in one."""

    status: int
    stdout: str
    stderr: str = ""

    def lines(self) -> list[str]:
        """Return every line that the terminal showed at some moment."""
        return [line.rstrip() for line in re.split(r"[\r\n]+", _CONTROL.sub("", self.stdout))]


def piped(*words: str) -> Shown:
    """Run it with pipes."""
    done = subprocess.run([*_VFERRY, *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return Shown(done.returncode, done.stdout, done.stderr)


def on_terminal(*words: str, columns: int) -> Shown:
    """Run it on a terminal."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
    environ = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    environ |= {"TERM": "xterm", "LC_ALL": "C.UTF-8"}
    with subprocess.Popen([*_VFERRY, *words], stdin=its, stdout=its, stderr=its, env=environ) as process:
        os.close(its)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:
            pass  # EIO: nobody has the other end any more
        os.close(ours)
    return Shown(process.returncode, shown.decode())
