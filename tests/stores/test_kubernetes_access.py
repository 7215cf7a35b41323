"""How both Kubernetes stores reach the API server, and what they make of one that is busy or unfriendly.

One that is gone or slow is in test_contract_outages, as every store is.
"""

from __future__ import annotations

import base64
import json
import os
import time
from dataclasses import replace

import pytest
import yaml

from conf.errors import CniError, InvalidNetworkConfig, StoreUnavailable, TryAgainLater
from ipam.stores.contract import Want
from ipam.stores.kubeconfig import NotConfigured, find_access
from ipam.stores.kubernetes_api import KubernetesApi
from tests.stores.conftest import KUBERNETES, Lab, kubernetes_lab, owner, pool, release, reserve

BLOCK = "10.0.0.0/29"


@pytest.fixture(params=sorted(KUBERNETES))
def lab(request, api_server, tmp_path):
    return Lab(kubernetes_lab(api_server, request.param, tmp_path))


# Busy.


def test_429_is_obeyed_and_the_call_goes_through(lab, api_server):
    api_server.switch(throttle=2, retry_after=1)
    started = time.monotonic()
    assert reserve(lab, "c1", BLOCK) == ["10.0.0.1"]
    assert time.monotonic() - started >= 2


def test_429_beyond_the_deadline_is_try_again_later(lab, api_server):
    api_server.switch(throttle=1000, retry_after=60)
    for call in (lambda: reserve(lab, "c1", BLOCK), lambda: release(lab, "c1")):
        with pytest.raises(TryAgainLater, match="too busy"):
            call()


def test_5xx_is_tried_again_until_the_deadline(lab, api_server):
    api_server.switch(fail=3)
    assert reserve(lab, "c1", BLOCK) == ["10.0.0.1"]
    api_server.switch(fail=3)
    assert release(lab, "c1") == ["10.0.0.1"]
    api_server.switch(fail=1000)
    with pytest.raises(StoreUnavailable) as raised:
        reserve(lab, "c1", BLOCK, deadline_s=5.0)
    assert "503" in raised.value.details


def test_a_server_that_complains_and_then_hangs_up_is_told_with_its_complaint(lab, api_server, monkeypatch):
    pause = KubernetesApi._pause

    def hang_up_from_now_on(self, *args, **keys):
        pause(self, *args, **keys)
        api_server.switch(fail=0, drop=1000)

    monkeypatch.setattr(KubernetesApi, "_pause", hang_up_from_now_on)
    api_server.switch(fail=1)
    with pytest.raises(StoreUnavailable) as raised:
        reserve(lab, "c1", BLOCK, deadline_s=5.0)
    assert raised.value.details.startswith("HTTP status 503")
    assert "then: " in raised.value.details


ABSENT = {
    "kubernetes": "/apis/whereabouts.cni.cncf.io/v1alpha1/namespaces/kube-system/ippools/10.9.0.0-16",
    "kubernetes-leases": "/apis/ipam.vferry.io/v1alpha1/ipleases/rail.10.9.0.1",
}


def test_an_answer_that_something_is_not_there_is_no_complaint(lab, api_server):
    with lab.open(deadline_s=2.0) as store:
        assert store.api.get(ABSENT[store.name]) is None
        api_server.switch(drop=1000)
        with pytest.raises(StoreUnavailable) as raised:
            store.api.get(ABSENT[store.name])
    assert "404" not in raised.value.details


@pytest.mark.parametrize("mishap", ["lose", "drop"])
def test_lost_replies_make_no_second_lease_and_no_leak(lab, api_server, mishap):
    for count in (1, 2, 3):
        api_server.switch(**{mishap: count})
        given = reserve(lab, f"c{count}", BLOCK, "2001:db8::/64")
        api_server.switch(**{mishap: 0})
        with lab.open() as store:
            assert [str(lease.address) for lease in store.find(owner(f"c{count}"))] == sorted(given)
        api_server.switch(**{mishap: count})
        assert sorted(release(lab, f"c{count}", cooldown_s=0.0)) == sorted(given)
        api_server.switch(**{mishap: 0})
    with lab.open() as store:
        assert list(store.leases()) == []
    assert reserve(lab, "late", "10.0.0.1/32") == ["10.0.0.1"]


# A DEL after an ADD of which no request got out: only that ADD's own word lets it succeed.


def without_kubeconfig(lab, tmp_path):
    return replace(lab, make=replace(lab.make, kubeconfig=str(tmp_path / "gone")))


def test_a_del_after_an_add_without_its_kubeconfig_has_nothing_to_give_back(lab, tmp_path):
    astray = without_kubeconfig(lab, tmp_path)
    with pytest.raises(StoreUnavailable, match="gone"):
        reserve(astray, "c1", BLOCK)
    # The undo of the ADD, the runtime's DEL, and one more of it.
    for _ in range(3):
        assert release(astray, "c1") == []
    for never_added in (("c1", "net2"), ("c2", "net1")):
        with pytest.raises(StoreUnavailable, match="gone"):
            release(astray, never_added[0], ifname=never_added[1])


