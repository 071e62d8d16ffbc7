"""The input of a command, on its way from the client's stream into the box."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import anyio

from cwsandbox.runners.errors import BoxGoneError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from cwsandbox.runners.base import ByteSink

_NOBODY_READS: Final = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, BoxGoneError)


class StdinFeeder:
    """A queue in front of a sink. A task runs only while there is something to write.

    The queue is bounded by the stream's window, because credit is given for what the sink took.

    Args:
        start_soon: Starts that task.
        taken: Told how many bytes were taken.
    """

    def __init__(
        self, start_soon: Callable[[Callable[[], Coroutine[Any, Any, None]]], object], taken: Callable[[int], None]
    ) -> None:
        self._start_soon = start_soon
        self._taken = taken
        self._queue: deque[bytes] = deque()
        self._eof = False
        self._sink: ByteSink | None = None
        # Set while the task runs.
        self._scope: anyio.CancelScope | None = None
        self._broken = False

    def feed(self, data: bytes) -> None:
        """Queue bytes; before `begin` they wait."""
        self._queue.append(data)
        self._go_on()

    def end(self) -> None:
        """Close the input behind what is queued."""
        self._eof = True
        self._go_on()

    def begin(self, sink: ByteSink) -> None:
        """The command runs and takes input."""
        self._sink = sink
        self._go_on()

    def stop(self) -> None:
        """The command is over: what is queued or half written is dropped."""
        self._broken = True
        if self._scope is not None:
            self._scope.cancel()

    def _go_on(self) -> None:
        if self._sink is not None and self._scope is None and (self._queue or self._eof):
            self._scope = anyio.CancelScope()
            self._start_soon(self._pump)

    async def _pump(self) -> None:
        assert self._sink is not None
        assert self._scope is not None
        try:
            with self._scope:
                while self._queue:
                    await self._write(self._sink, self._queue[0])
                    self._taken(len(self._queue.popleft()))
                if self._eof:
                    with contextlib.suppress(*_NOBODY_READS):
                        await self._sink.aclose()
        finally:
            self._scope = None

    async def _write(self, sink: ByteSink, data: bytes) -> None:
        if self._broken:
            return
        try:
            await sink.send(data)
        except _NOBODY_READS:
            self._broken = True  # Nobody reads any more; the rest is taken and dropped, as in a shell's pipe.
