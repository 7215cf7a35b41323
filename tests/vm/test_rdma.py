"""``rdma``, and ``rdmaIsolation`` of the plugins that move the netdev: the VF's RDMA device in the pod, and back.

The devices are vfrdma's: no data path, but the kernel's own rules of who may open and who may move them. Kills and
errors in the middle are in test_rdma_undo, the shared mode in test_rdma_shared.
"""

from __future__ import annotations

import errno
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cni import rdma_device
from cni.kernel import Kernel
from cni.linux.netns import Netns
from cni.linux.rdma import RdmaNetlink
from cni.upstream_rdma import ROOT as GO_RDMA_FILES
from conf.attachment import Attachment, RdmaRecord, SandboxRecord
from conf.errors import KernelRefused
from tests.vm.node import RECORDS, Pod, ip, netdev, side_by_side, wait_until
from tests.vm.rdma_node import (
    CHAINS,
    EACH_CHAIN,
    HOST_DEVICE,
    ISOLATED,
    OTHER,
    RDMA,
    SRIOV,
    VF,
    add,
    check,
    delete,
    devices,
    open_uverbs,
    rdma,
    rdma_name,
)

LAB = {"vfs": 2}
pytest_plugins = ["tests.vm.node_fixtures", "tests.vm.rdma_node"]
pytestmark = pytest.mark.usefixtures("host_is_as_before", "rdma_is_as_before")


@EACH_CHAIN
def test_uverbs_opens_inside_the_pod_only(blue: Pod, chain: list[dict[str, Any]]) -> None:
    name = rdma_name(VF)
    result = add(blue, chain)
    assert ({*devices("blue")}, name in devices()) == ({name}, False)
    assert (open_uverbs(VF, blue), open_uverbs(VF)) == (0, errno.EPERM)
    assert (open_uverbs(OTHER, blue), open_uverbs(OTHER)) == (errno.EPERM, 0)
    check(blue, chain, result)
    delete(blue, chain)
    assert open_uverbs(VF) == 0


def test_result_is_passed_on_as_it_came(blue: Pod) -> None:
    result = blue.add(SRIOV)
    assert blue.add({**RDMA, "prevResult": result}) == result
    delete(blue, [SRIOV, RDMA])


def test_device_behind_the_interface_when_no_device_id_is_given(blue: Pod) -> None:
    chain = [SRIOV, {key: value for key, value in RDMA.items() if key != "deviceID"}]
    name = rdma_name(VF)
    add(blue, chain)
    assert {*devices("blue")} == {name}
    delete(blue, chain)


@EACH_CHAIN
@pytest.mark.parametrize("netns", ["path gone", "empty"])
def test_del_when_netns_is_gone(blue: Pod, chain: list[dict[str, Any]], netns: str) -> None:
    add(blue, chain)
    blue.destroy()
    delete(blue, chain, **({"CNI_NETNS": ""} if netns == "empty" else {}))


@EACH_CHAIN
def test_del_with_empty_netns_while_the_pod_lives(blue: Pod, chain: list[dict[str, Any]]) -> None:
    add(blue, chain)
    delete(blue, chain, CNI_NETNS="")


@EACH_CHAIN
def test_del_is_idempotent(blue: Pod, chain: list[dict[str, Any]]) -> None:
    delete(blue, chain)
    add(blue, chain)
    delete(blue, chain)
    delete(blue, chain)


@EACH_CHAIN
@pytest.mark.parametrize("then", ["DEL", "DEL after the netns"])
def test_finds_device_if_renamed_in_pod(blue: Pod, chain: list[dict[str, Any]], then: str) -> None:
    add(blue, chain)
    rdma("dev", "set", rdma_name(VF), "name", "mine_0", netns="blue")
    blue.ip("link", "set", "net1", "down")
    blue.ip("link", "set", "net1", "name", "mine")
    if then != "DEL":
        blue.destroy()
    delete(blue, chain)


