"""The ``etcd`` object: endpoints, what belongs together, upstream's old keys, nothing secret in a complaint."""

from __future__ import annotations

import pytest

from conf.errors import InvalidNetworkConfig
from conf.whereabouts import StoreConf, read_store_conf, read_whereabouts
from ipam.stores import door
from ipam.stores.contract import Deadline


def etcd_of(**etcd):
    return read_whereabouts({"datastore": "etcd", "etcd": etcd}).etcd


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("https://192.0.2.1:2379", ("https", "192.0.2.1", 2379)),
        ("http://etcd.example", ("http", "etcd.example", 2379)),
        ("192.0.2.1:4001", ("http", "192.0.2.1", 4001)),
        ("https://[2001:db8::1]:2379/", ("https", "2001:db8::1", 2379)),
        ("etcd.example", ("http", "etcd.example", 2379)),
    ],
)
def test_endpoint(endpoint, address):
    assert etcd_of(endpoints=[endpoint]).addresses == [address]


@pytest.mark.parametrize(
    "endpoint",
    ["", "ftp://192.0.2.1", "http://", "http://a:b:c", "http://a:99999", "http://a/b", "http://a?b=c", "http://a:0"],
)
def test_endpoint_that_is_none_is_named_by_its_number(endpoint):
    with pytest.raises(InvalidNetworkConfig, match=r"etcd\.endpoints\[1\]"):
        etcd_of(endpoints=["http://192.0.2.1", endpoint])


def test_a_password_in_an_endpoint_is_refused_and_not_shown():
    with pytest.raises(InvalidNetworkConfig, match='use "username" and "password_file"') as raised:
        etcd_of(endpoints=["https://root:hunter2@192.0.2.1"])
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("etcd", "complaint"),
    [
        ({"cert_file": "/a"}, '"cert_file" is given without "key_file"'),
        ({"key_file": "/a"}, '"key_file" is given without "cert_file"'),
        ({"username": "a"}, '"username" is given without "password_file"'),
        ({"ca_cert_file": "a.pem"}, "not an absolute path"),
        ({"prefix": "vferry"}, "not a path"),
        ({"prefix": "/"}, "not a path"),
        ({"endpoints": "http://a"}, "endpoints"),
        ({"endpoints": [5]}, "endpoints"),
    ],
)
def test_what_is_not_valid(etcd, complaint):
    with pytest.raises(InvalidNetworkConfig, match=complaint):
        etcd_of(**etcd)


def test_prefix_has_no_slash_at_its_end():
    assert etcd_of(prefix="/a/b/").prefix == "/a/b"
    assert etcd_of().prefix == "/vferry"


def test_upstreams_flat_keys_are_understood():
    conf = read_whereabouts(
        {
            "datastore": "etcd",
            "etcd_host": "https://192.0.2.1:2379, https://192.0.2.2:2379",
            "ETCD_ca_cert_file": "/ca",
            "etcd_cert_file": "/cert",
            "etcd_key_file": "/key",
        }
    ).etcd
    assert conf.endpoints == ["https://192.0.2.1:2379", "https://192.0.2.2:2379"]
    assert (conf.ca_cert_file, conf.cert_file, conf.key_file) == ("/ca", "/cert", "/key")


def test_ours_comes_before_upstreams():
    conf = read_whereabouts({"etcd": {"endpoints": ["http://ours"]}, "etcd_host": "http://upstreams"})
    assert conf.etcd.endpoints == ["http://ours"]


def test_a_name_without_our_way_of_a_password_says_so():
    with pytest.raises(InvalidNetworkConfig, match="password_file") as raised:
        read_whereabouts({"etcd_host": "http://a", "etcd_username": "u", "etcd_password": "hunter2"})
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("given", [{"etcd": {"endpoints": [""]}}, {"etcd_host": "ftp://a"}, {"etcd": "text"}])
def test_a_del_takes_what_is_not_valid_as_absent(given):
    assert read_store_conf({"datastore": "etcd", **given}).etcd.endpoints == []


def test_without_endpoints_there_is_no_store():
    with pytest.raises(InvalidNetworkConfig, match="no endpoints"):
        door.open_store(StoreConf(datastore="etcd"), Deadline(1))
