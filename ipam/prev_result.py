"""What CHECK asks of prevResult: are the addresses an IPAM plugin gave still the ones the pod was told.

Addresses of other plugins in the same result are none of ours and are tolerated.

Source: https://www.cni.dev/docs/spec/#check-check-containers-networking-is-as-expected.
"""

from __future__ import annotations

from collections.abc import Iterable

from conf.address import parse_cidr
from conf.errors import CheckFailed, InvalidNetworkConfig
from conf.request import Request
from conf.result import Ip, Result


def require_prev_result(request: Request) -> Result:
    """Return prevResult.

    Raises: InvalidNetworkConfig when there is none, DecodeFailure when it is malformed.
    """
    result = request.prev_result()
    if result is None:
        raise InvalidNetworkConfig('CHECK needs "prevResult"', hint="the runtime adds the result of the ADD")
    return result


def require_given(expected: Iterable[Ip], result: Result) -> None:
    """Compare what was given with what the result says.

    Raises: CheckFailed naming the first address that is missing or whose gateway differs.
    """
    # As text, because netaddr's networks are equal whatever their host bits.
    told = {str(parse_cidr(ip.address)): ip for ip in result.ips}
    for ip in expected:
        found = told.get(str(parse_cidr(ip.address)))
        if found is None:
            raise CheckFailed(
                f"address {ip.address} is missing in prevResult",
                details=f"prevResult has {', '.join(told) or 'no address'}",
            )
        if ip.gateway and ip.gateway != found.gateway:
            raise CheckFailed(
                f"address {ip.address} has another gateway in prevResult",
                details=f"{found.gateway or 'none'} instead of {ip.gateway}",
            )
