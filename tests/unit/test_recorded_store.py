"""Where an ADD leased is in the attachment's record: DEL, CHECK and GC find it when the node's own files are gone."""

from __future__ import annotations

import json

import pytest

from cni.sriov import Sriov
from ipam.host_local import HostLocal
from ipam.whereabouts import Whereabouts
from tests.unit.fake_kernel import kernel_of
from tests.unit.sriov_node import config
from tests.unit.whereabouts_node import request

pytest_plugins = ["tests.unit.sriov_node_fixtures"]

RANGES = {
    "whereabouts": {"type": "whereabouts", "range": "10.7.7.0/24"},
    "host-local": {"type": "host-local", "subnet": "10.7.7.0/24"},
}


class OwnFiles:
    """The node's vferry.toml and flat file, and who leases below ``folder``."""

    def __init__(self, folder):
        self.folder = folder
        self.defaults = {"datastore": "local", "dataDir": str(folder / "leases"), "cooldownSeconds": 0}
        self.flat_file = folder / "whereabouts.conf"

    def find(self, plugin_type, _path=()):
        if plugin_type == "host-local":
            return HostLocal(defaults=lambda _name: {k: v for k, v in self.defaults.items() if k == "dataDir"})
        return Whereabouts(defaults=lambda _name: self.defaults, flat_files=[self.flat_file])

    def owners(self, plugin_type):
        """Return who has an address where the ADD leased."""
        if plugin_type == "host-local":
            return sorted(path.read_text().split()[0] for path in (self.folder / "leases/rail").glob("10.*"))
        plugin = Whereabouts(defaults=lambda _name: {}, flat_files=[])
        place = {"datastore": "local", "dataDir": str(self.folder / "leases")}
        with plugin._open(plugin._read_store(request("DEL", ipam=place))) as store:
            return sorted(lease.owner.container_id for lease in store.leases())


@pytest.fixture
def own_files(machine, tmp_path, monkeypatch):
    own_files = OwnFiles(tmp_path)

    def plugin(*_name):
        return Sriov(
            kernel=kernel_of(machine.node),
            attachments=machine.attachments,
            go_files=machine.go_files,
            lock=machine.node.lock,
            find_plugin=own_files.find,
        )

    monkeypatch.setattr(machine, "plugin", plugin)
    return own_files


@pytest.fixture(params=RANGES)
def conf(request):
    return config(ipam=RANGES[request.param])


def forget(own_files, how, tmp_path):
    """Change the node's own files after an ADD."""
    own_files.flat_file.unlink(missing_ok=True)
    own_files.defaults = {} if how == "gone" else {"datastore": "local", "dataDir": str(tmp_path / "elsewhere")}


@pytest.mark.parametrize("how", ["gone", "another directory"])
@pytest.mark.parametrize("file", ["vferry.toml", "flat file"])
def test_del_and_check_find_the_store_of_the_add(own_files, blue, conf, tmp_path, how, file):
    if file == "flat file":
        own_files.flat_file.write_text(json.dumps(own_files.defaults))
        if conf["ipam"]["type"] == "whereabouts":  # the other one has no such file
            own_files.defaults = {}
    result = blue.add(conf)
    assert own_files.owners(conf["ipam"]["type"]) == ["blue"]
    forget(own_files, how, tmp_path)
    assert blue.check(conf, result).status == 0
    blue.delete(conf)
    assert own_files.owners(conf["ipam"]["type"]) == []


@pytest.mark.parametrize("how", ["gone", "another directory"])
def test_gc_finds_the_store_of_the_add(own_files, blue, green, conf, tmp_path, how):
    blue.add(conf)
    forget(own_files, how, tmp_path)
    assert green.call("GC", {**conf, "cni.dev/valid-attachments": []}).status == 0
    assert own_files.owners(conf["ipam"]["type"]) == []


def test_what_the_configuration_gives_is_not_overruled_by_the_record(own_files, blue, conf, tmp_path):
    given = {**conf, "ipam": {**conf["ipam"], "datastore": "local", "dataDir": str(tmp_path / "leases")}}
    own_files.defaults = {}
    blue.add(given)
    elsewhere = {**conf, "ipam": {**given["ipam"], "dataDir": str(tmp_path / "elsewhere")}}
    blue.delete(elsewhere)
    assert own_files.owners(conf["ipam"]["type"]) == ["blue"]


ETCD = {"endpoints": ["https://192.0.2.1:2379"], "prefix": "/rails", "password": "Secret", "username": "u"}


@pytest.mark.parametrize(
    ("defaults", "place"),
    [
        ({"datastore": "local"}, {"datastore": "local", "dataDir": "/var/lib/cni/vferry/local"}),
        ({"kubernetes": {"kubeconfig": "/k"}}, {"datastore": "kubernetes", "kubernetes": {"kubeconfig": "/k"}}),
        ({"datastore": "kubernetes-leases"}, {"datastore": "kubernetes-leases"}),
        (
            {"datastore": "etcd", "etcd": {**ETCD, "password_file": "/p"}},
            {"datastore": "etcd", "etcd": {**{k: ETCD[k] for k in ETCD if k != "password"}, "password_file": "/p"}},
        ),
    ],
)
def test_record_says_which_store_it_is_and_holds_no_secret(defaults, place):
    plugin = Whereabouts(defaults=lambda _name: defaults, flat_files=[])
    assert plugin.kept_in(request(ipam={"range": "10.7.7.0/24"})) == place


@pytest.mark.parametrize(
    ("defaults", "endpoint"),
    [({}, "https://192.0.2.1:2379"), ({"etcd": {"endpoints": ["https://192.0.2.9:2379"]}}, "https://192.0.2.9:2379")],
)
def test_store_that_has_moved_is_looked_for_where_the_node_says_by_now(defaults, endpoint):
    recorded = {"datastore": "etcd", "etcd": {"endpoints": ["https://192.0.2.1:2379"]}}
    plugin = Whereabouts(defaults=lambda _name: defaults, flat_files=[])
    del_request = request("DEL", ipam={}).of_attachment("c1", "net1", recorded)
    conf = plugin._read_store(del_request)
    assert (conf.chosen, conf.etcd.endpoints) == ("etcd", [endpoint])
