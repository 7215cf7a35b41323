"""How every subcommand prints a table: drawn on a terminal with room for it, else aligned by spaces.

A narrower terminal gets the columns in groups, so that no line wraps. In a pipe nothing is empty and nothing is cut,
fit for awk.
"""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table

NOTHING = "-"
_GAP = 2


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ((" " * _GAP).join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def folded(rows: Sequence[Sequence[str]], width: int, *, key: int) -> list[list[list[str]]]:
    """Return rows cut into groups of columns no wider than ``width``, if that can be; each begins with column ``key``.

    The first group has it in its own place.
    """
    widths = [max(map(len, column)) + _GAP for column in zip(*rows, strict=True)]
    groups: list[list[int]] = [[]]
    for at in range(len(widths)):
        if groups[-1] and sum(widths[column] for column in {*groups[-1], key, at}) - _GAP > width:
            groups.append([key])
        if at not in groups[-1]:
            groups[-1].append(at)
    return [[[row[at] for at in group] for row in rows] for group in groups]


def show(columns: Sequence[str], rows: Sequence[Sequence[str]], console: Console, *, key: int = 0) -> None:
    """Print the rows: for a person drawn, or folded where there is no room; else aligned, whole and greppable."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    unlimited = console.options.update(max_width=10_000)
    if not console.is_terminal:
        click.echo(aligned([columns, *rows]))
    elif console.measure(table, options=unlimited).maximum <= console.width:
        console.print(table)
    else:
        click.echo("\n\n".join(map(aligned, folded([columns, *rows], console.width, key=key))))
