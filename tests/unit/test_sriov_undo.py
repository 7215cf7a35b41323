"""``sriov`` when something goes wrong in the middle: every call fails once, every call is the last one once.

The node, the leases and the records are compared in whole. What a step does when all goes well is in test_sriov.
"""

from __future__ import annotations

import errno

import pytest

from tests.unit.fake_node import ZERO, FakeLink, Quirks
from tests.unit.sriov_node import EVERYTHING, IPAM, Machine, config, differences

pytest_plugins = ["tests.unit.sriov_node_fixtures"]

NODES = {
    "ixgbevf": Quirks(),
    "igbvf": Quirks(takes_up_admin_mac=False, pinned_mac_errno=errno.EADDRNOTAVAIL),
    "mlx5": Quirks(takes_up_admin_mac=False, lists_chosen_mac=False, pinned_mac_errno=0),
    "iavf": Quirks(admin_mac_settles_after=3),
    "old-kernel": Quirks(renames_only_when_down=True, names_parent=False),
}
# What an administrator may have done to the VF before.
ADMINISTRATORS = ("nothing", "mac", "much")
# Which calls fail, and whether after they were carried out.
HOW = [(True, False), (True, True), (False, False)]
# Best effort: without them the attachment is as good, so their failure is no failure.
OPTIONAL = {"sysctl"}


def prepare(machine: Machine, *, quirks: str, administrator: str) -> None:
    machine.node.quirks = NODES[quirks]
    link, vf = machine.host_link, machine.vf
    if not machine.node.quirks.lists_chosen_mac:
        vf.mac = ZERO
    if administrator == "mac":
        vf.mac, vf.is_pinned = link.mac, True
    if administrator == "much":
        vf.vlan_id, vf.vlan_qos, vf.max_tx_rate_mbps = 55, 2, 7000
        # A VF that is trusted can always choose its MAC, so nothing tells whether it did: it counts as the PF's.
        vf.trust, vf.mac, vf.is_pinned = True, link.mac, True
        link.mtu_bytes, link.txqlen, link.alias, link.up = 1450, 500, "rail 1", False
        link.altnames = ["net1", "a-long-altname-of-the-rail"]


@pytest.fixture(
    params=[
        *[(quirks, did) for quirks in ("ixgbevf", "igbvf") for did in ADMINISTRATORS],
        ("mlx5", "mac"),
        ("iavf", "nothing"),
        ("old-kernel", "much"),
    ],
    ids="-".join,
)
def prepared(request, machine):
    quirks, administrator = request.param
    prepare(machine, quirks=quirks, administrator=administrator)
    return machine


@pytest.fixture
def everything(prepared):
    """Every setting; for igbvf not trust, because it is then that the MACs are in each other's way."""
    return {key: value for key, value in EVERYTHING.items() if key != "trust" or not is_igbvf(prepared)}


def is_igbvf(machine):
    return machine.node.quirks is NODES["igbvf"]


def numbered_calls(pod, command, conf, *, only_changes=True):
    """Run one whole command and return its calls."""
    node = pod.machine.node
    node.arm(only_changes=only_changes)
    answer = pod.call(command, conf)
    assert answer.status == 0, answer.document
    calls = node.calls
    node.arm()
    return list(enumerate(calls, 1))


@pytest.mark.parametrize(("only_changes", "late"), HOW, ids=["changes", "changes-but-done", "every-call"])
def test_add_undoes_all_whichever_call_fails(prepared, blue, late, only_changes, everything):
    before = prepared.snapshot()
    whole = numbered_calls(blue, "ADD", everything, only_changes=only_changes)
    blue.delete(everything)
    assert not differences(before, prepared.snapshot())
    assert len(whole) > 20
    for number, what in whole:
        prepared.node.arm(fails_at=number, late=late, only_changes=only_changes)
        answer = blue.call("ADD", everything)
        # A call that the driver refuses anyway has failed with its own errno, which may be no error.
        harmless = what in OPTIONAL or not prepared.node.has_failed
        prepared.node.arm()
        if harmless and answer.status == 0:
            blue.delete(everything)
        assert harmless or answer.status == 1, f"{number} {what}"
        assert not differences(before, prepared.snapshot()), f"{number} {what}: {answer.text}"


