"""Pipes: a reading end for those whose reader has gone.

Source: pipe(7), proc_pid_fd(5).
"""

from __future__ import annotations

import os


def hold_reading_end(descriptor: int) -> int:
    """Open the reading end of the pipe that ``descriptor`` writes to, so that no writer is killed by SIGPIPE.

    It stays open as long as this process; a writer waits when the pipe is full. Raises: OSError.
    """
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
