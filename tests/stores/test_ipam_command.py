"""``vferry ipam`` on every store, as an operator types it: by the name of a network."""

from __future__ import annotations

import json
import time

import pytest
from click.testing import CliRunner
from netaddr import IPAddress

from cni.cli import leases as leases_command
from cni.cli.command import vferry
from cni.cli.results import Results
from conf.cached_attachment import CachedAttachment, encoded
from conf.errors import TryAgainLater
from ipam.reaping import Word
from ipam.stores.contract import Deadline, Want
from ipam.stores.iplease import COLLECTION, OWNER_LABEL
from ipam.stores.kubeconfig import find_access
from ipam.stores.kubernetes_api import KubernetesApi
from tests.stores.conftest import STORES, EtcdLab, LocalLab, owner, pool
from tests.stores.upstream_writer import Upstream

BLOCK, OTHER = "192.0.2.0/28", "2001:db8::/64"


class Operator:
    """One store, the network that uses it, and the command."""

    def __init__(self, make, conf_dir):
        self.make, self.conf_dir = make, conf_dir
        conf_dir.mkdir()
        ipam = {"type": "whereabouts", "range": BLOCK, "gateway": "192.0.2.1", "ipRanges": [{"range": OTHER}]}
        if isinstance(make, LocalLab):
            ipam |= {"datastore": "local", "dataDir": str(make.data_dir)}
        elif isinstance(make, EtcdLab):
            ipam |= {"datastore": "etcd", "etcd": {"endpoints": [make.server.url], "prefix": make.prefix}}
        else:
            ipam |= {"datastore": make.store.name, "kubernetes": {"kubeconfig": make.kubeconfig}}
        network = {"cniVersion": "1.0.0", "name": "rail1", "type": "macvlan", "ipam": ipam}
        (conf_dir / "rail1.conf").write_text(json.dumps(network))
        self.file = str(conf_dir / "rail1.conf")

    def __call__(self, *words, ok=True, answer=None):
        run = CliRunner().invoke(vferry, ["ipam", *words, "--conf-dir", str(self.conf_dir)], input=answer)
        assert (run.exit_code == 0) is ok, (run.output, run.exception)
        return run

    def json(self, *words):
        return json.loads(self(*words, "--network", "rail1", "--output", "json").stdout)

    def open(self):
        # In the time of the command, which is the machine's.
        return self.make(clock=time.time, cooldown_s=60.0, deadline_s=30.0)

    def lease(self, name, *blocks, ifname="net1", **recorded):
        with self.open() as store:
            wants = [
                Want(pool(block, exclude=[IPAddress("192.0.2.1")] if block == BLOCK else []))
                for block in blocks or [BLOCK]
            ]
            made = store.reserve(owner(name, ifname, **recorded), wants, allocation="lowest")
        return [str(each.address) for each in made]

    def release(self, name, ifname="net1"):
        with self.open() as store:
            store.release(owner(name, ifname))


@pytest.fixture(params=sorted(STORES))
def operator(request, tmp_path):
    return Operator(STORES[request.param](request), tmp_path / "net.d")


def test_leases_are_listed_and_filtered(operator):
    operator.lease("c1", BLOCK, OTHER, pod_namespace="ns", pod_name="a", pod_uid="u1", node="n1")
    operator.lease("c2", BLOCK, pod_namespace="ns", pod_name="b", pod_uid="u2", node="n2")
    every = operator.json("leases")
    assert [(each["address"], each["containerID"], each["podName"], each["node"]) for each in every] == [
        ("192.0.2.2", "c1", "a", "n1"),
        ("192.0.2.3", "c2", "b", "n2"),
        ("2001:db8::1", "c1", "a", "n1"),
    ]
    for words in (["--node", "n2"], ["--pod", "ns/b"], ["--container", "c2"]):
        assert [each["containerID"] for each in operator.json("leases", *words)] == ["c2"]
    assert operator.json("leases", "--pod", "other/") == []
    header, *lines = operator("leases", "--network", "rail1").stdout.splitlines()
    assert header.split() == list(leases_command.COLUMNS)
    assert [line.split()[0] for line in lines] == ["192.0.2.2", "192.0.2.3", "2001:db8::1"]


