"""The Go plugin's state file, read and written, and where it and its allocation lie. Source: reference 2.5."""

from __future__ import annotations

import json

import pytest

from cni.upstream_sriov import GoSriovFiles
from conf.attachment import Attachment, LinkRecord, SandboxRecord, VfRecord, Wanted
from conf.errors import IoFailure
from conf.upstream_sriov import from_upstream, to_upstream

VF = "0000:af:06.1"
# As json.Marshal of sriov-cni v2.9 and v2.10 writes its NetConf for: vlan, qos, mac, rates, spoofchk, trust, state.
GO_STATE = (
    '{"cniVersion":"0.3.1","name":"sriov-net","type":"sriov","ipam":{"type":"host-local"},"dns":{},"prevResult":null,'
    '"OrigVfState":{"HostIFName":"enp175s7","SpoofChk":true,"Trust":false,"AdminMAC":"00:00:00:00:00:00",'
    '"EffectiveMAC":"AE:00:00:00:00:07","Vlan":6,"VlanQoS":1,"VlanProto":34984,"MinTxRate":1,"MaxTxRate":1000,'
    '"LinkState":2,"MTU":1500},"Master":"enp175s0f1","MAC":"02:00:00:00:00:01","MTU":9000,"vlan":100,"vlanQoS":2,'
    '"vlanProto":"802.1q","deviceID":"0000:AF:06.1","VFID":1,"min_tx_rate":0,"max_tx_rate":4000,"spoofchk":"off",'
    '"trust":"on","link_state":"enable","runtimeConfig":{"mac":"02:00:00:00:00:01"},"logLevel":"info"}'
)
# The least it writes: nothing asked for, DPDK, no proto known (v2.7 and before).
GO_BARE = (
    '{"cniVersion":"1.0.0","name":"bare","type":"sriov","ipam":{},"dns":{},"OrigVfState":{"HostIFName":"",'
    '"SpoofChk":false,"Trust":false,"AdminMAC":"","EffectiveMAC":"","Vlan":0,"VlanQoS":0,"VlanProto":0,"MinTxRate":0,'
    '"MaxTxRate":0,"LinkState":0,"MTU":0},"Master":"enp175s0f1","MAC":"","MTU":null,"vlan":null,"vlanQoS":null,'
    '"vlanProto":null,"deviceID":"0000:af:06.1","VFID":1,"min_tx_rate":null,"max_tx_rate":null,"runtimeConfig":{}}'
)


def read(text):
    return from_upstream(json.loads(text), container_id="c", ifname="net1", netns_path="/n", where="it")


def test_state_of_the_go_plugin():
    got = read(GO_STATE)
    assert (got.owner, got.network, got.device_id, got.pf_ifname, got.vf_index) == (
        ("c", "net1"),
        "sriov-net",
        VF,
        "enp175s0f1",
        1,
    )
    assert (got.dpdk_driver, got.ipam_type, got.returned) == (None, "host-local", False)
    assert got.sandbox == SandboxRecord(path="/n", inode=0, device=0, boot_id="")
    assert got.link == LinkRecord(ifname="enp175s7", index=0, mac="ae:00:00:00:00:07", mtu_bytes=1500)
    assert (got.link.up, got.link.altnames, got.link.alias, got.link.txqlen) == (None, None, None, None)
    assert got.vf == VfRecord(
        mac="00:00:00:00:00:00",
        vlan_id=6,
        vlan_qos=1,
        vlan_proto="802.1ad",
        min_tx_rate_mbps=1,
        max_tx_rate_mbps=1000,
        spoofchk=True,
        trust=False,
        link_state="disable",
    )
    wanted = got.wanted
    assert (wanted.vlan_id, wanted.mac, wanted.min_tx_rate_mbps, wanted.max_tx_rate_mbps) == (
        100,
        "02:00:00:00:00:01",
        0,
        4000,
    )
    assert (wanted.spoofchk, wanted.trust, wanted.link_state) == (False, True, "enable")


def test_bare_state_of_the_go_plugin():
    got = read(GO_BARE)
    assert (got.link, got.dpdk_driver is not None, got.vf.vlan_proto, got.ipam_type) == (None, True, "802.1q", "")
    assert got.wanted == Wanted()


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"deviceID": 7}',
        '{"deviceID": "../../../etc/x"}',
        '{"deviceID": "0000:af:06.1", "OrigVfState": []}',
        '{"deviceID": "0000:af:06.1", "VFID": "1"}',
    ],
)
def test_malformed_state_is_an_io_failure_that_names_the_file(text):
    with pytest.raises(IoFailure, match=r"^it: "):
        read(text)


