"""``vferry ipam pools``: how full the ranges are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console

from cni.cli import table
from cni.cli.store_choice import Choice, store_options
from conf.section import Json
from ipam.stores.contract import Deadline, Lease, Pool
from ipam.stores.survey import open_survey

COLUMNS = ("NETWORK", "RANGE", "SIZE", "USED", "COOLING", "FREE", "RESERVED", "USE")
_BAR = 20
_LONG = 10**7


@dataclass(frozen=True)
class Usage:
    """One pool: ``size`` addresses may be handed out, of which some are leased or cool; ``reserved`` never are."""

    pool: Pool
    used: int
    cooling: int

    @property
    def size(self) -> int:
        return self.pool.range.size

    @property
    def free(self) -> int:
        return max(self.size - self.used - self.cooling, 0)

    @property
    def reserved(self) -> int:
        return int(self.pool.range.network.size) - self.size


@click.command()
@store_options
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def pools(*, choice: Choice, files: tuple[Path, ...], output: str) -> None:
    """Show how full the ranges are.

    The ranges are those of --network, of the configuration FILES, or else of every network in --conf-dir that uses the
    store; for datastore kubernetes also those of the IPPools there. RESERVED are addresses that are never handed out:
    network, broadcast, gateways, what is excluded. In USE, '#' is leased, '~' cools down, '.' is free.
    """
    deadline = Deadline(choice.conf.deadline_s)
    with choice.open(deadline) as store:
        leases = list(store.leases(choice.network_name))
    survey = open_survey(choice.conf, deadline)
    wanted = choice.pools(files)
    known = {(pool.network_name, pool.range.network) for pool in wanted}
    if not choice.networks and not files:
        wanted += [pool for pool in survey.pools() if (pool.network_name, pool.range.network) not in known]
    usages = [usage_of(pool, leases, survey.cooling(pool)) for pool in wanted]
    if output == "json":
        click.echo(json.dumps([to_json(each) for each in usages], indent=2))
    elif usages:
        table.show(COLUMNS, [cells(each) for each in usages], Console())
    else:
        click.echo("no range is known: name a --network or a configuration file", err=True)


def usage_of(pool: Pool, leases: Iterable[Lease], cooling: int) -> Usage:
    """Return how full a pool is; a lease out of another range counts where the two share their addresses."""
    used = {
        lease.address
        for lease in leases
        if pool.range.offers(lease.address)
        and (lease.space == pool.space or (pool.overlap_checked and lease.network_name == pool.network_name))
    }
    return Usage(pool, len(used), cooling)


def bar(usage: Usage) -> str:
    """Return a bar in which whatever is there is seen, be it one address of a million."""
    if not usage.size:
        return table.NOTHING
    lengths = [-(-part * _BAR // usage.size) for part in (usage.used, usage.cooling, usage.free)]
    while sum(lengths) > _BAR:
        lengths[lengths.index(max(lengths))] -= 1
    return "".join(sign * length for sign, length in zip("#~.", lengths, strict=True))


def cells(usage: Usage) -> tuple[str, ...]:
    """Return the line of one pool."""
    numbers = (usage.size, usage.used, usage.cooling, usage.free, usage.reserved)
    shown = (f"{number:.2e}" if number >= _LONG else str(number) for number in numbers)
    return usage.pool.network_name or table.NOTHING, str(usage.pool.range).replace(" ", ""), *shown, bar(usage)


def to_json(usage: Usage) -> Json:
    """Return one pool as a program wants it."""
    return {
        "networkName": usage.pool.network_name,
        "range": str(usage.pool.range.network),
        "overlapChecked": usage.pool.overlap_checked,
        "size": usage.size,
        "used": usage.used,
        "cooling": usage.cooling,
        "free": usage.free,
        "reserved": usage.reserved,
    }
