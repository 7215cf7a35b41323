"""Where the free addresses of a pool with thousands of leases begin, found by looking at single addresses.

A list of them takes seconds, and even their number is no quick question: etcd goes through every key for it, 15 ms for
60,000. One address is looked at by its name, in the API server's memory. What is presumed is that leases fill the low
end of a range, as the choice of the lowest free ones makes them; where they don't, a free address is met all the same,
if a range has some. What lies free below is chosen by those who list.

Source: reference 8.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import isqrt

# As many as a choice is drawn from: it need not be known more exactly.
_NEAR = 64
# Each look goes so many times as far as the one before, until one meets a free address; and where that is beyond the
# range, to this part of what is left of it.
_FURTHER = 8


def lowest(spans: Sequence[tuple[int, int]], number: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of the spans with their so many lowest addresses."""
    for first, last in spans:
        if number <= 0:
            return
        yield first, min(last, first + number - 1)
        number -= last - first + 1


def index_of(spans: Sequence[tuple[int, int]], value: int) -> int:
    """Return how many addresses of the spans are below this one."""
    return sum(min(last, value - 1) - first + 1 for first, last in spans if first < value)


def presumed_taken(
    size: int, is_taken: Callable[[int], bool], *, taken: int = 0, free: int | None = None
) -> int | None:
    """Return how many of the lowest addresses are presumed to be taken, None when no free one was met.

    ``is_taken`` is asked by index; ``taken``, ``free``: one that is known to be. It is exact to a factor of two, for
    each look is a call.
    """
    low = taken
    while free is None and size - low > _NEAR:
        further = min(max(low * _FURTHER, _NEAR), size - max((size - low) // _FURTHER, 1))
        if is_taken(further):
            low = further
        else:
            free = further
    while free is not None and free - low > max(_NEAR, low):
        middle = max(isqrt(low * free), low + _NEAR)
        if is_taken(middle):
            low = middle
        else:
            free = middle
    return free
