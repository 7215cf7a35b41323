"""The node's own defaults: a table per plugin, filled in below what a configuration gives."""

from __future__ import annotations

import pytest

from conf.defaults import filled, read_table
from conf.errors import InvalidNetworkConfig


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "vferry.toml"
    path.write_text('[sriov]\nspoofchk = "on"\n[whereabouts]\ndatastore = "local"\n[whereabouts.etcd]\nprefix = "/v"\n')
    return path


def test_read_table(toml, tmp_path):
    assert read_table("whereabouts", path=toml) == {"datastore": "local", "etcd": {"prefix": "/v"}}
    assert read_table("rdma", path=toml) == {}
    assert read_table("sriov", path=tmp_path / "absent") == {}


@pytest.mark.parametrize("text", ["[sriov", "sriov = 1", 'sriov = "x"', "\udcff"])
def test_file_that_cannot_be_read_is_an_error_that_names_it(toml, text):
    toml.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InvalidNetworkConfig) as refused:
        read_table("sriov", path=toml)
    assert str(toml) in refused.value.msg


def test_folder_in_the_place_of_the_file_is_an_error(tmp_path):
    with pytest.raises(InvalidNetworkConfig):
        read_table("sriov", path=tmp_path)


@pytest.mark.parametrize(
    ("given", "defaults", "merged"),
    [
        ({}, {"a": 1}, {"a": 1}),
        ({"a": 2}, {"a": 1}, {"a": 2}),
        ({"A": 2}, {"a": 1}, {"A": 2}),
        ({"a": None}, {"a": 1}, {"a": 1}),
        ({"a": 0}, {"a": 1}, {"a": 0}),
        ({"a": False}, {"a": True}, {"a": False}),
        ({"a": []}, {"a": [1]}, {"a": []}),
        ({"o": {"a": 2}}, {"o": {"a": 1, "b": 1}}, {"o": {"a": 2, "b": 1}}),
        ({"O": {"A": 2}}, {"o": {"a": 1, "b": 1}}, {"o": {"A": 2, "b": 1}}),
        ({"o": "text"}, {"o": {"a": 1}}, {"o": "text"}),
    ],
)
def test_filled_gives_way_to_what_is_given(given, defaults, merged):
    before = repr(given)
    assert filled(given, defaults) == merged
    assert repr(given) == before
