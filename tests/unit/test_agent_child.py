"""One child and its caller: who has read the answer of an ADD, and what becomes of one that nobody has."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cni import skel
from cni.agent import child, crew
from cni.agent.frames import Invocation
from cni.start import offer
from cni.undo import Undo

DOCUMENT = b'{"cniVersion":"1.0.0"}\n'


class Scene:
    """A child that is forked with an ADD that succeeds; what it takes back stands in ``taken_back``."""

    def __init__(self, folder: Path) -> None:
        self.taken_back = folder / "taken back"
        self.committed = folder / "committed"
        self.shim, self._theirs = socket.socketpair()
        self.shim.settimeout(120)
        self.reports, self._report = os.pipe()
        self._log = folder / "stderr"

    def start(self, command: str = "ADD", *, lingers_s: float = 0, agent_lives: bool = True, **more: str) -> int:
        """Fork it; ``lingers_s`` after its commit it answers."""
        pid = os.fork()
        if pid:
            self._theirs.close()
            os.close(self._report)
            if not agent_lives:
                os.close(self.reports)
                self.reports = -1
            return pid
        try:
            os.close(self.reports)
            self._live({"CNI_COMMAND": command, **more}, lingers_s)
        finally:
            os._exit(99)

    def _live(self, environ: dict[str, str], lingers_s: float) -> None:
        self.shim.close()

        def main(name: str, *, environ: dict[str, str], stdin: Any, stdout: Any) -> int:
            with Undo() as undo:
                undo.commit()
            self.committed.write_text(f"{time.localtime(0).tm_hour} {sorted(os.environ)}")
            signal.sigtimedwait([], lingers_s)
            stdout.write(DOCUMENT)
            return 0

        def serve(name: str, *, environ: dict[str, str], stdin: Any) -> tuple[None, int]:
            os.write(2, b"x" * 10)
            self.taken_back.write_text(f"{environ['CNI_COMMAND']} {stdin.read().decode()}")
            return None, 0

        skel.main, skel.serve = main, serve
        stdin = os.memfd_create("stdin")
        os.write(stdin, b"{}")
        os.lseek(stdin, 0, 0)
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 2)
        descriptors = {offer.STDIN: stdin, offer.STDERR: log}
        child.live(Invocation(b"", "b", 1, "/opt/cni/bin/static", environ, descriptors), self._theirs, self._report)

    def await_commit(self) -> None:
        until = time.monotonic() + 120
        while not self.committed.exists():
            assert time.monotonic() < until
            time.sleep(0.001)

    def close(self) -> None:
        self.shim.close()
        if self.reports >= 0:
            os.close(self.reports)

    def read_answer(self) -> None:
        assert self.shim.recv(4096) == crew.answer(0, DOCUMENT)


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def test_add_that_was_read_stands(scene):
    pid = scene.start()
    scene.read_answer()
    scene.shim.close()
    assert status_of(pid) == 0
    assert not scene.taken_back.exists()
    assert json.loads(os.read(scene.reports, 4096))["code"] == 0


def test_add_whose_answer_was_not_read_is_taken_back(scene):
    """The caller was killed when the answer was on its way: it is in the connection, and nobody has it."""
    pid = scene.start()
    scene.shim.recv(1, socket.MSG_PEEK)
    scene.shim.close()
    assert status_of(pid) == 0
    assert scene.taken_back.read_text() == "DEL {}"


def test_add_whose_caller_went_after_its_commit_is_taken_back(scene):
    pid = scene.start(lingers_s=0.3)
    scene.await_commit()
    scene.shim.close()
    assert status_of(pid) == 0
    assert scene.taken_back.read_text() == "DEL {}"


def test_del_is_not_waited_for(scene):
    pid = scene.start("DEL")
    assert status_of(pid) == 0  # nobody has read its answer by now
    scene.read_answer()
    assert not scene.taken_back.exists()


def test_signal_that_comes_too_late_changes_nothing(scene):
    pid = scene.start(lingers_s=0.3)
    scene.await_commit()
    scene.shim.send(bytes([signal.SIGTERM]))
    scene.read_answer()
    scene.shim.close()
    assert status_of(pid) == 0
    assert not scene.taken_back.exists()


def test_killed_agent_does_not_spoil_the_answer(scene, tmp_path):
    pid = scene.start(lingers_s=0.2, agent_lives=False)
    scene.read_answer()
    scene.shim.close()
    assert status_of(pid) == 0
    assert (tmp_path / "stderr").read_text() == ""


def test_libraries_find_the_environment_of_the_caller_and_nothing_of_the_agents(scene):
    """OpenSSL looks for SSL_CERT_FILE, the C library for TZ, and neither asks us: as in a process of the caller's."""
    pid = scene.start(SSL_CERT_FILE="/ca.pem", TZ="XYZ-5")
    scene.read_answer()
    scene.shim.close()
    assert status_of(pid) == 0
    assert scene.committed.read_text() == "5 ['CNI_COMMAND', 'SSL_CERT_FILE', 'TZ']"
