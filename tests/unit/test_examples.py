"""Every example is read by the models: what people copy works as it stands."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cni import skel
from conf import host_device, rdma, sriov
from conf.executables import EXECUTABLES
from conf.host_local import read_host_local
from conf.network import Network, find_network, read_network
from conf.request import Request, read_request
from conf.section import Json
from conf.static import read_keys
from conf.whereabouts import read_whereabouts
from ipam.order import pools_of
from ipam.whereabouts import Whereabouts

EXAMPLES = Path(__file__).resolve().parents[2] / "conf" / "examples"
LISTS = sorted(EXAMPLES.glob("*.conflist"))
NADS = sorted(EXAMPLES.glob("*.nad.yaml"))
INTERFACE_PLUGINS = {"sriov": sriov.load, "host-device": host_device.load, "rdma": rdma.load}
# Issue 2, item 10: it must parse and work as it stands.
ARTICLE = (
    '{"cniVersion":"0.3.1","name":"sriov-rdma-net","type":"sriov","vlan":0,"ipam":{"type":"whereabouts",'
    '"range":"192.168.100.0/24","exclude":["192.168.100.0/32","192.168.100.255/32"]}}'
)


@pytest.fixture(autouse=True)
def no_node_defaults(monkeypatch, tmp_path):
    monkeypatch.setattr("conf.defaults.read_table.__kwdefaults__", {"path": tmp_path / "absent"})


def nad(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def network_of(path: Path, tmp_path: Path) -> Network:
    """Read an example as its caller does: Multus gives every plugin the device."""
    if path.suffix == ".conflist":
        return read_network(path)
    config = tmp_path / "nad.conf"
    config.write_text(nad(path)["spec"]["config"])
    return read_network(config).with_device("0000:3b:02.1")


def request_of(network: Network, plugin: Json, command: str = "ADD") -> Request:
    config = {**plugin, "name": network.name, "cniVersion": network.cni_version}
    environ = {"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "net1"}
    return read_request(environ, json.dumps(config).encode())


def read_ipam(request: Request) -> None:
    ipam = request.config["ipam"]
    if ipam["type"] == "whereabouts":
        assert pools_of(read_whereabouts(ipam))
    elif ipam["type"] == "host-local":
        assert read_host_local(request, {}).sets
    else:
        assert ipam["type"] == "static"
        read_keys(request, {})


@pytest.mark.parametrize("path", [*LISTS, *NADS], ids=lambda path: path.name)
def test_example_is_read_by_the_models(path, tmp_path):
    network = network_of(path, tmp_path)
    for plugin in network.plugins:
        request = request_of(network, plugin)
        INTERFACE_PLUGINS[plugin["type"]](request)
        if "ipam" in plugin:
            read_ipam(request)


@pytest.mark.parametrize("path", [*LISTS, *NADS], ids=lambda path: path.name)
def test_example_has_no_key_that_nobody_reads(path, tmp_path):
    network = network_of(path, tmp_path)
    for plugin in network.plugins:
        conf = INTERFACE_PLUGINS[plugin["type"]](request_of(network, plugin))
        # Multus gives both to every plugin, whichever it reads.
        assert set(conf.model_extra) <= {"deviceID", "pciBusID"}
        ipam = plugin.get("ipam", {})
        if ipam.get("type") == "whereabouts":
            assert set(read_whereabouts(ipam).model_extra) == set()


@pytest.mark.parametrize("name", EXECUTABLES)
@pytest.mark.parametrize("suffix", ["conflist", "nad.yaml"])
def test_every_executable_has_an_example_of_each_kind(name, suffix, tmp_path):
    plugins = network_of(EXAMPLES / f"{name}.{suffix}", tmp_path).plugins
    assert name in {plugin["type"] for plugin in plugins} | {plugin.get("ipam", {}).get("type") for plugin in plugins}


def test_names_are_unique_so_that_the_directory_can_be_netconfpath():
    names = [read_network(path).name for path in LISTS]
    assert len(set(names)) == len(names)
    assert [find_network(EXAMPLES, name).name for name in names] == names


@pytest.mark.parametrize("path", NADS, ids=lambda path: path.name)
def test_nad_is_one(path):
    document = nad(path)
    assert (document["apiVersion"], document["kind"]) == ("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition")
    assert "k8s.v1.cni.cncf.io/resourceName" in document["metadata"]["annotations"]
    assert json.loads(document["spec"]["config"])["name"] == document["metadata"]["name"]


def test_article_is_word_for_word():
    assert nad(EXAMPLES / "sriov-rdma-net.nad.yaml")["spec"]["config"] == ARTICLE


def test_article_gets_an_address_with_the_nodes_default(tmp_path):
    node = {"datastore": "local", "dataDir": str(tmp_path / "leases")}
    stdin, printed = io.BytesIO(ARTICLE.encode()), io.BytesIO()
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/nowhere/netns", "CNI_IFNAME": "net1"}
    plugin = Whereabouts(defaults=lambda _name: node, flat_files=())
    assert skel.main("whereabouts", environ=environ, stdin=stdin, stdout=printed, load=lambda _name: plugin) == 0
    assert json.loads(printed.getvalue())["ips"] == [{"version": "4", "address": "192.168.100.1/24"}]