def test_del_after_an_add_that_was_killed_at_any_call(prepared, blue, everything):
    before = prepared.snapshot()
    whole = numbered_calls(blue, "ADD", everything)
    blue.delete(everything)
    for number, what in whole:
        prepared.node.arm(killed_at=number)
        assert blue.killed("ADD", everything), f"{number} {what}"
        blue.delete(everything)
        assert not differences(before, prepared.snapshot()), f"{number} {what}"


def test_gc_after_an_add_that_was_killed_at_any_call(prepared, blue, everything):
    before = prepared.snapshot()
    whole = numbered_calls(blue, "ADD", everything)
    blue.delete(everything)
    for number, what in whole:
        prepared.node.arm(killed_at=number)
        assert blue.killed("ADD", everything)
        answer = blue.call("GC", {**everything, "cni.dev/valid-attachments": []})
        assert answer.status == 0, f"{number} {what}: {answer.text}"
        # A state file of the Go plugin without our record: its own GC of old is the next ADD's.
        assert not differences(before, prepared.snapshot()), f"{number} {what}"


def test_next_container_after_an_add_that_was_killed_at_any_call(prepared, blue, green, everything):
    other = config(vlan=7, ipam=IPAM)
    blue.destroy()
    before = prepared.snapshot()
    prepared.node.pod(blue.path)
    whole = numbered_calls(blue, "ADD", everything)
    blue.delete(everything)
    for number, what in whole:
        prepared.node.arm(killed_at=number)
        assert blue.killed("ADD", everything)
        blue.destroy()
        result = green.add(other)
        assert prepared.vf.vlan_id == 7
        blue.delete(everything)  # late: it must not take the VF from green
        assert green.check(other, result).text == "None; None", f"{number} {what}"
        green.delete(other)
        assert not differences(before, prepared.snapshot()), f"{number} {what}"
        prepared.node.pod(blue.path)


@pytest.mark.parametrize(("only_changes", "late"), HOW, ids=["changes", "changes-but-done", "every-call"])
@pytest.mark.parametrize("netns_lives", [True, False], ids=["netns", "no-netns"])
def test_del_takes_the_other_steps_and_the_next_del_the_rest(
    prepared, blue, late, only_changes, netns_lives, everything
):
    before = prepared.snapshot()

    def added():
        if blue.path not in prepared.node.nets:
            prepared.node.pod(blue.path)
        blue.add(everything)
        if not netns_lives:
            blue.destroy()

    added()
    whole = numbered_calls(blue, "DEL", everything, only_changes=only_changes)
    for number, what in whole:
        added()
        prepared.node.arm(fails_at=number, late=late, only_changes=only_changes)
        answer = blue.call("DEL", everything)
        prepared.node.arm()
        if answer.status:
            assert any("attachments" in path for path in prepared.records()) or what == "delete_durably"
        blue.delete(everything)
        after = prepared.snapshot()
        after.setdefault(blue.path, before[blue.path])
        assert not differences(before, after), f"{number} {what}: {answer.text}"


def test_del_that_was_killed_at_any_call(prepared, blue, everything):
    before = prepared.snapshot()
    blue.add(everything)
    whole = numbered_calls(blue, "DEL", everything)
    for number, what in whole:
        blue.add(everything)
        prepared.node.arm(killed_at=number)
        assert blue.killed("DEL", everything)
        blue.delete(everything)
        assert not differences(before, prepared.snapshot()), f"{number} {what}"


def test_an_undo_that_fails_keeps_the_record_and_the_next_del_does_the_rest(prepared, blue, everything):
    before = prepared.snapshot()
    whole = numbered_calls(blue, "ADD", everything)
    blue.delete(everything)
    foreign = FakeLink(prepared.host_link.ifname, 77, "02:00:00:00:00:77", kind="veth")
    number = next(number for number, what in whole if what == "ipam.add")
    prepared.node.arm(fails_at=number)
    taken = prepared.node.host.links

    really_add = prepared.ipam.add

    def add_and_meanwhile(request):
        taken.append(foreign)
        return really_add(request)

    prepared.ipam.add = add_and_meanwhile
    answer = blue.call("ADD", everything)
    prepared.node.arm()
    prepared.ipam.add = really_add
    assert answer.code == 104
    assert "not undone: the device; DEL will try again" in answer.text
    assert foreign in taken
    taken.remove(foreign)
    blue.delete(everything)
    assert not differences(before, prepared.snapshot())
