"""What of a pool is taken in the ``local`` store, as one transaction sees it; what is known to be full is not counted.

A mark says up to where a span of a range is full, so that 60,000 taken addresses before the first free one cost no
more than none. The database itself keeps marks true: its trigger takes them back with every row that is deleted, and
nothing but a deleted row makes an address free.

Source: ``ipam.ranges.Occupancy``.
"""

from __future__ import annotations

import sqlite3

from netaddr import IPAddress

from ipam.ranges import LISTED
from ipam.stores.contract import Pool

# Not in the schema of version 1: made when they are first wanted.
_MARKS = """
CREATE TABLE IF NOT EXISTS full (
    space TEXT NOT NULL,
    first BLOB NOT NULL,
    free  BLOB NOT NULL,
    PRIMARY KEY (space, first)
) WITHOUT ROWID;
"""
_TRIGGER = """
CREATE TRIGGER IF NOT EXISTS lease_freed AFTER DELETE ON lease BEGIN
    UPDATE full SET free = OLD.address WHERE space = OLD.space AND first <= OLD.address AND free > OLD.address;
END
"""
_BETWEEN = "FROM lease WHERE space = ? AND address BETWEEN ? AND ?"

_MAPPED = bytes(10) + b"\xff\xff"


class Taken:
    """The taken addresses of a pool's name space; ``db`` holds the write lock."""

    def __init__(self, db: sqlite3.Connection, pool: Pool) -> None:
        self._db = db
        self._pool = pool
        db.execute(_MARKS)
        db.execute(_TRIGGER)
        # First address of a span -> the first one that may be free.
        self._marks = {first: self._mark(first) for first, _ in pool.range.spans}
        self._found: dict[int, int] = {}

    def count(self, first: int, last: int) -> int:
        begin = self._unknown(first, last)
        number = begin - first + (self._count(begin, last, "") if begin <= last else 0)
        if number == 0:
            self._note(first)
        return number

    def cooling(self, first: int, last: int) -> int:
        return self._count(first, last, "AND released_at IS NOT NULL")

    def taken(self, first: int, last: int) -> list[int]:
        begin = self._unknown(first, last)
        values = list(range(first, begin))
        if begin <= last:
            rows = self._db.execute(f"SELECT address {_BETWEEN}", self._bounds(begin, last))
            values += [address_of(key).value for (key,) in rows]
        known = frozenset(values)
        free = next((value for value in range(begin, last + 1) if value not in known), None)
        if free is not None:
            self._note(free)
        return values

    def keep_marks(self) -> None:
        """Write down what was found to be full, where that is worth it."""
        for first, free in self._found.items():
            if free - self._marks[first] >= LISTED:
                row = (self._pool.space, self._key(first), self._key(free))
                self._db.execute("INSERT OR REPLACE INTO full VALUES (?, ?, ?)", row)

    def _mark(self, first: int) -> int:
        query = "SELECT free FROM full WHERE space = ? AND first = ?"
        row = self._db.execute(query, (self._pool.space, self._key(first))).fetchone()
        return first if row is None else address_of(row[0]).value

    def _unknown(self, first: int, last: int) -> int:
        """Return from which address of an interval on it must be asked."""
        return min(max(first, self._marks[self._span(first)]), last + 1)

    def _note(self, free: int) -> None:
        # The search goes upwards: what is found first in a span is its lowest.
        self._found.setdefault(self._span(free), free)

    def _span(self, value: int) -> int:
        return next(first for first, last in self._pool.range.spans if first <= value <= last)

    def _count(self, first: int, last: int, condition: str) -> int:
        query = f"SELECT count(*) {_BETWEEN} {condition}"
        (count,) = self._db.execute(query, self._bounds(first, last)).fetchone()
        return int(count)

    def _bounds(self, first: int, last: int) -> tuple[str, bytes, bytes]:
        return self._pool.space, self._key(first), self._key(last)

    def _key(self, value: int) -> bytes:
        return key_of(IPAddress(value, self._pool.range.version))


def key_of(address: IPAddress) -> bytes:
    """Return an address as the database has it."""
    # Fixed width, so that the index is in order of address; IPv4 as IPv6 maps it, so that families never meet.
    packed: bytes = address.packed
    return packed if len(packed) == 16 else _MAPPED + packed


def address_of(key: object) -> IPAddress:
    """Return the address that the database has."""
    assert isinstance(key, bytes)
    return (
        IPAddress(int.from_bytes(key[12:], "big"), 4)
        if key[:12] == _MAPPED
        else IPAddress(int.from_bytes(key, "big"), 6)
    )
