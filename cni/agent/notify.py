"""What systemd is told of a service of Type=notify or notify-reload: ready, alive, reloading, stopping.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress


class Notify:
    """The way to the service manager; without one, nothing is said."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        period_us = int(environ.get("WATCHDOG_USEC") or 0) if mine else 0
        self.watchdog_s = period_us / 1e6 / 2  # twice as often as is asked for
        self._alive_at = 0.0

    def ready(self, status: str) -> None:
        self._say("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._say("STOPPING=1")

    def alive(self, now: float) -> None:
        """Say so when it is time again."""
        if self.watchdog_s and now >= self._alive_at and self._say("WATCHDOG=1"):
            self._alive_at = now + self.watchdog_s

    def _say(self, *assignments: str) -> bool:
        """Say it, and tell whether the manager has it; without one there is nothing to be said."""
        if not self._address:
            return True
        name = self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
            datagram.setblocking(False)  # a manager that does not listen must not hold us up
            datagram.sendto("\n".join(assignments).encode(), "\0" + name[1:] if name.startswith("@") else name)
            return True
        return False