def test_a_del_after_an_add_that_nobody_listened_to_has_nothing_to_give_back(lab, api_server):
    api_server.stop()
    try:
        with pytest.raises(StoreUnavailable, match="does not answer"):
            reserve(lab, "c1", BLOCK, deadline_s=0.5)
        assert release(lab, "c1", deadline_s=0.5) == []
        with pytest.raises(StoreUnavailable, match="does not answer"):
            release(lab, "c2", deadline_s=0.5)
    finally:
        api_server.start()


def test_a_del_fails_where_an_earlier_add_leased(lab, tmp_path):
    given = reserve(lab, "c1", BLOCK)
    astray = without_kubeconfig(lab, tmp_path)
    for call in (reserve, release):
        with pytest.raises(StoreUnavailable, match="gone"):
            call(astray, "c1", *([BLOCK] if call is reserve else []))
    assert release(lab, "c1") == given


def test_a_del_fails_where_a_later_add_leased(lab, tmp_path):
    astray = without_kubeconfig(lab, tmp_path)
    with pytest.raises(StoreUnavailable, match="gone"):
        reserve(astray, "c1", BLOCK)
    given = reserve(lab, "c1", BLOCK)
    with pytest.raises(StoreUnavailable, match="gone"):
        release(astray, "c1")
    assert release(lab, "c1") == given


def test_a_del_fails_where_an_add_sent_something(lab, api_server, tmp_path):
    api_server.switch(drop=1000)
    with pytest.raises(StoreUnavailable):
        reserve(lab, "c1", BLOCK, deadline_s=0.5)
    for at in (without_kubeconfig(lab, tmp_path), lab):
        with pytest.raises(CniError):
            reserve(at, "c1", BLOCK, deadline_s=0.5)
        with pytest.raises(CniError):
            release(at, "c1", deadline_s=0.5)


def test_words_of_adds_without_a_request_are_kept_for_a_day(lab, tmp_path):
    astray = without_kubeconfig(lab, tmp_path)
    for name in ("c1", "c2"):
        with pytest.raises(StoreUnavailable):
            reserve(astray, name, BLOCK)
    reserve(lab, "c3", BLOCK)
    owners = lab.make.run / "owners"
    assert len(list(owners.iterdir())) == 3
    for path in owners.iterdir():
        os.utime(path, (0, 0))
    assert release(astray, "c1") == []
    assert len(list(owners.iterdir())) == 1
    assert release(lab, "c3")


def test_nothing_of_a_failed_reserve_is_left(lab, api_server):
    with lab.open(deadline_s=2.0) as store:
        created = store.api.create

        def fail_at_the_second_family(path, body, **options):
            if "2001" in body["metadata"]["name"]:
                raise TryAgainLater("enough")
            return created(path, body, **options)

        store.api.create = fail_at_the_second_family
        with pytest.raises(TryAgainLater, match="enough"):
            store.reserve(owner("c1"), [Want(pool(BLOCK)), Want(pool("2001:db8::/64"))], allocation="lowest")
    with lab.open() as store:
        assert list(store.leases()) == []
    assert reserve(lab, "c2", BLOCK) == ["10.0.0.1"]


# Unfriendly.


@pytest.mark.parametrize("code", ["401", "403"])
def test_a_refused_credential_is_an_error_at_once(lab, api_server, code):
    api_server.switch(tokens={} if code == "401" else {"node's token": OTHER[lab.make.store.name]})
    for call in (lambda: reserve(lab, "c1", BLOCK, deadline_s=300.0), lambda: release(lab, "c1", deadline_s=300.0)):
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="refuses") as raised:
            call()
        assert time.monotonic() - started < 150
        assert code in raised.value.details
        assert "token" in raised.value.hint or "rbac" in raised.value.hint
        assert "node's token" not in str(raised.value)
    with lab.open() as store, pytest.raises(StoreUnavailable):
        store.probe()


# The role of the other store may do nothing here.
OTHER = {"kubernetes": "rbac-kubernetes-leases.yaml", "kubernetes-leases": "rbac-kubernetes.yaml"}


def test_a_missing_crd_is_named(api_server, tmp_path):
    lab = Lab(kubernetes_lab(api_server, "kubernetes-leases", tmp_path))
    with lab.open() as store:
        with pytest.raises(StoreUnavailable) as raised:
            store.api.create("/apis/other.group/v1/things", {"metadata": {}})
        with pytest.raises(StoreUnavailable):
            store.api.get("/apis/other.group/v1/things/x")
    assert "conf/deploy/crds/ipleases.yaml" in raised.value.hint


