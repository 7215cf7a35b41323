"""The host's side of a VM test run: one machine per module, the guest's reports told as if the tests ran here.

The machines run beside the tests of the other rooms, which come first: a machine keeps about one processor busy.
What one machine is asked is in module_run.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.vm.lab.artefacts import UNAVAILABLE
from tests.vm.lab.machine import Machine
from tests.vm.module_run import POLL_S, GuestGone, ModuleRun
from tests.vm.preparation import COMMANDS, Preparation

MODULE_TIMEOUT_S = 900  # a lab under load is slow, and a hang is told apart by nothing else


class LabTests:
    """The VM tests of one pytest session, one machine at a time, beside the tests of the other rooms.

    What is to happen next happens in advance(), between two tests: no thread meets what a test has patched.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._preparation: Preparation | None = None
        self._waiting: deque[list[pytest.Item]] = deque()
        self._runs: dict[Path, ModuleRun] = {}
        self._newest: ModuleRun | None = None
        self._faults: dict[Path, str] = {}  # modules that describe no machine

    def begin(self, items: Sequence[pytest.Item]) -> None:
        """Start to make ready what the items, in the order in which they will be asked for, need."""
        self._waiting.extend(list(module) for _, module in groupby(items, key=lambda item: item.path))
        if self._waiting:
            UNAVAILABLE.unlink(missing_ok=True)
            self._preparation = Preparation(COMMANDS)
            self._tell(f"making the lab and the executables ready, {self._preparation.console} says how far it is")

    def advance(self) -> None:
        """Boot the next machine if it is time; returns at once."""
        if not self._waiting or not self._preparation or not self._preparation.has_succeeded():
            return
        if self._newest is None or self._newest.has_ended():  # two at a time would only slow each other down
            self._boot(self._waiting.popleft())

    def run(self, item: pytest.Item) -> bool:
        """Report the item as its guest does; False when the host's own protocol is to skip it."""
        if (hindrance := self._hindrance()) and not os.environ.get("VFERRY_REQUIRE_VM"):
            item.add_marker(pytest.mark.skip(reason=f"no VM lab: {hindrance}"))
            return False
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def stop(self) -> None:
        for each in (self._preparation, *self._runs.values()):
            if each:
                each.stop()

    def _hindrance(self) -> str:
        """Return why the lab can't be had here, "" when it can."""
        assert self._preparation
        self._preparation.wait()
        hindrance = self._preparation.hindrance
        if hindrance and not UNAVAILABLE.exists():
            UNAVAILABLE.parent.mkdir(parents=True, exist_ok=True)
            UNAVAILABLE.write_text(f"{hindrance}\n")
        return hindrance

    def _reports(self, item: pytest.Item) -> Sequence[pytest.TestReport]:
        assert self._preparation
        if story := self._preparation.hindrance or self._preparation.tell_fault():
            return [_failure(item, f"no VM lab: {story}")]
        while item.path not in self._runs and item.path not in self._faults:
            time.sleep(POLL_S)
            self.advance()
        if item.path in self._faults:
            return [_failure(item, self._faults[item.path])]
        try:
            plain = self._runs[item.path].wait_for(item.nodeid)
        except GuestGone as gone:
            return [_failure(item, str(gone))]
        return [self._restore(report) for report in plain]

    def _boot(self, items: Sequence[pytest.Item]) -> None:
        path = items[0].path
        lab: dict[str, Any] = getattr(items[0].getparent(pytest.Module).obj, "LAB", {})  # type: ignore[union-attr]
        try:
            machine = Machine(**{"timeout_s": MODULE_TIMEOUT_S, **lab})
        except TypeError as error:
            self._faults[path] = f"LAB of {path.name} does not describe a machine: {error}"
            return
        self._tell(f"booting a machine for {len(items)} tests of {path.name}, {lab}")
        wanted = [item.nodeid for item in items]
        self._newest = self._runs[path] = ModuleRun(machine, path, wanted, self._pytest_options())

    def _tell(self, text: str) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal:
            terminal.ensure_newline()
            terminal.write_line(f"vmlab: {text}")

    def _pytest_options(self) -> list[str]:
        options = [f"--rootdir={self._config.rootpath}", f"--tb={self._config.option.tbstyle}"]
        if self._config.inipath:
            options.append(f"--config-file={self._config.inipath}")
        return options

    def _restore(self, plain: dict[str, Any]) -> pytest.TestReport:
        if isinstance(plain["longrepr"], list):  # a skip's place and reason: JSON has no tuples
            plain["longrepr"] = tuple(plain["longrepr"])
        report = self._config.hook.pytest_report_from_serializable(config=self._config, data=plain)
        assert isinstance(report, pytest.TestReport)
        return report


def _failure(item: pytest.Item, text: str) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="failed",
        longrepr=text,
        when="call",
    )
