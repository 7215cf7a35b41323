"""GC of ``sriov``: only what the runtime does not know any more, only of this network, and only when it says so."""

from __future__ import annotations

import pytest

from cni.sriov import Sriov
from tests.unit.fake_kernel import kernel_of
from tests.unit.fake_node import FakeLink
from tests.unit.sriov_node import EVERYTHING, VF1, config, differences

pytest_plugins = ["tests.unit.sriov_node_fixtures"]


def with_real_ipam(machine):
    return Sriov(
        kernel=kernel_of(machine.node),
        attachments=machine.attachments,
        go_files=machine.go_files,
        lock=machine.node.lock,
    )


def valid(*pods, key="cni.dev/valid-attachments", **keys):
    return {**EVERYTHING, key: [{"containerID": pod.name, "ifname": "net1"} for pod in pods], **keys}


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
def test_gc_gives_back_what_the_runtime_does_not_know(machine, blue, green, key):
    before = machine.snapshot()
    other = {**EVERYTHING, "deviceID": VF1}
    blue.add(EVERYTHING)
    result = green.add(other)
    blue.destroy()
    assert blue.call("GC", valid(green, key=key)).status == 0
    assert machine.host_link.ifname == "ens1v0"
    assert green.check(other, result).status == 0
    green.delete(other)
    machine.node.pod(blue.path)
    assert not differences(before, machine.snapshot())


@pytest.mark.parametrize("keys", [{}, {"cni.dev/valid-attachments": None}])
def test_gc_without_a_list_knows_nothing_and_does_nothing(machine, blue, keys):
    blue.add(EVERYTHING)
    during = machine.snapshot()
    assert blue.call("GC", {**EVERYTHING, **keys}).status == 0
    assert not differences(during, machine.snapshot())


@pytest.mark.parametrize("listed", ["", {}, 0, "all", [["blue", "net1"]], [{"containerID": "blue"}], [None], [{}]])
def test_gc_with_a_malformed_list_does_nothing(machine, blue, listed):
    blue.add(EVERYTHING)
    answer = blue.refused("GC", {**EVERYTHING, "cni.dev/valid-attachments": listed})
    assert (answer.code, "cni.dev/valid-attachments" in answer.text) == (7, True)


def test_gc_of_another_network_leaves_ours(machine, blue):
    blue.add(EVERYTHING)
    during = machine.snapshot()
    leases = dict(machine.ipam.leases)
    assert blue.call("GC", {**valid(), "name": "other", "ipam": {}}).status == 0
    assert not differences(during, machine.snapshot())
    assert machine.ipam.leases == leases


def test_gc_goes_on_after_one_failure_and_reports_it(machine, blue, green):
    before = machine.snapshot()
    other = {**EVERYTHING, "deviceID": VF1}
    blue.add(EVERYTHING)
    green.add(other)
    foreign = FakeLink("ens1v0", 99, "02:00:00:00:00:99", kind="veth")
    machine.node.host.links.append(foreign)
    answer = blue.call("GC", valid())
    assert (answer.code, "ens1v0" in answer.text) == (108, True)
    assert any(link.ifname == "ens1v1" for link in machine.node.host.links)
    assert [path for path in machine.records() if path.startswith("att")] == ["attachments/sriov/blue:net1.json"]
    machine.node.host.links.remove(foreign)
    assert blue.call("GC", valid()).status == 0
    assert not differences(before, machine.snapshot())


def test_damaged_record_is_an_error_on_del_and_no_hindrance_for_others(machine, blue, green):
    blue.add(config())
    blue.destroy()
    (machine.folder / "attachments/sriov/blue:net1.json").write_text("{")
    (machine.folder / "go/blue-net1").unlink()
    answer = blue.refused("DEL", config())
    assert (answer.code, "blue:net1.json is damaged" in answer.text) == (5, True)
    assert blue.call("GC", valid(green)).status == 0
    green.add(config(VF1))


@pytest.mark.parametrize("ipam", [{"type": 7}, {"type": "no/name"}, {"type": "nobody"}])
def test_ipam_that_cannot_be_found_is_told_beside_what_else_failed(machine, blue, ipam, monkeypatch):
    monkeypatch.setattr(machine, "plugin", lambda *_name: with_real_ipam(machine))
    before = machine.snapshot()
    blue.add(config(vlan=100))
    foreign = FakeLink("ens1v0", 99, "02:00:00:00:00:99", kind="veth")
    machine.node.host.links.append(foreign)
    for command, conf in (("DEL", config(ipam=ipam)), ("GC", {**valid(), "ipam": ipam})):
        answer = blue.call(command, conf)
        assert (answer.code, "ens1v0" in answer.text, '"type"' in answer.text or "nobody" in answer.text) == (
            108,
            True,
            True,
        )
    machine.node.host.links.remove(foreign)
    # Of the configuration of a DEL nothing was read before, so a type that is none is found out there.
    assert blue.call("DEL", config(ipam=ipam)).code == 7
    blue.delete(config())
    assert not differences(before, machine.snapshot())
