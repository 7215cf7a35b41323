"""pyroute2's netlink message classes, imported without the rest of pyroute2; no socket lives here.

Hot: every plugin imports it. ``pyroute2/__init__.py`` imports the whole library (asyncio, NDB, nftables: 105 to
170 ms); the message classes alone take 5 ms. Importing a submodule runs the package's ``__init__`` first, so
this module puts a *lazy* package in its place: same module object, same ``__path__``, ``__init__`` run on the
first attribute that is no submodule. Whoever says ``pyroute2.IPRoute`` later in this process still gets it, and
a pyroute2 that is imported already is used as it is. This is the only place that knows of the trick; it can go
when pyroute2 loads its public names lazily.

Source: PEP 562; pyroute2/__init__.py of 0.7 to 0.9.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

_PACKAGE = "pyroute2"


def _install_lazy_package() -> None:
    """Put a package in ``sys.modules`` whose ``__init__`` has not run yet, unless pyroute2 is imported already."""
    spec = importlib.util.find_spec(_PACKAGE) if _PACKAGE not in sys.modules else None
    if spec is None or spec.loader is None:
        return  # imported already, or absent: then the imports below say so in Python's own words
    package = importlib.util.module_from_spec(spec)
    run_init = spec.loader.exec_module

    def load(name: str) -> Any:
        if name.startswith("__"):
            # Asked by inspect, warnings and unittest of every module there is; no reason to load a library.
            raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")
        if importlib.util.find_spec(f"{_PACKAGE}.{name}") is not None:
            return importlib.import_module(f"{_PACKAGE}.{name}")
        del package.__dict__["__getattr__"]
        run_init(package)
        return getattr(package, name)

    package.__dict__["__getattr__"] = load
    sys.modules[_PACKAGE] = package


_install_lazy_package()

# ruff: noqa: E402 - the package has to be there before its submodules are asked for.
from pyroute2.netlink import NLA_F_NESTED, nla, nla_base_string, nlmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

__all__ = ["NLA_F_NESTED", "ifaddrmsg", "nla", "nla_base_string", "nlmsg", "rtmsg"]
