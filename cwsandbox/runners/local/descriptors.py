"""Descriptors: files in memory, and those that a new process must not keep."""

from __future__ import annotations

import contextlib
import errno
import os

_MFD_NOEXEC_SEAL = 0x8


def memory_file(name: str) -> int:
    """Make an unnamed file in memory that can be sealed and, where the kernel knows of that (6.3), never executed.

    Some systems allow no other kind (`vm.memfd_noexec=2`); `name` is for those who look into /proc.
    """
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def close_others(*kept: int) -> None:
    """Close every descriptor but 0, 1, 2 and those of `kept`, whatever the process inherited."""
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)
