"""The stores that meet the contract, one fixture entry each; a later store joins by one line in STORES.

An entry makes a ``Lab``: something that opens a store of the same data again and again, in this process or another.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from netaddr import IPNetwork

import tests.unhurried  # noqa: F401 - for every @given of this room
from conf.etcd import Etcd
from ipam.ranges import Range
from ipam.stores import kubernetes, kubernetes_leases
from ipam.stores.contract import Deadline, Owner, Pool, Store, Want
from ipam.stores.etcd import EtcdStore
from ipam.stores.kubeconfig import find_access
from ipam.stores.kubernetes import KubernetesStore
from ipam.stores.kubernetes_api import KubernetesApi
from ipam.stores.kubernetes_leases import KubernetesLeasesStore
from ipam.stores.local import LocalStore
from tests.stores.api_server import ApiServer
from tests.stores.etcd_server import ETCD, EtcdServer
from tests.stores.outside_server import KUBECONFIG, InUse, OutsideServer


class Clock:
    """Seconds since the epoch, moved by the test."""

    def __init__(self):
        self.now = 1_700_000_000.0

    def __call__(self):
        return self.now


@dataclass
class Lab:
    """One set of leases, opened by as many stores as a test wants."""

    make: Callable[..., Store]
    clock: Clock = field(default_factory=Clock)

    def open(self, *, cooldown_s=60.0, deadline_s=30.0, **keys):
        """Open a store as one invocation does."""
        return self.make(clock=self.clock, cooldown_s=cooldown_s, deadline_s=deadline_s, **keys)

    def on_another_node(self, run):
        """Return the same leases as a node sees them that has no files of its own yet."""
        return replace(self, make=self.make.elsewhere(run))


@dataclass(frozen=True)
class LocalLab:
    """Pickled into other processes."""

    data_dir: Path

    def __call__(self, *, clock, cooldown_s, deadline_s, **keys):
        return LocalStore(self.data_dir, deadline=Deadline(deadline_s), cooldown_s=cooldown_s, clock=clock, **keys)

    def elsewhere(self, _run):
        return self  # there is one node


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory):
    """One etcd for all tests, each of which has a prefix of its own."""
    if ETCD is None:
        pytest.skip("etcd is not installed (Debian: etcd-server)")
    server = EtcdServer(tmp_path_factory.mktemp("etcd")).start()
    yield server
    server.stop()


class TimedEtcdStore(EtcdStore):
    """An etcd whose time goes by as the test's clock does: before it is asked for an address, what is due expires."""

    server: EtcdServer
    prefix: str

    def reserve(self, owner, wants, *, allocation):
        due = set()
        for value, kv in self.server.keys(f"{self.prefix}/v1/cool/").values():
            released_at, cooldown_s = json.loads(value).values()
            if abs(self._clock() - released_at) >= cooldown_s:
                due.add(kv["lease"])
        for lease in due:
            self.server.call("/v3/lease/revoke", {"ID": lease})
        return super().reserve(owner, wants, allocation=allocation)


@dataclass(frozen=True)
class EtcdLab:
    """Goes into other processes."""

    server: EtcdServer
    scratch: Path
    prefix: str = field(default_factory=lambda: f"/vferry-{uuid.uuid4().hex}")
    # The endpoint, where it is not the server itself.
    through: str = ""
    store: type = TimedEtcdStore

    def elsewhere(self, run):
        return replace(self, scratch=run)

    def __call__(self, *, clock, cooldown_s, deadline_s, **keys):
        store = self.store(
            Etcd(endpoints=[self.through or self.server.url], prefix=self.prefix),
            deadline=Deadline(deadline_s),
            cooldown_s=cooldown_s,
            clock=clock,
            scratch=self.scratch,
            **keys,
        )
        store.server, store.prefix = self.server, self.prefix
        return store


@pytest.fixture(scope="session")
def api_process(tmp_path_factory):
    with ApiServer(tmp_path_factory.mktemp("api")) as server:
        yield server


@pytest.fixture
def api_server(api_process):
    """An API server without any objects."""
    api_process.clear()
    return api_process


# Store -> its class, and the manifests beside it.
KUBERNETES = {
    "kubernetes": (KubernetesStore, kubernetes),
    "kubernetes-leases": (KubernetesLeasesStore, kubernetes_leases),
}


@dataclass(frozen=True)
class KubernetesLab:
    """Goes into other processes; the store may do what its role allows."""

    store: type
    kubeconfig: str
    run: Path
    crds: str
    rbac: str

    def elsewhere(self, run):
        return replace(self, run=run)

    def __call__(self, *, clock, cooldown_s, deadline_s, **keys):
        deadline = Deadline(deadline_s)
        return self.store(
            lambda: KubernetesApi(find_access(self.kubeconfig), deadline=deadline, crds=self.crds, rbac=self.rbac),
            deadline=deadline,
            cooldown_s=cooldown_s,
            clock=clock,
            scratch=self.run / "stores",
            journals=self.run / "owners",
            **keys,
        )


def kubernetes_lab(server, name, tmp_path):
    """Open one of the Kubernetes stores at a server, as whom its RBAC manifest makes it."""
    store, module = KUBERNETES[name]
    server.switch(tokens={"node's token": module.RBAC, "admin": "*"})
    kubeconfig = server.write_kubeconfig(path=tmp_path / f"{name}.kubeconfig", token="node's token")
    return KubernetesLab(store, str(kubeconfig), tmp_path / "run", module.CRDS, module.RBAC)


@pytest.fixture
def outside_server(tmp_path):
    """An API server that is not the stand-in; see tests/stores/outside_server.py."""
    try:
        with OutsideServer(tmp_path) as server:
            yield server
    except InUse as error:
        pytest.exit(str(error))


def _kubernetes(name):
    def lab(request):
        tmp_path = request.getfixturevalue("tmp_path")
        if not KUBECONFIG:
            return kubernetes_lab(request.getfixturevalue("api_server"), name, tmp_path)
        store, module = KUBERNETES[name]
        kubeconfig = request.getfixturevalue("outside_server").kubeconfig
        return KubernetesLab(store, str(kubeconfig), tmp_path / "run", module.CRDS, module.RBAC)

    return lab


def local(request):
    return LocalLab(request.getfixturevalue("tmp_path") / "data")


def etcd(request):
    return EtcdLab(request.getfixturevalue("etcd_server"), request.getfixturevalue("tmp_path") / "run" / "stores")


STORES = {"etcd": etcd, "local": local, **{name: _kubernetes(name) for name in KUBERNETES}}


@pytest.fixture(params=sorted(STORES))
def lab(request):
    return Lab(STORES[request.param](request))


def pool(text, *, network_name="", overlap_checked=True, exclude=()):
    return Pool(network_name, Range.of(IPNetwork(text), exclude=exclude), overlap_checked)


def owner(name, ifname="net1", **recorded):
    return Owner(name, ifname, **recorded)


def reserve(lab, name, *wants, ifname="net1", allocation="lowest", **opening):
    """Reserve as one invocation does and return the addresses as text."""
    wants = [want if isinstance(want, Want) else Want(pool(want)) for want in wants]
    with lab.open(**opening) as store:
        leases = store.reserve(owner(name, ifname), wants, allocation=allocation)
    return [str(lease.address) for lease in leases]


def release(lab, name, *, ifname="net1", **opening):
    with lab.open(**opening) as store:
        return [str(lease.address) for lease in store.release(owner(name, ifname))]