def test_pools_count_what_is_leased_cools_and_is_never_given(operator):
    operator.lease("c1", BLOCK, OTHER)
    operator.lease("c2")
    operator.lease("c3")
    operator.release("c3")
    four, six = operator.json("pools")
    assert four == {
        "networkName": "", "range": BLOCK, "overlapChecked": True,
        "size": 13, "used": 2, "cooling": 1, "free": 10, "reserved": 3,
    }  # fmt: skip
    assert (six["size"], six["used"], six["cooling"]) == (2**64 - 1, 1, 0)
    for words in (["--network", "rail1"], [operator.file, "--network", "rail1"]):
        lines = operator("pools", *words).stdout.splitlines()
        assert lines[1].split() == ["-", BLOCK, "13", "2", "1", "10", "3", "####~~.............."]
        assert lines[2].split()[2:] == ["1.84e+19", "1", "0", "1.84e+19", "1", "#..................."]


def test_release_by_address_and_by_owner(operator):
    operator.lease("c1", BLOCK, OTHER)
    operator.lease("c2")
    shown = operator("release", "192.0.2.3", "--network", "rail1", ok=False, answer="n\n")
    assert "192.0.2.3" in shown.stdout
    assert len(operator.json("leases")) == 3
    operator("release", "192.0.2.3", "--network", "rail1", answer="y\n")
    assert {each["containerID"] for each in operator.json("leases")} == {"c1"}
    done = operator("release", "--container", "c1", "--network", "rail1", "--yes")
    assert "released 192.0.2.2" in done.stdout
    assert "released 2001:db8::1" in done.stdout
    assert operator.json("leases") == []
    refused = operator("release", "192.0.2.3", "--network", "rail1", "--yes", ok=False)
    assert "not leased: 192.0.2.3" in refused.stderr


def test_release_leaves_alone_what_changed_hands_meanwhile(operator, monkeypatch):
    operator.lease("c1")
    reap = leases_command._reap

    def meanwhile(choice, found):
        operator.release("c1")
        with operator.open() as store:
            store.reserve(owner("c2"), [Want(pool(BLOCK), found[0].address)], allocation="lowest")
        reap(choice, found)

    monkeypatch.setattr(leases_command, "_reap", meanwhile)
    refused = operator("release", "192.0.2.2", "--network", "rail1", "--yes", ok=False)
    assert "changed hands" in refused.stderr
    assert [each["containerID"] for each in operator.json("leases")] == ["c2"]


def test_release_refuses_what_this_node_knows_to_be_in_use(operator, monkeypatch):
    operator.lease("c1")

    class Sandboxes:
        def __init__(self, _name):
            pass

        def sandbox(self, _lease):
            return Word(lives="netns /run/netns/a is there")

    monkeypatch.setattr(leases_command, "Sandboxes", Sandboxes)
    refused = operator("release", "192.0.2.2", "--network", "rail1", "--yes", ok=False)
    assert "is in use: netns /run/netns/a is there" in refused.stderr
    operator("release", "192.0.2.2", "--network", "rail1", "--yes", "--force")
    assert operator.json("leases") == []


def test_store_can_be_named_without_a_network(tmp_path):
    operator = Operator(LocalLab(tmp_path / "data"), tmp_path / "net.d")
    operator.lease("c1")
    words = ["--datastore", "local", "--data-dir", str(tmp_path / "data"), "--output", "json"]
    assert [each["address"] for each in json.loads(operator("leases", *words).stdout)] == ["192.0.2.2"]
    # The ranges are those of the networks here that use this store.
    assert [each["range"] for each in json.loads(operator("pools", *words).stdout)] == [BLOCK, OTHER]
    (tmp_path / "other").mkdir()
    elsewhere = ["--datastore", "local", "--data-dir", str(tmp_path / "other"), "--output", "json"]
    assert json.loads(operator("pools", *elsewhere).stdout) == []


def test_pools_of_upstream_are_known_without_a_configuration(request, tmp_path):
    operator = Operator(STORES["kubernetes"](request), tmp_path / "net.d")
    operator.lease("c1")
    (operator.conf_dir / "rail1.conf").unlink()
    words = ["--datastore", "kubernetes", "--kubeconfig", operator.make.kubeconfig, "--output", "json"]
    (found,) = json.loads(operator("pools", *words).stdout)
    assert (found["range"], found["used"], found["size"]) == (BLOCK, 1, 14)


@pytest.mark.parametrize("words", [["leases"], ["release", "192.0.2.3", "--yes"], ["pools"], ["reconcile"]])
def test_network_that_is_not_there_is_said(operator, words):
    refused = operator(*words, "--network", "rail9", ok=False)
    assert 'there is no network "rail9"' in refused.stderr


