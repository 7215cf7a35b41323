"""The name of the node this is, as whereabouts knows it: for whose leases are a node's, and which slice is its.

Source: whereabouts pkg/config/config.go and cmd/ getNodeName; its installer writes the file ``nodename``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_FILE = "nodename"


def read_node_name(environ: Mapping[str, str], configuration_path: str) -> str:
    """Return NODENAME, else what the file ``nodename`` says, else the host name.

    The file is in the directory ``configuration_path``, or beside the flat file that ``configuration_path`` names.
    """
    given = environ.get("NODENAME", "").strip()
    if given or not configuration_path:
        return given or os.uname().nodename
    path = Path(configuration_path)
    for directory in (path, path.parent):
        try:
            name = (directory / _FILE).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            continue  # the host name is as good where nobody wrote one
        if name:
            return name
    return os.uname().nodename
