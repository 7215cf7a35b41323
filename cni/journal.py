"""The log: one line an event, with plugin, verb, container, ifname and network; never stdin, never the environment.

Default: warnings and worse on stderr, where the runtime puts them into its own log. ``logLevel`` and ``logFile`` of
the configuration change that, as upstream's do.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from conf.errors import CniError
from conf.request import Request
from conf.section import lookup

LOG = logging.getLogger("vferry")
_LEVELS = {
    "panic": logging.CRITICAL,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "verbose": logging.INFO,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}


class OneLine(logging.Formatter):
    """One line an event, whatever a caller or a foreign plugin says; only a trace has more."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))


def one_line(text: str) -> str:
    """Return the text with everything escaped that makes a line of its own, or speaks to a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


@contextmanager
def opened(name: str, request: Request) -> Iterator[None]:
    """Send the log of one request where its configuration says."""
    level = _setting(request, "logLevel", "log_level").lower()
    path = _setting(request, "logFile", "log_file")
    handler, complaint = _handler(path)
    # They are checked for the commands that need them only: no line of its own, no format.
    subject = " ".join(f"{request.container_id} {request.ifname} {request.network}".split()).replace("%", "%%")
    handler.setFormatter(OneLine(f"%(asctime)s %(levelname)s {name} {request.command} {subject}: %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(_LEVELS.get(level, logging.INFO if level else logging.WARNING))  # unknown: info, as upstream
    if complaint:
        LOG.warning(complaint)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        handler.close()


def failure(error: Exception) -> None:
    """Log what ended a request; the trace only for a cause nobody foresaw."""
    if isinstance(error, CniError):
        LOG.error("%s (code %d)", one_line(str(error)), error.code)  # it may be of a time before there is a format
    else:
        LOG.error("internal error", exc_info=error)


def _handler(path: str) -> tuple[logging.Handler, str]:
    if not path:
        return logging.StreamHandler(sys.stderr), ""
    try:
        return logging.FileHandler(path, encoding="utf-8", errors="backslashreplace"), ""
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return logging.StreamHandler(sys.stderr), f"cannot log to {path}: {error}"


def _setting(request: Request, *keys: str) -> str:
    """Return a log setting of the configuration, or of its ipam object, which is where whereabouts has it."""
    ipam = lookup(request.config, "ipam")
    for source in (request.config, ipam if isinstance(ipam, dict) else {}):
        for key in keys:
            value = lookup(source, key)
            if isinstance(value, str):
                return value
    return ""
