"""What holds for every room of tests: which rooms this machine and this user can run."""

from __future__ import annotations

import functools
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

NETNS_ROOM = Path(__file__).parent / "netns"

# Before anything of the rooms is imported: a module that both has fixtures and is imported by name was it already
# when pytest comes to its assertions.
pytest.register_assert_rewrite("tests.contract", "tests.netns", "tests.stores", "tests.unit", "tests.vm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if NETNS_ROOM in item.path.parents and (reason := netns_hindrance()):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def log_of_this_test() -> Iterator[None]:
    """Take away what a whole command set up in this process: it would log to a stream that is closed after its test."""
    log = logging.getLogger("vferry")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


@functools.cache
def netns_hindrance() -> str:
    """Return why tests in real network namespaces can't run here, "" when they can."""
    if os.geteuid() != 0:
        return "needs root"
    # Root of a container need not be root of anything.
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"this root may not make a network namespace: {tried.stderr.strip()}"
