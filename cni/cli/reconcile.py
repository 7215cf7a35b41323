"""``vferry ipam reconcile``: giving back what is certainly no longer in use; what is certain is ipam/reaping.py's.

One run is two looks, an interval apart; ``--watch`` looks again and again. Every node may run it at once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NoReturn

import click
from rich.console import Console

from cni.cli import table
from cni.cli.node_startup import recorded_choices
from cni.cli.store_choice import Choice, Unnamed, store_options
from cni.linux import mounts
from cni.sandboxes import Sandboxes
from conf.errors import CniError, UndoneInPart
from conf.section import Json
from ipam.reaping import GRACE_S, INTERVAL_S, Finding, Reaper, Rules
from ipam.stores.pods import open_pods

COLUMNS = ("ADDRESS", "NETWORK", "STATE", "NODE", "POD", "CONTAINER", "IFNAME", "WHY")
_sleep = time.sleep


def _enter_host(_context: click.Context, _option: click.Parameter, path: str | None) -> None:
    """Be of the host before anything is read, the configuration and the node's own files included."""
    if path:
        mounts.require_another(path)
        mounts.enter(path)
        # A plugin of the host is in no pod, and has no account of one.
        os.environ.pop("KUBERNETES_SERVICE_HOST", None)


@click.command(short_help="Give back what is proven to be unused.")
@store_options
@click.option(
    "--watch",
    type=click.FloatRange(min=0, min_open=True),
    is_flag=False,
    flag_value=INTERVAL_S,
    metavar="[SECONDS]",
    help=f"Go on, one look every SECONDS ({INTERVAL_S:g}).",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0),
    default=INTERVAL_S,
    show_default=True,
    metavar="SECONDS",
    help="What must be between the two looks at a lease.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=GRACE_S,
    show_default=True,
    metavar="SECONDS",
    help="Younger leases are left alone.",
)
@click.option("--node-startup", is_flag=True, help="Only give back what sandboxes of earlier boots of this node held.")
@click.option(
    "--host-mounts",
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_enter_host,
    help="From a container: do it in this mount namespace, /proc/1/ns/mnt.",
)
@click.option("--node", "node_name", envvar="NODENAME", help="This node's name.  [default: as the plugins]")
@click.option("--dry-run", is_flag=True, help="Tell what would be given back, and give nothing back.")
@click.option("--all", "with_all", is_flag=True, help="Show leases in use too.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def reconcile(
    *,
    choice: Choice | Unnamed,
    watch: float | None,
    interval: float,
    grace: float,
    node_startup: bool,
    node_name: str | None,
    dry_run: bool,
    with_all: bool,
    output: str,
) -> None:
    """Give back the addresses of sandboxes that are proven to be gone.

    A lease is given back when it is older than the grace period, its pod is gone, its sandbox is proven to be gone, and
    all that was so at two looks. The proof is this node's own word on what was attached here, a Node object that no
    longer exists, or its taint node.kubernetes.io/out-of-service. A node that is NotReady proves nothing.

    Pods are asked for where the store is one of Kubernetes, or a kubeconfig is configured. Without, every node has to
    run this for its own leases.

    With --node-startup and no store named, every store is meant that attachments of earlier boots leased from.
    """
    rules = Rules(grace_s=grace, interval_s=watch or interval)
    failures: list[str] = []
    with _removals_are_logged():
        if isinstance(choice, Unnamed):
            found = _start_up(recorded_choices(choice.given), failures, node_name=node_name, dry_run=dry_run)
        elif node_startup:
            found = _start_up([choice], failures, node_name=node_name, dry_run=dry_run)
        else:
            with _reaper(choice, node_name=node_name, rules=rules, dry_run=dry_run) as reaper:
                found = _watch(reaper, watch, output=output) if watch else _twice(reaper, interval)
    _print(found if with_all else [each for each in found if each.state != "in use"], output)
    counts = Counter(each.state for each in found)
    click.echo(", ".join(f"{number} {state}" for state, number in sorted(counts.items())) or "no leases", err=True)
    failures += [f"{each.lease.address}: {each.reason}" for each in found if each.state == "failed"]
    if failures:
        raise UndoneInPart(
            "not every stale lease could be given back", details="; ".join(failures), hint="run it again"
        )


@contextmanager
def _reaper(choice: Choice, *, node_name: str | None, rules: Rules, dry_run: bool) -> Iterator[Reaper]:
    with open_pods(choice.conf) or nullcontext() as cluster:
        yield Reaper(
            choice.open,
            Sandboxes(choice.node_name(node_name)),
            cluster=cluster,
            network_name=choice.network_name,
            rules=rules,
            deadline_s=choice.conf.deadline_s,
            dry_run=dry_run,
        )


def _start_up(choices: Sequence[Choice], failures: list[str], *, node_name: str | None, dry_run: bool) -> list[Finding]:
    """Give back what earlier boots hold in each store; one that does not answer is a failure, and the others go on."""
    found: list[Finding] = []
    for choice in choices:
        try:
            with _reaper(choice, node_name=node_name, rules=Rules(), dry_run=dry_run) as reaper:
                found += reaper.start_up(choice.node_name(node_name))
        except CniError as error:
            failures.append(f"datastore {choice.conf.chosen}: {error}")
    return found


def _twice(reaper: Reaper, interval_s: float) -> list[Finding]:
    """Look, and where something is stale look again; return the second look with what the first one gave back."""
    found = reaper.look()
    if all(each.state != "seen once" for each in found):
        return found
    click.echo(f"looking again in {interval_s:g} s", err=True)
    _sleep(interval_s)
    return [each for each in found if each.state in ("reaped", "failed")] + reaper.look()


def _watch(reaper: Reaper, interval_s: float, *, output: str) -> NoReturn:
    while True:
        try:
            found = reaper.look()
        except CniError as error:
            click.echo(f"looking again in {interval_s:g} s: {error}", err=True)
            found = []
        for each in found:
            if each.state in ("reaped", "failed", "stale"):
                click.echo(json.dumps(to_json(each)) if output == "json" else "  ".join(cells(each)))
        sys.stdout.flush()
        _sleep(interval_s)


def cells(finding: Finding) -> tuple[str, ...]:
    """Return the line of one finding."""
    lease, owner = finding.lease, finding.lease.owner
    why = "; proof: ".join(part for part in (finding.reason, finding.proof) if part)
    texts = (
        str(lease.address),
        lease.network_name,
        finding.state,
        owner.node,
        f"{owner.pod_namespace}/{owner.pod_name}" if owner.pod_name else "",
        owner.container_id,
        owner.ifname,
        why,
    )
    return tuple(text or table.NOTHING for text in texts)


def to_json(finding: Finding) -> Json:
    """Return one finding as a program wants it."""
    lease, owner = finding.lease, finding.lease.owner
    return {
        "address": str(lease.address),
        "networkName": lease.network_name,
        "state": finding.state,
        "reason": finding.reason,
        "proof": finding.proof,
        "node": owner.node,
        "podNamespace": owner.pod_namespace,
        "podName": owner.pod_name,
        "podUID": owner.pod_uid,
        "containerID": owner.container_id,
        "ifname": owner.ifname,
    }


def _print(found: Sequence[Finding], output: str) -> None:
    if output == "json":
        click.echo(json.dumps([to_json(each) for each in found], indent=2))
    elif found:
        table.show(COLUMNS, [cells(each) for each in found], Console())


@contextmanager
def _removals_are_logged() -> Iterator[None]:
    log = logging.getLogger("vferry.ipam.reaping")
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = log.level
    log.addHandler(stderr)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(stderr)
        log.setLevel(level)
