"""The objects of an API server stand-in: one resourceVersion for all, optimistic concurrency, lists in pages.

HTTP is api_server's, schemas are api_schema's. Source: kubernetes.io/docs, "Kubernetes API Concepts";
github.com/kubernetes/kubernetes staging/src/k8s.io/apiserver/pkg/registry and endpoints/handlers.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import random
import re
import uuid
from bisect import bisect_left, insort
from datetime import datetime, timezone

from tests.stores import api_metadata
from tests.stores.api_schema import complaints, pruned
from tests.stores.json_patch import PatchFailed, apply_json_patch, apply_merge_patch

# etcd's --max-request-bytes is 1.5 MiB by default.
MAX_OBJECT = 3 * 512 * 1024
# patch.go MaxRetryWhenPatchConflicts.
PATCH_TRIES = 5
# Who asks for it deletes by finalizer.
_BY_FINALIZER = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}


class ApiError(Exception):
    """An answer other than success, as metav1.Status tells it."""

    def __init__(self, code, reason, message, *, details=None, headers=()):
        super().__init__(message)
        self.code, self.reason, self.message, self.details = code, reason, message, details
        self.headers = dict(headers)

    def status(self):
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message}
        return {
            **status,
            "reason": self.reason,
            "code": self.code,
            **({"details": self.details} if self.details is not None else {}),
        }


class Objects:
    """Everything that is stored. Only patches await, as there the real server may meet a rival."""

    def __init__(self):
        self.version = random.randrange(1000, 100_000)
        self.patch_delay_s = 0.0
        self._stored = {}
        self._keys = {}
        self._snapshots = {}

    def get(self, resource, namespace, name):
        try:
            return self._of(resource)[namespace, name]
        except KeyError:
            raise _missing(resource, name) from None

    def create(self, resource, namespace, given, *, dry_run=False):
        new = self._admitted(resource, namespace, given)
        metadata = new["metadata"]
        name = metadata.get("name", "")
        if not api_metadata.is_subdomain(name):
            raise _invalid(
                resource, name, "metadata.name: Invalid value: a lowercase RFC 1123 subdomain must consist of …"
            )
        if metadata.get("resourceVersion"):
            raise ApiError(500, "", "resourceVersion should not be set on objects to be created")
        metadata.pop("deletionTimestamp", None)
        self._require_valid(resource, new, None)
        if (stored := self._of(resource).get((namespace, name))) is not None:
            prefix = "object is being deleted: " if "deletionTimestamp" in stored["metadata"] else ""
            raise ApiError(
                409,
                "AlreadyExists",
                f'{prefix}{_qualified(resource)} "{name}" already exists',
                details=_details(resource, name),
            )
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": _now(), "generation": 1}
        metadata["managedFields"] = [_managed(resource, new)]
        return self._store(resource, namespace, name, new, dry_run=dry_run)

    def replace(self, resource, namespace, name, given, *, dry_run=False):
        new = self._admitted(resource, namespace, given)
        old = self.get(resource, namespace, name)
        if new["metadata"].get("name") != name:
            raise ApiError(400, "BadRequest", "the name of the object does not match the name on the URL")
        if new["metadata"].get("resourceVersion", "0") == "0":
            raise _invalid(
                resource, name, "metadata.resourceVersion: Invalid value: 0: must be specified for an update"
            )
        return self._change(resource, namespace, name, old, new, dry_run=dry_run)

    async def patch(self, resource, namespace, name, body, content_type, *, dry_run=False):
        for _ in range(PATCH_TRIES):
            old = self.get(resource, namespace, name)
            # Between reading and writing another request may come; the server then applies the patch anew.
            if self.patch_delay_s:
                await asyncio.sleep(self.patch_delay_s * random.random())
            if content_type == "application/json-patch+json":
                try:
                    new = apply_json_patch(old, body)
                except PatchFailed as failure:
                    # What failed is in the server's log only.
                    message = "the server rejected our request due to an error in our request"
                    raise ApiError(422, "Invalid", message, details={}) from failure
            elif content_type == "application/merge-patch+json":
                new = apply_merge_patch(old, body)
            else:
                raise ApiError(
                    415, "UnsupportedMediaType", f"the body of the request was in an unknown format - {content_type}"
                )
            new = self._admitted(resource, namespace, new)
            if new["metadata"].get("name") != name:
                raise ApiError(400, "BadRequest", "the name of the object does not match the name on the URL")
            if new["metadata"].get("resourceVersion") != old["metadata"]["resourceVersion"]:
                raise _conflict(resource, name)
            if self._of(resource).get((namespace, name)) is old:
                return self._change(resource, namespace, name, old, new, dry_run=dry_run)
        raise _conflict(resource, name)

    def delete(self, resource, namespace, name, options, *, dry_run=False):
        old = self.get(resource, namespace, name)
        for key, word in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
            wanted = (options.get("preconditions") or {}).get(key)
            if wanted is not None and wanted != old["metadata"][key]:
                stored = old["metadata"][key]
                message = f"the {word} in the precondition ({wanted}) does not match the {word} in record ({stored})."
                kind = f"{resource.kind}.{resource.group}"
                raise ApiError(
                    409,
                    "Conflict",
                    f'Operation cannot be fulfilled on {kind} "{name}": {message}',
                    details={**_details(resource, name), "kind": resource.kind},
                )
        finalizers = list(old["metadata"].get("finalizers", []))
        if (more := _BY_FINALIZER.get(options.get("propagationPolicy"))) and more not in finalizers:
            finalizers.append(more)
        if finalizers:
            return self._mark_deleted(resource, namespace, name, old, finalizers, dry_run=dry_run)
        if not dry_run:
            self._drop(resource, namespace, name)
        return {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "details": {**_details(resource, name), "uid": old["metadata"]["uid"]},
        }  # fmt: skip

    def _mark_deleted(self, resource, namespace, name, old, finalizers, *, dry_run):
        if "deletionTimestamp" in old["metadata"]:
            return old
        new = copy.deepcopy(old)
        new["metadata"] |= {"deletionTimestamp": _now(), "deletionGracePeriodSeconds": 0, "finalizers": finalizers}
        new["metadata"]["generation"] += 1
        return self._store(resource, namespace, name, new, dry_run=dry_run)

    def _drop(self, resource, namespace, name):
        stored = self._of(resource)
        del stored[namespace, name]
        keys = self._keys[id(stored)]
        del keys[bisect_left(keys, (namespace, name))]
        self.version += 1

    def list(self, resource, namespace, *, selector="", limit=0, token="", cached=False):
        """Return items, the version they are of, the token of the next page and how many are left."""
        if token:
            try:
                version, first = json.loads(base64.urlsafe_b64decode(token))
            except (TypeError, ValueError) as error:
                raise ApiError(400, "BadRequest", f"continue key is not valid: {error}") from None
            snapshot = self._snapshots.get((resource, namespace, selector, version))
            if snapshot is None:
                message = "The provided continue parameter is too old to display a consistent list result."
                raise ApiError(410, "Expired", message)
        else:
            version, first = self.version, 0
            stored = self._of(resource)
            snapshot = [stored[key] for key in self._keys.get(id(stored), ()) if namespace in (None, key[0])]
        matches, at, page = selection(selector), first, []
        # As the server does: it looks on until a page is full, and does not know whether more will match.
        while at < len(snapshot) and (cached or not limit or len(page) < limit):
            if matches(snapshot[at]):
                page.append(snapshot[at])
            at += 1
        if at == len(snapshot):
            return page, version, "", 0
        self._snapshots[resource, namespace, selector, version] = snapshot
        following = base64.urlsafe_b64encode(json.dumps([version, at]).encode()).decode()
        return page, version, following, len(snapshot) - at

    def expire_tokens(self):
        """What the server's compaction does every few minutes."""
        self._snapshots.clear()

    def _of(self, resource):
        return self._stored.setdefault(resource.plural + "." + resource.group, {})

    def _admitted(self, resource, namespace, given):
        if not isinstance(given, dict) or not isinstance(given.get("metadata") or {}, dict):
            raise ApiError(400, "BadRequest", "the object provided is unrecognized")
        if given.get("apiVersion") != resource.api_version or given.get("kind") != resource.kind:
            raise ApiError(
                400, "BadRequest", f"the API version in the data does not match {resource.api_version} {resource.kind}"
            )
        new = copy.deepcopy(given)
        try:
            new["metadata"] = metadata = api_metadata.decoded(new.get("metadata"))
        except ValueError as error:
            raise ApiError(400, "BadRequest", f"{resource.kind} cannot be handled: {error}") from None
        if not namespace:
            metadata.pop("namespace", None)
        elif metadata.setdefault("namespace", namespace) != namespace:
            raise ApiError(400, "BadRequest", "the namespace of the provided object does not match the request")
        return pruned(new, resource.schema, top=True) if resource.schema else new

    def _change(self, resource, namespace, name, old, new, *, dry_run):
        metadata = new["metadata"]
        if metadata.get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
            raise _conflict(resource, name)
        if metadata["resourceVersion"] != old["metadata"]["resourceVersion"]:
            raise _conflict(resource, name)
        is_reset = metadata.pop("managedFields", None) == [{}]
        metadata.pop("deletionTimestamp", None)
        for key in ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"):
            if key in old["metadata"]:
                metadata[key] = old["metadata"][key]
        self._require_valid(resource, new, old)
        # Of an object without, nothing is noted any more.
        if "managedFields" in old["metadata"] and not is_reset:
            is_same = {**new, "metadata": 0} == {**old, "metadata": 0}
            metadata["managedFields"] = old["metadata"]["managedFields"] if is_same else [_managed(resource, new)]
        if new == old:
            return old
        if {**new, "metadata": 0} != {**old, "metadata": 0}:
            metadata["generation"] += 1
        if "deletionTimestamp" in metadata and "finalizers" not in metadata:
            # Nothing keeps it any more; the answer looks as if it had been changed.
            if not dry_run:
                self._drop(resource, namespace, name)
            return new
        return self._store(resource, namespace, name, new, dry_run=dry_run)

    def _require_valid(self, resource, new, old):
        metadata = new["metadata"]
        wrong = list(api_metadata.complaints(metadata, old and old["metadata"]))
        if resource.schema:
            wrong += complaints(new, resource.schema, old, top=True)
        if wrong:
            raise _invalid(resource, metadata.get("name", ""), "; ".join(wrong))

    def _store(self, resource, namespace, name, new, *, dry_run):
        if dry_run:
            return new
        if len(json.dumps(new, separators=(",", ":"))) > MAX_OBJECT:
            raise ApiError(500, "", "etcdserver: request is too large")
        self.version += 1
        new["metadata"]["resourceVersion"] = str(self.version)
        stored = self._of(resource)
        if (namespace, name) not in stored:
            insort(self._keys.setdefault(id(stored), []), (namespace, name))
        stored[namespace, name] = new
        return new


