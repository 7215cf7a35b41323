"""``vferry schema``: the JSON Schema of a plugin's configuration, for editors and for checks before a roll-out."""

from __future__ import annotations

import json

import click

from conf.schema import MODELS, schema_of


@click.command()
@click.argument("plugin", required=False, metavar="[PLUGIN]", type=click.Choice(list(MODELS)))
def schema(plugin: str | None) -> None:
    """Print the JSON Schema of PLUGIN's configuration; without PLUGIN, the names of the plugins.

    An interface plugin's schema is that of its object in a conflist; an IPAM plugin's, that of "ipam".
    """
    click.echo("\n".join(MODELS) if plugin is None else json.dumps(schema_of(plugin), indent=2))
