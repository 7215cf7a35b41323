"""The table [agent], the log, what the service manager is told, and the steps of a request."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket

import pytest

from cni import steps
from cni.agent.crew import UNDO_PATIENCE_S
from cni.agent.logs import open_log
from cni.agent.notify import Notify
from cni.start.offer import PATIENCE_S
from conf import agent as conf_agent
from conf.agent import AgentConf, read_agent
from conf.errors import InvalidNetworkConfig


@pytest.fixture
def table(monkeypatch):
    """Set what the file has under [agent]."""
    return lambda **keys: monkeypatch.setattr(conf_agent, "read_table", lambda name: keys if name == "agent" else {})


def test_defaults_are_by_cores(table):
    table()
    conf = read_agent({})
    assert conf.max_children == 4 * len(os.sched_getaffinity(0))
    assert (conf.request_timeout_s, conf.log_format, conf.metrics) == (180, "text", "")


def test_command_line_wins_over_the_file(table):
    table(max_children=3, log_format="json")
    conf = read_agent({"max_children": 7})
    assert (conf.max_children, conf.log_format) == (7, "json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_children", 0),
        ("max_children", "8"),
        ("max_children", True),
        ("request_timeout_s", 221),
        ("log_format", "xml"),
        ("metrics", "9477"),
        ("metrics", "127.0.0.1:99999"),
    ],
)
def test_wrong_value_is_named(table, key, value):
    table(**{key: value})
    with pytest.raises(InvalidNetworkConfig, match=key):
        read_agent({})


@pytest.mark.parametrize("address", ["", "127.0.0.1:9477", "[::1]:9477", "localhost:0"])
def test_addresses_of_pages(address):
    assert AgentConf(metrics=address).metrics == address


def test_request_is_undone_before_the_shim_gives_up():
    """The longest bound on a request, and the time for its undo, end before the shim's patience."""
    from_field = next(each.le for each in AgentConf.model_fields["request_timeout_s"].metadata if hasattr(each, "le"))
    assert from_field + UNDO_PATIENCE_S < PATIENCE_S


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_log_line_has_its_fields(capsys, log_format):
    open_log(log_format)
    logging.getLogger("vferry.agent").info("static ADD", extra={"fields": {"code": 0}})
    (line,) = capsys.readouterr().err.splitlines()
    if log_format == "text":
        assert line.endswith("INFO agent: static ADD code=0")
    else:
        assert {"message": "static ADD", "code": 0, "level": "info"}.items() <= json.loads(line).items()


def test_service_manager_is_told_and_a_deaf_one_is_no_harm(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        notify = Notify({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"})
        notify.ready("serving")
        assert manager.recv(100) == b"READY=1\nSTATUS=serving"
        notify.alive(10.0)
        notify.alive(10.5)
        notify.alive(11.0)
        assert [manager.recv(100) for _each in range(2)] == [b"WATCHDOG=1"] * 2
    notify.stopping()
    Notify({}).ready("serving")


def test_service_manager_is_told_when_there_are_descriptors_again(monkeypatch):
    """An agent that has none left for this has requests all the same."""

    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socket", none_left)
    Notify({"NOTIFY_SOCKET": "/nowhere/notify"}).ready("serving")


def test_sign_of_life_that_did_not_get_through_is_given_again_at_the_next_turn(tmp_path):
    """At the end of the next half period systemd would have killed us."""
    notify = Notify({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"})
    notify.alive(10.0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        notify.alive(10.1)
        assert manager.recv(100) == b"WATCHDOG=1"
        notify.alive(10.2)
        with pytest.raises(BlockingIOError):
            manager.recv(100)


def test_other_processs_watchdog_is_not_ours():
    assert Notify({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid() + 1)}).watchdog_s == 0


@pytest.fixture
def heard(monkeypatch):
    monkeypatch.setattr(steps, "_listening", [])
    return steps.listen()


def test_steps_add_up_also_when_they_fail(heard):
    @steps.timed("find")
    def find(number: int) -> int:
        return 1 // number

    assert find(1) == 1
    first = heard.seconds["find"]
    with pytest.raises(ZeroDivisionError):
        find(0)
    assert heard.seconds["find"] > first > 0
    steps.count("rollback")
    assert heard.events == {"rollback": 1}