def test_name_that_became_another_devices_is_not_taken_for_ours(blue: Pod) -> None:
    """The lowest free number is given to the next device: a name says nothing about whose it is."""
    chain = [SRIOV, RDMA]
    name = rdma_name(VF)
    add(blue, chain)
    rdma("dev", "set", name, "name", "mine_0", netns="blue")
    rdma("dev", "set", rdma_name(OTHER), "name", name)
    refusal = blue.refused("DEL", RDMA)
    assert (refusal["code"], name in refusal["msg"]) == (108, True)
    assert ("mine_0" in devices(), rdma_name(VF)) == (True, "mine_0")
    rdma("dev", "set", name, "name", "vfrdma_1")
    delete(blue, chain)


def test_device_whose_driver_was_unbound_in_the_pod_is_no_more(blue: Pod) -> None:
    for number, chain in enumerate(([SRIOV, RDMA], [{**SRIOV, **ISOLATED}])):
        pod_chain = [{**conf, "deviceID": OTHER} for conf in chain]
        name = rdma_name(OTHER)
        mac = json.loads(ip("-j", "link", "show", netdev(OTHER)))[0]["address"]
        ip("link", "set", "eth0", "vf", "1", "mac", mac)  # else it has another one after the rebind
        add(blue, pod_chain)
        driver = Path("/sys/bus/pci/devices", OTHER, "driver").resolve()
        (driver / "unbind").write_text(OTHER)
        delete(blue, pod_chain)
        (driver / "bind").write_text(OTHER)
        wait_until(lambda: netdev(OTHER), "the VF has a netdev again")
        rdma("dev", "set", rdma_name(OTHER), "name", name) if rdma_name(OTHER) != name else None
        assert number < 2


def test_check_sees_that_the_device_left_the_pod(blue: Pod) -> None:
    for chain in ([SRIOV, RDMA], [{**SRIOV, **ISOLATED}]):
        result = add(blue, chain)
        name = rdma_name(VF)
        with Netns.open(blue.path) as sandbox, RdmaNetlink(sandbox) as inside, Netns.current() as host:
            device = inside.rdma_link_get(name)
            assert device is not None
            inside.rdma_link_set_netns(device.index, netns=host, name=name)
        refusal = blue.refused("CHECK", {**chain[-1], "prevResult": result})
        assert (refusal["code"], "RDMA device" in refusal["msg"] + refusal["details"]) == (103, True)
        assert "on the host" in refusal["details"]
        delete(blue, chain)
        assert blue.refused("CHECK", {**chain[-1], "prevResult": result})["code"] == 103


@EACH_CHAIN
def test_status_says_that_an_add_could_work(blue: Pod, chain: list[dict[str, Any]]) -> None:
    for conf in chain:
        assert blue.call("STATUS", conf).status == 0


@EACH_CHAIN
@pytest.mark.parametrize("netns", ["lives", "gone"])
def test_gc_brings_back_what_is_not_valid_any_more(blue: Pod, chain: list[dict[str, Any]], netns: str) -> None:
    name = rdma_name(VF)
    add(blue, chain)
    valid = {"cni.dev/valid-attachments": [{"containerID": "blue", "ifname": "net1"}]}
    for conf in reversed(chain):
        assert blue.call("GC", {**conf, **valid}).status == 0
        assert blue.call("GC", conf).status == 0  # it does not say what is valid
        assert blue.call("GC", {**conf, "name": "other", "cni.dev/valid-attachments": []}).status == 0
    assert {*devices("blue")} == {name}
    if netns == "gone":
        blue.destroy()
    for conf in reversed(chain):
        assert blue.call("GC", {**conf, "cni.dev/valid-attachments": []}).status == 0


def test_isolation_and_rdma_in_one_chain_are_refused_with_a_hint(blue: Pod) -> None:
    for first in ({**SRIOV, **ISOLATED}, {**HOST_DEVICE, **ISOLATED}):
        result = blue.add(first)
        refusal = blue.refused("ADD", {**RDMA, "prevResult": result})
        assert (refusal["code"], f"either rdmaIsolation in {first['type']} or the rdma" in refusal["details"]) == (
            7,
            True,
        )
        assert open_uverbs(VF, blue) == 0
        delete(blue, [first, RDMA])


