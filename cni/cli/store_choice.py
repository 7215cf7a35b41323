"""Which store an operator means: a network's, by its name, or one given word for word; the node's defaults fill both.

Source: design section 6; ``ipam.whereabouts`` fills a configuration in the same order.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from conf import flat_file
from conf.defaults import filled, read_table
from conf.errors import CniError, InvalidEnvironment, InvalidNetworkConfig
from conf.network import DEFAULT_DIRECTORY, Network, find_network, read_network
from conf.node_name import read_node_name
from conf.section import Json, lookup
from conf.whereabouts import DEFAULT_DATA_DIR, StoreConf, WhereaboutsConf, read_store_conf, read_whereabouts
from ipam.order import pools_of
from ipam.stores import door
from ipam.stores.contract import Deadline, Pool, Store
from ipam.stores.local import DATABASE

_OPTIONS = (
    click.option("--network", metavar="NAME", help="The store of this network; its configuration is in --conf-dir."),
    click.option(
        "--conf-dir",
        envvar="NETCONFPATH",
        type=click.Path(path_type=Path),
        default=DEFAULT_DIRECTORY,
        help="Directory of .conflist and .conf files; a network is found by its name.",
        show_envvar=True,
        show_default=True,
    ),
    click.option("--datastore", type=click.Choice(door.NAMES), help="The store, instead of the configured one."),
    click.option("--data-dir", metavar="DIR", help="Directory of datastore local."),
    click.option("--etcd-endpoint", metavar="URL", multiple=True, help="A member of etcd; give it once for each."),
    click.option("--kubeconfig", metavar="PATH", help="Access to the API server."),
    click.option(
        "--deadline",
        "deadline_s",
        type=click.FloatRange(min=0, min_open=True, max=240),
        metavar="SECONDS",
        help="Give up a call after so long.",
    ),
)


@dataclass(frozen=True)
class Choice:
    """A store and, where a network was named, its configurations; ``network_name`` is then the one they share."""

    conf: StoreConf
    conf_dir: Path
    networks: tuple[WhereaboutsConf, ...] = ()

    def node_name(self, given: str | None) -> str:
        """Return this node's name as its ADDs record it, unless it is given."""
        return given or read_node_name(os.environ, self.conf.configuration_path)

    @property
    def network_name(self) -> str | None:
        """The name space the operator named; None: all of them."""
        return self.networks[0].network_name if self.networks else None

    def open(self, deadline: Deadline | None = None) -> Store:
        """Open the store."""
        return door.open_store(self.conf, deadline or Deadline(self.conf.deadline_s))

    def is_of(self, conf: StoreConf) -> bool:
        """Tell whether a configuration's leases are in this store."""
        return place_of(conf) == place_of(self.conf)

    def pools(self, files: tuple[Path, ...] = ()) -> list[Pool]:
        """Return the pools of the network named or the files given, else of every network here that uses this store.

        Raises: InvalidNetworkConfig; a network that was not named and cannot be read is passed over.
        """
        if self.networks or files:
            confs = [*self.networks, *(conf for file in files for conf in whereabouts_of(read_network(file).plugins))]
        else:
            confs = list(_readable(self.conf_dir, self.conf))
        return list(dict.fromkeys(pool for conf in confs for pool in pools_of(conf)))


@dataclass(frozen=True)
class Unnamed:
    """No store was named, and the command has its own way to find some; ``given`` are the other keys of ``ipam``."""

    given: Json


