"""ObjectMeta as an API server decodes and validates it, compared with Kubernetes 1.36's library.

Source: k8s.io/apimachinery pkg/apis/meta/v1 types.go, pkg/api/validation/objectmeta.go.
"""

from __future__ import annotations

import re
from datetime import datetime

_TEXT_MAPS = ("labels", "annotations")
_TEXTS = ("name", "generateName", "namespace", "uid", "resourceVersion")
_TIMES = ("creationTimestamp", "deletionTimestamp")
_FIELDS = {*_TEXT_MAPS, *_TEXTS, *_TIMES, "generation", "managedFields", "finalizers", "ownerReferences"}
_DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?\Z", re.ASCII)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?\Z", re.ASCII)
_MAX_ANNOTATIONS = 256 * 1024


def decoded(given):
    """Return the fields that are known and say something.

    Raises: ValueError for one of another type.
    """
    kept = {key: value for key, value in (given or {}).items() if key in _FIELDS and value not in (None, "")}
    for key, value in kept.items():
        expected = dict if key in _TEXT_MAPS else str if key in (*_TEXTS, *_TIMES) else list
        if not isinstance(value, int if key == "generation" else expected):
            raise ValueError(f"cannot unmarshal {value!r} into Go struct field ObjectMeta.{key}")
    kept = {key: value for key, value in kept.items() if value not in ([], {})}
    for key in _TEXT_MAPS:
        if key in kept:
            kept[key] = {name: "" if value is None else value for name, value in kept[key].items()}
            if not all(isinstance(value, str) for value in kept[key].values()):
                raise ValueError(f"cannot unmarshal {kept[key]!r} into Go struct field ObjectMeta.{key} of type string")
    for key in _TIMES:
        if key in kept:
            datetime.strptime(kept[key], "%Y-%m-%dT%H:%M:%SZ")
    return kept


def is_subdomain(name):
    """Whether an object of ours can be called so."""
    return bool(_DNS_1123.match(name)) and len(name) <= 253


def complaints(metadata, old=None):
    """Yield what is wrong with it; ``old`` is the metadata of what is stored."""
    for key, value in metadata.get("labels", {}).items():
        if not _is_qualified(key) or not _LABEL_VALUE.match(value):
            yield f"metadata.labels: Invalid value: {key!r}={value!r}"
    annotations = metadata.get("annotations", {})
    # In annotations alone a prefix may have capitals.
    yield from (
        f"metadata.annotations: Invalid value: {key!r}" for key in annotations if not _is_qualified(key.lower())
    )
    if sum(len(key) + len(value) for key, value in annotations.items()) > _MAX_ANNOTATIONS:
        yield "metadata.annotations: Too long: must have at most 262144 bytes"
    finalizers = metadata.get("finalizers", [])
    yield from (f"metadata.finalizers: Invalid value: {each!r}" for each in finalizers if not _is_qualified(each))
    if old is not None and "deletionTimestamp" in old and (more := set(finalizers) - set(old.get("finalizers", []))):
        yield (
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, "
            f"found new finalizers {sorted(more)}"
        )


def _is_qualified(key):
    prefix, slash, name = key.rpartition("/")
    return bool(_QUALIFIED.match(name)) and (not slash or is_subdomain(prefix))
