"""``vferry``, the operator's command: the door to its subcommands, and how a failure is told to a person.

Only the subcommand that is called is imported; what each of them does stands in its own module.
"""

from __future__ import annotations

import importlib
import json
import platform
from typing import Any, cast

import click

from conf.errors import CniError
from conf.executables import COMMAND, SUPPORTED_VERSIONS, VERSION

# Subcommand -> its click command.
COMMANDS: dict[str, str] = {
    "agent": "cni.cli.agent:agent",
    "ipam": "cni.cli.ipam:ipam",
    "run": "cni.cli.run:run",
    "schema": "cni.cli.schema:schema",
    "vfs": "cni.cli.vfs:vfs",
}


class Door(click.Group):
    """The subcommands, each imported when it is asked for; their failures end here."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        return cast(click.Command, getattr(importlib.import_module(module), attribute))

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except CniError as error:
            click.echo(f"{context.info_name}: {error}", err=True)
            if WITH_JSON in context.meta:
                click.echo(json.dumps(error.to_json(SUPPORTED_VERSIONS[-1])))
            context.exit(1)


# The key of the context's meta, which subcommands share, that has an error printed for a program too.
WITH_JSON = "vferry.json"


def _print_version(context: click.Context, _option: click.Parameter, is_asked: bool) -> None:
    if is_asked and not context.resilient_parsing:
        build = f"build {context.obj.build_id}" if context.obj else "not built"
        click.echo(f"{COMMAND} {VERSION}, {build}, Python {platform.python_version()}")
        context.exit()


@click.command(cls=Door, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
    help="Print version and build id: an agent serves plugins of its own build.",
)  # fmt: skip
def vferry() -> None:
    """Look at this node's VFs and addresses, run CNI networks by hand, print what a plugin can be told.

    The plugins themselves are the executables beside this one; a container runtime calls them.
    """


def main(name: str, stamp: object = None) -> int:
    """Run the command line of this process; it ends the process: 0 done, 1 failed, 2 bad usage.

    ``stamp`` is what the builder wrote into the archive, for subcommands the root context's ``obj``; None where this
    does not run from one.
    """
    vferry.main(prog_name=name, obj=stamp)
