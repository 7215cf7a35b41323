"""Which stores a node looks through when it starts: those on record of earlier boots, and then its own."""

from __future__ import annotations

import pytest

from cni.attachments import Attachments
from cni.cli.node_startup import recorded_choices
from conf.attachment import Attachment, SandboxRecord

NOW = "boot-now"
ETCD = {"datastore": "etcd", "etcd": {"endpoints": ["https://192.0.2.1:2379"], "prefix": "/rails"}}
LEASES = {"datastore": "kubernetes-leases", "kubernetes": {"kubeconfig": "/etc/rail.kubeconfig"}}


class Node:
    """The records of one node, and what its own files say."""

    def __init__(self, root):
        self.attachments, self.defaults = Attachments(root), {}

    def record(self, store, *, boot_id="boot-before", ipam_type="whereabouts"):
        number = len(self.attachments.every())
        self.attachments.write(
            Attachment(
                plugin="sriov", network="rail", container_id=f"c{number}", ifname="net1", device_id="0000:01:10.0",
                sandbox=SandboxRecord(path="/run/netns/pod", inode=7, device=4, boot_id=boot_id),
                ipam_type=ipam_type, ipam_store=store,
            )
        )  # fmt: skip

    def chosen(self, **given):
        found = recorded_choices(
            given, attachments=self.attachments, defaults=lambda: self.defaults, boot_id=lambda: NOW
        )
        return [each.conf for each in found]


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path / "attachments")


def test_each_store_is_looked_through_once(node):
    for place in (ETCD, LEASES, ETCD, {"datastore": "local", "dataDir": "/data"}):
        node.record(place)
    found = node.chosen()
    assert [conf.chosen for conf in found] == ["etcd", "kubernetes-leases", "local"]
    assert [conf.place for conf in found] == [ETCD, LEASES, {"datastore": "local", "dataDir": "/data"}]


def test_nothing_of_an_earlier_boot_is_no_store(node):
    node.defaults = ETCD
    node.record(LEASES, boot_id=NOW)
    node.record(LEASES, boot_id="")
    node.record({"dataDir": "/var/lib/cni/networks"}, ipam_type="host-local")
    assert node.chosen() == []


def test_access_of_the_nodes_own_files_opens_the_store_on_record(node):
    node.defaults = {
        "etcd": {"username": "vferry", "password_file": "/etc/vferry/key"},
        "configuration_path": "/etc/whereabouts.d",
    }
    node.record(ETCD)
    (conf,) = node.chosen()
    assert (conf.etcd.endpoints, conf.etcd.password_file) == (ETCD["etcd"]["endpoints"], "/etc/vferry/key")
    assert conf.configuration_path == "/etc/whereabouts.d"


def test_store_that_may_have_moved_is_looked_for_where_the_node_says_by_now_too(node):
    node.defaults = {"datastore": "etcd", "etcd": {"endpoints": ["https://192.0.2.9:2379"], "prefix": "/rails"}}
    node.record(ETCD)
    assert [conf.etcd.endpoints for conf in node.chosen()] == [["https://192.0.2.1:2379"], ["https://192.0.2.9:2379"]]


def test_what_names_no_store_is_passed_over(node):
    node.record({})
    node.record({"datastore": "etcd"})
    node.record({"datastore": "another program's"})
    node.record(LEASES)
    assert [conf.chosen for conf in node.chosen()] == ["kubernetes-leases"]


def test_deadline_that_was_typed_counts(node):
    node.defaults = {"deadlineSeconds": 20}
    node.record(LEASES)
    assert [conf.deadline_s for conf in node.chosen(deadlineSeconds=3)] == [3]
    assert [conf.deadline_s for conf in node.chosen()] == [20]
