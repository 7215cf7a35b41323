"""``vferry ipam leases`` and ``release``: who has which address, and giving one back by hand."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console

from cni.cli import table
from cni.cli.store_choice import Choice, store_options
from cni.sandboxes import Sandboxes
from conf.address import parse_address
from conf.errors import InvalidEnvironment, TryAgainLater
from conf.section import Json
from ipam.reaping import give_back
from ipam.stores.contract import Lease, Store

COLUMNS = ("ADDRESS", "NETWORK", "NODE", "POD", "CONTAINER", "IFNAME", "AGE")
_UNITS = (("d", 86400), ("h", 3600), ("m", 60))


@click.command()
@store_options
@click.option("--node", metavar="NAME", help="Only leases made on this node.")
@click.option(
    "--pod", metavar="NAMESPACE/NAME", help="Only those of this pod; of all pods of NAMESPACE with NAMESPACE/."
)
@click.option("--container", metavar="ID", help="Only those of containers whose ID begins so.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def leases(*, choice: Choice, node: str | None, pod: str | None, container: str | None, output: str) -> None:
    """List who has which address.

    With --network only that network's name space (its "network_name") is listed.
    """
    if pod and "/" not in pod:
        raise click.UsageError(f"--pod {pod} has no namespace: NAMESPACE/{pod}, or {pod}/ for all pods of a namespace")
    with choice.open() as store:
        found = [each for each in _listed(store, choice, node) if is_asked_for(each, pod=pod, container=container)]
    if output == "json":
        click.echo(json.dumps([to_json(each) for each in found], indent=2))
    else:
        now = time.time()
        table.show(COLUMNS, [cells(each, now) for each in found], Console())
        click.echo(f"{len(found)} leases", err=True)


class Address(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """An address as anybody writes it."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it."""
        try:
            return parse_address(str(value))
        except ValueError as error:
            self.fail(f"{value} is no address: {error}", param, ctx)


@click.command(short_help="Give leases back by hand.")
@store_options
@click.argument("addresses", nargs=-1, type=Address(), metavar="[ADDRESS]...")
@click.option("--container", metavar="ID", help="What this container has; its whole ID.")
@click.option("--ifname", help="Of the container, only what this interface has.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Even if the sandbox is still there, as far as this node knows.")
def release(
    *,
    choice: Choice,
    addresses: tuple[Any, ...],
    container: str | None,
    ifname: str | None,
    yes: bool,
    force: bool,
) -> None:
    """Give leases back by hand, by their address or by who has them.

    An address that is still configured in a pod is then given to another one as well: make sure that it is not. What
    has changed hands since it was shown is left alone.
    """
    if bool(addresses) == bool(container):
        raise click.UsageError("name either addresses or a --container")
    if ifname and not container:
        raise click.UsageError("--ifname is of a --container")
    with choice.open() as store:
        found = [
            each
            for each in _listed(store, choice, None)
            if each.address in addresses
            or (container == each.owner.container_id and ifname in (None, each.owner.ifname))
        ]
        missing = [str(each) for each in sorted(set(addresses) - {each.address for each in found})]
        if missing or not found:
            raise InvalidEnvironment(
                f"not leased: {', '.join(missing) or f'anything to container {container}'}",
                hint='"vferry ipam leases" lists what is; --network names a network and so its store',
            )
        now = time.time()
        table.show(COLUMNS, [cells(each, now) for each in found], Console())
        if not force:
            _require_gone(found)
        if not yes:
            click.confirm("Give these back?", abort=True, err=True)
    _reap(choice, found)


def _reap(choice: Choice, found: Sequence[Lease]) -> None:
    changed = []
    # Opened anew: the person may have taken longer than a deadline to answer.
    with choice.open() as store:
        for lease in found:
            if give_back(store, lease):
                click.echo(f"released {lease.address}")
            else:
                changed.append(str(lease.address))
    if changed:
        raise TryAgainLater(f"{', '.join(changed)} changed hands meanwhile and was left alone", hint="look again")


def _require_gone(found: Sequence[Lease]) -> None:
    sandboxes = Sandboxes(os.environ.get("NODENAME") or os.uname().nodename)
    for lease in found:
        lives = sandboxes.sandbox(lease).lives
        if lives:
            raise TryAgainLater(
                f"{lease.address} is in use: {lives}", hint="delete the pod; --force gives it back all the same"
            )


def _listed(store: Store, choice: Choice, node: str | None) -> list[Lease]:
    listed = store.leases(choice.network_name, node=node)
    return sorted(listed, key=lambda each: (each.space, each.address.version, each.address.value))


def is_asked_for(lease: Lease, *, pod: str | None, container: str | None) -> bool:
    """Tell whether the filters let it pass."""
    namespace, _, name = (pod or "").partition("/")
    if pod and (lease.owner.pod_namespace != namespace or (name and lease.owner.pod_name != name)):
        return False
    return lease.owner.container_id.startswith(container or "")


def cells(lease: Lease, now: float) -> tuple[str, ...]:
    """Return the line of one lease."""
    owner = lease.owner
    texts = (
        str(lease.address),
        lease.space,
        owner.node,
        f"{owner.pod_namespace}/{owner.pod_name}" if owner.pod_name else "",
        owner.container_id,
        owner.ifname,
        _age(now - lease.allocated_at) if lease.allocated_at else "",
    )
    return tuple(text or table.NOTHING for text in texts)


def to_json(lease: Lease) -> Json:
    """Return one lease as a program wants it; null is not known."""
    owner = lease.owner
    values: dict[str, Any] = {
        "networkName": lease.network_name,
        "space": lease.space,
        "containerID": owner.container_id,
        "ifname": owner.ifname,
        "cniNetwork": owner.cni_network or None,
        "podNamespace": owner.pod_namespace or None,
        "podName": owner.pod_name or None,
        "podUID": owner.pod_uid or None,
        "node": owner.node or None,
        "allocatedAt": lease.allocated_at or None,
    }
    return {"address": str(lease.address), **values}


def _age(seconds: float) -> str:
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(int(seconds), 0)}s"