def test_device_that_another_pod_has_is_refused_and_says_who_has_it(blue: Pod, green: Pod) -> None:
    chain = [SRIOV, RDMA]
    result = add(blue, chain)
    refusal = green.refused("ADD", {**RDMA, "prevResult": result})
    assert (refusal["code"], "container blue has it with net1" in refusal["details"]) == (11, True)
    green.delete(RDMA)
    assert open_uverbs(VF, blue) == 0
    delete(blue, chain)


def test_late_del_leaves_the_next_pods_device_alone(blue: Pod, green: Pod) -> None:
    for old, new in (
        (CHAINS["sriov-rdma"], CHAINS["sriov-isolated"]),
        (CHAINS["sriov-isolated"], CHAINS["sriov-rdma"]),
    ):
        doomed = Pod(f"doomed-{old[-1]['type']}")
        ip("netns", "add", doomed.name)
        add(doomed, old)
        doomed.destroy()
        wait_until(lambda: netdev(VF) and devices().keys() >= {rdma_name(VF)}, "the kernel returned both")
        add(green, new)
        delete(doomed, old)
        assert open_uverbs(VF, green) == 0
        delete(green, new)


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        ({"deviceID": "0000:01:00.0"}, 100, "no RDMA devices found"),  # the PF: vfrdma gives it none
        ({"deviceID": "0000:09:00.0"}, 100, "no RDMA devices found"),
        ({"deviceID": "mlx5_core.sf.9"}, 100, "no RDMA devices found"),
        ({"deviceID": "../../etc"}, 7, '"deviceID": "../../etc"'),
        ({"sharedMode": "on"}, 7, '"sharedMode": "on"'),
        ({"prevResult": None}, 7, "rdma must be chained"),
    ],
)
def test_add_refuses_and_names_key_and_value(blue: Pod, keys: dict[str, Any], code: int, said: str) -> None:
    result = blue.add(SRIOV)
    refusal = blue.refused("ADD", {**RDMA, "prevResult": result, **keys})
    assert (refusal["code"], said in refusal["msg"]) == (code, True), refusal
    delete(blue, [SRIOV, RDMA])


def test_rxe_device_gives_the_kernels_refusal_as_a_clear_error(blue: Pod) -> None:
    subprocess.run(["modprobe", "rdma_rxe"], check=True)
    rdma("link", "add", "rxe0", "type", "rxe", "netdev", netdev(OTHER))
    with RdmaNetlink() as host, Netns.open(blue.path) as sandbox:
        device = host.rdma_link_get("rxe0")
        assert device is not None
        record = RdmaRecord(name=device.name, index=device.index, node_guid=device.node_guid)
        with pytest.raises(KernelRefused) as refused:
            rdma_device.move_in(Kernel(), record, sandbox=sandbox)
        identity = sandbox.identity
        attachment = Attachment(
            plugin="rdma",
            network="rail",
            container_id="blue",
            ifname="net1",
            sandbox=SandboxRecord(
                path=blue.path, inode=identity.inode, device=identity.device, boot_id=identity.boot_id
            ),
            device_id="",
            rdma=record,
        )
        rdma_device.move_out(Kernel(), attachment)  # the undo of what was refused
    assert refused.value.errno == errno.EOPNOTSUPP
    assert str(refused.value) == (
        f"moving the RDMA device to {blue.path} failed on rxe0; EOPNOTSUPP (Operation not supported); "
        "its driver cannot move a device between netns (rxe and siw cannot); use a VF's own device"
    )
    rdma("link", "delete", "rxe0")


@pytest.mark.parametrize("netns_lives", [True, False])
@pytest.mark.parametrize("renamed", [True, False])
def test_go_plugins_state_file_is_honoured(blue: Pod, netns_lives: bool, renamed: bool) -> None:
    name = rdma_name(VF)
    rdma("dev", "set", name, "netns", "blue")
    state = {"version": "1.0", "deviceID": VF, "sandboxRdmaDevName": name, "containerRdmaDevName": name}
    GO_RDMA_FILES.mkdir(parents=True, exist_ok=True)
    (GO_RDMA_FILES / "rail-blue-net1").write_text(json.dumps(state))
    if renamed:
        rdma("dev", "set", name, "name", "mine_0", netns="blue")
    if not netns_lives:
        blue.destroy()
    blue.delete(RDMA)


