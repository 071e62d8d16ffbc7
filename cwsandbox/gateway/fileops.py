"""The files stream: one operation on the files of a box, quick or streaming.

What a box says in rows, events and folder streams passes through as it is: the client checks it, and here it is only
bounded, by the stream's credit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from cwsandbox.gateway.transfer import Transfer, Upload
from cwsandbox.wire.streams import FileAction

if TYPE_CHECKING:
    from cwsandbox.gateway.service import Service
    from cwsandbox.runners.base import Box, ByteSink, ByteSource
    from cwsandbox.wire.channel import Stream
    from cwsandbox.wire.streams import FilesOpen

# A job that was told to end has this long to tidy up, and the agent's word for it a moment more.
_END_SECONDS = 6.0


class FileOperation(Transfer):
    """One operation; see `FileAction`."""

    def __init__(self, service: Service, principal: str, stream: Stream, request: FilesOpen) -> None:
        super().__init__(service, principal, stream, request)
        self._action = request
        self._upload = Upload(stream, self.wake)

    def on_data(self, data: bytes) -> None:
        """Queue data, if the operation takes any."""
        if self._action.action is FileAction.UNPACK:
            self._upload.put(data)
        else:
            super().on_data(data)

    def on_eof(self) -> None:
        """The client's folder is complete."""
        self._upload.end()

    async def _transfer(self, box: Box) -> None:
        if self._action.action.quick:
            info = await box.file_info(self._action)
            self._confirm(info.to_params())
            self.stream.send_eof()
            return
        job = await box.file_job(self._action)
        try:
            self._confirm({})
            self.wake()
            if job.input is not None:
                await self._take(job.input)
            await self._give(job.output)
            await job.wait()
        finally:
            with anyio.move_on_after(_END_SECONDS, shield=True):
                await job.aclose()

    async def _take(self, sink: ByteSink) -> None:
        """Pass on what the client sends. A job that takes no more says in the end why."""
        try:
            await self._upload.pass_on(sink.send)
        except anyio.BrokenResourceError:
            pass
        finally:
            await sink.aclose()

    async def _give(self, source: ByteSource) -> None:
        try:
            while True:
                self._send(await source.receive(await self._room()))
        except anyio.EndOfStream:
            self.stream.send_eof()
