"""The operation behind `stream_logs`: a log stream into a spool that keeps nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from cwsandbox._runtime.operation import OperationRef
from cwsandbox._runtime.spool import Spool
from cwsandbox._stream_operation import StreamOperation
from cwsandbox.exceptions import SandboxNotRunningError

if TYPE_CHECKING:
    from datetime import datetime

    from cwsandbox._client.stream import ClientStream
    from cwsandbox._core import SandboxCore
    from cwsandbox._runtime.readers import LineReader

__all__ = ["LogsOperation"]


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
        self._spool = Spool(keep=False)
        self._stream: ClientStream | None = None
        self._ref: OperationRef[None] = OperationRef()
        self.reader: LineReader = self._spool.lines(on_close=self._ref._cancel)

    def start(self) -> LineReader:
        """Begin; whatever happens is told through the reader."""
        self._ref.add_done_callback(lambda ref: self._spool.close(ref._error))
        self._sandbox.operate(self, ref=self._ref, name="stream logs")
        return self.reader

    async def __call__(self) -> None:
        """Stream until the end. Cancelling ends the transfer."""
        from cwsandbox.wire.channel import StreamKind
        from cwsandbox.wire.streams import LogsOpen

        sandbox = self._sandbox
        if sandbox.sandbox_id is None:
            await sandbox.start()
        if self._follow and not sandbox.life.usable:
            raise SandboxNotRunningError(f"{sandbox.ended_message()}; its past logs are there with follow=False")
        assert sandbox.sandbox_id is not None
        params = LogsOpen(
            sandbox_id=sandbox.sandbox_id,
            follow=self._follow,
            tail_lines=self._tail_lines,
            since_time=self._since_time,
            timestamps=self._timestamps,
            timeout_seconds=self._timeout_seconds,
            wait_seconds=sandbox.wait_seconds,
        )
        stream = self._stream = await self._open(StreamKind.LOGS, params.to_params())
        self._spool.on_credit = stream.consumed
        try:
            while self._outcome is None:
                await self._wait_changed()
        except anyio.get_cancelled_exc_class():
            await self._give_up(stream)
            raise
        await self._exit_status()

    def data(self, code: int, data: bytes) -> None:
        """A part of the log; the stream's window bounds what the spool holds."""
        self._spool.feed_nowait(data)
