"""A directory of ``host-local`` and the calls on it, for its tests in memory."""

from __future__ import annotations

import json

import pytest

from conf.request import read_request
from ipam.host_local import HostLocal

POOL = {"subnet": "10.1.2.0/29"}  # .2 to .6 are given
POOL6 = {"subnet": "fd00::/125"}  # ::2 to ::7


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "networks" / "rail1"


@pytest.fixture
def host_local():
    return HostLocal(defaults=lambda _: {})


@pytest.fixture
def request_of(folder):
    def make(command="ADD", container_id="c1", *, ifname="net1", ipam=POOL, version="1.1.0", cni_args="", **keys):
        ipam = {"type": "host-local", "dataDir": str(folder.parent), **ipam}
        config = {"cniVersion": version, "name": "rail1", "ipam": ipam, **keys}
        environ = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container_id,
            "CNI_IFNAME": ifname,
            "CNI_NETNS": "/x",
            "CNI_ARGS": cni_args,
        }
        return read_request(environ, json.dumps(config).encode())

    return make


@pytest.fixture
def add(host_local, request_of):
    return lambda *args, **kwargs: [ip.address for ip in host_local.add(request_of("ADD", *args, **kwargs)).ips]


@pytest.fixture
def delete(host_local, request_of):
    return lambda *args, **kwargs: host_local.delete(request_of("DEL", *args, **kwargs))


def content(folder):
    return {
        path.name: path.read_bytes().decode() for path in folder.iterdir() if path.name[0].isdigit() or ":" in path.name
    }


def put(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_bytes(text.encode())
