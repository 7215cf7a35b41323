"""The door to the plugins: what every plugin can do, and loading one by the name of its executable.

Only what is asked for is imported: start-up is paid on every ADD.
"""

from __future__ import annotations

import importlib
from typing import Protocol, cast, runtime_checkable

from conf.executables import EXECUTABLES
from conf.request import Request
from conf.result import Result
from conf.section import Json


class Plugin(Protocol):
    """One executable: an interface plugin or an IPAM plugin, ours or a foreign one behind cni.delegate."""

    def add(self, request: Request) -> Result: ...

    def delete(self, request: Request) -> None: ...

    def check(self, request: Request) -> None: ...

    def gc(self, request: Request) -> None: ...

    def status(self, request: Request) -> None: ...


@runtime_checkable
class Leasing(Protocol):
    """An IPAM plugin of ours that keeps leases where the node's own defaults may say."""

    def kept_in(self, request: Request) -> Json: ...


def load(name: str) -> Plugin:
    """Return the plugin of that name with its real collaborators; KeyError when it is not ours."""
    module, _, attribute = EXECUTABLES[name].partition(":")
    return cast(Plugin, getattr(importlib.import_module(module), attribute)())
