"""The unit room is closed: what would leave it raises."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from tests.unit.conftest import OutsideAccess


def connect():
    with socket.socket() as tcp:
        tcp.connect(("127.0.0.1", 9))


def bind_netlink():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.bind((0, 0))


def run_a_program():
    subprocess.run(["true"], check=True)


def run_a_shell():
    os.system("true")


def write_elsewhere():
    with open("/var/lib/written-by-a-unit-test", "w"):
        pass


def read_the_machine():
    with open("/sys/class/net/lo/address"):
        pass


@pytest.mark.parametrize(
    "leave", [connect, bind_netlink, run_a_program, run_a_shell, write_elsewhere, read_the_machine]
)
def test_leaving_raises(leave, outside_attempts):
    with pytest.raises(OutsideAccess):
        leave()
    assert outside_attempts
    outside_attempts.clear()  # else this very test fails, as it should anywhere else


def test_own_directory_is_inside(tmp_path, outside_attempts):
    (tmp_path / "file").write_text("mine")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    assert outside_attempts == []


@pytest.mark.outside("shows that the mark opens the door")
def test_mark_opens_the_room():
    assert subprocess.run(["true"], check=True).returncode == 0
