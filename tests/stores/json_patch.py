"""JSON patch (RFC 6902) and merge patch (RFC 7386) as the API server's library applies them.

One departure from the RFC is the library's and upstream's whereabouts counts on it: ``test`` of an absent member
against ``null`` succeeds. Source: github.com/evanphx/json-patch v4 patch.go.
"""

from __future__ import annotations

import copy


class PatchFailed(Exception):
    """The patch does not apply; nothing of it was applied."""


def apply_json_patch(document, operations):
    document = copy.deepcopy(document)
    if not isinstance(operations, list):
        raise PatchFailed("not a list of operations")
    for operation in operations:
        document = _apply(document, operation)
    return document


def apply_merge_patch(document, patch):
    if not isinstance(patch, dict):
        return patch
    merged = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = apply_merge_patch(merged.get(key), value)
    return merged


def _apply(document, operation):
    op, pointer = operation.get("op"), operation.get("path", "")
    parents, last = _split(pointer)
    parent = _walk(document, parents)
    if parent is None:
        raise PatchFailed(f"{op} operation does not apply: doc is missing path: {pointer}: missing value")
    if op == "add":
        _add(parent, last, copy.deepcopy(operation["value"]))
    elif op == "remove":
        _pop(parent, last, pointer, op)
    elif op == "replace":
        _pop(parent, last, pointer, op)
        _add(parent, last, copy.deepcopy(operation["value"]))
    elif op == "test":
        if _get(parent, last) != operation.get("value"):
            raise PatchFailed(f"testing value {pointer} failed: test failed")
    else:
        raise PatchFailed(f"Unexpected kind: {op}")
    return document


def _split(pointer):
    if not pointer.startswith("/"):
        raise PatchFailed(f"not a pointer: {pointer}")
    parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/")]
    return parts[:-1], parts[-1]


def _walk(document, parts):
    for part in parts:
        document = _get(document, part)
        if not isinstance(document, dict | list):
            return None
    return document


def _get(container, key):
    if isinstance(container, list):
        return container[int(key)] if key.isdigit() and int(key) < len(container) else None
    return container.get(key)


def _add(container, key, value):
    if isinstance(container, list):
        container.insert(len(container) if key == "-" else int(key), value)
    else:
        container[key] = value


def _pop(container, key, pointer, op):
    try:
        container.pop(int(key) if isinstance(container, list) else key)
    except (KeyError, IndexError, ValueError):
        raise PatchFailed(f"{op} operation does not apply: doc is missing key: {pointer}: missing value") from None
