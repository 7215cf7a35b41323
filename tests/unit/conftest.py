"""Keeps unit tests inside: an access to the network, the kernel, another program or foreign files raises.

A test that must go outside says why: ``@pytest.mark.outside("runs the linters")``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tests.unhurried  # noqa: F401 - for every @given of this room

ROOT = Path(__file__).resolve().parents[2]
# What a test may write: its own directory, and the caches of Python and hypothesis.
WRITABLE = (f"{tempfile.gettempdir()}/", f"{ROOT}/.hypothesis/", "/dev/null")
FOREIGN = ("/sys/", "/proc/sys/", "/proc/net/")


class OutsideAccess(Exception):
    """A unit test tried to touch something outside its own directory."""


def is_inside(path: object) -> bool:
    # The directory itself too: a temporary file without a name (O_TMPFILE), such as capfd's, is opened by it.
    return f"{path}/".startswith(WRITABLE)


def describe_socket(address: object) -> str:
    # A socket that is a file of the test's own is no way out.
    return "" if isinstance(address, (str, bytes)) and is_inside(os.fsdecode(address)) else f"a socket to {address}"


def describe_open(path: object, _mode: object, flags: int) -> str:
    if not isinstance(path, (str, bytes)):  # a descriptor that is open already
        return ""
    name = os.path.abspath(os.fsdecode(path))
    if flags & (os.O_WRONLY | os.O_RDWR) and not is_inside(name) and "__pycache__" not in name:
        return f"writing {name}"
    return f"reading {name}" if name.startswith(FOREIGN) else ""


# Audit event -> what its arguments tell of a way out, "" for none. Source: docs.python.org, "Audit events table".
WAYS_OUT: dict[str, Callable[..., str]] = {
    "open": describe_open,
    "os.posix_spawn": lambda path, *_: f"the program {path}",
    "os.system": lambda command: f"the shell command {command}",
    "socket.bind": lambda _socket, address: describe_socket(address),
    "socket.connect": lambda _socket, address: describe_socket(address),
    "socket.sendto": lambda _socket, address: describe_socket(address),
    "subprocess.Popen": lambda program, *_: f"the program {program}",
}


class Guard:
    """The audit hook of the test process; a hook can't be taken out again, so it watches only when told to."""

    def __init__(self) -> None:
        self.watching = False
        self.attempts: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.watching or event not in WAYS_OUT:
            return
        if attempt := WAYS_OUT[event](*args):
            self.attempts.append(attempt)
            raise OutsideAccess(f"{attempt}: not in tests/unit")


GUARD = Guard()
sys.addaudithook(GUARD)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "outside(reason): a unit test that may touch what is outside its directory")


@pytest.fixture(autouse=True)
def outside_attempts(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Fail the test that went outside, also when the code under test swallowed what was raised there."""
    GUARD.attempts = []
    GUARD.watching = request.node.get_closest_marker("outside") is None
    yield GUARD.attempts
    GUARD.watching = False
    if GUARD.attempts:
        pytest.fail(f"went outside: {', '.join(GUARD.attempts)}")