@pytest.mark.parametrize("words", [["leases"], ["release", "192.0.2.3", "--yes"], ["pools"], ["reconcile"], ["verify"]])
def test_store_that_nobody_chose_is_said(tmp_path, words, monkeypatch):
    monkeypatch.setattr("cni.cli.store_choice.read_table", lambda _name: {})
    run = CliRunner().invoke(vferry, ["ipam", *words, "--conf-dir", str(tmp_path)])
    assert (run.exit_code, "which store is not said" in run.stderr) == (1, True)
    assert "--network NAME" in run.stderr


def test_store_that_all_networks_use_need_not_be_said(operator, tmp_path, monkeypatch):
    monkeypatch.setattr("cni.cli.store_choice.read_table", lambda _name: {})
    operator.lease("c1")
    assert [each["containerID"] for each in json.loads(operator("leases", "--output", "json").stdout)] == ["c1"]
    other = json.loads((operator.conf_dir / "rail1.conf").read_text())
    other["name"] = "rail2"
    other["ipam"] = {"type": "whereabouts", "range": BLOCK, "datastore": "local", "dataDir": str(tmp_path / "other")}
    (operator.conf_dir / "rail2.conf").write_text(json.dumps(other))
    told = operator("leases", ok=False).stderr
    assert "rail1, rail2" in told


@pytest.mark.parametrize("words", [["leases"], ["release", "192.0.2.3", "--yes"], ["pools"], ["reconcile"], ["verify"]])
def test_a_local_store_that_is_not_there_is_no_store_without_leases(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()

    def ipam(*options):
        return CliRunner().invoke(vferry, ["ipam", *words, *options, "--conf-dir", str(tmp_path)])

    for named in ("gone", str(tmp_path / "gone"), "file"):
        run = ipam("--data-dir", named)
        assert (run.exit_code, f"there is no store at {tmp_path / named}" in run.stderr) == (1, True)
    monkeypatch.setattr("cni.cli.store_choice.read_table", lambda _name: {"dataDir": str(tmp_path / "gone")})
    for options in (["--datastore", "local"], ["--data-dir", "empty"]):
        run = ipam(*options)
        assert (run.exit_code, "there is no store at" in run.stderr) == (int(words[0] == "release"), True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["leases", "--datastore", "etcd", "--data-dir", "/x"], "--data-dir is of datastore local"),
        (["leases", "--datastore", "local", "--etcd-endpoint", "http://x:1"], "--etcd-endpoint is of datastore etcd"),
        (["pools", "--data-dir", "/x", "--etcd-endpoint", "http://x:1"], "are of different datastores"),
        (["leases", "--data-dir", "/", "--deadline", "0"], "--deadline"),
        (["leases", "--data-dir", "/", "--pod", "web-0"], "NAMESPACE/web-0"),
        (["release", "--data-dir", "/", "--ifname", "net1", "192.0.2.3"], "--ifname is of a --container"),
    ],
)
def test_what_makes_no_sense_together_is_bad_usage(words, says):
    run = CliRunner().invoke(vferry, ["ipam", *words])
    assert (run.exit_code, says in run.stderr) == (2, True), run.output


@pytest.mark.parametrize("option", ["--data-dir", "--etcd-endpoint"])
def test_option_of_a_datastore_means_it(option, tmp_path, monkeypatch, etcd_server):
    monkeypatch.setattr("cni.cli.store_choice.read_table", lambda _name: {})
    value = str(tmp_path) if option == "--data-dir" else etcd_server.url
    run = CliRunner().invoke(vferry, ["ipam", "leases", option, value, "--conf-dir", str(tmp_path)])
    assert (run.exit_code, run.stderr.splitlines()[-1][-6:]) == (0, "leases")


def test_addresses_to_release_are_read_as_addresses(operator):
    operator.lease("c1", OTHER)
    assert "nonsense is no address" in operator("release", "nonsense", "--network", "rail1", "--yes", ok=False).stderr
    assert "released 2001:db8::1" in operator("release", "2001:0DB8:0::1", "--network", "rail1", "--yes").stdout


def test_migration_without_a_cluster_is_bad_usage(tmp_path):
    run = CliRunner().invoke(vferry, ["ipam", "migrate", "--to", "kubernetes", "--data-dir", str(tmp_path)])
    assert (run.exit_code, "--kubeconfig" in run.stderr) == (2, True)


def test_deadline_is_the_operators(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "ipam.stores.door.open_store", lambda _conf, deadline: seen.append(deadline.seconds) or _refuse()
    )
    operator = Operator(LocalLab(tmp_path / "data"), tmp_path / "net.d")
    operator("leases", "--network", "rail1", "--deadline", "3", ok=False)
    assert seen == [3.0]


