"""The way in when the machine has nothing left to let anybody in with."""

from __future__ import annotations

import errno
import os
import selectors
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.agent.gate import Gate
from cni.agent.listener import Listener, listen
from cni.start import offer


class Scene:
    """A gate with a loop of its own, its clock standing still, at which nobody is admitted."""

    def __init__(self, path: Path, *, activated: bool = False) -> None:
        if activated:
            self.manager = socket.socket(socket.AF_UNIX)
            self.manager.bind(str(path))
            self.manager.listen()
        self.selector = selectors.DefaultSelector()
        self.now = 0.0
        self.gate = Gate(
            Listener(self.manager.dup(), path, activated=True) if activated else listen(path),
            selector=self.selector,
            admit=lambda *_: False,
            clock=lambda: self.now,
            build_id="b",
            netns_inode=1,
            peer_uid=os.geteuid(),
        )
        self.path = path

    def turn(self) -> int:
        """Serve what is ready and return how much it was."""
        ready = self.selector.select(0)
        for key, _events in ready:
            key.data()
        self.gate.expire()
        return len(ready)

    def connected(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(120)
        client.connect(str(self.path))
        return client


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path / "run" / "sock")
    yield scene
    scene.gate.close()
    scene.selector.close()


def test_loop_rests_while_nothing_can_be_accepted(scene, monkeypatch):
    def accept(_socket: socket.socket) -> None:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    with scene.connected() as client:
        with monkeypatch.context() as exhausted:
            exhausted.setattr(socket.socket, "accept", accept)
            assert scene.turn() == 1
            assert scene.turn() == 0
        assert scene.turn() == 0
        scene.now = 1.0
        scene.turn()
        client.send(b"no frame of ours, and longer than a header")
        while scene.turn():
            pass
        with pytest.raises(ConnectionResetError):  # its end was not read
            client.recv(1)


def test_gate_closes_while_it_rests(scene, monkeypatch):
    def accept(_socket: socket.socket) -> None:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    with scene.connected() as client:
        with monkeypatch.context() as exhausted:
            exhausted.setattr(socket.socket, "accept", accept)
            scene.turn()
        scene.gate.close()
        assert client.recv(1) == b""
    scene.now = 1.0
    assert scene.turn() == 0


def test_gate_closes_though_nothing_can_be_accepted(scene, monkeypatch):
    """An agent that drains has requests to bring to their end."""

    def accept(_socket: socket.socket) -> None:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    with scene.connected() as client:
        with monkeypatch.context() as exhausted:
            exhausted.setattr(socket.socket, "accept", accept)
            scene.gate.close()
        with pytest.raises(ConnectionResetError):  # not taken, that is
            client.recv(1)


def test_gate_closes_though_the_directory_of_its_socket_has_been_removed(scene):
    """Which is how an agent learns that the path is no longer its own."""
    shutil.rmtree(scene.path.parent)
    assert not scene.gate.listener.is_current()
    scene.gate.close()
    assert not scene.gate.is_open


@pytest.fixture
def handed(tmp_path: Path) -> Iterator[Scene]:
    """A gate at a socket that systemd has opened, and keeps: ``handed.manager``."""
    scene = Scene(tmp_path / "sock", activated=True)
    yield scene
    scene.gate.leave()
    scene.selector.close()
    scene.manager.close()


def test_who_comes_to_systemds_socket_while_the_agent_drains_is_sent_away(handed):
    """His connection would wait for the next agent, and he for ten seconds: a request may take three minutes to end."""
    handed.gate.close()
    for _each in range(2):
        with handed.connected() as client:
            handed.turn()
            assert client.recv(1) == b""


def test_who_comes_to_systemds_socket_when_the_agent_is_done_is_left_to_the_next_one(handed):
    handed.gate.close()
    handed.gate.leave()
    with handed.connected() as client:
        handed.turn()
        accepted, _address = handed.manager.accept()
        with accepted:
            accepted.send(b"!")
            assert client.recv(1) == b"!"


def test_drained_gate_rests_while_nothing_can_be_accepted(handed, monkeypatch):
    def accept(_socket: socket.socket) -> None:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    handed.gate.close()
    with handed.connected():
        monkeypatch.setattr(socket.socket, "accept", accept)
        assert handed.turn() == 1
        assert handed.turn() == 0


@pytest.mark.parametrize(
    "body",
    [b"/opt/cni/bin/\xff\0CNI_COMMAND=ADD\0", b"/opt/cni/bin/static\0CNI_COMMAND=\xff\0", b"/opt/cni/bin/vferry\0"],
)
def test_what_no_shim_asks_for_is_refused(scene, body):
    """Its names would become labels of the metrics, and lines of the log."""
    header = offer.MAGIC + b"b".ljust(offer.BUILD_BYTES) + (1).to_bytes(8, "little") + b"\3"
    with scene.connected() as client:
        socket.send_fds(client, [header + len(body).to_bytes(4, "little") + body], [0, 1])
        while scene.turn():
            pass
        assert client.recv(2) == offer.REFUSED
