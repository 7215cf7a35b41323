"""An API server that somebody else runs, in place of the stand-in: the contract of the stores is tried there too.

    kubectl apply --validate=false -f conf/deploy/crds -f conf/deploy/rbac-kubernetes.yaml \\
        -f conf/deploy/rbac-kubernetes-leases.yaml
    VFERRY_TEST_KUBECONFIG=PATH build/venv/bin/pytest tests/stores/test_contract*.py -k kubernetes

The kubeconfig is an administrator's, without a namespace or with kube-system, and no address may be leased there: a
test refuses to begin where one is, and deletes what it made. The stores themselves act as the service account of the
manifests, whose token is asked for.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import yaml

from ipam.stores.contract import Deadline
from ipam.stores.iplease import COLLECTION
from ipam.stores.kubeconfig import find_access
from ipam.stores.kubernetes_api import KubernetesApi

KUBECONFIG = os.environ.get("VFERRY_TEST_KUBECONFIG", "")
_ACCOUNT = "/api/v1/namespaces/kube-system/serviceaccounts/vferry/token"
_UPSTREAM = "/apis/whereabouts.cni.cncf.io/v1alpha1/namespaces/{}/{}"
_KINDS = ("ippools", "overlappingrangeipreservations", "nodeslicepools")


class InUse(Exception):
    """There are leases at the server, and nobody knows whose."""


class OutsideServer:
    """The server of an administrator's kubeconfig, and a kubeconfig beside it with a node's rights only."""

    def __init__(self, directory, admin=KUBECONFIG):
        self.kubeconfig = Path(directory) / "node.kubeconfig"
        self._admins = admin
        access = find_access(admin)
        self._collections = [COLLECTION, *(_UPSTREAM.format(access.namespace, kind) for kind in _KINDS)]
        self._write_kubeconfig()

    def _write_kubeconfig(self):
        document = yaml.safe_load(Path(self._admins).read_text())
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 7200},
        }
        with self._admin() as api:
            token = api.create(_ACCOUNT, request)["status"]["token"]
        for cluster in document["clusters"]:
            if name := cluster["cluster"].get("certificate-authority"):
                cluster["cluster"]["certificate-authority"] = str(Path(self._admins).resolve().parent / name)
        document["users"] = [{"name": user["name"], "user": {"token": token}} for user in document["users"]]
        self.kubeconfig.touch(0o600)
        self.kubeconfig.write_text(json.dumps(document))

    def __enter__(self):
        if left := self._objects():
            raise InUse(
                f"{self._admins}: {len(left)} objects are there, {left[0][0]} for one: that is no server for tests"
            )
        return self

    def __exit__(self, *_):
        with self._admin() as api:
            for path, uid in self._objects():
                api.delete(path, uid=uid)

    def _objects(self):
        with self._admin() as api:
            return [
                (f"{collection}/{obj['metadata']['name']}", obj["metadata"]["uid"])
                for collection in self._collections
                for obj in api.listed(collection, metadata_only=True)
            ]

    def _admin(self):
        # A measurement leaves thousands of objects to delete.
        return _Closing(find_access(self._admins), deadline=Deadline(1800), crds="", rbac="")


class _Closing(KubernetesApi):
    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
