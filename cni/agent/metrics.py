"""What the agent counts, for Prometheus: requests by outcome, where their time goes, what had to be undone.

Source: https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from cni.agent.crew import Served

CONTENT_TYPE = CONTENT_TYPE_LATEST
# From a read of one file to a runtime's patience.
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 180)


class Metrics:
    """The figures of one agent since it started."""

    def __init__(
        self,
        *,
        running: Callable[[], float],
        waiting: Callable[[], float],
        leases: Callable[[], Mapping[tuple[str, str], int]],
    ) -> None:
        self._count_leases = leases
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "vferry_requests",
            "Requests by outcome: ok, the code of the error, or lost when its process was killed.",
            ["plugin", "verb", "result"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "vferry_request_seconds",
            "From the arrival of a request to the end of its process.",
            ["plugin", "verb"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._steps = Histogram(
            "vferry_step_seconds",
            "Where the time goes; queue: before a process had it, other: what no step is marked for.",
            ["plugin", "verb", "step"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._events = Counter(
            "vferry_events", "Rollbacks and failed undo steps.", ["plugin", "event"], registry=self._registry
        )
        self._leases = Gauge(
            "vferry_leases",
            "Addresses that this node holds; a page has them counted, once a minute at most, for the next one.",
            ["datastore", "pool"],
            registry=self._registry,
        )
        for name, text, read in (
            ("vferry_requests_running", "Requests that a process has.", running),
            ("vferry_requests_waiting", "Requests that wait for a process.", waiting),
        ):
            Gauge(name, text, registry=self._registry).set_function(read)

    def take(self, served: Served) -> None:
        """Count one request that has ended."""
        labels = (served.plugin, served.command)
        result = {0: "ok", None: "lost"}.get(served.code, str(served.code))
        self._requests.labels(*labels, result).inc()
        self._seconds.labels(*labels).observe(served.waited_s + served.took_s)
        steps = {"queue": served.waited_s, **served.seconds}
        steps["other"] = max(0.0, served.took_s - sum(served.seconds.values()))
        for step, seconds in steps.items():
            self._steps.labels(*labels, step).observe(seconds)
        for event, times in served.events.items():
            self._events.labels(served.plugin, event).inc(times)

    def page(self) -> bytes:
        """Return all of it in the text format."""
        self._leases.clear()
        for labels, count in self._count_leases().items():
            self._leases.labels(*labels).set(count)
        return generate_latest(self._registry)
