"""What lies between the two ends of a stream, in memory that outlives the gateway.

A journal is an unnamed file (memfd_create(2)). Its size says how many bytes were ever put in, its position how many
were ever taken out. Bytes come in by splice(2), which moves them out of a pipe and changes the size in one system
call, and leave towards a command by splice(2) or sendfile(2), which change the position in the same call: a gateway
that is killed at any point has lost no byte and counted none twice. The agent holds the descriptor too, and passes it
to the next gateway.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from cwsandbox.runners.local.descriptors import memory_file
from cwsandbox.runners.local.syscalls import punch_hole

MOST_BYTES = 2 * 1024 * 1024
"""More than a gateway leaves in a journal: a stream's window, and a large pipe's content."""
_PUNCH_BYTES = 512 * 1024
"""Memory is given back in portions of this size: a call per megabyte, not one per credit."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def make() -> int:
    """Make an empty journal; returns its descriptor."""
    return memory_file("journal")


def is_journal(fd: int) -> bool:
    """Whether a descriptor from an agent is a file in memory, which no operation on can block."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)  # EINVAL for everything that does not live in memory.
    except OSError:
        return False
    return stat.S_ISREG(os.fstat(fd).st_mode)


class Journal:
    """One journal; it owns the descriptor.

    Attributes:
        taken: Offset behind the last byte that was taken out.
        end: Offset behind the last byte that was put in.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.end: int = os.fstat(fd).st_size
        # An agent can give both any value; it must not give the gateway terabytes to carry.
        self.taken: int = min(max(os.lseek(fd, 0, os.SEEK_CUR), self.end - MOST_BYTES), self.end)
        self._punched = 0

    # -- towards the client

    def fill(self, pipe: int, max_bytes: int) -> int:
        """Move bytes out of a pipe; returns how many, 0 at its end.

        Raises:
            BlockingIOError: The pipe is empty.
        """
        count = os.splice(pipe, self._fd, max_bytes, offset_dst=self.end, flags=os.SPLICE_F_NONBLOCK)
        self.end += count
        return count

    def read(self, offset: int, max_bytes: int) -> bytes:
        """The bytes at `offset`; they stay."""
        return os.pread(self._fd, min(max_bytes, self.end - offset), offset)

    def release(self, offset: int) -> None:
        """Everything before `offset` arrived where it is wanted."""
        if self._fd < 0 or offset <= self.taken:
            return
        self.taken = os.lseek(self._fd, offset, os.SEEK_SET)
        self._give_back()

    def seal(self) -> None:
        """Nothing more comes in: remembered by the kernel, for the next gateway too."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # An agent that forbids it harms its own box only.
                fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)

    @property
    def sealed(self) -> bool:
        """Whether `seal` was called, maybe by an earlier gateway."""
        return bool(fcntl.fcntl(self._fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_GROW)

    # -- towards the command

    def put(self, data: bytes | memoryview) -> None:
        """Put bytes in."""
        while data:
            count = os.pwrite(self._fd, data, self.end)
            self.end += count
            data = data[count:]

    def drain(self, target: int, *, terminal: bool) -> int:
        """Move what was put in towards a pipe or a terminal, as much as it takes; returns how much.

        Raises:
            BlockingIOError: It takes nothing now.
            OSError: Nobody reads there any more.
        """
        left = self.end - self.taken
        if terminal:
            count = os.sendfile(target, self._fd, None, left)  # None moves the position.
        else:
            count = os.splice(self._fd, target, left, flags=os.SPLICE_F_NONBLOCK)
        if count == 0:
            raise OSError(errno.EIO, "the journal was cut from outside")
        self.taken += count
        self._give_back()
        return count

    def close(self) -> None:
        """Let go of the descriptor; the agent's copy stays."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _give_back(self) -> None:
        done = self.taken - self.taken % _PAGE_BYTES
        if done - self._punched >= _PUNCH_BYTES:
            with contextlib.suppress(OSError):  # Then it only takes memory for longer.
                punch_hole(self._fd, self._punched, done - self._punched)
            self._punched = done
