"""Sends the tests of this room into the VM lab, or runs them when this is the guest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.vm.in_guest import WANTED, GuestReports
from tests.vm.on_host import LabTests

IN_GUEST = os.environ.get("VMLAB") == "1"
ROOM = Path(__file__).parent
LAB_TESTS = pytest.StashKey[LabTests]()


def is_ours(item: pytest.Item) -> bool:
    return ROOM in item.path.parents


def pytest_configure(config: pytest.Config) -> None:
    if IN_GUEST and Path(os.environ["VMLAB_OUT"], WANTED).exists():  # else pytest was called there by hand
        config.pluginmanager.register(GuestReports(config, Path(os.environ["VMLAB_OUT"])))
    elif not IN_GUEST:
        config.stash[LAB_TESTS] = LabTests(config)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=is_ours)  # last: their machines run beside the tests of the other rooms


def pytest_collection_finish(session: pytest.Session) -> None:
    if not IN_GUEST and not session.config.option.collectonly:
        session.config.stash[LAB_TESTS].begin([item for item in session.items if is_ours(item)])


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    # pytest asks every conftest about every item here.
    if IN_GUEST:
        return None
    lab_tests = item.config.stash[LAB_TESTS]
    lab_tests.advance()
    return (is_ours(item) and lab_tests.run(item)) or None


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not IN_GUEST:
        session.config.stash[LAB_TESTS].stop()
