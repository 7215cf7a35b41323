"""A cluster whose leases are moved between upstream's CRDs and IPLeases by ``vferry ipam migrate``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from cni.cli.command import vferry
from ipam.stores.contract import Deadline, Want
from ipam.stores.moved import FollowingStore
from tests.stores.conftest import Lab, kubernetes_lab, owner, pool
from tests.stores.upstream_writer import Upstream, run

BLOCK, BLUE, WIDE = "192.0.2.0/28", "198.51.100.0/24", "10.7.0.0/24"


class Move:
    """A cluster with both kinds, the networks that use it, and the command as an administrator types it."""

    def __init__(self, server, tmp_path):
        for name in ("kubernetes", "kubernetes-leases"):
            (tmp_path / name).mkdir()
        self.old, self.new = (
            Lab(kubernetes_lab(server, name, tmp_path / name)) for name in ("kubernetes", "kubernetes-leases")
        )
        server.switch(tokens=None)
        self.upstream = Upstream(server)
        self.kubeconfig = str(server.write_kubeconfig(path=tmp_path / "admin.kubeconfig"))
        self.conf_dir = tmp_path / "net.d"
        self.conf_dir.mkdir()
        for name, block, network_name in (("rail", BLOCK, ""), ("blue", BLUE, "blue")):
            ipam = {
                "type": "whereabouts",
                "range": block,
                "network_name": network_name,
                "datastore": "kubernetes-leases",
            }
            ipam["kubernetes"] = {"kubeconfig": self.kubeconfig}
            network = {"cniVersion": "1.0.0", "name": name, "type": "macvlan", "ipam": ipam}
            (self.conf_dir / f"{name}.conf").write_text(json.dumps(network))

    def __call__(self, to, *words, ok=True):
        options = ["--kubeconfig", self.kubeconfig, "--datastore", to, "--conf-dir", str(self.conf_dir)]
        done = CliRunner().invoke(vferry, ["ipam", "migrate", "--to", to, *options, *words])
        assert (done.exit_code == 0) is ok, (done.output, done.exception)
        return done.output

    def lease(self, lab, name, block=BLOCK, **more):
        network_name = "blue" if block == BLUE else ""
        recorded = {"pod_namespace": "ns", "pod_name": name, "pod_uid": f"uid-{name}", "node": "n1"}
        with lab.open() as store:
            want = Want(pool(block, network_name=network_name, **more))
            (made,) = store.reserve(owner(f"c-{name}", **recorded), [want], allocation="lowest")
        return str(made.address)

    def release(self, lab, name):
        with lab.open() as store:
            return [str(each.address) for each in store.release(owner(f"c-{name}", pod_namespace="ns", pod_name=name))]

    def held(self, lab):
        with lab.open() as store:
            return {(each.space, str(each.address)): each.owner.container_id for each in store.leases()}


def filled(move):
    move.lease(move.old, "a")
    move.lease(move.old, "b")
    move.lease(move.old, "c", BLUE)
    run(move.upstream.add("c-go", "ns/go", BLOCK))
    return move.held(move.old)


@dataclass(frozen=True)
class FollowingLab:
    """The old datastore as networks see it, whose nodes go on in the new one."""

    old: object
    new: object
    run: Path

    def __call__(self, **keys):
        return FollowingStore(
            self.old(**keys), lambda: self.new(**keys), deadline=Deadline(30), scratch=self.run / "notes"
        )

    def elsewhere(self, run):
        return FollowingLab(self.old.elsewhere(run / "old"), self.new.elsewhere(run / "new"), run)


def followed(move, tmp_path):
    """Let networks of the old datastore follow, as the door opens it."""
    move.old = Lab(FollowingLab(move.old.make, move.new.make, tmp_path), clock=move.old.clock)
    return move
