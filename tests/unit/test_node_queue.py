"""How the invocations of one node keep out of each other's way, and what if its files are of no use."""

from __future__ import annotations

import contextlib
import multiprocessing
import time

import pytest

from ipam.stores import node_queue
from ipam.stores.contract import Deadline, Owner
from ipam.stores.node_queue import Queue, Tried
from ipam.stores.scratch import Scratch

ONE, OTHER = Owner("c1", "net1"), Owner("c2", "net1")


@pytest.fixture
def scratch(tmp_path):
    return Scratch(tmp_path / "run" / "stores")


def _queue(scratch, deadline_s=60.0):
    return Queue(scratch, Deadline(deadline_s))


def _stay(scratch, has_it, may_go):
    with _queue(scratch).at("a pool") as changes:
        has_it.set()
        may_go.wait(60)
        changes.note()


def _in_another_process(act, *given):
    context = multiprocessing.get_context("fork")
    has_it, may_go = context.Event(), context.Event()
    process = context.Process(target=act, args=(*given, has_it, may_go))
    process.start()
    assert has_it.wait(60)
    return process, may_go


def test_who_comes_second_waits_and_is_told_of_the_change(scratch):
    process, may_go = _in_another_process(_stay, scratch)
    read_at = time.monotonic()
    with _queue(scratch).at("another pool") as changes:
        assert not changes.since(0)
    context = multiprocessing.get_context("fork")
    context.Process(target=lambda: (time.sleep(0.2), may_go.set())).start()
    with _queue(scratch).at("a pool") as changes:
        assert may_go.is_set()
        assert changes.since(read_at)
        assert not changes.since(time.monotonic())
    process.join()


def test_a_change_that_failed_is_none(scratch):
    with pytest.raises(KeyError), _queue(scratch).at("a pool"):
        raise KeyError
    with _queue(scratch).at("a pool") as changes:
        assert not changes.since(0)


def test_nobody_waits_for_ever_and_nobody_for_the_dead(scratch):
    process, _may_go = _in_another_process(_stay, scratch)
    with _queue(scratch, deadline_s=0.4).at("a pool") as changes:
        assert not changes.since(0)
        changes.note()  # of no use, and no harm
    process.kill()
    process.join()
    with _queue(scratch).at("a pool") as changes:
        assert not changes.since(0)


def test_each_owner_tries_an_address_of_its_own(scratch):
    tried = Tried(scratch, "a pool")
    assert tried.choose([5, 6, 7], ONE) == 5
    assert tried.choose([5, 6, 7], OTHER) == 6
    assert tried.choose([5, 6, 7], ONE) == 5  # after a kill, say
    assert tried.choose([6], ONE) is None
    assert Tried(scratch, "another pool").choose([5], OTHER) == 5


def test_what_is_not_had_after_all_is_tried_by_others(scratch):
    tried = Tried(scratch, "a pool")
    tried.choose([5], ONE)
    tried.choose([6], ONE)
    tried.drop(ONE, besides={6})
    # 6 is taken; who read the pool before that still believes it free.
    assert tried.choose([5, 6], OTHER) == 5
    assert tried.choose([6, 7], OTHER) == 7
    tried.drop(ONE)
    assert tried.choose([6, 7], OTHER) == 6


def test_it_is_forgotten_after_a_while(scratch, monkeypatch):
    tried = Tried(scratch, "a pool")
    tried.choose([5], ONE)
    monkeypatch.setattr(node_queue, "_TRIED_S", 0.0)
    assert tried.choose([5], OTHER) == 5


@pytest.mark.parametrize(
    "content", [b"\xff{", b"[1]", b'{"5": 3}', b'{"x": [1, "c"]}', b"nan", b'{"5": [1e999, "c2"]}']
)
def test_a_damaged_file_is_as_if_it_were_not_there(scratch, tmp_path, content):
    tried = Tried(scratch, "a pool")
    tried.choose([5], ONE)
    with _queue(scratch).at("a pool") as changes:
        changes.note()
    files = list((tmp_path / "run" / "stores").iterdir())
    assert len(files) == 2
    for file in files:
        file.write_bytes(content)
    with _queue(scratch).at("a pool") as changes:
        assert not changes.since(0)
    assert tried.choose([5], OTHER) == 5


def test_without_a_directory_there_is_no_queue(tmp_path):
    (tmp_path / "run").write_text("a file")
    scratch = Scratch(tmp_path / "run" / "stores")
    with contextlib.ExitStack() as held:
        for _ in range(2):
            assert not held.enter_context(_queue(scratch).at("a pool")).since(0)
    assert Tried(scratch, "a pool").choose([5], ONE) is None
    Tried(scratch, "a pool").drop(ONE)
