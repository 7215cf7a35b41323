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

import click
from rich.console import Console

from cni.cli import table
from cni.cli.store_choice import Choice, store_options
from cni.sandboxes import Sandboxes
from conf.errors import CniError, UndoneInPart
from conf.section import Json
from ipam.reaping import GRACE_S, INTERVAL_S, Finding, Reaper, Rules
from ipam.stores.pods import open_pods

COLUMNS = ("ADDRESS", "NETWORK", "STATE", "NODE", "POD", "CONTAINER", "IFNAME", "WHY")
_sleep = time.sleep


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
@click.option("--node", "node_name", envvar="NODENAME", help="This node's name.  [default: its host name]")
@click.option("--dry-run", is_flag=True, help="Tell what would be given back, and give nothing back.")
@click.option("--all", "with_all", is_flag=True, help="Show leases in use too.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def reconcile(
    *,
    choice: Choice,
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
    """
    name = node_name or os.uname().nodename
    with _removals_are_logged(), open_pods(choice.conf) or nullcontext() as cluster:
        reaper = Reaper(
            choice.open,
            Sandboxes(name),
            cluster=cluster,
            network_name=choice.network_name,
            rules=Rules(grace_s=grace, interval_s=watch or interval),
            deadline_s=choice.conf.deadline_s,
            dry_run=dry_run,
        )
        if node_startup:
            found = reaper.start_up(name)
        elif watch:
            _watch(reaper, watch, output=output)
            return
        else:
            found = reaper.look()
            if any(each.state == "seen once" for each in found):
                click.echo(f"looking again in {interval:g} s", err=True)
                _sleep(interval)
                found = _second(found, reaper.look())
    _print(found if with_all else [each for each in found if each.state != "in use"], output)
    counts = Counter(each.state for each in found)
    click.echo(", ".join(f"{number} {state}" for state, number in sorted(counts.items())) or "no leases", err=True)
    failed = [each for each in found if each.state == "failed"]
    if failed:
        raise UndoneInPart(
            f"{len(failed)} stale leases could not be given back",
            details="; ".join(f"{each.lease.address}: {each.reason}" for each in failed),
            hint="run it again",
        )


def _second(before: Sequence[Finding], found: list[Finding]) -> list[Finding]:
    """Return the second look, with what the first one gave back."""
    return [each for each in before if each.state in ("reaped", "failed")] + found


def _watch(reaper: Reaper, interval_s: float, *, output: str) -> None:
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