def store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose a store, and hand the choice over as ``choice``: for --node-startup maybe Unnamed."""

    @functools.wraps(command)
    def chosen(**given: Any) -> Any:
        names = ("network", "conf_dir", "datastore", "data_dir", "etcd_endpoint", "kubeconfig", "deadline_s")
        options = {name: given.pop(name) for name in names}
        is_named = any(value for name, value in options.items() if name not in ("conf_dir", "deadline_s"))
        if given.get("node_startup") and not is_named:
            deadline_s = options["deadline_s"]
            return command(choice=Unnamed({"deadlineSeconds": deadline_s} if deadline_s else {}), **given)
        choice = choose(**options)
        # What a node runs by itself, from its start on, comes before the first ADD.
        is_early = given.get("watch") or given.get("node_startup")
        _require_there(choice.conf, is_named=options["data_dir"] is not None and not is_early)
        return command(choice=choice, **given)

    return functools.reduce(lambda inner, option: option(inner), reversed(_OPTIONS), chosen)


def choose(
    *,
    network: str | None,
    conf_dir: Path,
    datastore: str | None,
    data_dir: str | None,
    etcd_endpoint: tuple[str, ...],
    kubeconfig: str | None,
    deadline_s: float | None,
) -> Choice:
    """Return the store that the options mean.

    Raises: InvalidNetworkConfig.
    """
    given: Json = {
        "datastore": datastore,
        # As typed, beside where the operator stands; a configuration's is absolute.
        "dataDir": data_dir and str(Path(data_dir).absolute()),
        "deadlineSeconds": deadline_s,
        "kubernetes": {"kubeconfig": kubeconfig} if kubeconfig else None,
        "etcd": {"endpoints": list(etcd_endpoint)} if etcd_endpoint else None,
    }
    given = {key: value for key, value in given.items() if value is not None}
    implied = _implied(given)
    if not network:
        conf = read_store_conf(_merged({**implied, **given}))
        return Choice(conf if conf.chosen else _the_only_one(conf_dir, given), conf_dir)
    networks = tuple(whereabouts_of(find_network(conf_dir, network).plugins, given))
    if not networks:
        raise InvalidNetworkConfig(
            f'network "{network}" does not use whereabouts', hint='its "ipam" has another "type", or it has none'
        )
    return Choice(networks[0], conf_dir, networks)


def _implied(given: Json) -> Json:
    """Return the datastore that an option for one of them means. Raises: UsageError where two are meant."""
    options = (("etcd", "--etcd-endpoint", "etcd"), ("dataDir", "--data-dir", "local"))
    meant = {datastore: option for key, option, datastore in options if key in given}
    others = [
        f"{option} is of datastore {name}" for name, option in meant.items() if given.get("datastore", name) != name
    ]
    if others or len(meant) > 1:
        raise click.UsageError("; ".join(others) or f"{' and '.join(meant.values())} are of different datastores")
    return {"datastore": next(iter(meant))} if meant else {}


def _require_there(conf: StoreConf, *, is_named: bool) -> None:
    """Tell that no local store is where one is looked for: that is not the same as a store without leases.

    Raises: InvalidEnvironment for a directory that was typed.
    """
    if conf.chosen != "local" or Path(conf.data_dir, DATABASE).exists():
        return
    if is_named and not Path(conf.data_dir).is_dir():
        raise InvalidEnvironment(
            f"there is no store at {conf.data_dir}: it is no directory",
            hint=f'"dataDir" of the network says where it is; absent, {DEFAULT_DATA_DIR}',
        )
    click.echo(f"there is no store at {conf.data_dir} on this host: nothing was ever leased from it", err=True)


def _the_only_one(conf_dir: Path, given: Json) -> StoreConf:
    """Return the store that all networks here use, when it is one.

    Raises: InvalidNetworkConfig.
    """
    found: dict[tuple[object, ...], StoreConf] = {}
    names: list[str] = []
    for network in _networks(conf_dir):
        try:
            confs = [conf for conf in whereabouts_of(network.plugins, given) if conf.chosen]
        except CniError as error:
            click.echo(f"network {network.name} is passed over: {error}", err=True)
            continue
        found |= {place_of(conf): conf for conf in confs}
        names += [network.name for _ in confs]
    if len(found) == 1:
        return next(iter(found.values()))
    raise InvalidNetworkConfig(
        "which store is not said",
        details=f"networks in {conf_dir} that have one: {', '.join(dict.fromkeys(names)) or 'none'}",
        hint="--network NAME means a network's store; --datastore with --kubeconfig, --etcd-endpoint or --data-dir "
        "names one word for word; [whereabouts] in /etc/vferry/vferry.toml is the node's default",
    )


def _networks(directory: Path) -> Iterator[Network]:
    """Yield what can be read."""
    for path in sorted(directory.glob("*.conf*")) if directory.is_dir() else ():
        try:
            yield read_network(path)
        except CniError as error:
            click.echo(f"{path} is passed over: {error}", err=True)


def _readable(directory: Path, wanted: StoreConf) -> Iterator[WhereaboutsConf]:
    for network in _networks(directory):
        try:
            yield from (conf for conf in whereabouts_of(network.plugins) if place_of(conf) == place_of(wanted))
        except CniError as error:
            click.echo(f"network {network.name} is passed over: {error}", err=True)


def place_of(conf: StoreConf) -> tuple[object, ...]:
    """Return what tells one store from another."""
    where = {
        "local": (conf.data_dir,),
        "etcd": (tuple(sorted(conf.etcd.endpoints)), conf.etcd.prefix),
    }
    return conf.chosen, *where.get(conf.chosen, (conf.kubernetes.kubeconfig,))


def node_defaults() -> Json:
    """Return the ``ipam`` object that this node's own files make of an empty one.

    Raises: InvalidNetworkConfig, DecodeFailure.
    """
    return _merged({})


def whereabouts_of(plugins: Iterable[Json], given: Json | None = None) -> Iterator[WhereaboutsConf]:
    """Yield the configurations of whereabouts among the plugins of a network; what is ``given`` comes first.

    Raises: InvalidNetworkConfig.
    """
    for plugin in plugins:
        ipam = lookup(plugin, "ipam")
        if isinstance(ipam, dict) and lookup(ipam, "type") == "whereabouts":
            # What the operator types comes first, down to single keys of an object.
            yield read_whereabouts(_merged(filled(given or {}, ipam)))


def _merged(ipam: Json) -> Json:
    return filled(flat_file.fill(ipam, flat_file.read_flat_file(ipam)), read_table("whereabouts"))
