"""The guest's side of a VM test run: keeps the wanted tests, writes each report to the host as it comes.

Booting and what the host makes of the reports is in on_host.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

WANTED = "wanted"
REPORTS = "reports"


class GuestReports:
    """One pytest run in the guest; ``out`` is the directory that it shares with the host."""

    def __init__(self, config: pytest.Config, out: Path) -> None:
        self._config = config
        self._wanted = set((out / WANTED).read_text().splitlines())
        self._reports = out / REPORTS

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # Node ids by file and not as arguments: a command line holds only so many.
        items[:] = [item for item in items if item.nodeid in self._wanted]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        plain = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with open(self._reports, "a") as reports:
            reports.write(json.dumps(plain, default=str) + "\n")
