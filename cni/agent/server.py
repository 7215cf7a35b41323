"""The agent's loop: signals, deadlines, taking over and draining; the gate and the crew do the rest.

SIGTERM, or another agent in our place: nobody comes in any more, who is in is served, then it ends; with ``stand_by``
not before the other one does. A second SIGTERM has what runs undone. SIGHUP reads the configuration of the agent again;
that of the plugins is read for every request.
"""

from __future__ import annotations

import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from cni.agent import child, preload
from cni.agent.crew import SIGNALS, Crew, Served
from cni.agent.gate import Gate, own_netns_inode
from cni.agent.lease_counts import Counts, LeaseCounts, count_leases
from cni.agent.listener import Listener
from cni.agent.metrics import CONTENT_TYPE, Metrics
from cni.agent.notify import Notify
from cni.agent.pages import TEXT, Page, Pages
from cni.agent.spares import Life
from conf.agent import AgentConf
from conf.errors import CniError

LOG = logging.getLogger("vferry.agent")

# How often deadlines are looked at, and whether another agent has taken our place.
_TICK_S = 1.0


class Server:
    """One agent, from listening to the end of its last child."""

    def __init__(
        self,
        listen: Callable[[], Listener],
        *,
        build_id: str,
        read_conf: Callable[[], AgentConf],
        notify: Notify | None = None,
        life: Life = child.live,
        rehearse: Callable[[], object] = preload.rehearse,
        count: Callable[[], Counts] = count_leases,
        clock: Callable[[], float] = time.monotonic,
        peer_uid: int = 0,
    ) -> None:
        self._read_conf = read_conf
        self._notify = notify or Notify()
        self._clock = clock
        self._is_told_to_stop = False
        self._is_replaced = False
        self.selector = selectors.DefaultSelector()
        self.crew = Crew(
            selector=self.selector,
            life=life,
            rehearse=rehearse,
            clock=clock,
            finished=self._finished,
            conf=read_conf(),
        )
        self.leases = LeaseCounts(selector=self.selector, count=count, clock=clock, signals=SIGNALS)
        self.metrics = Metrics(
            running=lambda: self.crew.running,
            waiting=lambda: self.crew.waiting,
            leases=lambda: self.leases.figures,
        )
        self.pages = self._open_pages(self.crew.conf.metrics)
        # Last: who finds the socket finds an agent, and one that could not start has not taken the place of another.
        self.gate = Gate(
            listen(),
            selector=self.selector,
            admit=self.crew.admit,
            clock=clock,
            build_id=build_id,
            netns_inode=own_netns_inode(),
            peer_uid=peer_uid,
        )

    def _open_pages(self, address: str) -> Pages | None:
        if not address:
            return None
        pages: dict[str, Callable[[], Page]] = {
            "/metrics": self._figures,
            "/healthz": lambda: ("200 OK", TEXT, b"ok\n"),
            "/readyz": self._readiness,
        }
        return Pages(address, pages, selector=self.selector, clock=self._clock)

    def _figures(self) -> Page:
        self.leases.refresh()
        return "200 OK", CONTENT_TYPE, self.metrics.page()

    def _readiness(self) -> Page:
        if self.gate.is_open and self.gate.listener.is_current():
            return "200 OK", TEXT, b"ok\n"
        return "503 Service Unavailable", TEXT, b"draining\n"

    def run(self) -> None:
        """Serve until told to stop and all is done."""
        with _Signals(self.selector, self._hear):
            if self.pages is not None:
                LOG.info("pages on port %d", self.pages.port)
                self.leases.refresh()
            LOG.info("listening on %s", self.gate.listener.path)
            self._notify.ready("serving")
            while self.gate.is_open or self.crew.running or self.crew.waiting or self._stands_by():
                for key, _events in self.selector.select(self._pause_s()):
                    key.data()
                self._tick()
            self.gate.leave()
        LOG.info("done")

    def drain(self) -> None:
        """Let nobody in any more."""
        if self.gate.is_open:
            LOG.info("draining: %d running, %d waiting", self.crew.running, self.crew.waiting)
            if not self._stands_by():
                self._notify.stopping()
            self.gate.close()
            self.crew.dismiss()

    def _pause_s(self) -> float:
        return min(_TICK_S, self._notify.watchdog_s or _TICK_S)

    def _tick(self) -> None:
        self._notify.alive(self._clock())
        self.gate.expire()
        self.crew.expire()
        if self.pages is not None:
            self.pages.expire()
        if self.gate.is_open:
            self.crew.prepare()
        if self.gate.is_open and not self.gate.listener.is_current():
            self._is_replaced = True
            LOG.info("another agent has taken over%s", "; standing by" if self._stands_by() else "")
            if self.pages is not None:
                self.pages.close()
            self.drain()

    def _stands_by(self) -> bool:
        """Tell whether our end would have us started anew, in the place of whoever has taken ours."""
        is_asked = self._is_replaced and self.crew.conf.stand_by and not self._is_told_to_stop
        return is_asked and self.gate.listener.has_successor()

    def _hear(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self.crew.reap()
        elif number == signal.SIGHUP:
            self._reload()
        elif not self._is_told_to_stop:  # it may be draining, for another agent
            self._is_told_to_stop = True
            self.drain()
        else:
            self.crew.interrupt()

    def _reload(self) -> None:
        self._notify.reloading()
        try:
            self.crew.conf = self._read_conf()
        except CniError as error:
            LOG.error("the configuration stays as it was: %s", error)
        else:
            self.crew.start()
            LOG.info("the configuration was read again")
        self._notify.ready("serving")

    def _finished(self, served: Served) -> None:
        self.metrics.take(served)
        LOG.log(
            logging.INFO if served.code == 0 else logging.WARNING,
            "%s %s",
            served.plugin,
            served.command,
            extra={
                "fields": {
                    "container": served.container_id,
                    "ifname": served.ifname,
                    "code": served.code,
                    "waited_ms": round(served.waited_s * 1e3, 1),
                    "took_ms": round(served.took_s * 1e3, 1),
                }
            },
        )


class _Signals:
    """Signals as events of the loop: the handler of a signal may come anywhere, the loop when it is ready for it.

    The socket only wakes the loop: when it is full, what comes is not written there.
    """

    def __init__(self, selector: selectors.BaseSelector, hear: Callable[[int], None]) -> None:
        self._selector = selector
        self._hear = hear
        self._came: set[int] = set()
        self._reading, self._writing = socket.socketpair()

    def __enter__(self) -> None:
        for end in (self._reading, self._writing):
            end.setblocking(False)
        self._before_fd = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        self._selector.register(self._reading, selectors.EVENT_READ, self._read)

    def __exit__(self, *_: object) -> None:
        self._selector.unregister(self._reading)
        for number, action in self._before.items():
            signal.signal(number, action)
        signal.set_wakeup_fd(self._before_fd)
        self._reading.close()
        self._writing.close()

    def _note(self, number: int, _frame: object) -> None:
        self._came.add(number)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            while self._reading.recv(4096):
                pass
        for number in sorted(self._came):
            self._came.discard(number)  # before it is heard: it may come again meanwhile
            self._hear(number)
