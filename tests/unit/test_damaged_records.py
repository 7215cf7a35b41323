"""A record that a damaged disk or an editor has made unreadable: its DEL goes by what upstream's plugin would."""

from __future__ import annotations

import pytest

from tests.unit.sriov_node import EVERYTHING, differences

pytest_plugins = ["tests.unit.sriov_node_fixtures"]


@pytest.fixture
def pinned(machine):
    """Begin with what the Go plugin's record cannot but leave: an administrative MAC, and the link down."""
    machine.vf.is_pinned, machine.host_link.up = True, False
    return machine


def damage(machine):
    """Cut the one record of ours short; return its file."""
    (path,) = machine.attachments.root.rglob("*.json")
    path.write_bytes(path.read_bytes()[:-20])
    return path


@pytest.mark.parametrize("netns_lives", [True, False])
def test_vf_comes_back_by_the_go_plugins_record_and_the_damaged_one_is_kept(pinned, blue, green, caplog, netns_lives):
    machine, before = pinned, pinned.snapshot()
    blue.add(EVERYTHING)
    path = damage(machine)
    content, aside = path.read_bytes(), path.with_name(f"{path.name}.damaged")
    if not netns_lives:
        blue.destroy()
    blue.delete(EVERYTHING)
    if not netns_lives:
        machine.node.pod(blue.path)
    assert differences(before, {**machine.snapshot(), "records": before["records"]}) == []
    assert machine.records() == [str(aside.relative_to(machine.folder))]
    assert aside.read_bytes() == content
    assert str(aside) in caplog.text
    green.add(EVERYTHING)


def test_del_that_fails_on_the_way_goes_on_by_the_go_plugins_record(pinned, blue):
    machine, before = pinned, pinned.snapshot()
    blue.add(EVERYTHING)
    damage(machine)
    machine.node.arm(fails_at=1)
    assert blue.call("DEL", EVERYTHING).status == 1
    machine.node.arm()
    blue.delete(EVERYTHING)
    assert differences(before, {**machine.snapshot(), "records": before["records"]}) == []


def test_without_any_other_word_nothing_is_touched_and_the_operator_is_told_what_to_do(machine, blue):
    blue.add(EVERYTHING)
    path = damage(machine)
    (machine.folder / "go" / "blue-net1").unlink()
    answer = blue.refused("DEL", EVERYTHING)
    assert answer.code == 5
    assert str(path) in answer.text and "move the file away" in answer.text
    path.rename(path.with_suffix(".away"))
    blue.delete(EVERYTHING)
    assert machine.ipam.leases == {}
