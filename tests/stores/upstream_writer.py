"""What upstream's whereabouts does to its objects, one API call at a time, for tests that put ours in between.

``add`` and ``delete`` are generators that yield after each call; upstream's writers exclude each other by a Lease, so
that never two of them run at once. Source: reference 1.3, 1.4.
"""

from __future__ import annotations

import ipaddress
import json
import urllib.error
import urllib.request
from datetime import datetime, timedelta, timezone


class UpstreamError(Exception):
    """The plugin fails, and the kubelet tries again."""


class Upstream:
    """One node that runs the Go plugin."""

    def __init__(self, server, namespace="kube-system", token="admin"):
        self._url = f"{server.url}/apis/whereabouts.cni.cncf.io/v1alpha1/namespaces/{namespace}"
        self._token = token

    def elected(self, steps, identity="ns/go"):
        """Do the same while holding upstream's Lease, as every one of its invocations does."""
        self.renew(identity)
        yield
        try:
            return (yield from steps)
        finally:
            self.renew("")

    def renew(self, identity, *, ago_s=0.0):
        moment = datetime.now(timezone.utc) - timedelta(seconds=ago_s)
        stamp = moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": identity, "leaseDurationSeconds": 1, "renewTime": stamp, "acquireTime": stamp}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "whereabouts"}}
        kind = self._url.replace("whereabouts.cni.cncf.io/v1alpha1", "coordination.k8s.io/v1") + "/leases"
        stored = self.call("GET", f"{kind}/whereabouts")
        if stored is None:
            assert self.call("POST", kind, {**body, "spec": spec})
        else:
            assert self.call("PUT", f"{kind}/whereabouts", {**stored, "spec": spec})

    def add(self, cid, podref, block, ifname="net1", network_name=""):
        """Return the address."""
        network = ipaddress.ip_network(block)
        pool_name = _prefixed(network_name, _dashed(str(network)))
        skipped = set()
        for _ in range(100):
            pool = self.call("GET", f"ippools/{pool_name}")
            yield
            if pool is None:
                spec = {"range": str(network), "allocations": {}}
                body = {"apiVersion": _VERSION, "kind": "IPPool", "metadata": {"name": pool_name}, "spec": spec}
                self.call("POST", "ippools", body)
                yield
                continue
            allocations = pool["spec"]["allocations"]
            mine = [k for k, v in allocations.items() if (v["podref"], v.get("ifname")) == (podref, ifname)]
            taken = set(map(int, allocations))
            offset = int(mine[0]) if mine else _lowest(network, taken | skipped)
            address = network[offset]
            reservation = self.call("GET", f"{_RESERVATIONS}/{_prefixed(network_name, _dashed(str(address)))}")
            yield
            if reservation and reservation["spec"]["podref"] != podref:
                skipped.add(offset)
                continue
            path = f"/spec/allocations/{offset}"
            changes = (
                [{"op": "replace", "path": f"{path}/id", "value": cid}]
                if mine
                else [
                    {"op": "test", "path": path, "value": None},
                    {"op": "add", "path": path, "value": {"id": cid, "podref": podref, "ifname": ifname}},
                ]
            )
            code = self._patch(pool, changes)
            yield
            if code == 422:
                continue
            if not reservation:
                metadata = {"name": _prefixed(network_name, _dashed(str(address)))}
                spec = {"podref": podref, "ifname": ifname}
                body = {"apiVersion": _VERSION, "kind": _KIND, "metadata": metadata, "spec": spec}
                code, _ = self.request("POST", _RESERVATIONS, body)
                yield
                if code != 201:
                    raise UpstreamError(f"{code} reserving {address}")
            return str(address)
        raise UpstreamError("100 tries")

    def delete(self, cid, block, ifname="net1", network_name=""):
        network = ipaddress.ip_network(block)
        pool_name = _prefixed(network_name, _dashed(str(network)))
        for _ in range(100):
            pool = self.call("GET", f"ippools/{pool_name}")
            yield
            held = [
                k for k, v in ((pool or {}).get("spec", {}).get("allocations") or {}).items()
                if (v["id"], v.get("ifname")) == (cid, ifname)
            ]  # fmt: skip
            if not held:
                return
            code = self._patch(pool, [{"op": "remove", "path": f"/spec/allocations/{held[0]}"}])
            yield
            if code == 422:
                continue
            name = _prefixed(network_name, _dashed(str(network[int(held[0])])))
            self.request("DELETE", f"{_RESERVATIONS}/{name}")
            yield
            return

    def _patch(self, pool, changes):
        version = {"op": "test", "path": "/metadata/resourceVersion", "value": pool["metadata"]["resourceVersion"]}
        code, _ = self.request("PATCH", f"ippools/{pool['metadata']['name']}", [version, *changes])
        assert code in (200, 422), code
        return code

    def call(self, method, path, body=None):
        code, answer = self.request(method, path, body)
        return answer if code < 300 else None

    def request(self, method, path, body=None):
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        if method == "PATCH":
            headers["Content-Type"] = "application/json-patch+json"
        data = None if body is None else json.dumps(body).encode()
        url = path if path.startswith("http") else f"{self._url}/{path}"
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def pools(self):
        """Return {pool: {address: allocation}}."""
        items = self.call("GET", "ippools")["items"]
        return {
            pool["metadata"]["name"]: {
                str(ipaddress.ip_network(pool["spec"]["range"])[int(offset)]): entry
                for offset, entry in pool["spec"]["allocations"].items()
            }
            for pool in items
        }

    def reservations(self):
        """Return {name: spec}."""
        return {item["metadata"]["name"]: item["spec"] for item in self.call("GET", _RESERVATIONS)["items"]}


_VERSION = "whereabouts.cni.cncf.io/v1alpha1"
_KIND, _RESERVATIONS = "OverlappingRangeIPReservation", "overlappingrangeipreservations"


def run(steps):
    """Run a generator to its end and return what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def _lowest(network, taken):
    usable = range(1, network.num_addresses - (network.version == 4))
    for offset in usable:
        if offset not in taken:
            return offset
    raise UpstreamError("no free address")


def _prefixed(network_name, name):
    return f"{network_name}-{name}" if network_name else name


def _dashed(text):
    return (text + "0" if text.endswith(":") else text).replace(":", "-").replace("/", "-")
