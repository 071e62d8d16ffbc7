"""The operation behind `stream_logs`: a log stream into a spool that keeps nothing.

The exec channel resumes the stream when the connection breaks. A gateway that was restarted does not know the stream
any more, but it has the log: then a new stream goes on where the old one ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from cwsandbox._client.stream import Lost
from cwsandbox._runtime.operation import OperationRef
from cwsandbox._runtime.spool import Spool
from cwsandbox._stream_operation import StreamOperation, end_of_stream
from cwsandbox.exceptions import SandboxNotRunningError

if TYPE_CHECKING:
    from datetime import datetime

    from cwsandbox._client.stream import ClientStream
    from cwsandbox._core import SandboxCore
    from cwsandbox._runtime.readers import LineReader

__all__ = ["LogsOperation"]


_REOPEN_TIMES = 3
"""How often a new stream takes the place of a lost one before anything comes."""


class LogsOperation(StreamOperation):
    """Streams the main command's output to `reader`; the reader sets the pace, and closing it ends the stream."""

    def __init__(
        self,
        sandbox: SandboxCore,
        *,
        follow: bool,
        tail_lines: int | None,
        since_time: datetime | None,
        timestamps: bool,
        timeout_seconds: float | None,
    ) -> None:
        super().__init__(sandbox)
        self._follow = follow
        self._tail_lines = tail_lines
        self._since_time = since_time
        self._timestamps = timestamps
        self._timeout_seconds = timeout_seconds
        self._spool = Spool(keep=False, on_credit=self._passed)
        self._stream: ClientStream | None = None
        self._place: _Place | None = None
        self._reopened = 0
        # Bytes that wait in the spool, and how many of them an earlier stream brought: it gets no credit any more.
        self._unread = 0
        self._unread_of_earlier = 0
        self._ref: OperationRef[None] = OperationRef()
        self.reader: LineReader = self._spool.lines(on_close=self._ref._cancel)

    def start(self) -> LineReader:
        """Begin; whatever happens is told through the reader."""
        self._ref.add_done_callback(lambda ref: self._spool.close(end_of_stream(ref)))
        self._sandbox.operate(self, ref=self._ref, name="stream logs")
        if self._ref._loop is not None:
            self._spool.bind(self._ref._loop)
        return self.reader

    async def __call__(self) -> None:
        """Stream until the end. Cancelling ends the transfer."""
        sandbox = self._sandbox
        if sandbox.sandbox_id is None:
            await sandbox.start()
        if self._follow and not sandbox.life.usable:
            raise SandboxNotRunningError(f"{sandbox.ended_message()}; its past logs are there with follow=False")
        assert sandbox.sandbox_id is not None
        began = anyio.current_time()
        await self._stream_once(sandbox.sandbox_id, self._timeout_seconds)
        while isinstance(self._outcome, Lost) and self._confirmed and self._place is not None:
            self._reopened += 1
            if self._reopened > _REOPEN_TIMES:
                break
            left = self._timeout_seconds
            if left is not None:
                left = max(0.0, left - (anyio.current_time() - began))
            await self._stream_once(sandbox.sandbox_id, left)
        await self._exit_status()

    async def _stream_once(self, sandbox_id: str, timeout_seconds: float | None) -> None:
        """Stream until the end, or until the stream is lost."""
        from cwsandbox.wire.channel import StreamKind
        from cwsandbox.wire.streams import LogsOpen

        place = self._place
        params = LogsOpen(
            sandbox_id=sandbox_id,
            follow=self._follow,
            tail_lines=self._tail_lines,
            since_time=self._since_time,
            timestamps=self._timestamps,
            position=None if place is None else place.position,
            stamp_bytes=0 if place is None else place.stamp_bytes,
            timeout_seconds=timeout_seconds,
            wait_seconds=self._sandbox.wait_seconds,
        )
        self._confirmed, self._outcome = False, None
        self._unread_of_earlier = self._unread
        stream = self._stream = await self._open(StreamKind.LOGS, params.to_params())
        try:
            while self._outcome is None:
                await self._wait_changed()
        except anyio.get_cancelled_exc_class():
            await self._give_up(stream)
            raise

    # What the channel and the spool call.

    def confirmed(self, info: dict[str, Any]) -> None:
        """The log begins to come, at a position that a new stream could go on from."""
        from cwsandbox.wire.streams import LogsInfo

        super().confirmed(info)
        if self._place is None:
            self._place = _Place(LogsInfo.from_params(info).position, stamps=self._timestamps)

    def data(self, code: int, data: bytes) -> None:
        """A part of the log; the stream's window bounds what the spool holds."""
        self._unread += len(data)
        self._reopened = 0
        if self._place is not None:
            self._place.advance(data)
        self._spool.feed_nowait(data)

    def _passed(self, count: int) -> None:
        """The reader has come so much further."""
        self._unread -= count
        earlier = min(count, self._unread_of_earlier)
        self._unread_of_earlier -= earlier
        if self._stream is not None and count > earlier:
            self._stream.consumed(count - earlier)


class _Place:
    """How far a reader has come in a log.

    Attributes:
        position: Of the next byte.
        stamp_bytes: How much of the stamp before that byte has come; all of it within a line.
    """

    def __init__(self, position: int, *, stamps: bool) -> None:
        from cwsandbox.wire.streams import LOG_STAMP_BYTES

        self.position = position
        self.stamp_bytes = 0
        self._stamp_bytes = LOG_STAMP_BYTES if stamps else 0

    def advance(self, data: bytes) -> None:
        """Bytes came, with the stamps among them."""
        if not self._stamp_bytes:
            self.position += len(data)
            return
        at = 0
        while at < len(data):
            stamp = min(self._stamp_bytes - self.stamp_bytes, len(data) - at)
            self.stamp_bytes += stamp
            at += stamp
            end = data.find(b"\n", at) + 1
            self.position += (end or len(data)) - at
            if end:
                self.stamp_bytes = 0
            at = end or len(data)
