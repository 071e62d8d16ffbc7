"""Pipes whose other ends are in a box, on any of anyio's event loops."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from cwsandbox.runners.descriptor import Descriptor

if TYPE_CHECKING:
    from collections.abc import Iterable

LARGE_PIPE_BYTES = 1024 * 1024
_BUSY_AFTER_BYTES = 1024 * 1024


def adopt_pipes(pipes: Iterable[tuple[int, int]]) -> list[int]:
    """Open the pipes behind some descriptors anew, each with its flags, for this side alone.

    A passed descriptor shares its flags with the agent's copy; one that the agent could make blocking has no place on
    the event loop.

    Raises:
        OSError: One cannot be opened; then none is.
    """
    ours: list[int] = []
    try:
        for fd, flags in pipes:
            ours.append(os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        for fd in ours:
            os.close(fd)
        raise
    return ours


class End:
    """One end of a pipe or of a terminal; it owns the descriptor, which is -1 when there is none any more."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._descriptor = Descriptor(fd)
        self._flown = 0

    def hang_up(self) -> None:
        """Let go of the descriptor, and wake whoever waits on it."""
        self._fd = -1
        self._descriptor.close()

    async def _wait_readable(self) -> None:
        """Returns also when the descriptor is gone."""
        with contextlib.suppress(anyio.ClosedResourceError):
            await self._descriptor.wait_readable()

    async def _wait_writable(self) -> None:
        """Likewise."""
        with contextlib.suppress(anyio.ClosedResourceError, OSError):
            await self._descriptor.wait_writable()

    def _count(self, number: int) -> None:
        """A pipe through which much flows is made larger, once: fewer wake-ups on both sides."""
        before, self._flown = self._flown, self._flown + number
        if before < _BUSY_AFTER_BYTES <= self._flown:
            # The user's share of pipe memory may be used up; the small pipe works too.
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, LARGE_PIPE_BYTES)


class PipeSource(End):
    """The reading end of a pipe."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Wait for some bytes. Cancelling loses nothing.

        Raises:
            anyio.EndOfStream: All writers closed it.
            anyio.ClosedResourceError: It was closed on this side.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        while True:
            if self._fd < 0:
                raise anyio.ClosedResourceError
            try:
                data = os.read(self._fd, max_bytes)
                break
            except BlockingIOError:
                await self._wait_readable()
        if not data:
            raise anyio.EndOfStream
        self._count(len(data))
        await anyio.lowlevel.cancel_shielded_checkpoint()
        return data

    async def aclose(self) -> None:
        """Let go of the pipe; what it still holds is not read."""
        self.hang_up()


class PipeSink(End):
    """The writing end of a pipe."""

    async def send(self, data: bytes) -> None:
        """Write all of `data`. If cancelled, a part of it may have been written.

        Raises:
            anyio.BrokenResourceError: Nobody reads any more.
            anyio.ClosedResourceError: It was closed before.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        view = memoryview(data)
        while view:
            if self._fd < 0:
                raise anyio.ClosedResourceError
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                await self._wait_writable()
            except OSError as error:
                raise anyio.BrokenResourceError from error
        await anyio.lowlevel.cancel_shielded_checkpoint()

    async def aclose(self) -> None:
        """End of input."""
        self.hang_up()