OURS = Attachment(
    plugin="sriov",
    network="rail",
    container_id="c",
    ifname="net1",
    sandbox=SandboxRecord(path="/n", inode=7, device=4, boot_id="b"),
    device_id=VF,
    pf_ifname="enp175s0f1",
    vf_index=1,
    link=LinkRecord(ifname="enp175s7", index=9, mac="ae:00:00:00:00:07", mtu_bytes=1500, up=True, altnames=["a"]),
    vf=VfRecord(
        mac="ae:00:00:00:00:07",
        vlan_id=6,
        vlan_qos=1,
        vlan_proto="802.1ad",
        min_tx_rate_mbps=1,
        max_tx_rate_mbps=1000,
        spoofchk=True,
        trust=False,
        link_state="disable",
    ),
    wanted=Wanted(
        vlan_id=100,
        vlan_qos=2,
        mac="02:00:00:00:00:01",
        min_tx_rate_mbps=0,
        max_tx_rate_mbps=4000,
        spoofchk=False,
        trust=True,
        link_state="enable",
    ),
    ipam_type="whereabouts",
)
# What Go reads into: key -> types that json.Unmarshal takes there.
GO_TYPES = {
    "name": str,
    "type": str,
    "ipam": dict,
    "Master": str,
    "MAC": str,
    "MTU": int | None,
    "vlan": int | None,
    "vlanQoS": int | None,
    "vlanProto": str | None,
    "deviceID": str,
    "VFID": int,
    "min_tx_rate": int | None,
    "max_tx_rate": int | None,
    "spoofchk": str,
    "trust": str,
    "link_state": str,
    "runtimeConfig": dict,
    "OrigVfState": dict,
}
GO_ORIG_TYPES = {
    "HostIFName": str,
    "SpoofChk": bool,
    "Trust": bool,
    "AdminMAC": str,
    "EffectiveMAC": str,
    "Vlan": int,
    "VlanQoS": int,
    "VlanProto": int,
    "MinTxRate": int,
    "MaxTxRate": int,
    "LinkState": int,
    "MTU": int,
}


@pytest.mark.parametrize(
    "attachment",
    [
        OURS,
        OURS.model_copy(update={"wanted": Wanted()}),
        OURS.model_copy(update={"link": None, "dpdk_driver": "vfio-pci"}),
        OURS.model_copy(update={"vf": None, "pf_ifname": None, "vf_index": None, "wanted": Wanted()}),
        OURS.model_copy(update={"vf": OURS.vf.model_copy(update={"spoofchk": None, "link_state": None})}),
    ],
    ids=["all", "nothing-wanted", "dpdk", "no-pf", "unreported"],
)
def test_what_is_written_go_can_read(attachment):
    document = json.loads(json.dumps(to_upstream(attachment)))
    assert [key for key in document if not isinstance(document[key], GO_TYPES[key])] == []
    orig = document["OrigVfState"]
    assert [key for key in orig if not isinstance(orig[key], GO_ORIG_TYPES[key])] == []


def test_round_trip_keeps_all_that_go_knows():
    back = from_upstream(to_upstream(OURS), container_id="c", ifname="net1", netns_path="/n", where="it")
    assert (back.vf, back.device_id, back.pf_ifname, back.vf_index, back.ipam_type, back.network) == (
        OURS.vf,
        OURS.device_id,
        OURS.pf_ifname,
        OURS.vf_index,
        OURS.ipam_type,
        OURS.network,
    )
    assert (back.link.ifname, back.link.mac, back.link.mtu_bytes) == ("enp175s7", "ae:00:00:00:00:07", 1500)
    assert back.wanted == OURS.wanted.model_copy(update={"vlan_qos": 0})  # which is not needed for the way back


def test_of_nothing_wanted_go_resets_nothing():
    document = to_upstream(OURS.model_copy(update={"wanted": Wanted()}))
    assert [document[key] for key in ("vlan", "vlanQoS", "vlanProto", "min_tx_rate", "max_tx_rate")] == [None] * 5
    assert [document[key] for key in ("MAC", "spoofchk", "trust", "link_state")] == [""] * 4


@pytest.fixture
def files(tmp_path):
    return GoSriovFiles(tmp_path / "sriov")


def test_files_lie_where_go_looks(files):
    files.write(OURS)
    assert json.loads((files.root / "c-net1").read_text())["deviceID"] == VF
    assert (files.root / "pci" / VF).read_text() == "/n"
    assert files.load("c", "net1").sandbox.path == "/n"
    assert files.load("c", "net2") is None
    files.delete(OURS)
    assert [path for path in files.root.rglob("*") if path.is_file()] == []


def test_allocation_that_has_become_anothers_stays(files):
    files.write(OURS)
    (files.root / "pci" / VF).write_text("/other")
    files.delete(OURS)
    assert files.allocated_to(VF) == "/other"
    assert files.load("c", "net1") is None


def test_virtual_link_has_no_allocation(files):
    files.write(OURS)
    files.delete(OURS.model_copy(update={"container_id": "d", "device_id": ""}))
    assert files.allocated_to(VF) == "/n"


def test_what_a_killed_writer_left_beside_an_allocation_goes_with_the_attachment(files):
    unfinished = files.root / "pci" / f".{VF}.new"
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    unfinished.touch()
    files.delete(OURS)
    assert not unfinished.exists()


@pytest.mark.parametrize("container_id", ["c0ffee", "cnitool-77383ca0a1715733ca6f", "a-b-c"])
def test_holding_finds_an_attachment_whatever_its_container_is_called(files, container_id):
    files.write(OURS.model_copy(update={"container_id": container_id}))
    (files.root / "junk-net1").write_text("{")
    (files.root / "other-net1").write_text(GO_STATE.replace("AF:06.1", "AF:06.2"))
    (found,) = files.holding(VF)
    assert f"{found.container_id}-{found.ifname}" == f"{container_id}-net1"
    assert files.holding("0000:af:06.7") == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_damaged_state_is_an_io_failure_that_names_the_file(files, content):
    files.root.mkdir()
    (files.root / "c-net1").write_bytes(content)
    with pytest.raises(IoFailure, match="c-net1"):
        files.load("c", "net1")


def test_container_id_longer_than_a_file_name_has_no_state(files):
    long = OURS.model_copy(update={"container_id": "c" * 250})
    assert files.load(*long.owner) is None
    files.write(long)
    assert files.allocated_to(VF) == "/n"
    files.delete(long)
    assert files.allocated_to(VF) is None
