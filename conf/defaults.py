"""The node's own defaults, /etc/vferry/vferry.toml: a table per plugin, with the keys of that plugin's JSON.

A key that a network configuration gives always wins. For an IPAM plugin the table fills its ``ipam`` object::

    [whereabouts]
    datastore = "local"
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conf.errors import InvalidNetworkConfig
from conf.section import Json, lookup

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PATH = Path("/etc/vferry/vferry.toml")


def read_table(name: str, *, path: Path = PATH) -> Json:
    """Return one table of the file, empty when the file or the table is absent.

    Raises: InvalidNetworkConfig when the file is no TOML or cannot be read.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidNetworkConfig(
            f"cannot read the node's defaults {path}",
            details=str(error),
            hint="correct the file or remove it",
        ) from error
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise InvalidNetworkConfig(f'{path}: "{name}" is not a table', hint=f"write it as [{name}]")
    return table


def filled(obj: Mapping[str, Any], defaults: Mapping[str, Any]) -> Json:
    """Return the object with every absent key taken from the defaults, objects within objects likewise."""
    merged = dict(obj)
    for key, value in defaults.items():
        given = lookup(obj, key)
        if given is None:
            merged[key] = value
        elif isinstance(given, dict) and isinstance(value, dict):
            for name in [name for name in merged if name.lower() == key.lower()]:
                del merged[name]
            merged[key] = filled(given, value)
    return merged
