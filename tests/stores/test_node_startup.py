"""The start-up pass at real stores, with the rights that plugins have: no store is named, the records name it."""

from __future__ import annotations

import json
from functools import partial

import pytest
from click.testing import CliRunner

from cni.attachments import Attachments
from cni.cli import node_startup, reconcile
from cni.cli.command import vferry
from cni.cli.results import Results
from cni.linux import netns
from cni.sandboxes import Sandboxes
from conf.attachment import Attachment, SandboxRecord
from ipam.stores.contract import Want
from tests.stores.conftest import EtcdLab, Lab, LocalLab, owner, pool

BLOCK = "192.0.2.0/28"


class Node:
    """The machine n1 and what is on record there."""

    def __init__(self, root):
        self.attachments = Attachments(root / "attachments")
        self.sandboxes = partial(Sandboxes, attachments=self.attachments, results=Results(root / "cache"))

    def attach(self, name, store, *, boot_id=None):
        self.attachments.write(
            Attachment(
                plugin="sriov", network="rail", container_id=name, ifname="net1", device_id="",
                sandbox=SandboxRecord(path=f"/run/netns/{name}", inode=7, device=4, boot_id=boot_id or netns.boot_id()),
                ipam_type="whereabouts", ipam_store=store,
            )
        )  # fmt: skip

    def start_up(self, *words):
        done = CliRunner().invoke(
            vferry, ["ipam", "reconcile", "--node-startup", "--node", "n1", "--output", "json", *words]
        )
        return done, {each["containerID"]: each["state"] for each in json.loads(done.stdout)}


@pytest.fixture
def node(tmp_path, monkeypatch):
    node = Node(tmp_path)
    monkeypatch.setattr(node_startup, "Attachments", lambda: node.attachments)
    monkeypatch.setattr(reconcile, "Sandboxes", node.sandboxes)
    return node


def place(lab):
    """Return what an ADD writes down of where it leased."""
    make = lab.make
    if isinstance(make, LocalLab):
        return {"datastore": "local", "dataDir": str(make.data_dir)}
    if isinstance(make, EtcdLab):
        return {"datastore": "etcd", "etcd": {"endpoints": [make.server.url], "prefix": make.prefix}}
    return {"datastore": make.store.name, "kubernetes": {"kubeconfig": make.kubeconfig}}


def lease(lab, name, node="n1"):
    with lab.open() as store:
        holder = owner(name, node=node, pod_namespace="ns", pod_name=name, pod_uid=f"uid-{name}")
        store.reserve(holder, [Want(pool(BLOCK)), Want(pool("2001:db8::/64"))], allocation="lowest")


def holders(lab):
    with lab.open() as store:
        return {each.owner.container_id for each in store.leases()}


def test_earlier_boots_are_given_back_with_no_more_than_a_plugins_rights(lab, node):
    for name, where in (("old", "n1"), ("alive", "n1"), ("unrecorded", "n1"), ("elsewhere", "n2")):
        lease(lab, name, where)
    for name in ("old", "elsewhere"):
        node.attach(name, place(lab), boot_id="boot-before")
    node.attach("alive", place(lab))
    done, _found = node.start_up("--dry-run")
    assert (done.exit_code, len(holders(lab))) == (0, 4)
    done, found = node.start_up()
    assert (done.exit_code, found) == (0, {"old": "reaped", "unrecorded": "unknown"}), done.output
    assert holders(lab) == {"alive", "unrecorded", "elsewhere"}
    assert node.start_up()[1] == {"unrecorded": "unknown"}


def test_store_that_does_not_answer_holds_up_no_other_one(tmp_path, node):
    silent = {"datastore": "etcd", "etcd": {"endpoints": ["http://127.0.0.1:1"]}}
    labs = [Lab(LocalLab(tmp_path / name)) for name in ("a", "b")]
    for name, lab in zip(("a", "z"), labs, strict=True):
        lease(lab, name)
        node.attach(name, place(lab), boot_id="boot-before")
    node.attach("m", silent, boot_id="boot-before")
    done, found = node.start_up("--deadline", "0.5")
    assert (done.exit_code, found) == (1, {"a": "reaped", "z": "reaped"})
    assert "datastore etcd: " in done.stderr and "127.0.0.1:1" in done.stderr
    assert [holders(lab) for lab in labs] == [set(), set()]


def test_nothing_on_record_asks_nobody(node):
    done, found = node.start_up()
    assert (done.exit_code, found) == (0, {})
    assert "no leases" in done.stderr
