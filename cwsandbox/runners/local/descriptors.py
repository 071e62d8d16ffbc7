"""Descriptors that a new process must not keep."""

from __future__ import annotations

import contextlib
import os


def close_others(*kept: int) -> None:
    """Close every descriptor but 0, 1, 2 and those of `kept`, whatever the process inherited."""
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)
