"""A node's word on a sandbox rests on what is recorded here; what cannot be read, or is not there, proves nothing."""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest
from netaddr import IPAddress

from cni.attachments import Attachments
from cni.cli.results import Results
from cni.linux import netns
from cni.sandboxes import Sandboxes
from conf.attachment import Attachment, SandboxRecord
from conf.cached_attachment import CachedAttachment
from ipam.reaping import NOTHING_KNOWN
from ipam.stores.contract import Lease, Owner

NOW, BEFORE = "boot-now", "boot-before"


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


class Scene:
    """One node of the name n1, with records and netns files of its own."""

    def __init__(self, root):
        self.attachments, self.results = Attachments(root / "attachments"), Results(root / "cache")
        self.run = root / "netns"
        self.run.mkdir()
        self.netns = self.run / "pod"
        self.inhabited = set()
        self.locked = []
        self.sandboxes = Sandboxes(
            "n1",
            attachments=self.attachments,
            results=self.results,
            boot_id=lambda: NOW,
            is_inhabited=lambda inode, _device: inode in self.inhabited,
            lock=self.lock,
        )

    @contextmanager
    def lock(self, name):
        self.locked.append(name)
        yield
        self.locked.remove(name)

    def record(self, *, boot_id=NOW, path=None, plugin="sriov"):
        sandbox = SandboxRecord(path=str(path or self.netns), inode=7, device=4, boot_id=boot_id)
        self.attachments.write(
            Attachment(
                plugin=plugin, network="n", container_id="c1", ifname="net1", sandbox=sandbox, device_id="0000:01:10.0"
            )
        )

    def cache(self, path=None):
        cached = CachedAttachment(
            containerId="c1", ifName="net1", networkName="rail", netns=str(self.netns if path is None else path)
        )
        self.results.write(cached)

    def said(self, *, container_id="c1", ifname="net1", node="n1"):
        lease = Lease(Owner(container_id, ifname, node=node), "", "", IPAddress("192.0.2.1"), 0, "1")
        return self.sandboxes.sandbox(lease), self.sandboxes.earlier_boot(lease)


def test_nothing_recorded_proves_nothing(scene):
    assert scene.said() == (NOTHING_KNOWN, NOTHING_KNOWN)


@pytest.mark.parametrize("source", ["record", "cache"])
def test_netns_that_is_gone_is_proof(scene, source):
    getattr(scene, source)()
    assert scene.said()[0].gone == f"netns {scene.netns} on node n1 is gone"


@pytest.mark.parametrize("source", ["record", "cache"])
def test_netns_that_is_there_lives(scene, source):
    getattr(scene, source)()
    scene.netns.touch()
    # An empty file: in the runtime's mount namespace it may be a netns all the same.
    assert scene.said()[0].lives


@pytest.mark.parametrize("source", ["record", "cache"])
def test_any_interface_of_the_container_tells_of_a_lease_that_names_none(scene, source):
    """As those of an old upstream, which name no node either."""
    getattr(scene, source)()
    assert scene.said(ifname="", node="")[0].gone == f"netns {scene.netns} on node n1 is gone"
    assert scene.said(ifname="", node="", container_id="c")[0] == NOTHING_KNOWN
    scene.netns.touch()
    assert scene.said(ifname="", node="")[0].lives


def test_directory_that_is_not_there_proves_nothing(scene):
    # As in a pod that sees the records but not /run/netns.
    scene.record(path="/nowhere-of-ours/netns/pod")
    assert scene.said()[0].gone == ""


def test_netns_without_a_path_is_not_told_gone_by_its_process(scene):
    scene.record()
    scene.inhabited.add(7)
    assert "a process is still in" in scene.said()[0].lives


def test_earlier_boot_is_proof_whatever_is_at_the_path(scene):
    scene.record(boot_id=BEFORE)
    scene.netns.touch()
    for word in scene.said():
        assert BEFORE in word.gone
        assert NOW in word.gone


def test_one_record_of_this_boot_is_enough_to_live(scene):
    scene.record(boot_id=BEFORE)
    scene.record(boot_id=NOW, plugin="rdma")
    scene.netns.touch()
    assert [bool(word.lives) for word in scene.said()] == [True, True]


def test_device_of_both_records_is_locked_once_and_for_as_long(scene):
    for plugin in ("sriov", "rdma"):
        scene.record(boot_id=BEFORE, plugin=plugin)
    lease = Lease(Owner("c1", "net1", node="n1"), "", "", IPAddress("192.0.2.1"), 0, "1")
    with scene.sandboxes.held_off(lease):
        assert scene.locked == ["0000:01:10.0"]
    assert scene.locked == []


def test_record_without_a_boot_is_no_proof_of_an_earlier_one(scene):
    scene.record(boot_id="")
    scene.netns.touch()
    sandbox, earlier = scene.said()
    assert sandbox.lives
    assert earlier == NOTHING_KNOWN


def test_cached_result_without_a_netns_proves_nothing(scene):
    scene.cache(path="")
    assert scene.said()[0] == NOTHING_KNOWN


def test_lease_of_another_node_is_not_ours_to_tell(scene):
    scene.record()
    assert scene.said(node="n2") == (NOTHING_KNOWN, NOTHING_KNOWN)
    assert scene.said(node="")[0].gone  # upstream's, which names no node; the container is known here


def test_record_that_cannot_be_read_is_not_absence(scene):
    scene.record()
    (damaged,) = (scene.attachments.root / "sriov").glob("*.json")
    damaged.write_text("{")
    assert [bool(word.lives) for word in scene.said()] == [True, True]


def test_ids_are_taken_word_for_word(scene):
    scene.cache()
    assert scene.said(container_id="*")[0] == NOTHING_KNOWN


def test_process_in_a_netns_is_found(tmp_path):
    (tmp_path / "12" / "ns").mkdir(parents=True)
    (tmp_path / "13").mkdir()  # has just ended
    file = tmp_path / "12" / "ns" / "net"
    file.touch()
    stat = os.stat(file)
    assert netns.is_inhabited(stat.st_ino, stat.st_dev, str(tmp_path))
    assert not netns.is_inhabited(stat.st_ino + 1, stat.st_dev, str(tmp_path))
