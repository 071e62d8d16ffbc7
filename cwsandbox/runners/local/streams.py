"""The streams of a command, between the descriptors that the agent passed out and their journals."""

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

from cwsandbox.runners.local.journal import MOST_BYTES
from cwsandbox.runners.local.pipes import LARGE_PIPE_BYTES, End

if TYPE_CHECKING:
    from collections.abc import Callable

    from cwsandbox.runners.local.journal import Journal

_END_OF_TRANSMISSION = b"\x04"


class OutputStream(End):
    """The output of a command, from a pipe.

    It ends when all writers closed it, or when the command has exited and what was in the pipe at that moment was read.
    What is received goes through the journal and stays there until it is released.

    Args:
        fd: The pipe; the source owns it.
        journal: What was received by an earlier gateway and not released is received again.
    """

    def __init__(self, fd: int, journal: Journal) -> None:
        super().__init__(fd)
        self._journal = journal
        self._position = journal.taken
        self._left: int | None = None
        self._settled = False
        self._ended = journal.sealed

    @property
    def position(self) -> int:
        """Offset of what is received next."""
        return self._position

    def recall(self) -> bytes:
        """What an earlier gateway received and did not release; at once, and received with that."""
        data = self._journal.read(self._position, MOST_BYTES)
        self._position += len(data)
        return data

    def release(self, offset: int) -> None:
        """What comes before `offset` is not needed again, also not by the next gateway."""
        self._journal.release(min(offset, self._position))

    def command_exited(self) -> None:
        """Called when the command's first process is gone; the stream ends with what it holds now."""
        if self._fd < 0 or self._ended or self._left is not None:
            return
        (self._left,) = struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, b"\0\0\0\0"))
        if self._left == 0:
            self._descriptor.wake()  # Wakes a receive that waits for what will not come.

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Wait for some bytes. Cancelling loses nothing.

        Raises:
            anyio.EndOfStream: There will be no more.
            anyio.ClosedResourceError: The stream was closed on this side.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        while self._position == self._journal.end and not self._ended:
            if not self._fill(max_bytes):
                # Woken by data, by the exit of the command, by `settle`, or by `close`: all are seen by reading.
                await self._wait_readable()
        data = self._journal.read(self._position, max_bytes)
        if not data:
            self.hang_up()
            raise anyio.EndOfStream
        self._position += len(data)
        await anyio.lowlevel.cancel_shielded_checkpoint()
        return data

    def _fill(self, max_bytes: int) -> bool:
        """Move some bytes into the journal, or find that there are no more; False if there are none yet."""
        if self._left == 0 or self._settled:
            self._end()
            return True
        if self._fd < 0:
            raise anyio.ClosedResourceError
        try:
            count = self._move(max_bytes if self._left is None else min(max_bytes, self._left))
        except BlockingIOError:
            if self._left is None:
                return False
            count = 0  # After the exit nothing that was counted can be missing, except what another reader took.
        if count == 0:
            self._end()
        if self._left is not None:
            self._left -= count
        self._count(count)
        return True

    def _move(self, max_bytes: int) -> int:
        """Move some bytes into the journal; 0 at the end. Raises BlockingIOError if there are none yet."""
        return self._journal.fill(self._fd, max_bytes)

    def _end(self) -> None:
        # Behind an end that the client may know of, no daemon's late words may appear, whoever reads next.
        self._journal.seal()
        self._ended = True

    def settle(self) -> None:
        """Called when nothing can write any more: keep what is there, and let go of the descriptor."""
        if self._fd < 0:
            return
        limit = self._journal.end + LARGE_PIPE_BYTES
        with contextlib.suppress(OSError):  # An agent may have sealed the journal: its box's end is seen all the same.
            while self._journal.end < limit and not self._ended and self._fill(limit - self._journal.end):
                pass
        self._settled = True
        self.hang_up()

    def close(self) -> None:
        """Let go of all descriptors."""
        self.hang_up()
        self._journal.close()

    async def aclose(self) -> None:
        """Let go of the pipe; what it still holds is not read."""
        self.hang_up()


class TerminalOutput(OutputStream):
    """The output of a command on a terminal, from the terminal's master side.

    splice(2) moves between a pipe and something else, so that there is a pipe between the terminal and the journal. The
    agent has its ends too: what lies in it survives as well.

    Args:
        fd: The master side; the source owns it.
        relay: The pipe's ends, for reading and for writing; likewise.
        journal: As for a pipe.
    """

    def __init__(self, fd: int, relay: tuple[int, int], journal: Journal) -> None:
        super().__init__(fd, journal)
        self._relay = relay

    def command_exited(self) -> None:
        """A terminal ends by itself when nobody has it open any more."""

    def _move(self, max_bytes: int) -> int:
        read, write = self._relay
        over = False
        try:
            os.splice(self._fd, write, max_bytes, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            over = True
        try:
            return self._journal.fill(read, LARGE_PIPE_BYTES)
        except BlockingIOError:
            if over:
                return 0
            raise

    def _count(self, number: int) -> None:
        """A terminal has the size it has."""

    def set_size(self, columns: int, rows: int) -> None:
        """Set the terminal's size in characters; the programs in its foreground get SIGWINCH."""
        if self._fd >= 0:
            packed = struct.pack("HHHH", min(max(rows, 0), 0xFFFF), min(max(columns, 0), 0xFFFF), 0, 0)
            fcntl.ioctl(self._fd, termios.TIOCSWINSZ, packed)

    def close(self) -> None:
        """Let go of all descriptors."""
        super().close()
        relay, self._relay = self._relay, (-1, -1)
        for fd in relay:
            if fd >= 0:
                os.close(fd)


class InputStream(End):
    """The input of a command, into a pipe or a terminal's master side.

    Args:
        fd: The pipe or terminal, which the sink owns; -1 if the input was ended before.
        journal: What an earlier gateway took and did not pass on is passed on before anything else.
        on_close: Called at the end of input.
        terminal: Whether `fd` is a terminal.
    """

    def __init__(self, fd: int, journal: Journal, on_close: Callable[[], None], *, terminal: bool = False) -> None:
        super().__init__(fd)
        self._journal = journal
        self._on_close = on_close
        self._terminal = terminal

    @property
    def taken_bytes(self) -> int:
        """Bytes that `send` took, whether they were passed on or not."""
        return self._journal.end

    @property
    def sent_bytes(self) -> int:
        """Bytes passed on so far."""
        return self._journal.taken

    async def send(self, data: bytes) -> None:
        """Take all of `data`, and pass on everything that was taken. If cancelled, `sent_bytes` says how much was.

        Raises:
            anyio.BrokenResourceError: Nobody reads any more.
            anyio.ClosedResourceError: The input was ended before.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        if self._fd < 0:
            raise anyio.ClosedResourceError
        self._journal.put(data)
        while self._journal.taken < self._journal.end:
            if self._fd < 0:
                raise anyio.ClosedResourceError
            try:
                self._journal.drain(self._fd, terminal=self._terminal)
            except BlockingIOError:
                await self._wait_writable()
            except OSError as error:
                raise anyio.BrokenResourceError from error
        await anyio.lowlevel.cancel_shielded_checkpoint()

    def close(self) -> None:
        """Let go of all descriptors."""
        self.hang_up()
        self._journal.close()

    async def aclose(self) -> None:
        """End of input. On a terminal that is its end-of-file character, for the terminal itself stays."""
        if self._fd < 0:
            return
        if self._terminal:
            with contextlib.suppress(anyio.BrokenResourceError):
                await self.send(_END_OF_TRANSMISSION)
        self.hang_up()
        self._on_close()
