"""A node as whereabouts finds it: defaults, flat files, and a local store under a temporary directory."""

from __future__ import annotations

import json

from conf.request import read_request
from ipam.stores import door
from ipam.whereabouts import Whereabouts

NAD = {
    "cniVersion": "0.3.1",
    "name": "sriov-rdma-net",
    "type": "sriov",
    "vlan": 0,
    "ipam": {
        "type": "whereabouts",
        "range": "192.168.100.0/24",
        "exclude": ["192.168.100.0/32", "192.168.100.255/32"],
    },
}


def request(
    command="ADD", *, cid="c1", ifname="net1", args="", config=None, ipam=None, version="1.1.0", name="rail1", **keys
):
    """One invocation; ``ipam`` over ``config``'s, ``keys`` over the network configuration's."""
    document = dict(config or {"cniVersion": version, "name": name, "type": "x"}, **keys)
    if ipam is not None:
        document["ipam"] = {"type": "whereabouts", **ipam}
    environ = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": cid,
        "CNI_NETNS": "/run/netns/x",
        "CNI_IFNAME": ifname,
        "CNI_ARGS": args,
    }
    return read_request(environ, json.dumps(document).encode())


class Node:
    """One node: its defaults, its flat files, and the plugin as an invocation there finds it."""

    def __init__(self, tmp_path):
        self.defaults = {"datastore": "local", "dataDir": str(tmp_path / "leases"), "cooldownSeconds": 0}
        self.flat_files = [tmp_path / "whereabouts.conf"]
        self.open_store = door.open_store

    @property
    def plugin(self):
        return Whereabouts(
            open_store=self.open_store,
            defaults=lambda name: {"whereabouts": self.defaults}[name],
            flat_files=self.flat_files,
        )

    def add(self, **kwargs):
        return self.plugin.add(request(**kwargs))

    def addresses(self, **kwargs):
        return [ip.address for ip in self.add(**kwargs).ips]

    def leases(self):
        conf = self.plugin._read_store(request("DEL"))
        with self.plugin._open(conf) as store:
            return {f"{lease.owner.container_id}/{lease.owner.ifname}": str(lease.address) for lease in store.leases()}
