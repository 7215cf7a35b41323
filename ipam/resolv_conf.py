"""A resolv.conf as CNI writes name resolution.

Source: resolv.conf(5); containernetworking/plugins plugins/ipam/host-local/dns.go.
"""

from __future__ import annotations

from pathlib import Path

from conf.errors import IoFailure
from conf.netconf import Dns


def read_resolv_conf(path: str) -> Dns:
    """Read one file; of several ``domain`` lines the last counts, the other keywords add up.

    Raises: IoFailure.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise IoFailure(
            f'cannot read "resolvConf": "{path}"',
            details=str(error.strerror),
            hint="correct the path, or remove the key",
        ) from error
    domain = ""
    found: dict[str, list[str]] = {"nameserver": [], "search": [], "options": []}
    for line in text.splitlines():
        keyword, *values = line.split() or [""]
        if not values:
            continue
        if keyword == "domain":
            domain = values[0]
        elif keyword in found:
            found[keyword] += values[:1] if keyword == "nameserver" else values
    return Dns(nameservers=found["nameserver"], domain=domain, search=found["search"], options=found["options"])
