"""Attachment records: durable, private, never taken for absent when they cannot be read."""

from __future__ import annotations

import json
import os

import pytest

from cni import attachments
from cni.attachments import Attachments, delete_durably, write_durably
from conf.attachment import Attachment, LinkRecord, SandboxRecord, VfRecord, Wanted
from conf.errors import IoFailure

VF = "0000:3b:02.0"


@pytest.fixture
def records(tmp_path):
    return Attachments(tmp_path / "vferry/attachments")


def attachment(container_id="c", ifname="net1", **more):
    return Attachment(
        plugin="sriov",
        network="rail",
        container_id=container_id,
        ifname=ifname,
        sandbox=SandboxRecord(path="/n", inode=7, device=4, boot_id="b"),
        device_id=VF,
        **more,
    )


FULL = attachment(
    pf_pci_address="0000:3b:00.0",
    pf_ifname="ens1",
    vf_index=0,
    link=LinkRecord(ifname="ens1v0", index=9, mac="02:00:00:00:00:01", mtu_bytes=1500, up=False, altnames=["a", "b"]),
    vf=VfRecord(
        mac="02:00:00:00:00:01",
        vlan_id=0,
        vlan_qos=0,
        vlan_proto="802.1q",
        min_tx_rate_mbps=0,
        max_tx_rate_mbps=0,
        spoofchk=None,
        trust=False,
        link_state=None,
        mac_is_administrative=False,
    ),
    wanted=Wanted(vlan_id=0, spoofchk=False, mac="02:00:00:00:00:02"),
)


@pytest.mark.parametrize("record", [attachment(), FULL, FULL.model_copy(update={"returned": True})])
def test_what_is_written_is_read_again(records, record):
    records.write(record)
    assert records.load("sriov", "c", "net1") == record
    assert records.every() == [record]
    records.delete(record)
    assert (records.load("sriov", "c", "net1"), records.every()) == (None, [])
    records.delete(record)


def test_two_attachments_never_share_a_file(records):
    owners = [("a", "b-c"), ("a-b", "c"), ("c" * 250, "net1"), ("c" * 251, "net1"), ("c" * 250, "net2")]
    for owner in owners:
        records.write(attachment(*owner))
    assert {record.owner for record in records.every("sriov")} == set(owners)
    for owner in owners:
        assert records.load("sriov", *owner).owner == owner


def test_records_of_another_plugin_are_its_own(records):
    records.write(attachment())
    records.write(attachment().model_copy(update={"plugin": "rdma"}))
    assert [record.plugin for record in records.every("rdma")] == ["rdma"]
    assert records.load("host-device", "c", "net1") is None
    assert len(records.every()) == 2


def test_holding_counts_who_has_not_given_back(records):
    records.write(attachment("a"))
    records.write(attachment("b").model_copy(update={"returned": True}))
    records.write(attachment("c").model_copy(update={"device_id": "0000:3b:02.1"}))
    assert [record.container_id for record in records.holding(VF)] == ["a"]


@pytest.mark.parametrize("indent", [None, 1, 4])
@pytest.mark.parametrize("other", ["0000:3b:02.1", f"{VF}0", ""])
def test_records_of_one_device_are_found_however_they_are_written(records, indent, other):
    for name, device_id in (("a", VF), ("b", other)):
        # What a user may name like our key must not be taken for it.
        recorded = attachment(name).model_copy(update={"device_id": device_id, "network": f'"device_id": "{VF}"'})
        records.write(recorded)
        (path,) = records.root.rglob(f"{name}:*.json")
        path.write_text(json.dumps(json.loads(path.read_bytes()), indent=indent))
    assert [record.container_id for record in records.every(device_id=VF)] == ["a"]
    assert [record.container_id for record in records.every(device_id=other)] == ["b"]


def test_of_one_device_the_others_are_not_even_decoded(records, monkeypatch):
    decoded = []
    real = attachments._decoded
    monkeypatch.setattr(attachments, "_decoded", lambda content, path: decoded.append(path) or real(content, path))
    for number in range(20):
        records.write(attachment(f"c{number}").model_copy(update={"device_id": f"0000:3b:02.{number}"}))
    assert len(records.holding("0000:3b:02.19")) == 1
    assert len(decoded) == 1


@pytest.mark.parametrize("umask", [0, 0o022])
def test_files_and_every_new_folder_are_roots_alone_whatever_the_umask(records, umask):
    before = os.umask(umask)
    try:
        records.write(attachment())
    finally:
        os.umask(before)
    paths = [records.root.parent, *records.root.parent.rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o700}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b'{"version": 2}', b'{"version": 1}', b'{"plugin": "sriov"}'],
)
def test_damaged_record_is_an_error_and_not_absence(records, content):
    records.write(attachment())
    (path,) = records.root.rglob("*.json")
    path.write_bytes(content)
    with pytest.raises(IoFailure) as refused:
        records.load("sriov", "c", "net1")
    assert str(path) in refused.value.msg


def test_damaged_record_hides_no_other(records, caplog):
    for name in "abc":
        records.write(attachment(name))
    (records.root / "sriov/b:net1.json").write_text("{")
    assert [record.container_id for record in records.every()] == ["a", "c"]
    assert "b:net1.json" in caplog.text
    assert (records.root / "sriov/b:net1.json").exists()


def test_record_of_a_later_version_of_ours_keeps_what_it_does_not_know(records):
    records.write(attachment())
    (path,) = records.root.rglob("*.json")
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "news": {"a": 1}}))
    record = records.load("sriov", "c", "net1")
    records.write(record.model_copy(update={"returned": True}))
    assert json.loads(path.read_text())["news"] == {"a": 1}


def test_what_a_killed_writer_left_is_no_record_and_goes_with_the_next(records):
    records.write(attachment())
    (path,) = records.root.rglob("*.json")
    left = path.with_name(f".{path.name}.new")
    left.write_text('{"version"')
    assert len(records.every()) == 1
    records.write(attachment())
    assert not left.exists()
    left.write_text("{")
    records.delete(attachment())
    assert list(path.parent.iterdir()) == []


def test_what_a_killed_writer_left_and_no_del_came_for_goes_when_it_is_old(records):
    records.write(FULL)
    folder = records.root / "sriov"
    for name, age_s in ((".old:net1.json.new", 3601), (".young:net1.json.new", 3000)):
        (folder / name).touch()
        os.utime(folder / name, (1e9 - age_s, 1e9 - age_s))
    os.utime(folder / "c:net1.json", (0, 0))
    records.delete_abandoned("sriov", now=1e9)
    assert sorted(path.name for path in folder.iterdir()) == [".young:net1.json.new", "c:net1.json"]


def test_write_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    fsync = os.fsync

    def watched(descriptor):
        # The folder is synced when the file has its name, the file before.
        events.append((os.path.isdir(f"/proc/self/fd/{descriptor}"), (tmp_path / "f").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_durably(tmp_path / "f", b"x")
    delete_durably(tmp_path / "f")
    assert events == [(False, False), (True, True), (True, False)]


def test_failed_write_leaves_the_old_one_and_nothing_beside(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_durably(path, b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IoFailure) as refused:
        write_durably(path, b"new")
    assert (str(path) in refused.value.msg, "No space left" in refused.value.details) == (True, True)
    assert ([each.name for each in tmp_path.iterdir()], path.read_bytes()) == (["f"], b"old")


def test_what_cannot_be_deleted_is_an_error(tmp_path):
    (tmp_path / "f").mkdir()
    with pytest.raises(IoFailure, match="cannot delete"):
        delete_durably(tmp_path / "f")
