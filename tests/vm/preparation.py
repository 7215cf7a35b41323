"""What must be there before the first machine boots, made by processes beside the tests: lab and executables."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from tests.vm.lab.artefacts import LAB, ROOT

LAB_UNAVAILABLE = 3  # what the lab's command line ends with
# Guests see this machine's files and no package index: what they run is built here.
COMMANDS: tuple[tuple[str | Path, ...], ...] = (
    (sys.executable, "-m", "tests.vm.lab", "build"),
    (
        ROOT / "scripts/install-binaries.sh",
        f"--dest={ROOT}/build/contract/bin",
        f"--runtime-dir={ROOT}/build/contract/runtime",
    ),
)
TAIL_LINES = 60
POLL_S = 0.1


class Preparation:
    """Builds the lab and what the guests run; ``hindrance`` says, once it is done, why the lab can't be had here."""

    def __init__(self, commands: Sequence[Sequence[str | Path]], *, console: Path = LAB / "preparation") -> None:
        self.hindrance = ""
        self._fault = ""
        self._commands = deque(commands)
        self.console = console
        self.console.parent.mkdir(parents=True, exist_ok=True)
        self.console.unlink(missing_ok=True)
        self._process = self._start()

    def is_done(self) -> bool:
        """Go on to the next command when one has ended; True when there is none left, or one failed."""
        while (status := self._process.poll()) is not None:
            if status:
                self._judge(status)
            if status or not self._commands:
                return True
            self._process = self._start()
        return False

    def has_succeeded(self) -> bool:
        """Tell whether all is there; returns at once."""
        return self.is_done() and not (self.hindrance or self._fault)

    def wait(self) -> None:
        while not self.is_done():
            time.sleep(POLL_S)

    def tell_fault(self) -> str:
        """Return why it failed, "" when it did not; the whole story once."""
        told, self._fault = self._fault, self._fault.partition("\n")[0]
        return told

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        with open(self.console, "ab") as console:
            return subprocess.Popen(
                self._commands.popleft(), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
            )

    def _judge(self, status: int) -> None:
        if self.hindrance or self._fault:
            return
        lines = self.console.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        if status == LAB_UNAVAILABLE and lines:
            self.hindrance = lines[-1].removeprefix("vmlab: ")
        else:
            self._fault = "\n".join((f"{self._process.args!r} ended with status {status}:", *lines))
