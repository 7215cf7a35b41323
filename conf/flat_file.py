"""whereabouts' flat file: the node's ``ipam`` object that fills what a NAD leaves out; optional, unlike upstream.

Source: whereabouts pkg/config/config.go GetFlatIPAM, and the merge of LoadIPAMConfig; reference 1.1 "Flat file".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conf.errors import InvalidNetworkConfig
from conf.section import Json, decode, lookup

PATHS = (
    Path("/etc/kubernetes/cni/net.d/whereabouts.d/whereabouts.conf"),
    Path("/etc/cni/net.d/whereabouts.d/whereabouts.conf"),
    Path("/host/etc/cni/net.d/whereabouts.d/whereabouts.conf"),
)
# Upstream keeps the NAD's value, or its default of true, whatever the file says.
_NEVER_FILLED = "enable_overlapping_ranges"


def read_flat_file(ipam: Mapping[str, Any], *, paths: Sequence[Path] = PATHS) -> Json:
    """Return the first file there is: the object's own ``configuration_path``, then the known places; else nothing.

    Raises: InvalidNetworkConfig when it cannot be read, DecodeFailure when it is no JSON object.
    """
    own = lookup(ipam, "configuration_path", "")
    for path in [Path(own), *paths] if own and isinstance(own, str) else paths:
        try:
            document = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            continue  # configuration_path also names the directory of the file "nodename"
        except OSError as error:
            raise InvalidNetworkConfig(
                f"the flat file {path} cannot be read", details=error.strerror or "", hint="make it readable for root"
            ) from error
        return decode(document, f"the flat file {path}")
    return {}


def fill(ipam: Mapping[str, Any], flat: Mapping[str, Any]) -> Json:
    """Return the object with what is absent or empty taken from the flat file, objects within objects likewise.

    A number 0, or false, is a value here: none of upstream's means anything to us, and ``"cooldownSeconds": 0`` and
    ``"sticky": false`` do.
    """
    filled = dict(ipam)
    for key, from_file in flat.items():
        given = lookup(ipam, key)
        nested = isinstance(given, dict) and isinstance(from_file, dict)
        is_set = given is not None and (bool(given) or not isinstance(given, str | list | dict))
        if key.lower() == _NEVER_FILLED or (is_set and not nested):
            continue
        for name in [name for name in filled if name.lower() == key.lower()]:
            del filled[name]
        filled[key] = fill(given, from_file) if nested else from_file
    return filled
