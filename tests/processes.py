"""Processes that tests start: plugins whose document is sent but whose end is not awaited, and many calls at once."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_PATIENCE_S = 240.0


def started(argv: Sequence[str | Path], conf: Mapping[str, Any], environ: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a plugin with its configuration on stdin."""
    process = subprocess.Popen(
        argv, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(conf))
    process.stdin.close()
    process.stdin = None
    return process


def at_once(act: Callable[[str, Callable[[], object]], Any], names: Sequence[str]) -> list[tuple[str, Any]]:
    """Call ``act(name, wait)`` in a process of its own for each name; ``wait`` returns when all have called it.

    Returns each name with what was returned.
    """
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(len(names)), context.Queue()
    processes = [
        context.Process(target=lambda name=name: results.put((name, act(name, lambda: barrier.wait(_PATIENCE_S)))))
        for name in names
    ]
    for process in processes:
        process.start()
    collected = [results.get(timeout=2 * _PATIENCE_S) for _ in processes]
    for process in processes:
        process.join()
    return collected
