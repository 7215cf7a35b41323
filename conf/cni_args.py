"""CNI_ARGS: ``KEY=value`` pairs separated by ``;``, read so that what Multus and the kubelet send is understood.

Multus repeats keys and passes on values that hold ``=``; the Go library rejects the latter. Here the first ``=``
separates, the last of repeated keys wins, and empty parts are skipped.

Source: containernetworking/cni pkg/types/args.go; multus-cni pkg/k8sclient CNI_ARGS assembly.
"""

from __future__ import annotations

from collections.abc import Mapping

from conf.errors import InvalidEnvironment

# One set for every plugin: interface plugins pass CNI_ARGS unchanged to their IPAM plugin, so each sees the other's.
KNOWN = frozenset(
    {
        "IgnoreUnknown",
        "MAC",
        "IP",
        "GATEWAY",
        "K8S_POD_NAMESPACE",
        "K8S_POD_NAME",
        "K8S_POD_INFRA_CONTAINER_ID",
        "K8S_POD_UID",
    }
)
_TRUE = {"1", "true"}
_FALSE = {"", "0", "false"}


def parse(text: str, *, lenient: bool = False) -> Mapping[str, str]:
    """Return the pairs of CNI_ARGS; with ``lenient`` nothing is an error, as a DEL wants it.

    Raises: InvalidEnvironment naming a part without ``=``, a bad IgnoreUnknown, or the keys nobody knows while
    IgnoreUnknown is not set.
    """
    pairs: dict[str, str] = {}
    for part in filter(None, text.split(";")):
        key, equals, value = part.partition("=")
        if equals and key:
            pairs[key] = value
        elif not lenient:
            raise InvalidEnvironment(f'CNI_ARGS holds "{part}", which is not KEY=value', hint="separate pairs with ';'")
    if lenient:
        return pairs
    ignore = pairs.get("IgnoreUnknown", "").lower()
    if ignore not in _TRUE | _FALSE:
        raise InvalidEnvironment(
            f'CNI_ARGS holds IgnoreUnknown="{pairs["IgnoreUnknown"]}"', hint="use 1, true, 0 or false"
        )
    unknown = sorted(pairs.keys() - KNOWN)
    if unknown and ignore not in _TRUE:
        raise InvalidEnvironment(
            f"CNI_ARGS holds unknown keys: {', '.join(unknown)}", hint="set IgnoreUnknown=1 to ignore them"
        )
    return pairs
