"""A network found by name, in every form that libcni reads; what is broken is named and hides nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conf.errors import DecodeFailure, InvalidNetworkConfig
from conf.network import NetworkList, device_of, find_network, read_network

ONE = {"type": "one"}
TWO = {"type": "two"}


def write(path: Path, document: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def listed(name: str = "net", **keys: object) -> dict[str, object]:
    return {"cniVersion": "1.1.0", "name": name, "plugins": [ONE, TWO], **keys}


def test_list_is_read_in_its_order(tmp_path):
    network = read_network(write(tmp_path / "a.conflist", listed()))
    assert (network.name, network.cni_version, network.plugins) == ("net", "1.1.0", (ONE, TWO))
    assert json.loads(network.document) == listed()
    assert (network.disable_check, network.disable_gc) == (False, False)


def test_single_plugin_becomes_a_list_of_one(tmp_path):
    plugin = {"cniVersion": "0.4.0", "name": "net", "type": "one", "mtu": 9000}
    network = read_network(write(tmp_path / "a.conf", plugin))
    assert network.plugins == (plugin,)
    assert json.loads(network.document) == {"cniVersion": "0.4.0", "name": "net", "plugins": [plugin]}


def test_lists_come_before_single_plugins_and_each_in_order_of_file_names(tmp_path):
    write(tmp_path / "0.conf", {"name": "net", "type": "single"})
    write(tmp_path / "2.conflist", listed(plugins=[TWO]))
    write(tmp_path / "1.conflist", listed(plugins=[ONE]))
    write(tmp_path / "0.txt", listed(plugins=[{"type": "no network"}]))
    assert find_network(tmp_path, "net").plugins == (ONE,)


@pytest.mark.parametrize(
    ("value", "read"), [(True, True), ("true", True), ("TRUE", True), (False, False), ("False", False)]
)
def test_booleans_may_be_text(tmp_path, value, read):
    network = read_network(write(tmp_path / "a.conflist", listed(disableCheck=value, disableGC=value)))
    assert (network.disable_check, network.disable_gc) == (read, read)


@pytest.mark.parametrize(
    ("keys", "spoken"),
    [
        ({}, "0.1.0"),
        ({"cniVersion": "0.4.0"}, "0.4.0"),
        ({"cniVersions": ["0.3.1", "1.0.0", "0.4.0"]}, "1.0.0"),
        ({"cniVersion": "1.1.0", "cniVersions": ["0.3.1", "1.0.0"]}, "1.1.0"),
        ({"cniVersion": "0.4.0", "cniVersions": ["1.0.0", "1.2.0", "2.0.0"]}, "1.0.0"),
        ({"cniVersions": ["0.10.0", "0.9.0"]}, "0.10.0"),
    ],
)
def test_highest_version_that_we_know_is_spoken(keys, spoken):
    assert NetworkList.model_validate({"name": "net", **keys}).version == spoken


def test_folder_of_the_network_adds_plugins(tmp_path):
    write(tmp_path / "net" / "20.conf", {"type": "last"})
    write(tmp_path / "net" / "10.conf", {"type": "third"})
    write(tmp_path / "net" / "10.conflist", listed())
    write(tmp_path / "other" / "10.conf", {"type": "stranger"})
    file = write(tmp_path / "a.conflist", listed())
    assert [plugin["type"] for plugin in read_network(file).plugins] == ["one", "two", "third", "last"]
    write(file, listed(loadOnlyInlinedPlugins=True))
    assert [plugin["type"] for plugin in read_network(file).plugins] == ["one", "two"]
    write(file, {"cniVersion": "1.1.0", "name": "net"})
    assert [plugin["type"] for plugin in read_network(file).plugins] == ["third", "last"]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"plugins": [ONE]}, '"name" is missing'),
        (listed(name="../etc"), '"name": "../etc"'),
        (listed(name=""), '"name": ""'),
        (listed(plugins=[]), "has no plugins"),
        (listed(plugins=None), "has no plugins"),
        (listed(plugins={}), '"plugins"'),
        (listed(plugins=[{"name": "x"}]), 'a plugin has no "type"'),
        (listed(plugins=[{"type": 7}]), 'a plugin has no "type"'),
        (listed(plugins=None, loadOnlyInlinedPlugins=True), '"loadOnlyInlinedPlugins": true needs "plugins"'),
        (listed(disableCheck="perhaps"), '"disableCheck": "perhaps"'),
        (listed(cniVersions=["latest"]), '"latest" is not a version'),
        (listed(cniVersion=1), '"cniVersion": 1'),
    ],
)
def test_bad_list_is_refused_with_key_and_value(tmp_path, document, words):
    with pytest.raises(InvalidNetworkConfig) as refused:
        read_network(write(tmp_path / "a.conflist", document))
    assert words in str(refused.value)
    assert "a.conflist" in str(refused.value)


def test_what_is_no_json_is_refused(tmp_path):
    with pytest.raises(DecodeFailure, match=r"a\.conflist is not JSON"):
        read_network(write(tmp_path / "a.conflist", "{"))


def test_broken_file_hides_no_network_and_is_named_when_there_is_none(tmp_path):
    write(tmp_path / "0.conflist", "{")
    write(tmp_path / "1.conf", {"name": "typeless"})
    write(tmp_path / "2.conflist", listed())
    assert find_network(tmp_path, "net").plugins == (ONE, TWO)
    with pytest.raises(InvalidNetworkConfig) as refused:
        find_network(tmp_path, "ent")
    assert all(words in str(refused.value) for words in ('"ent"', "it has net", "0.conflist", "1.conf"))


def test_absent_directory_has_no_network(tmp_path):
    with pytest.raises(InvalidNetworkConfig, match="it has no network"):
        find_network(tmp_path / "absent", "net")


def test_device_is_given_to_every_plugin_and_known_again(tmp_path):
    network = read_network(write(tmp_path / "a.conflist", listed(plugins=[ONE, {"type": "two", "deviceID": "old"}])))
    given = network.with_device("0000:01:10.0")
    assert [(plugin["deviceID"], plugin["pciBusID"]) for plugin in given.plugins] == [("0000:01:10.0",) * 2] * 2
    assert device_of(given.document) == "0000:01:10.0"
    assert json.loads(given.document)["plugins"] == list(given.plugins)
    assert device_of(network.document) == ""
    assert network.plugins[0] == ONE


@pytest.mark.parametrize("document", [b"", b"[]", b"{}", b'{"plugins": []}', b'{"plugins": [7]}', b'{"plugins": 7}'])
def test_document_without_a_device_has_none(document):
    assert device_of(document) == ""
