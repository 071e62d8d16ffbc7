"""Streams over descriptors that the agent passed out: pipes, terminals and files, on any of anyio's event loops."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import termios
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

if TYPE_CHECKING:
    from collections.abc import Callable

_LARGE_PIPE_BYTES = 1024 * 1024
_BUSY_AFTER_BYTES = 1024 * 1024
_END_OF_TRANSMISSION = b"\x04"


def adopt_pipe(fd: int, flags: int) -> int:
    """Open the pipe behind `fd` anew and close `fd`.

    A passed descriptor shares its flags with the agent's copy; one that the agent could make blocking has no place on
    the event loop.
    """
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(fd)


class PipeSource:
    """The output of a command, from a pipe or a terminal's master side.

    It ends when all writers closed it, or when the command has exited and what was in the pipe at that moment was read.
    """

    def __init__(self, fd: int, *, terminal: bool = False) -> None:
        self._fd = fd
        self._terminal = terminal
        self._left: int | None = None
        self._received = 0
        self._ended = False
        self._settled: bytes | None = None

    def command_exited(self) -> None:
        """Called when the command's first process is gone; the stream ends with what it holds now.

        A terminal ends by itself when nobody has it open any more.
        """
        if self._fd < 0 or self._ended or self._terminal or self._left is not None:
            return
        (self._left,) = struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, b"\0\0\0\0"))
        if self._left == 0:
            anyio.notify_closing(self._fd)  # Wakes a receive that waits for what will not come.

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Wait for some bytes. Cancelling loses nothing.

        Raises:
            anyio.EndOfStream: There will be no more.
            anyio.ClosedResourceError: The stream was closed on this side.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        while True:
            data = self._read(max_bytes)
            if data is not None:
                break
            # Woken by data, by the exit of the command, by `settle`, or by `close`: all are seen by reading.
            with contextlib.suppress(anyio.ClosedResourceError):
                await anyio.wait_readable(self._fd)
        if not data:
            self._ended = True
            self.close()
            raise anyio.EndOfStream
        await anyio.lowlevel.cancel_shielded_checkpoint()
        return data

    def _read(self, max_bytes: int) -> bytes | None:
        """Some bytes, none at the end, None if there are none yet."""
        if self._settled is not None:
            data, self._settled = self._settled[:max_bytes], self._settled[max_bytes:]
            return data
        if self._ended or self._left == 0:
            return b""
        if self._fd < 0:
            raise anyio.ClosedResourceError
        try:
            data = os.read(self._fd, max_bytes if self._left is None else min(max_bytes, self._left))
        except BlockingIOError:
            # After the exit nothing that was counted can be missing, except what another reader took.
            return None if self._left is None else b""
        except OSError as error:
            if error.errno == errno.EIO:
                return b""
            raise
        if self._left is not None:
            self._left -= len(data)
        self._count(len(data))
        return data

    def settle(self) -> None:
        """Called when nothing can write any more: keep what is there, and let go of the descriptor."""
        if self._fd < 0:
            return
        parts: list[bytes] = []
        while sum(map(len, parts)) < _LARGE_PIPE_BYTES and (data := self._read(_LARGE_PIPE_BYTES)):
            parts.append(data)
        self._settled = b"".join(parts)
        self.close()

    def set_terminal_size(self, columns: int, rows: int) -> None:
        """Set a terminal's size in characters; the programs in its foreground get SIGWINCH."""
        if self._fd >= 0:
            packed = struct.pack("HHHH", min(max(rows, 0), 0xFFFF), min(max(columns, 0), 0xFFFF), 0, 0)
            fcntl.ioctl(self._fd, termios.TIOCSWINSZ, packed)

    def _count(self, number: int) -> None:
        """A stream through which much flows gets a larger pipe, once: fewer wake-ups on both sides."""
        before, self._received = self._received, self._received + number
        if before < _BUSY_AFTER_BYTES <= self._received and not self._terminal:
            try:
                fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _LARGE_PIPE_BYTES)
            except OSError:
                return  # The user's share of pipe memory is used up; the small pipe works too.

    def close(self) -> None:
        """Let go of the descriptor."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            anyio.notify_closing(fd)
            os.close(fd)

    async def aclose(self) -> None:
        """Let go of the stream; what it still holds is not read."""
        self.close()


class PipeSink:
    """The input of a command, into a pipe or a terminal's master side."""

    def __init__(self, fd: int, on_close: Callable[[], None], *, terminal: bool = False) -> None:
        self._fd = fd
        self._on_close = on_close
        self._terminal = terminal
        self._sent = 0

    @property
    def sent_bytes(self) -> int:
        """Bytes taken so far."""
        return self._sent

    async def send(self, data: bytes) -> None:
        """Write all of `data`. If cancelled, `sent_bytes` says how much was written.

        Raises:
            anyio.BrokenResourceError: Nobody reads any more.
            anyio.ClosedResourceError: The input was ended before.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        view = memoryview(data)
        while view:
            if self._fd < 0:
                raise anyio.ClosedResourceError
            try:
                taken = os.write(self._fd, view)
            except BlockingIOError:
                await self._wait_for_room()
                continue
            except OSError as error:
                raise anyio.BrokenResourceError from error
            self._sent += taken
            view = view[taken:]
        await anyio.lowlevel.cancel_shielded_checkpoint()

    async def _wait_for_room(self) -> None:
        with contextlib.suppress(OSError):
            await anyio.wait_writable(self._fd)

    def close(self) -> None:
        """Let go of the descriptor; the agent's copy stays open."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            anyio.notify_closing(fd)
            os.close(fd)

    async def aclose(self) -> None:
        """End of input. On a terminal that is its end-of-file character, for the terminal itself stays."""
        if self._fd < 0:
            return
        if self._terminal:
            with contextlib.suppress(anyio.BrokenResourceError):
                await self.send(_END_OF_TRANSMISSION)
        self.close()
        self._on_close()
