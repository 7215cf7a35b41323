"""``vferry ipam``: the addresses of a store, for its operator; each subcommand is in a module of its own."""

from __future__ import annotations

import click

from cni.cli.leases import leases, release
from cni.cli.migrate import migrate
from cni.cli.pools import pools
from cni.cli.reconcile import reconcile
from cni.cli.verify import verify


@click.group()
def ipam() -> None:
    """Look at leased addresses, give back what is stale.

    The store is that of --network NAME, the one named by --datastore and its options, or the node's default in
    /etc/vferry/vferry.toml.
    """


for command in (leases, pools, release, reconcile, verify, migrate):
    ipam.add_command(command)
