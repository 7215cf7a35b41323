"""What an ADD had sent when it was killed, and the server does after the DEL: it takes no address from anybody."""

from __future__ import annotations

import pytest

from ipam.reaping import Reaper, Rules, Word
from ipam.stores.contract import Deadline, Want
from ipam.stores.kubeconfig import find_access
from ipam.stores.kubernetes import CRDS, RBAC
from ipam.stores.kubernetes_api import KubernetesApi, Refused
from tests.stores.conftest import Lab, kubernetes_lab, owner, pool, release, reserve
from tests.stores.upstream_writer import Upstream

BLOCK = "10.0.0.0/29"


class Killed(BaseException):
    pass


class Held(KubernetesApi):
    """Keeps one request back, and its caller is killed."""

    def hold(self, method, number):
        self.method, self.number, self.held = method, number, None

    def _once(self, call, token):
        if call.method == self.method and self.held is None:
            self.number -= 1
            if self.number == 0:
                self.held = call
                raise Killed
        if self.held is not None and call is not self.held:
            raise Killed
        return super()._once(call, token)

    def let_go(self):
        """Have the server do now what it was sent then."""
        self.close()
        return KubernetesApi._once(self, self.held, self.access.token())


@pytest.fixture
def lab(api_server, tmp_path):
    return Lab(kubernetes_lab(api_server, "kubernetes", tmp_path))


@pytest.fixture
def upstream(api_server):
    return Upstream(api_server)


def killed(lab, name, method, number, *, want=None):
    """Kill an ADD when it has sent its n-th request of a kind."""
    with lab.open() as store:
        api = Held(find_access(lab.make.kubeconfig), deadline=Deadline(30), crds=CRDS, rbac=RBAC)
        api.hold(method, number)
        store._opened = api
        with pytest.raises(Killed):
            store.reserve(owner(name), [want or Want(pool(BLOCK))], allocation="lowest")
    return api


@pytest.mark.parametrize("overlap_checked", [True, False])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_an_allocation_that_comes_after_the_del_is_refused(lab, upstream, before, overlap_checked):
    want = Want(pool(BLOCK, overlap_checked=overlap_checked))
    for number in range(before):
        reserve(lab, f"other{number}", want)
    if before == 2:
        release(lab, "other0")  # so that there are annotations
    method, number = ("PATCH", 1) if before else ("POST", 2 if overlap_checked else 1)
    late = killed(lab, "c1", method, number, want=want)
    release(lab, "c1")
    with pytest.raises(Refused):
        late.let_go()
    assert "c1" not in {entry["id"] for entry in upstream.pools()["10.0.0.0-29"].values()}
    assert "c1" not in {spec["containerid"] for spec in upstream.reservations().values()}


def test_the_same_container_may_come_again(lab, upstream):
    reserve(lab, "other", BLOCK)
    for _ in range(2):
        late = killed(lab, "c1", "PATCH", 1)
        release(lab, "c1", cooldown_s=0.0)
        assert reserve(lab, "c1", BLOCK) == ["10.0.0.2"]
        with pytest.raises(Refused):
            late.let_go()
        assert release(lab, "c1", cooldown_s=0.0) == ["10.0.0.2"]
    assert list(upstream.pools()["10.0.0.0-29"]) == list(upstream.reservations()) == ["10.0.0.1"]


class Gone:
    def sandbox(self, lease):
        return Word(gone="it was killed")


def test_a_reservation_that_comes_after_the_del_is_a_lease_that_reconcile_reaps(lab, upstream):
    want = Want(pool(BLOCK, network_name="blue"))
    late = killed(lab, "c1", "POST", 1, want=want)
    release(lab, "c1")
    late.let_go()
    assert list(upstream.reservations()) == ["blue-10.0.0.1"]
    (address,) = reserve(lab, "c2", want)
    with lab.open() as store:
        found = {lease.owner.container_id: (str(lease.address), lease.network_name) for lease in store.leases("blue")}
    assert found == {"c1": ("10.0.0.1", "blue"), "c2": (address, "blue")}
    release(lab, "c2")
    reaper = Reaper(lambda _: lab.open(), Gone(), rules=Rules(grace_s=0.0, interval_s=0.0))
    assert [each.state for _ in range(2) for each in reaper.look()] == ["seen once", "reaped"]
    assert upstream.reservations() == {}


def test_an_orphaned_reservation_of_the_same_name_but_a_later_owner_is_not_reaped(lab, upstream):
    late = killed(lab, "c1", "POST", 1)
    release(lab, "c1")
    late.let_go()
    with lab.open() as store:
        (orphan,) = store.leases()
        upstream.request("DELETE", "overlappingrangeipreservations/10.0.0.1")
        reserve(lab, "c2", BLOCK)
        assert store.reap(orphan) is False
    assert [spec["containerid"] for spec in upstream.reservations().values()] == ["c2"]


def test_old_fences_go_away(lab, upstream):
    reserve(lab, "other", BLOCK)
    killed(lab, "c1", "PATCH", 1)
    release(lab, "c1")
    name = "ippools/10.0.0.0-29"
    assert any(key.startswith("fence.") for key in upstream.call("GET", name)["metadata"]["annotations"])
    lab.clock.now += 7200
    for number in range(3):
        reserve(lab, f"late{number}", BLOCK)
        release(lab, f"late{number}", cooldown_s=0.0)
    assert not any(key.startswith("fence.") for key in upstream.call("GET", name)["metadata"]["annotations"])