def selection(selector):
    """Return the predicate of a labelSelector."""
    tests = []
    for term in re.findall(r"[^,(]+(?:\([^)]*\))?", selector):
        if match := re.match(r"\s*(\S+)\s+(in|notin)\s+\(([^)]*)\)\s*\Z", term):
            key, how, values = match[1], match[2], {value.strip() for value in match[3].split(",")}
            tests.append(lambda labels, k=key, v=values, inside=how == "in": (labels.get(k) in v) is inside)
        elif match := re.match(r"\s*([^\s!=]+)\s*(!=|==?)\s*(\S*)\s*\Z", term):
            key, negated, value = match[1], match[2] == "!=", match[3]
            tests.append(lambda labels, k=key, v=value, n=negated: (labels.get(k) == v) is not n)
        elif match := re.match(r"\s*(!?)\s*([^\s!=]+)\s*\Z", term):
            tests.append(lambda labels, k=match[2], absent=bool(match[1]): (k in labels) is not absent)
        else:
            raise ApiError(400, "BadRequest", f"unable to parse requirement: {term}")
    return lambda stored: all(test(stored["metadata"].get("labels") or {}) for test in tests)


def _missing(resource, name):
    message = f'{_qualified(resource)} "{name}" not found'
    return ApiError(404, "NotFound", message, details=_details(resource, name))


def _conflict(
    resource,
    name,
    message="the object has been modified; please apply your changes to the latest version and try again",
):
    return ApiError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {_qualified(resource)} "{name}": {message}',
        details=_details(resource, name),
    )


def _invalid(resource, name, wrong):
    return ApiError(
        422,
        "Invalid",
        f'{resource.kind}.{resource.group} "{name}" is invalid: {wrong}',
        details={**_details(resource, name), "kind": resource.kind},
    )


def _details(resource, name):
    return {"name": name, "group": resource.group, "kind": resource.plural}


def _qualified(resource):
    return f"{resource.plural}.{resource.group}" if resource.group else resource.plural


def _managed(resource, new):
    return {
        "manager": "vferry", "operation": "Update", "apiVersion": resource.api_version, "time": _now(),
        "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": _fields(new.get("spec", {}))},
    }  # fmt: skip


def _fields(value):
    return {".": {}, **{f"f:{key}": _fields(each) for key, each in value.items()}} if isinstance(value, dict) else {}


def _now():
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
