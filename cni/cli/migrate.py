"""``vferry ipam migrate``: from upstream's CRDs to IPLeases, and back; what is safe about it is ipam/migration.py's."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import click
from rich.console import Console
from rich.progress import track

from cni.cli.store_choice import Choice, store_options
from conf.errors import UndoneInPart
from ipam.migration import Direction, Migration, key_of
from ipam.reaping import RenewedDeadline, give_back
from ipam.stores import door, kubernetes
from ipam.stores.contract import Lease, Pool, Store
from ipam.stores.kubeconfig import find_access
from ipam.stores.kubernetes_api import KubernetesApi
from ipam.stores.survey import open_survey

# A pass copies what came during the one before; after freezing there is nothing to come.
_MOST_PASSES = 10
_PAUSE_S = 0.2
_SOURCE: dict[Direction, str] = {"kubernetes-leases": "kubernetes", "kubernetes": "kubernetes-leases"}


@click.command(short_help="Move leases from IPPools to IPLeases, and back.")
@store_options
@click.option("--to", type=click.Choice(list(_SOURCE)), required=True, help="The datastore to copy to.")
@click.option("--dry-run", is_flag=True, help="Count, and change nothing.")
def migrate(*, choice: Choice, to: Direction, dry_run: bool) -> None:
    """Copy every lease between upstream's IPPools and our IPLeases, while pods come and go.

    It needs a --kubeconfig that may write both kinds, and the nodes need the rights of both datastores. Running pods
    notice nothing. ADDs go on while nearly everything is copied, answer "try again later" while the rest is, and go on
    in the datastore moved to, whether or not a network's "datastore" has been switched. To kubernetes: switch the
    networks first. No node may make pods with the Go plugin meanwhile.

    Whenever it was interrupted, run it again. What it copied from stays where it is.
    """
    conf = choice.conf
    if not conf.kubernetes.kubeconfig:
        raise click.UsageError("name the cluster with --kubeconfig, or a network of it with --network")
    deadline = RenewedDeadline(conf.deadline_s)
    api = KubernetesApi(
        find_access(conf.kubernetes.kubeconfig),
        deadline=deadline,
        crds="",
        rbac="rbac-kubernetes-leases.yaml -f conf/deploy/rbac-kubernetes.yaml",
    )
    pools = _pools(choice)
    if to == "kubernetes":
        upstream = conf.model_copy(update={"datastore": to})
        pools += open_survey(upstream, RenewedDeadline(conf.deadline_s)).pools()
    move = Move(choice, to, Migration(api, to, deadline=deadline, pools=pools), deadline)
    if dry_run:
        missing, there = move.missing(move.source())
        click.echo(f"{len(missing)} leases to copy to {to}, {there} are there")
    elif to == "kubernetes":
        move.back()
    else:
        move.forth()


def _pools(choice: Choice) -> list[Pool]:
    """Return the ranges of the networks here, whether they have been switched or not."""
    confs = [choice.conf.model_copy(update={"datastore": name}) for name in _SOURCE]
    return [pool for conf in confs for pool in replace(choice, conf=conf).pools()]


class Move:
    """One run of the command."""

    def __init__(self, choice: Choice, to: Direction, migration: Migration, deadline: RenewedDeadline) -> None:
        self._choice = choice
        self._to = to
        self._migration = migration
        self._deadline = deadline
        self._copied = self._withdrawn = 0
        self._failures: tuple[str, ...] = ()

    def forth(self) -> None:
        """Copy, freeze, copy the rest. Raises: UndoneInPart."""
        missing, _there = self.missing(self.source())
        self._copy(missing)
        frozen = 0
        while True:
            frozen += self._freeze()
            there, missing = self._complete()
            if missing or self._finish():
                break
        if frozen:
            click.echo(f"{frozen} IPPools frozen: our plugins enter nothing new there")
        self._tell(there, missing)
        click.echo(
            'next: set "datastore": "kubernetes-leases" in every network of these IPPools, then run this again; '
            "until then each of their ADDs asks the IPPool first"
        )

    def back(self) -> None:
        """Copy, then thaw. Raises: UndoneInPart."""
        self._deadline.renew()
        self._migration.leave(self._choice.network_name)
        replaced = self._replace()
        if replaced:
            click.echo(f"{replaced} allocations taken out: they were given back among the IPLeases")
        there, missing = self._complete()
        self._tell(there, missing)
        # Before an ADD can have one of these addresses anew.
        self._note_copies()
        self._deadline.renew()
        click.echo(f"{self._migration.thaw(self._choice.network_name)} IPPools are open to ADDs again")

    def missing(self, source: Sequence[Lease]) -> tuple[list[Lease], int]:
        """Return which leases of the source are to be copied, and how many are there."""
        target = {key_of(each) for each in self._leases(self._to)}
        missing = [each for each in source if key_of(each) not in target]
        there = len(source) - len(missing)
        if self._to == "kubernetes-leases":
            self._deadline.renew()
            is_finished = self._migration.is_finished()
            missing = [each for each in missing if not is_finished(each)]
        return missing, there

    def source(self) -> list[Lease]:
        """Return every lease of the store that is copied from."""
        return self._leases(_SOURCE[self._to])

    def _complete(self) -> tuple[int, list[Lease]]:
        """Copy until each lease was there once, or has gone from the source; return how many were, and the rest.

        Nobody waits for us but ADDs. What was there once, and is not any more, was given back there, by a DEL that may
        not have come to the source yet: what is counted is not counted again, or one DEL after the other would be in
        the way. What is missing may be a DEL's too, or a refused ADD's, and is looked for in the source again.
        """
        missing, there = self.missing(self.source())
        for number in range(_MOST_PASSES):
            if not missing:
                break
            if number:
                time.sleep(_PAUSE_S)
            self._withdraw()
            missing = self._still_held(missing)
            self._copy(missing)
            missing, found = self.missing(missing)
            there += found
        return there, self._still_held(missing)

    def _copy(self, leases: Sequence[Lease]) -> None:
        self._failures = ()
        if not leases:
            return
        console = Console(stderr=True)
        # Where nobody sees it, it would leave an empty line behind.
        shown = track(leases, f"to {self._to}", console=console, transient=True, disable=not console.is_terminal)
        count = self._migration.run(_renewing(shown, self._deadline))
        self._copied += count.copied
        self._failures = count.failures

    def _freeze(self) -> int:
        self._deadline.renew()
        return self._migration.freeze(self._choice.network_name)

    def _finish(self) -> bool:
        """Say in the pools that all is there; False where ADDs made others meanwhile."""
        self._note_copies()
        self._withdraw()
        self._deadline.renew()
        return self._migration.finish(self._choice.network_name)

    def _note_copies(self) -> None:
        self._deadline.renew()
        for _ in _renewing(self._migration.note_copies(self._choice.network_name), self._deadline):
            pass

    def _withdraw(self) -> None:
        """Give back the IPLeases of what was given back in its pool alone."""
        self._deadline.renew()
        outdated = self._migration.outdated(lambda: self._leases("kubernetes"), self._choice.network_name)
        with self._open("kubernetes-leases") as store:
            self._withdrawn += sum(give_back(store, lease) for lease in _renewing(outdated, self._deadline))

    def _replace(self) -> int:
        """Take out of pools that were moved what was given back among the IPLeases since."""
        self._deadline.renew()
        is_finished = self._migration.is_finished()
        held = [each for each in self._leases(self._to) if is_finished(each)]
        there = {(each.network_name, each.address): each.owner for each in self.source()}
        # What has no time is upstream's own, who may have entered it unseen: it goes where another one has the address.
        outdated = [
            each
            for each in held
            if there.get((each.network_name, each.address), None if each.allocated_at else each.owner) != each.owner
        ]
        with self._open(self._to) as store:
            return sum(give_back(store, lease) for lease in _renewing(outdated, self._deadline))

    def _still_held(self, leases: Sequence[Lease]) -> list[Lease]:
        """Return those that are in the source still: an ADD that the freeze refuses reserves for a moment only."""
        still = {key_of(each) for each in self.source()} if leases else set()
        return [each for each in leases if key_of(each) in still]

    def _tell(self, there: int, missing: Sequence[Lease]) -> None:
        """Raises: UndoneInPart, where anything is missing."""
        if self._withdrawn:
            click.echo(f"{self._withdrawn} copies taken back: what they are of was given back meanwhile")
        click.echo(f"copied {self._copied}; {there} of {there + len(missing)} leases are in {self._to}")
        if missing:
            raise UndoneInPart(
                f"{len(missing)} leases are not in {self._to}",
                details="; ".join(self._failures),
                hint="correct what is said, then run it again; until then no network is to be switched",
            )

    def _leases(self, datastore: str) -> list[Lease]:
        self._deadline.renew()
        with self._open(datastore) as store:
            return list(store.leases(self._choice.network_name))

    def _open(self, datastore: str) -> Store:
        conf = self._choice.conf.model_copy(update={"datastore": datastore})
        # The pools themselves, not what they were moved to.
        opens = kubernetes.open_store if datastore == "kubernetes" else door.open_store
        return opens(conf, self._deadline)


def _renewing(leases: Iterable[Lease], deadline: RenewedDeadline) -> Iterator[Lease]:
    for lease in leases:
        deadline.renew()
        yield lease