def test_a_token_file_is_read_for_every_request(lab, api_server, tmp_path):
    token = tmp_path / "token"
    token.write_text("first\n")
    api_server.write_kubeconfig(path=tmp_path / f"{lab.make.store.name}.kubeconfig", user={"tokenFile": "token"})
    api_server.switch(tokens={"first": lab.make.rbac})
    with lab.open() as store:
        store.reserve(owner("c1"), [Want(pool(BLOCK))], allocation="lowest")
        token.write_text("second")
        api_server.switch(tokens={"second": lab.make.rbac})
        store.reserve(owner("c2"), [Want(pool(BLOCK))], allocation="lowest")


def test_a_token_that_is_rotated_between_reading_and_asking_is_read_again(lab, api_server):
    read = iter(["stale", "fresh", "fresh", "fresh", "fresh"])
    api_server.switch(tokens={"fresh": lab.make.rbac})
    with lab.open() as store:
        object.__setattr__(store.api.access, "token", lambda: next(read))
        store.reserve(owner("c1"), [Want(pool(BLOCK))], allocation="lowest")


# The kubeconfig.


def kubeconfig(tmp_path, document):
    path = tmp_path / "kubeconfig"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


SOUND = {
    "clusters": [{"name": "c", "cluster": {"server": "https://[2001:db8::1]:6443/prefix/"}}],
    "users": [{"name": "u", "user": {"token": "s3cret"}}],
    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "whereabouts"}}],
    "current-context": "x",
}


@pytest.mark.parametrize("write", [json.dumps, yaml.safe_dump])
def test_a_kubeconfig_is_json_or_yaml(tmp_path, write):
    access = find_access(kubeconfig(tmp_path, write(SOUND)))
    assert (access.host, access.port, access.path) == ("2001:db8::1", 6443, "/prefix")
    assert (access.namespace, access.token()) == ("whereabouts", "s3cret")
    assert str(access) == "https://[2001:db8::1]:6443/prefix"
    del (context := SOUND["contexts"][0]["context"].copy())["namespace"]
    assert find_access(kubeconfig(tmp_path, {**SOUND, "contexts": [{"name": "x", "context": context}]})).namespace == (
        "kube-system"
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"current-context": "y"}, "no context 'y'"),
        ({"contexts": [{"name": "x", "context": {"cluster": "d"}}]}, "no cluster 'd'"),
        ({"users": []}, "no user 'u'"),
        ({"users": [{"name": "u", "user": {"exec": {"command": "aws", "args": ["s3cret"]}}}]}, '"exec"'),
        ({"users": [{"name": "u", "user": {"auth-provider": {"name": "gcp"}}}]}, '"auth-provider"'),
        ({"users": [{"name": "u", "user": {"username": "a", "password": "s3cret"}}]}, '"username"'),
        ({"clusters": [{"name": "c", "cluster": {"server": "nowhere"}}]}, '"server"'),
        ({"clusters": [{"name": "c", "cluster": {"server": "https://a", "proxy-url": "http://p"}}]}, '"proxy-url"'),
    ],
)
def test_what_a_kubeconfig_lacks_or_we_cannot_do_is_said(tmp_path, change, says):
    with pytest.raises(StoreUnavailable) as raised:
        find_access(kubeconfig(tmp_path, {**SOUND, **change}))
    assert says in raised.value.details
    assert raised.value.hint
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    "document", ["token: s3cret\n  - : [", "[1, 2]", "s3cret", "", "\x00", "!!python/object/apply:os.system [s3cret]"]
)
def test_a_damaged_kubeconfig_is_an_error_that_quotes_nothing(tmp_path, document):
    with pytest.raises(StoreUnavailable) as raised:
        find_access(kubeconfig(tmp_path, document))
    assert "s3cret" not in str(raised.value)
    assert "kubeconfig" in raised.value.msg


@pytest.mark.parametrize(
    ("section", "key"),
    [("cluster", "certificate-authority-data"), ("user", "client-certificate-data"), ("user", "client-key-data")],
)
@pytest.mark.parametrize("value", ["s3cret!", base64.b64encode(b"s3cret").decode()])
def test_damaged_certificates_are_errors_that_quote_nothing(tmp_path, section, key, value):
    document = json.loads(json.dumps(SOUND))
    document[f"{section}s"][0][section][key] = value
    access = find_access(kubeconfig(tmp_path, document))
    with pytest.raises(CniError) as raised:
        access.tls()
    assert raised.value.code == StoreUnavailable.code
    assert "s3cret" not in str(raised.value)


def test_in_a_pod_the_service_account_is_used(tmp_path):
    (tmp_path / "token").write_text("one")
    (tmp_path / "namespace").write_text("vferry-system\n")
    environ = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    access = find_access("", environ=environ, service_account=tmp_path)
    assert (str(access), access.namespace, access.token()) == ("https://10.96.0.1:443", "vferry-system", "one")
    (tmp_path / "token").write_text("two")
    assert access.token() == "two"
    with pytest.raises(StoreUnavailable):
        access.tls()


def test_neither_kubeconfig_nor_pod():
    with pytest.raises(NotConfigured) as raised:
        find_access("", environ={})
    assert isinstance(raised.value, InvalidNetworkConfig)
    assert "kubeconfig" in raised.value.hint
