"""The agent's own log on stderr, one line an event, as text or as JSON; a request's log goes to its caller's stderr."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

from cni.journal import OneLine
from conf.agent import LogFormat


def open_log(log_format: LogFormat) -> None:
    """Send the agent's log to stderr; a child's log of its request does not come this way."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Text("%(asctime)s %(levelname)s agent: %(message)s"))
    log = logging.getLogger("vferry.agent")
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


class _Text(OneLine):
    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message += "".join(f" {key}={value}" for key, value in _fields(record).items())
        return super().formatMessage(record)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            event["trace"] = self.formatException(record.exc_info)
        return json.dumps(event)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return dict(getattr(record, "fields", {}))
