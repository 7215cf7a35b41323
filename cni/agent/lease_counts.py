"""How many addresses this node holds, by store and pool: counted by a child now and then, shown with the metrics.

The stores themselves are asked, where the node's own defaults say they are: cold requests, earlier agents and the Go
host-local count too. A configuration with a place of its own is not known here. The parent never waits for a count.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from cni.agent.spares import close_all_but, fork
from conf import flat_file
from conf.defaults import filled, read_table
from conf.errors import CniError
from conf.host_local import DEFAULT_DATA_DIR
from conf.node_name import read_node_name
from conf.section import Json, lookup
from conf.whereabouts import StoreConf, read_store_conf
from ipam.host_local_files import NetworkFiles
from ipam.stores import door
from ipam.stores.contract import Deadline

LOG = logging.getLogger("vferry.agent.leases")

# Store and pool.
Counts = Mapping[tuple[str, str], int]
PERIOD_S = 60.0
_PATIENCE_S = 10
# Of shared stores those that find a node's leases without reading everybody's; 1,000 nodes ask each minute.
_SHARED = ("etcd", "kubernetes-leases")
_PART_BYTES = 65536


def count_leases(*, defaults: Callable[[str], Json] = read_table) -> dict[tuple[str, str], int]:
    """Count what is held; a store that cannot be read is logged and left out."""
    counts: Counter[tuple[str, str]] = Counter()
    for count in (_host_local, _whereabouts):
        try:
            counts.update(count(defaults))
        except (CniError, OSError) as error:
            LOG.warning("leases are not counted: %s", error)
    return dict(counts)


def _host_local(defaults: Callable[[str], Json]) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    root = Path(str(lookup(defaults("host-local"), "dataDir") or DEFAULT_DATA_DIR))
    for folder in sorted(root.glob("*/")):
        counts["host-local", folder.name] = len(NetworkFiles(folder).reservations())
    return counts


def _whereabouts(defaults: Callable[[str], Json]) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    conf = read_store_conf(filled(flat_file.fill({}, flat_file.read_flat_file({})), defaults("whereabouts")))
    # The local one as well: it has what was leased before another one was chosen.
    for name in {"local", conf.chosen} & {"local", *_SHARED}:
        for space, count in _of_store(conf, name).items():
            counts[name, space or "(default)"] = count
    return counts


def _of_store(conf: StoreConf, name: str) -> Counter[str]:
    node = None if name == "local" else read_node_name(os.environ, conf.configuration_path)
    with door.open_store(conf.model_copy(update={"datastore": name}), Deadline(_PATIENCE_S / 2)) as store:
        return Counter(lease.space for lease in store.leases(node=node))


class LeaseCounts:
    """The last figures, empty before the first ones have come."""

    def __init__(
        self,
        *,
        selector: selectors.BaseSelector,
        count: Callable[[], Counts],
        clock: Callable[[], float],
        signals: frozenset[signal.Signals],
    ) -> None:
        self.figures: Counts = {}
        self._selector = selector
        self._count = count
        self._clock = clock
        self._signals = signals
        self._next = 0.0
        self._received = b""
        self._counting = False

    def refresh(self) -> None:
        """Have them counted anew, when the last ones are old and nobody is at it."""
        if self._counting or self._clock() < self._next:
            return
        self._next = self._clock() + PERIOD_S
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            fork(lambda: self._tell(writing), signals=self._signals)
        except OSError as error:
            os.close(reading)
            LOG.warning("leases are not counted: %s", error.strerror)
            return
        finally:
            os.close(writing)
        self._counting, self._received = True, b""
        self._selector.register(reading, selectors.EVENT_READ, lambda: self._hear(reading))

    def _tell(self, writing: int) -> None:
        # What of requests stayed open here would keep their shims from seeing that their own child has died.
        close_all_but(0, 1, 2, writing)
        signal.set_wakeup_fd(-1)
        signal.alarm(_PATIENCE_S)
        figures = [[*key, count] for key, count in self._count().items()]
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(json.dumps(figures).encode())
        os._exit(0)

    def _hear(self, reading: int) -> None:
        if part := os.read(reading, _PART_BYTES):
            self._received += part
            return
        self._selector.unregister(reading)
        os.close(reading)
        self._counting = False
        with suppress(ValueError):  # killed by its alarm: the last ones stay
            self.figures = {(store, pool): count for store, pool, count in json.loads(self._received)}
