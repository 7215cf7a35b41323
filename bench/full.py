"""How long one ADD takes alone, in ranges of many widths and with tens of thousands of leases in them, side by side.

The ranges take turns, so that whatever else the machine does is spread over all of them: compare the lines of one run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from netaddr import IPNetwork

from ipam.ranges import Range
from ipam.stores.contract import Pool

# What is compared with the others.
_REFERENCE = "empty /16"
HEADING = f"{'store':<18} {'range':<22} {'node':<14} {'p50 ms':>8} {'to empty /16':>12} {'calls':>6} {'B recv':>8}"


@dataclass(frozen=True)
class Cost:
    """What one call of a store cost in all."""

    took_s: float
    calls: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


# Reserve one address of the pool, as the owner, on the node.
Add = Callable[[str, str, Pool], Cost]
Fill = Callable[[Pool, Sequence[int]], None]


def rows(store: str, add: Add, fill: Fill, *, taken: int, rounds: int) -> Iterator[str]:
    """Yield the lines of one store."""
    ranges = {
        "empty /24": ("10.1.0.0/24", 0),
        _REFERENCE: ("10.2.0.0/16", 0),
        f"/16 with {taken} taken": ("10.3.0.0/16", taken),
        "empty /64": ("2001:db8:4::/64", 0),
        "empty /48": ("2001:db8:5::/48", 0),
    }
    pools = {}
    for at, (name, (text, number)) in enumerate(ranges.items()):
        network = IPNetwork(text)
        pools[name] = Pool(f"full{at}", Range.of(network))
        if number:
            fill(pools[name], range(network.first + 1, network.first + 1 + number))
    for node, is_new in (("knows nothing", True), ("was here", False)):
        costs: dict[str, list[Cost]] = {name: [] for name in pools}
        for number in range(rounds):
            for name, pool in pools.items():
                where = f"new-{number}" if is_new else "known"
                costs[name].append(add(where, f"pod-{where}-{number}-{pool.network_name}", pool))
        if not is_new:
            # The first one there knew nothing either.
            costs = {name: every[1:] for name, every in costs.items()}
        reference = _median_ms(costs[_REFERENCE])
        for name, every in costs.items():
            yield (
                f"{store:<18} {name:<22} {node:<14} {_median_ms(every):8.1f} {_median_ms(every) / reference:12.1f} "
                f"{statistics.mean(cost.calls for cost in every):6.2f} "
                f"{statistics.mean(cost.received_bytes for cost in every):8.0f}"
            )


def _median_ms(costs: Sequence[Cost]) -> float:
    return 1000 * statistics.median(cost.took_s for cost in costs)
