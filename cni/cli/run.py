"""``vferry run``: what cnitool does, with its arguments and its environment, where there is no cnitool.

What a runtime does with a network is in chain.py; this is what the operator types, and what is printed.

Source: containernetworking/cni cnitool/cmd/root.go.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from cni.cli.chain import Chain, Owner, Sandbox
from cni.cli.command import WITH_JSON
from cni.cli.results import CACHE, Results
from cni.delegate import find_executable
from conf.device import device_id
from conf.errors import CniError, InvalidEnvironment
from conf.network import DEFAULT_DIRECTORY, find_network
from conf.section import Json, decode

DEFAULT_PATH = "/opt/cni/bin"
DEFAULT_IFNAME = "eth0"


def container_id_of(netns: str) -> str:
    """Return the container ID that cnitool makes of an absolute netns path."""
    return f"cnitool-{hashlib.sha512(netns.encode()).digest()[:10].hex()}"


def args_of(text: str) -> tuple[tuple[str, str], ...]:
    """Return the pairs of CNI_ARGS in their order, repeated keys too: what they mean is the plugins' business.

    Raises: InvalidEnvironment.
    """
    parts = [part.partition("=") for part in text.split(";") if part]
    for key, equals, value in parts:
        if not key or not equals:
            raise InvalidEnvironment(
                f'CNI_ARGS holds "{key}{value}", which is not KEY=value', hint="separate pairs with ';'"
            )
    return tuple((key, value) for key, _equals, value in parts)


def _device(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        return device_id(value) if value else ""
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _valid(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> list[Owner]:
    pairs = [value.rpartition(":") for value in values]
    if not all(container_id and ifname for container_id, _, ifname in pairs):
        raise click.BadParameter("write it as CONTAINERID:IFNAME")
    return [(container_id, ifname) for container_id, _, ifname in pairs]


def _with_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        context.meta[WITH_JSON] = True


_ON_A_NETWORK = (
    click.argument("network"),
    click.option(
        "--conf-dir",
        envvar="NETCONFPATH",
        type=click.Path(path_type=Path),
        default=DEFAULT_DIRECTORY,
        help="Directory of .conflist and .conf files; the network is found by its name.",
        show_envvar=True,
        show_default=True,
    ),
    click.option(
        "--path",
        envvar="CNI_PATH",
        default=DEFAULT_PATH,
        help="Directories of plugins, joined by ':'.",
        show_envvar=True,
        show_default=True,
    ),
    click.option(
        "--cache-dir",
        type=click.Path(path_type=Path),
        default=CACHE,
        help="Where results are cached, in results/, as libcni does.",
        show_default=True,
    ),
    click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_with_json,
        help="Print a failure as CNI's error object on stdout too.",
    ),
)
_ON_AN_ATTACHMENT = (
    click.argument("netns", type=click.Path()),
    click.option(
        "-i",
        "--ifname",
        envvar="CNI_IFNAME",
        default=DEFAULT_IFNAME,
        help="Interface name in the sandbox.",
        show_envvar=True,
        show_default=True,
    ),
    click.option(
        "--container-id",
        envvar="CNI_CONTAINERID",
        default="",
        help="Container ID; absent: made of the path of NETNS as cnitool does.",
        show_envvar=True,
    ),
    click.option("--args", envvar="CNI_ARGS", default="", help="KEY=value pairs joined by ';'.", show_envvar=True),
    click.option(
        "--cap-args",
        envvar="CAP_ARGS",
        default="",
        help="Capability arguments, a JSON object; a plugin gets those it declares.",
        show_envvar=True,
    ),
    click.option(
        "--device",
        default="",
        callback=_device,
        help="PCI address or auxiliary device; given to every plugin as deviceID and pciBusID, as Multus does. "
        "CHECK, DEL and GC know it from the ADD.",
    ),
)
_NETNS_LIKE_CNITOOL = click.argument("netns", required=False, expose_value=False)


def _with(options: tuple[Callable[[Any], Any], ...]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return lambda command: functools.reduce(lambda inner, option: option(inner), reversed(options), command)


@contextmanager
def _plugins_end_themselves() -> Iterator[None]:
    """Let Ctrl-C reach the plugin only, which undoes its work and says so; killed, it could not."""
    before = signal.signal(signal.SIGINT, lambda _number, _frame: None)  # unlike SIG_IGN, exec() resets it
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _chain(network: str, *, conf_dir: Path, path: str, cache_dir: Path) -> Chain:
    folders = [folder for folder in path.split(":") if folder]
    return Chain(
        find_network(conf_dir, network),
        find=lambda plugin_type: find_executable(plugin_type, folders),
        results=Results(cache_dir),
        environ=os.environ,
        path=folders,
    )


def _sandbox(*, netns: str, ifname: str, container_id: str, args: str, cap_args: str, device: str) -> Sandbox:
    path = os.path.abspath(netns)  # noqa: PTH100 - links are not followed: the path is hashed as it was given
    capability_args: Json = decode(cap_args.encode(), "CAP_ARGS") if cap_args else {}
    return Sandbox(
        container_id=container_id or container_id_of(path),
        netns=path,
        ifname=ifname,
        args=args_of(args),
        capability_args=capability_args,
        device=device,
    )


# Version, field, environment, JSON, configuration, netns: told before anything is done.
_CHANGED_NOTHING = {1, 2, 4, 6, 7, 8}


def _hint_at_del(error: CniError, network: str, sandbox: Sandbox, *, was_added: bool) -> CniError:
    """Add to the error what undoes an ADD that got half-way: a runtime sends that DEL, cnitool leaves it to you."""
    undo = f"vferry run del {network} {sandbox.netns} --ifname {sandbox.ifname}"
    if sandbox.container_id != container_id_of(sandbox.netns):
        undo += f" --container-id {sandbox.container_id}"
    if sandbox.device and not was_added:
        undo += f" --device {sandbox.device}"
    # The DEL of an attachment that lives would take it from its pod.
    told = f"it was added before; to detach it: {undo}" if was_added else f"to undo what was done before that: {undo}"
    error.hint = "; ".join(part for part in (error.hint, told) if part)
    return error


@click.group()
def run() -> None:
    """Run a CNI network by hand, as cnitool does.

    A network is a .conflist, or a single plugin's .conf, with that "name" in NETCONFPATH. Plugins are run from CNI_PATH
    in the order of the list, for DEL in reverse. The result of an ADD is cached as libcni does, so cnitool can DEL what
    this command added, and the other way round.
    """


@run.command()
@_with((*_ON_A_NETWORK, *_ON_AN_ATTACHMENT))
def add(*, network: str, conf_dir: Path, path: str, cache_dir: Path, **sandbox_options: str) -> None:
    """Attach the sandbox NETNS to NETWORK and print the result.

    When one plugin of several fails, what those before it made stays, as with cnitool; the message says how to undo it.
    """
    chain = _chain(network, conf_dir=conf_dir, path=path, cache_dir=cache_dir)
    sandbox = _sandbox(**sandbox_options)
    was_added = chain.is_added(sandbox)
    try:
        with _plugins_end_themselves():
            made = chain.add(sandbox)
    except CniError as error:
        if error.code in _CHANGED_NOTHING and len(chain) == 1:
            raise
        raise _hint_at_del(error, network, sandbox, was_added=was_added) from error
    click.echo(json.dumps(made, indent=4))


@run.command()
@_with((*_ON_A_NETWORK, *_ON_AN_ATTACHMENT))
def check(*, network: str, conf_dir: Path, path: str, cache_dir: Path, **sandbox_options: str) -> None:
    """Verify that the attachment is as its ADD left it; silent when it is."""
    chain = _chain(network, conf_dir=conf_dir, path=path, cache_dir=cache_dir)
    with _plugins_end_themselves():
        checked = chain.check(_sandbox(**sandbox_options))
    if not checked:
        click.echo(f"network {network} has disableCheck: nothing was checked", err=True)


@run.command("del")
@_with((*_ON_A_NETWORK, *_ON_AN_ATTACHMENT))
def delete(*, network: str, conf_dir: Path, path: str, cache_dir: Path, **sandbox_options: str) -> None:
    """Detach the sandbox from NETWORK; repeating it, or doing it after NETNS is gone, is fine."""
    chain = _chain(network, conf_dir=conf_dir, path=path, cache_dir=cache_dir)
    with _plugins_end_themselves():
        chain.delete(_sandbox(**sandbox_options))


@run.command()
@_with((*_ON_A_NETWORK, _NETNS_LIKE_CNITOOL))
@click.option(
    "--valid",
    multiple=True,
    metavar="CONTAINERID:IFNAME",
    callback=_valid,
    help="An attachment that must stay; give it once for each.",
)
@click.option("--none-valid", is_flag=True, help="Tell the plugins too that no attachment is valid.")
def gc(*, network: str, conf_dir: Path, path: str, cache_dir: Path, valid: list[Owner], none_valid: bool) -> None:
    """Give back what is left of attachments to NETWORK that are no longer valid.

    Without --valid this is cnitool's gc: EVERY cached attachment of the network is deleted, of living pods too, and
    the plugins are not told which are valid, so they remove nothing of their own accord. With --valid, the attachments
    named stay and everything else of this network is removed. NETNS is ignored, cnitool wants one.
    """
    if valid and none_valid:
        raise click.UsageError("--valid and --none-valid exclude each other")
    chain = _chain(network, conf_dir=conf_dir, path=path, cache_dir=cache_dir)
    with _plugins_end_themselves():
        deleted = chain.gc(valid if valid or none_valid else None)
    for container_id, ifname in deleted:
        click.echo(f"deleted {container_id} {ifname}", err=True)


@run.command()
@_with((*_ON_A_NETWORK, _NETNS_LIKE_CNITOOL))
def status(*, network: str, conf_dir: Path, path: str, cache_dir: Path) -> None:
    """Tell whether the plugins of NETWORK could serve an ADD now; silent when they could."""
    with _plugins_end_themselves():
        asked = _chain(network, conf_dir=conf_dir, path=path, cache_dir=cache_dir).status()
    if not asked:
        click.echo(f"network {network} speaks a version without STATUS (it came with 1.1.0): nothing asked", err=True)
