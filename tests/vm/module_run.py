"""One machine that runs the tests of one module, and the guest's reports as they come.

What the guest does is in in_guest, what a machine is in lab, which module is due in on_host.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.vm.in_guest import REPORTS, WANTED
from tests.vm.lab.artefacts import ROOT, RUNS
from tests.vm.lab.machine import Machine

TAIL_LINES = 60
POLL_S = 0.1
GUEST_PYTEST = ("-p", "no:cacheprovider", "--color=no")


class GuestGone(Exception):
    """The machine ended before it reported a test; the text has the console's end."""


class ModuleRun:
    """One machine running the tests of one module; ``command`` boots it, the lab's own by default."""

    def __init__(
        self,
        machine: Machine,
        module: Path,
        wanted: Sequence[str],
        options: Sequence[str],
        *,
        command: Sequence[str] | None = None,
        runs: Path = RUNS,
    ) -> None:
        runs.mkdir(parents=True, exist_ok=True)
        self.out = Path(tempfile.mkdtemp(prefix=f"{module.stem}-", dir=runs))
        (self.out / WANTED).write_text("".join(f"{nodeid}\n" for nodeid in wanted))
        self._finished: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._console = self.out / "console"
        self._read_to = 0
        self._all_passed = True
        self._told = False
        with open(self._console, "wb") as console:
            self._lab = subprocess.Popen(
                command or _lab_command(machine, module, options, self.out),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, nodeid: str) -> list[dict[str, Any]]:
        """Return the test's reports as soon as its last is there; GuestGone when it won't come."""
        while True:
            ended = self._lab.poll() is not None  # asked first: what is written before the end is read after it
            self._read_reports()
            reports = self._finished[nodeid]
            if reports and reports[-1]["when"] == "teardown":
                self._all_passed &= all(report["outcome"] != "failed" for report in reports)
                return reports
            if ended:
                self._all_passed = False
                raise GuestGone(self._account(nodeid))
            time.sleep(POLL_S)

    def has_ended(self) -> bool:
        """Tell whether the machine is gone."""
        return self._lab.poll() is not None

    def stop(self) -> None:
        """End the machine; its console stays when a test failed."""
        self._lab.terminate()
        self._lab.wait()
        if self._all_passed:
            shutil.rmtree(self.out, ignore_errors=True)

    def _read_reports(self) -> None:
        path = self.out / REPORTS
        if not path.exists():
            return
        with open(path, "rb") as reports:
            reports.seek(self._read_to)
            for line in reports:
                if not line.endswith(b"\n"):  # the guest is still writing it
                    return
                self._read_to += len(line)
                report = json.loads(line)
                self._finished[report["nodeid"]].append(report)

    def _account(self, nodeid: str) -> str:
        ended = f"the machine ended with status {self._lab.returncode}"
        if self._told:
            return f"{ended} before this test; an earlier failure has the end of {self._console}"
        self._told = True
        began = "in the middle of this test" if self._finished[nodeid] else "and did not finish this test"
        lines = self._console.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join((f"{ended} {began}; {self._console} ends so:", *lines))


def _lab_command(machine: Machine, module: Path, options: Sequence[str], out: Path) -> list[str]:
    # A machine does not outlive a pytest that was killed.
    command = ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "tests.vm.lab", "run", f"--out={out}"]
    command += [f"--vfs={machine.vfs}", f"--nics={machine.nics}", f"--mem={machine.mem_mib}", f"--cpus={machine.cpus}"]
    command += [f"--timeout={machine.timeout_s}", f"--accel={machine.accel}"] + ["--iommu"] * machine.iommu
    command += [f"--env={name}={value}" for name, value in _guest_env(os.environ).items()]
    return [*command, "--", sys.executable, "-m", "pytest", *GUEST_PYTEST, *options, str(module)]


def _guest_env(host_env: Mapping[str, str]) -> dict[str, str]:
    """Return what the guest's pytest is told: our own settings, and to import nothing it can do without."""
    ours = {name: value for name, value in host_env.items() if name.startswith("VFERRY_")}
    return {**ours, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
