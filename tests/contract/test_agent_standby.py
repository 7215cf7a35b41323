"""Two agents, each with a supervisor that starts it anew when it ends: pods of a DaemonSet while its image changes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.agent import Installed, static_add, wait_until

# As the kubelet does with a container whatever its exit status is; SIGTERM is passed on, and is the end.
_POD = """
trap 'ended=1; kill -TERM "$agent"' TERM
until [ "$ended" ]; do "$@" & agent=$!; wait "$agent"; done
wait "$agent"
"""


class Pod:
    """An agent that stands by, and its supervisor."""

    def __init__(self, installed: Installed, name: str) -> None:
        self._log = installed.folder / f"{name}.log"
        with self._log.open("wb") as log:
            self.supervisor = subprocess.Popen(
                ["/bin/sh", "-c", _POD, "pod", installed.bin / "vferry", "agent", "--stand-by"],
                env={"PATH": os.defpath}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.require_starts(1)

    def log(self) -> str:
        return self._log.read_text()

    def require_starts(self, count: int) -> None:
        wait_until(lambda: self.log().count("listening") >= count, f"started {count} times")
        assert self.log().count("listening") == count, self.log()

    def agent(self) -> int:
        (pid,) = Path(f"/proc/{self.supervisor.pid}/task/{self.supervisor.pid}/children").read_text().split()
        return int(pid)

    def end(self) -> int:
        self.supervisor.terminate()
        return self.supervisor.wait(300)


@pytest.fixture
def pods(installed: Installed) -> Iterator[list[Pod]]:
    """The old one, and the new one that has taken over from it."""
    started: list[Pod] = []
    try:
        started.append(Pod(installed, "old"))
        started.append(Pod(installed, "new"))
        wait_until(lambda: "standing by" in started[0].log(), "the old one has nothing more to do")
        yield started
    finally:
        for each in started:
            each.end()


def test_agent_that_was_replaced_is_not_started_anew_against_its_successor(
    installed: Installed, pods: list[Pod]
) -> None:
    old, new = pods
    idle = old.agent()
    for served in range(1, 4):  # several looks at who listens
        assert static_add(installed).returncode == 0
        wait_until(lambda: new.log().count("took_ms") == served, "the new one serves")  # noqa: B023 called at once
        os.kill(idle, signal.SIGHUP)
        wait_until(lambda: old.log().count("read again") == served, "the old one is awake")  # noqa: B023 as above
    assert old.end() == 0
    assert (old.log().count("listening"), new.log().count("listening")) == (1, 1)
    assert "closed" not in new.log()  # nor is the new one asked, which would take it for a shim


@pytest.mark.parametrize("lost", [signal.SIGTERM, signal.SIGKILL])
def test_agent_that_was_replaced_serves_again_when_its_successor_is_lost(
    installed: Installed, pods: list[Pod], lost: signal.Signals
) -> None:
    """A new image that does not work is taken back: nobody is left in the place of the old one."""
    old, new = pods
    successor = new.agent()
    new.supervisor.kill()
    os.kill(successor, lost)
    old.require_starts(2)
    assert static_add(installed).returncode == 0
    wait_until(lambda: "took_ms" in old.log(), "the old one serves")
