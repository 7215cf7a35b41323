"""``static``: the addresses of the configuration, or those the runtime asks for; no store, no uniqueness.

Better than upstream, whose CHECK passes when an address is missing.

Source: containernetworking/plugins plugins/ipam/static/main.go; reference 4.
"""

from __future__ import annotations

from collections.abc import Callable

from conf.defaults import read_table
from conf.request import Request
from conf.result import Result
from conf.section import Json
from conf.static import StaticConf, read_keys, read_static
from ipam.prev_result import require_given, require_prev_result


class Static:
    """The IPAM plugin ``static``; it holds nothing, so DEL and GC have nothing to give back."""

    def __init__(self, *, defaults: Callable[[str], Json] = read_table) -> None:
        self._defaults = defaults

    def add(self, request: Request) -> Result:
        """Give the configured addresses.

        Raises: InvalidNetworkConfig, InvalidEnvironment.
        """
        conf = self._read(request)
        return conf.to_result(address.to_ip() for address in conf.addresses)

    def delete(self, request: Request) -> None:
        """Succeed, whatever the configuration."""

    def check(self, request: Request) -> None:
        """Compare the configured addresses with prevResult.

        Raises: CheckFailed, InvalidNetworkConfig.
        """
        conf = self._read(request)
        require_given((address.to_ip() for address in conf.addresses), require_prev_result(request))

    def gc(self, request: Request) -> None:
        """Succeed: nothing is kept that could be stale."""

    def status(self, request: Request) -> None:
        """Read the configuration; that it has no address is no fault here, the runtime adds them to an ADD.

        Raises: InvalidNetworkConfig.
        """
        read_keys(request, self._defaults("static"))

    def _read(self, request: Request) -> StaticConf:
        return read_static(request, self._defaults("static"))
