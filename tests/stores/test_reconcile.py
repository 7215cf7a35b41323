"""Reconciling real stores with an API server's pods and nodes: a node that is cut off keeps its addresses."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import replace

import pytest
from click.testing import CliRunner

from cni.attachments import Attachments
from cni.cli import reconcile as command
from cni.cli.command import vferry
from cni.cli.results import Results
from cni.sandboxes import Sandboxes
from conf.attachment import Attachment, SandboxRecord
from ipam.reaping import Reaper, Rules
from ipam.stores.contract import Deadline, Want
from ipam.stores.iplease import COLLECTION
from ipam.stores.kubeconfig import find_access
from ipam.stores.kubernetes_api import KubernetesApi
from ipam.stores.pods import CRDS, OUT_OF_SERVICE, RBAC, Pods
from tests.stores.conftest import KUBERNETES, STORES, EtcdLab, KubernetesLab, Lab, kubernetes_lab, owner, pool
from tests.stores.upstream_writer import Upstream, run

BLOCK = "192.0.2.0/28"
GRACE, INTERVAL = 600, 30


class Cluster:
    """The core objects of an API server, as controllers write them."""

    def __init__(self, server):
        self._url = f"{server.url}/api/v1"

    def pod(self, name, *, node="n1", phase="Running"):
        """Create a pod and return its UID."""
        metadata = {"name": name, "namespace": "ns"}
        body = {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": {"nodeName": node}}
        return self._call("POST", "namespaces/ns/pods", body | {"status": {"phase": phase}})["metadata"]["uid"]

    def node(self, name, *, ready=True, taints=(), hostname=None):
        conditions = [{"type": "Ready", "status": "True" if ready else "Unknown"}]
        metadata = {"name": name, "labels": {"kubernetes.io/hostname": hostname or name}}
        body = {"kind": "Node", "apiVersion": "v1", "metadata": metadata, "status": {"conditions": conditions}}
        self._call("POST", "nodes", body | {"spec": {"taints": [{"key": key} for key in taints]}})

    def delete(self, path):
        self._call("DELETE", path, {})

    def events(self):
        return [item["message"] for item in self._call("GET", "namespaces/ns/events")["items"]]

    def _call(self, method, path, body=None):
        headers = {"Authorization": "Bearer admin", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self._url}/{path}", data, headers, method=method)) as got:
            return json.load(got)


class Scene:
    """One store, the cluster its pods are in, and the machine that reconciles them."""

    def __init__(self, lab, server, tmp_path, name="reconciler"):
        self.lab, self.server = lab, server
        server.switch(tokens={"node's token": getattr(lab.make, "rbac", "rbac-kubernetes.yaml"), "admin": "*",
                              "reconciler": RBAC})  # fmt: skip
        self.cluster = Cluster(server)
        self.cluster.node("n1")
        self.kubeconfig = server.write_kubeconfig(path=tmp_path / "reconcile.kubeconfig", token="reconciler")
        self.attachments = Attachments(tmp_path / "attachments")
        self.node = Sandboxes(name, attachments=self.attachments, results=Results(tmp_path / "cache"))
        self.pods = Pods(self._api)
        self.reaper = self.make()

    def make(self, **more):
        return Reaper(
            self.open_store,
            self.node,
            cluster=self.pods,
            rules=Rules(grace_s=GRACE, interval_s=INTERVAL),
            clock=self.lab.clock,
            monotonic=self.lab.clock,
            **more,
        )

    def open_store(self, deadline=None):
        make = self.lab.make
        if isinstance(make, KubernetesLab):
            # As whom its own manifest makes it, which must be enough for everything.
            make = KubernetesLab(make.store, str(self.kubeconfig), make.run, make.crds, RBAC)
        return make(clock=self.lab.clock, cooldown_s=60.0, deadline_s=30.0)

    def _api(self, deadline):
        return KubernetesApi(find_access(str(self.kubeconfig)), deadline=deadline, crds=CRDS, rbac=RBAC)

    def lease(self, name, *, uid, node="n1", container_id=None):
        recorded = {"pod_namespace": "ns", "pod_name": name, "pod_uid": uid, "node": node}
        with self.lab.open() as store:
            holder = owner(container_id or f"c-{name}", **recorded)
            (lease,) = store.reserve(holder, [Want(pool(BLOCK))], allocation="lowest")
        return lease

    def holders(self):
        with self.lab.open() as store:
            return {lease.owner.container_id for lease in store.leases()}

    def states(self):
        return {finding.lease.owner.container_id: finding.state for finding in self.reaper.look()}

    def twice(self):
        """Two looks, long after everything was made."""
        self.lab.clock.now += GRACE + 1
        self.states()
        self.lab.clock.now += INTERVAL
        return self.states()


@pytest.fixture(params=sorted({"etcd", *KUBERNETES}))
def scene(request, api_server, tmp_path):
    lab = Lab(STORES[request.param](request))
    return Scene(lab, api_server, tmp_path)


def test_deleted_pod_of_a_deleted_node_loses_its_lease(scene):
    scene.cluster.node("n2")
    uid = scene.cluster.pod("a", node="n2")
    lease = scene.lease("a", uid=uid, node="n2")
    assert scene.twice() == {"c-a": "in use"}
    scene.cluster.delete("namespaces/ns/pods/a")
    assert scene.twice() == {"c-a": "suspected"}
    scene.cluster.delete("nodes/n2")
    assert scene.twice() == {"c-a": "reaped"}
    assert scene.holders() == set()
    assert scene.cluster.events() == [
        f"{lease.address} of net1: pod ns/a does not exist; proof: Node n2 does not exist"
    ]


def test_node_that_is_cut_off_keeps_the_addresses_of_its_pods(scene):
    # Evicted by taint, force-deleted by an impatient administrator, and running all the same.
    scene.cluster.node("n2", ready=False, taints=["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"])
    scene.lease("a", uid="uid-a", node="n2")
    for _ in range(2):
        assert scene.twice() == {"c-a": "suspected"}
    assert scene.holders() == {"c-a"}


def test_all_addresses_of_one_owner_are_reaped_in_one_look(scene):
    scene.cluster.node("n2", taints=[OUT_OF_SERVICE])
    wants = [Want(pool(BLOCK)), Want(pool("2001:db8::/64"))]
    holder = owner("c-a", pod_namespace="ns", pod_name="a", pod_uid="u", node="n2")
    with scene.lab.open() as store:
        store.reserve(holder, wants, allocation="lowest")
    scene.lab.clock.now += GRACE + 1
    scene.reaper.look()
    scene.lab.clock.now += INTERVAL
    assert [finding.state for finding in scene.reaper.look()] == ["reaped", "reaped"]
    assert scene.holders() == set()


def test_node_declared_out_of_service_is_proof(scene):
    scene.cluster.node("n2", ready=False, taints=[OUT_OF_SERVICE])
    scene.lease("a", uid="uid-a", node="n2")
    assert scene.twice() == {"c-a": "reaped"}


def test_pod_recreated_under_the_same_name_is_another_one(scene):
    scene.cluster.node("n2", taints=[OUT_OF_SERVICE])
    old = scene.cluster.pod("web-0", node="n2")
    scene.lease("web-0", uid=old, node="n2", container_id="old")
    scene.cluster.delete("namespaces/ns/pods/web-0")
    new = scene.cluster.pod("web-0", node="n1")
    scene.lease("web-0", uid=new, node="n1", container_id="new")
    assert scene.twice() == {"old": "reaped", "new": "in use"}
    assert scene.holders() == {"new"}


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_pod_that_has_ended_is_gone(scene, phase):
    scene.cluster.node("n2", taints=[OUT_OF_SERVICE])
    scene.lease("job", uid=scene.cluster.pod("job", node="n2", phase=phase), node="n2")
    assert scene.twice() == {"c-job": "reaped"}


def test_pod_that_waits_is_not_gone(scene):
    scene.lease("a", uid=scene.cluster.pod("a", phase="Pending"), node="never-there")
    assert scene.twice() == {"c-a": "in use"}


def test_host_name_that_is_no_nodes_name_is_no_absence(scene):
    # Without NODENAME a lease records the host name, which may have a domain that the Node's name has not.
    scene.lease("a", uid="uid-a", node="n1.example.com")
    assert scene.twice() == {"c-a": "suspected"}
    # Or it may be quite another word; a pod that lives tells.
    scene.lease("b", uid="uid-b", node="machine-7", container_id="dead")
    scene.lease("c", uid=scene.cluster.pod("c", node="n1"), node="machine-7", container_id="alive")
    assert scene.twice() == {"c-a": "suspected", "dead": "suspected", "alive": "in use"}


def test_word_of_the_node_itself_is_proof(scene, tmp_path):
    scene.node.name = "n1"
    scene.lease("a", uid="uid-a")
    netns = tmp_path / "netns" / "pod"
    netns.parent.mkdir()
    netns.touch()
    scene.attachments.write(
        Attachment(
            plugin="sriov", network="n", container_id="c-a", ifname="net1", device_id="0000:01:10.0",
            sandbox=SandboxRecord(path=str(netns), inode=0, device=0, boot_id=_boot_id()),
        )
    )  # fmt: skip
    assert scene.twice() == {"c-a": "suspected"}
    netns.unlink()
    assert scene.twice() == {"c-a": "reaped"}


def test_api_server_that_is_down_makes_nothing_stale(scene):
    scene.lease("a", uid="uid-a", node="gone")
    scene.pods = Pods(_unreachable, deadline_s=0.5)
    scene.reaper = scene.make()
    assert scene.twice() == {"c-a": "unknown"}
    assert scene.holders() == {"c-a"}


def test_reaped_address_cools_down_and_is_given_again(scene):
    lease = scene.lease("a", uid="uid-a", node="gone")
    assert scene.twice() == {"c-a": "reaped"}
    assert scene.lease("b", uid="uid-b").address != lease.address
    scene.lab.clock.now += 61
    assert scene.lease("c", uid="uid-c").address == lease.address


def test_what_upstream_made_is_judged_by_its_pod(api_server, tmp_path, request):
    scene = Scene(Lab(STORES["kubernetes"](request)), api_server, tmp_path)
    upstream = Upstream(api_server)
    uid = scene.cluster.pod("web-0")
    assert uid
    run(upstream.add("old-sandbox", "ns/web-0", BLOCK))
    run(upstream.add("lost", "ns/gone", BLOCK))
    # No node and no time is recorded, so that nobody can prove where the sandbox was.
    assert scene.twice() == {"old-sandbox": "in use", "lost": "suspected"}
    assert len(upstream.reservations()) == 2


def test_command_looks_twice_and_tells_what_it_did(scene, monkeypatch, tmp_path):
    scene.cluster.node("n2")
    scene.lease("alive", uid=scene.cluster.pod("alive"), node="n1")
    lease = scene.lease("a", uid="uid-a", node="gone")
    slept = []
    monkeypatch.setattr(command, "_sleep", slept.append)
    make = scene.lab.make
    options = ["--kubeconfig", str(scene.kubeconfig), "--interval", "0", "--grace", "0", "--node", "reconciler"]
    if isinstance(make, EtcdLab):
        monkeypatch.setenv("NETCONFPATH", str(tmp_path / "net.d"))
        (tmp_path / "net.d").mkdir()
        ipam = {"type": "whereabouts", "range": BLOCK, "datastore": "etcd"}
        ipam["etcd"] = {"endpoints": [make.server.url], "prefix": make.prefix}
        network = {"cniVersion": "1.0.0", "name": "rail", "type": "macvlan", "ipam": ipam}
        (tmp_path / "net.d" / "rail.conf").write_text(json.dumps(network))
        options += ["--network", "rail"]
    else:
        options += ["--datastore", make.store.name]
    dry = CliRunner().invoke(vferry, ["ipam", "reconcile", *options, "--dry-run", "--output", "json"])
    assert dry.exit_code == 0, dry.output
    assert [(each["address"], each["state"]) for each in json.loads(dry.stdout)] == [(str(lease.address), "stale")]
    assert scene.holders() == {"c-alive", "c-a"}
    done = CliRunner().invoke(vferry, ["ipam", "reconcile", *options, "--all"])
    assert done.exit_code == 0, done.output
    assert slept == [0.0, 0.0]
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "reaped" in rows[str(lease.address)]
    assert "proof: Node gone does not exist" in rows[str(lease.address)]
    assert "1 in use, 1 reaped" in done.stderr
    assert scene.holders() == {"c-alive"}


def test_manifest_allows_no_more_than_is_needed(api_server, tmp_path, request):
    scene = Scene(Lab(STORES["kubernetes-leases"](request)), api_server, tmp_path)
    for method, path in (("DELETE", "namespaces/ns/pods/a"), ("GET", "namespaces/ns/pods"), ("DELETE", "nodes/n1")):
        asked = urllib.request.Request(
            f"{api_server.url}/api/v1/{path}", b"{}" if method == "DELETE" else None,
            {"Authorization": "Bearer reconciler", "Content-Type": "application/json"}, method=method,
        )  # fmt: skip
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(asked)
        assert raised.value.code == 403
    assert scene.cluster.events() == []


def _boot_id():
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _unreachable(deadline):
    access = find_access("", environ={"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"})
    access = type(access)(**{**vars(access), "tls": None, "token": lambda: ""})
    return KubernetesApi(access, deadline=deadline, crds=CRDS, rbac=RBAC)


class _Unasked:
    def sandbox(self, lease):
        raise AssertionError(lease)


@pytest.mark.parametrize(("token", "left"), [("reconcile", 1), ("node's token", 2)])
def test_released_leases_are_swept_away_by_whom_the_manifest_lets(api_server, tmp_path, caplog, token, left):
    lab = Lab(kubernetes_lab(api_server, "kubernetes-leases", tmp_path))
    api_server.switch(tokens={"node's token": lab.make.rbac, "reconcile": RBAC, "admin": "*"})
    for name, cooldown_s in (("a", 60.0), ("b", 600.0)):
        with lab.open(cooldown_s=cooldown_s) as store:
            store.reserve(owner(name), [Want(pool(BLOCK))], allocation="lowest")
            store.release(owner(name))
    lab.clock.now += 61
    kubeconfig = api_server.write_kubeconfig(path=tmp_path / "reconcile.kubeconfig", token=token)
    theirs = Lab(replace(lab.make, kubeconfig=str(kubeconfig)), clock=lab.clock)
    for dry_run in (True, False):
        assert Reaper(lambda _: theirs.open(), _Unasked(), dry_run=dry_run).look() == []
        access = find_access(str(api_server.write_kubeconfig(path=tmp_path / "admin.kubeconfig", token="admin")))
        there = list(KubernetesApi(access, deadline=Deadline(10), crds="", rbac="").listed(COLLECTION))
        assert len(there) == (2 if dry_run else left)
    assert ("not swept away" in caplog.text) == (left == 2)