def test_go_plugins_state_file_with_an_empty_netns_leaks_nothing(blue: Pod) -> None:
    name = rdma_name(VF)
    rdma("dev", "set", name, "netns", "blue")
    state = {"version": "1.0", "deviceID": VF, "sandboxRdmaDevName": name, "containerRdmaDevName": name}
    GO_RDMA_FILES.mkdir(parents=True, exist_ok=True)
    (GO_RDMA_FILES / "rail-blue-net1").write_text(json.dumps(state))
    blue.delete(RDMA, CNI_NETNS="")
    blue.destroy()
    wait_until(lambda: name in devices(), "the kernel returned it")


def test_go_plugin_finds_in_our_file_what_its_del_needs(blue: Pod) -> None:
    name = rdma_name(VF)
    add(blue, [SRIOV, RDMA])
    state = json.loads((GO_RDMA_FILES / "rail-blue-net1").read_text())
    assert state == {"version": "1.0", "deviceID": VF, "sandboxRdmaDevName": name, "containerRdmaDevName": name}
    delete(blue, [SRIOV, RDMA])


def test_damaged_state_file_is_not_taken_for_absent(blue: Pod) -> None:
    GO_RDMA_FILES.mkdir(parents=True, exist_ok=True)
    state = GO_RDMA_FILES / "rail-blue-net1"
    state.write_text('{"version": "1.0", ')
    refusal = blue.refused("DEL", RDMA)
    assert (refusal["code"], str(state) in refusal["msg"]) == (5, True)
    state.unlink()


@EACH_CHAIN
def test_damaged_record_of_ours_gives_way_to_the_go_plugins(blue: Pod, chain: list[dict[str, Any]]) -> None:
    add(blue, chain)
    damaged = [*RECORDS.rglob("*.json")]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-20])
    delete(blue, chain)
    for path in damaged:
        path.with_name(f"{path.name}.damaged").unlink()


@EACH_CHAIN
def test_state_is_written_before_changes(
    blue: Pod, chain: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    really_move, seen = rdma_device.move_in, []

    def move_in(kernel: Kernel, record: RdmaRecord, *, sandbox: Netns) -> None:
        seen.append([json.loads(path.read_text())["rdma"] for path in RECORDS.rglob("*.json")])
        really_move(kernel, record, sandbox=sandbox)

    monkeypatch.setattr(rdma_device, "move_in", move_in)
    add(blue, chain)
    (recorded,) = seen
    assert [each["name"] for each in recorded if each] == [rdma_name(VF)]
    delete(blue, chain)


@EACH_CHAIN
def test_device_info_file_names_the_rdma_device(blue: Pod, tmp_path: Path, chain: list[dict[str, Any]]) -> None:
    path = tmp_path / "devinfo"
    asking = [{**conf, "runtimeConfig": {"CNIDeviceInfoFile": str(path)}} for conf in chain]
    add(blue, asking)
    written = json.loads(path.read_text())
    assert written["pci"] == {"pci-address": VF, "rdma-device": rdma_name(VF)}
    delete(blue, asking)
    assert not path.exists()


def test_two_adds_for_one_device_one_wins(blue: Pod, green: Pod, tmp_path: Path) -> None:
    result = blue.add(SRIOV)

    def ask(pod: Pod) -> None:
        answer = pod.call("ADD", {**RDMA, "prevResult": result})
        (tmp_path / pod.name).write_text(json.dumps([answer.status, answer.document.get("code")]))

    assert side_by_side(*[lambda pod=pod: ask(pod) for pod in (blue, green)]) == [0, 0]
    answers = {pod: json.loads((tmp_path / pod.name).read_text()) for pod in (blue, green)}
    assert sorted(answers.values()) == [[0, None], [1, 11]]
    (winner,) = [pod for pod, answer in answers.items() if answer[0] == 0]
    (green if winner is blue else blue).delete(RDMA)
    assert open_uverbs(VF, winner) == 0
    winner.delete(RDMA)
    blue.delete(SRIOV)