def _refuse():
    raise TryAgainLater("enough was seen")


def cached(operator, root, name, address):
    """Leave what libcni leaves of an attachment that lives."""
    netns = root / "netns"
    netns.touch()
    document = (operator.conf_dir / "rail1.conf").read_bytes()
    ips = [{"address": f"{address}/28"}, {"address": "198.51.100.1/24"}]
    attachment = CachedAttachment(
        containerId=name, ifName="net1", networkName="rail1", netns=str(netns), config=encoded(document),
        result={"cniVersion": "1.0.0", "ips": ips},
    )  # fmt: skip
    Results(root).write(attachment)


def verified(operator, tmp_path, *, ok):
    words = ["--network", "rail1", "--node", "n1", "--cache-dir", str(tmp_path), "--output", "json"]
    run = operator("verify", *words, ok=ok)
    return [(each["kind"], each["text"]) for each in json.loads(run.stdout)]


def test_verify_is_content_with_what_is_in_order(operator, tmp_path):
    (address,) = operator.lease("c1", node="n1")
    cached(operator, tmp_path, "c1", address)
    assert verified(operator, tmp_path, ok=True) == []


def test_verify_finds_an_address_in_use_that_is_not_leased(operator, tmp_path):
    cached(operator, tmp_path, "c1", "192.0.2.2")
    ((kind, text),) = verified(operator, tmp_path, ok=False)
    assert (kind, text.endswith("but is leased to nobody")) == ("unleased", True)
    operator.lease("c2", node="n2")
    ((kind, text),) = verified(operator, tmp_path, ok=False)
    assert (kind, text.endswith("but is leased to c2 net1")) == ("unleased", True)
    # Its sandbox gone, it is no use any more.
    (tmp_path / "netns").unlink()
    assert verified(operator, tmp_path, ok=True) == []


def test_verify_notices_a_lease_whose_attachment_nothing_here_knows(operator, tmp_path):
    cached(operator, tmp_path, "c1", *operator.lease("c1", node="n1"))
    operator.lease("lost", node="n1")
    ((kind, text),) = verified(operator, tmp_path, ok=True)
    assert (kind, "container lost" in text) == ("unaccounted", True)


def test_verify_finds_where_pools_and_reservations_disagree(request, api_server, tmp_path):
    operator = Operator(STORES["kubernetes"](request), tmp_path / "net.d")
    operator.lease("c1", pod_namespace="ns", pod_name="a")
    operator.lease("c2", pod_namespace="ns", pod_name="b")
    operator.lease("c3", pod_namespace="ns", pod_name="c")
    upstream = Upstream(api_server)
    # Upstream takes an allocation of its pod over and leaves the reservation as it is: that is in order.
    patch = [{"op": "replace", "path": "/spec/allocations/3/id", "value": "c2-again"}]
    upstream.request("PATCH", "ippools/192.0.2.0-28", patch)
    assert verified(operator, tmp_path, ok=True) == []
    upstream.request("DELETE", "overlappingrangeipreservations/192.0.2.2", {})
    upstream.request("PATCH", "ippools/192.0.2.0-28", [{"op": "remove", "path": "/spec/allocations/3"}])
    entry = {"id": "loser", "podref": "ns/d", "ifname": "net1"}
    patch = [{"op": "replace", "path": "/spec/allocations/4", "value": entry}]
    upstream.request("PATCH", "ippools/192.0.2.0-28", patch)
    found = sorted(text for kind, text in verified(operator, tmp_path, ok=False) if kind == "contradiction")
    assert found == [
        "192.0.2.2 of IPPool 192.0.2.0-28 is held by container c1 of pod ns/a, but is not reserved",
        "192.0.2.4 of IPPool 192.0.2.0-28 is held by container loser of pod ns/d, "
        "but reserved by container c3 of pod ns/c",
        "reservation 192.0.2.3 of pod ns/b is in no IPPool",
    ]


def test_verify_finds_a_lease_that_its_owner_would_not_find(request, api_server, tmp_path):
    operator = Operator(STORES["kubernetes-leases"](request), tmp_path / "net.d")
    operator.lease("c1")
    api = KubernetesApi(find_access(operator.make.kubeconfig), deadline=Deadline(120), crds="", rbac="")
    (obj,) = api.listed(COLLECTION)
    obj["metadata"]["labels"][OWNER_LABEL] = "0123456789abcdef"
    api.replace(f"{COLLECTION}/{obj['metadata']['name']}", obj)
    assert [kind for kind, _ in verified(operator, tmp_path, ok=False)] == ["contradiction"]
