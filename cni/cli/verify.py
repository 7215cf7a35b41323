"""``vferry ipam verify``: what is wrong in a store, and between it and this node; nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from cni.attachments import Attachments
from cni.cli.results import CACHE, Results
from cni.cli.store_choice import Choice, store_options, whereabouts_of
from cni.linux import netns
from conf import result
from conf.address import parse_address
from conf.cached_attachment import CachedAttachment
from conf.errors import CheckFailed, CniError
from conf.executables import SUPPORTED_VERSIONS
from conf.section import decode, lookup
from ipam.disorder import NOTICES, Disorder, Use, duplicates, unaccounted, unleased
from ipam.reaping import RenewedDeadline
from ipam.stores.survey import open_survey


@click.command(short_help="Look for what must not be.")
@store_options
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    default=CACHE,
    help="Where the runtime caches results, in results/, as libcni does.",
    show_default=True,
)
@click.option("--node", "node_name", envvar="NODENAME", help="This node's name.  [default: as the plugins]")
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def verify(*, choice: Choice, cache_dir: Path, node_name: str | None, output: str) -> None:
    """Look for what must not be: it ends with 1 when something is found.

    \b
    duplicate      an address with two owners
    contradiction  pool and reservation, or lease and index, disagree
    unleased       an address in use by a pod of this node that its pod does not hold
    unaccounted    (notice) a lease of this node whose attachment nothing here knows
    outside        (notice) a lease that none of the configured ranges offers

    Uses are those of libcni's cached results of this node, so run it on every node. ADDs and DELs that run meanwhile
    can make it find what is not there: look again before you act.
    """
    deadline = RenewedDeadline(choice.conf.deadline_s)
    known = _known(cache_dir)
    # Before the leases: a lease is there before it is used, and longer.
    uses = list(_uses(choice, cache_dir))
    with choice.open(deadline) as store:
        leases = list(store.leases(choice.network_name))
        deadline.renew()
        survey = open_survey(choice.conf, deadline)
        contradictions = [Disorder("contradiction", text) for text in survey.contradictions(store, leases)]
    node = choice.node_name(node_name)
    found = [
        *duplicates(leases),
        *contradictions,
        *unleased(uses, leases),
        *unaccounted(leases, node=node, known=known, pools=choice.pools()),
    ]
    _print(found, output)
    wrong = [each for each in found if each.kind not in NOTICES]
    notices = len(found) - len(wrong)
    click.echo(f"{len(leases)} leases, {len(uses)} in use here; {len(wrong)} wrong, {notices} notices", err=True)
    if wrong:
        raise CheckFailed(
            f"{len(wrong)} things are wrong", hint='docs/reaping.md, "What verify finds", says what to do'
        )


def _print(found: Sequence[Disorder], output: str) -> None:
    if output == "json":
        click.echo(json.dumps([{"kind": each.kind, "text": each.text} for each in found], indent=2))
        return
    for each in found:
        click.echo(f"{each.kind:13}  {each.text}")


def _known(cache_dir: Path) -> set[tuple[str, str]]:
    """Return every attachment that this node has on record."""
    cached = {(each.container_id, each.ifname) for each in Results(cache_dir).every()}
    return cached | {record.owner for record in Attachments().every()}


def _uses(choice: Choice, cache_dir: Path) -> Iterator[Use]:
    """Yield the addresses that attachments to networks of this store were given, of sandboxes that are there."""
    for cached in Results(cache_dir).every():
        if not cached.result or netns.has_vanished(cached.netns):
            continue
        try:
            yield from _uses_of(choice, cached)
        except (CniError, ValueError) as error:
            click.echo(f"the cached result of {cached.container_id} {cached.ifname} is passed over: {error}", err=True)


def _uses_of(choice: Choice, cached: CachedAttachment) -> Iterator[Use]:
    document = decode(cached.document(), f"the cached configuration of {cached.network}")
    version = str(lookup(document, "cniVersion", SUPPORTED_VERSIONS[0]))
    given = result.parse(cached.result, cni_version=version, what="the cached result")
    for conf in whereabouts_of(lookup(document, "plugins") or [document]):
        if not choice.is_of(conf) or choice.network_name not in (None, conf.network_name):
            continue
        for ip in given.ips:
            address = parse_address(ip.address.partition("/")[0])
            # Static addresses beside the ranges are in no store.
            if any(address in element.range.network for element in conf.ranges):
                yield Use(address, (cached.container_id, cached.ifname), conf.network_name, cached.network)
