"""What the API server says of pods and nodes, as the reaper asks it; every read is consistent, none is from a cache.

Source: reference 8.4; kubernetes.io/docs, "Non-graceful node shutdown", Event v1.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

from conf.errors import CniError
from conf.whereabouts import StoreConf
from ipam.reaping import NOTHING_KNOWN, Finding, RenewedDeadline, Word
from ipam.stores.contract import Lease
from ipam.stores.kubeconfig import find_access
from ipam.stores.kubernetes_api import KubernetesApi, Refused, ReplyLost

CRDS, RBAC = "ipleases.yaml", "rbac-reconcile.yaml"
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
_HOSTNAME = "kubernetes.io/hostname"
_ENDED = ("Succeeded", "Failed")

Json = dict[str, Any]

log = logging.getLogger("vferry.ipam.pods")


def open_pods(conf: StoreConf) -> Pods | None:
    """Return the cluster that a configuration names, None where it names none; nothing is connected yet."""
    if not conf.chosen.startswith("kubernetes") and not conf.kubernetes.kubeconfig:
        return None
    return Pods(
        lambda deadline: KubernetesApi(
            find_access(conf.kubernetes.kubeconfig), deadline=deadline, crds=CRDS, rbac=RBAC
        ),
        deadline_s=conf.deadline_s,
    )


class Pods:
    """One cluster's pods and nodes; an answer is kept until ``forget``."""

    def __init__(self, open_api: Callable[[RenewedDeadline], KubernetesApi], *, deadline_s: float = 30.0) -> None:
        self._deadline = RenewedDeadline(deadline_s)
        self._open_api = open_api
        self._opened: KubernetesApi | None = None
        self._answers: dict[str, Json | None] = {}
        self._nodes: list[Json] | None = None
        # Leases whose recorded node is not called as the Node of their pod.
        self._misnamed: set[str] = set()
        self._failure: CniError | None = None

    def __enter__(self) -> Pods:
        return self

    def __exit__(self, *_: object) -> None:
        if self._opened is not None:
            self._opened.close()

    def pod(self, lease: Lease) -> Word:
        """Return whether the lease's pod is there; see ``ipam.reaping``."""
        owner = lease.owner
        called = f"pod {owner.pod_namespace}/{owner.pod_name}"
        pod = self._get(f"/api/v1/namespaces/{quote(owner.pod_namespace)}/pods/{quote(owner.pod_name)}")
        if pod is None:
            return Word(gone=f"{called} does not exist")
        uid, phase = pod["metadata"]["uid"], (pod.get("status") or {}).get("phase", "")
        if owner.pod_uid and uid != owner.pod_uid:
            return Word(gone=f"{called} is another one: its UID is {uid}, not {owner.pod_uid}")
        if phase in _ENDED:
            return Word(gone=f"{called} is {phase}")
        node = (pod.get("spec") or {}).get("nodeName", "")
        if owner.pod_uid and node and owner.node and node != owner.node:
            self._misnamed.add(owner.node)
        return Word(lives=f"{called} is {phase or 'there'}")

    def node(self, lease: Lease) -> Word:
        """Return whether the lease's node can't have its pod any more; NotReady says nothing of that."""
        name = lease.owner.node
        if not name:
            return NOTHING_KNOWN
        node = self._get(f"/api/v1/nodes/{quote(name)}")
        if node is None:
            return self._absent(name)
        taints = (node.get("spec") or {}).get("taints") or []
        if any(taint.get("key") == OUT_OF_SERVICE for taint in taints):
            return Word(gone=f"Node {name} has the taint {OUT_OF_SERVICE}")
        return NOTHING_KNOWN

    def forget(self) -> None:
        """Ask anew from now on."""
        self._answers.clear()
        self._failure = None
        self._nodes = None

    def tell(self, finding: Finding) -> None:
        """Record a removal as an Event of the pod; it is for people, so that failing is only logged."""
        owner = finding.lease.owner
        if not owner.pod_name:
            return
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        pod = {"apiVersion": "v1", "kind": "Pod", "namespace": owner.pod_namespace, "name": owner.pod_name}
        event: Json = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"vferry-{_digest(finding)}", "namespace": owner.pod_namespace},
            "involvedObject": {**pod, **({"uid": owner.pod_uid} if owner.pod_uid else {})},
            "reason": "AddressReaped",
            "message": f"{finding.lease.address} of {owner.ifname}: {finding.reason}; proof: {finding.proof}"[:1024],
            "type": "Normal",
            "source": {"component": "vferry"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            self._api().create(f"/api/v1/namespaces/{quote(owner.pod_namespace)}/events", event)
        except (CniError, Refused, ReplyLost) as error:
            log.warning("no event of %s: %s", finding.lease.address, error)

    def _absent(self, name: str) -> Word:
        """Tell a Node that is gone from a node that is called otherwise: what a lease records may be a host name."""
        if name in self._misnamed:
            return NOTHING_KNOWN
        if self._nodes is None:
            self._nodes = list(self._api().listed("/api/v1/nodes"))
        short = _short(name)
        for node in self._nodes:
            names = [node["metadata"]["name"], (node["metadata"].get("labels") or {}).get(_HOSTNAME, "")]
            names += [each.get("address", "") for each in (node.get("status") or {}).get("addresses") or []]
            if any(_short(each) == short for each in names):
                return NOTHING_KNOWN
        # Where no name that leases record is a Node's, none of them says anything.
        return Word(gone=f"Node {name} does not exist") if self._nodes else NOTHING_KNOWN

    def _get(self, path: str) -> Json | None:
        if self._failure is not None:
            raise self._failure
        if path not in self._answers:
            api = self._api()
            try:
                self._answers[path] = api.get(path)
            except CniError as error:
                if self._deadline.remaining_s() < self._deadline.seconds / 2:
                    # It was waited for once: not again for each of a thousand leases.
                    self._failure = error
                raise
        return self._answers[path]

    def _api(self) -> KubernetesApi:
        self._deadline.renew()
        if self._opened is None:
            self._opened = self._open_api(self._deadline)
        return self._opened


def _short(name: str) -> str:
    """Return a host name without its domain, an address whole."""
    first = name.partition(".")[0].lower()
    return name if first.isdigit() else first


def _digest(finding: Finding) -> str:
    lease = finding.lease
    return hashlib.sha256(f"{lease.space}/{lease.address}/{lease.revision}".encode()).hexdigest()[:20]
