"""Operations on one path, and those behind `read_file` and `write_file`: one stream each, whatever the size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from cwsandbox._client.stream import Exited
from cwsandbox._stream_operation import StreamOperation
from cwsandbox.exceptions import SandboxFileError

if TYPE_CHECKING:
    from cwsandbox._client.stream import ClientStream
    from cwsandbox._core import SandboxCore

__all__ = ["FileOperation", "ReadFile", "WriteFile"]

_THREAD_BYTES = 1024 * 1024
"""The parts of a larger file are put together in a thread: it would hold up the event loop."""


class FileOperation(StreamOperation):
    """One operation on a path; its errors carry the path as the caller gave it."""

    def __init__(self, sandbox: SandboxCore, filepath: str, timeout_seconds: float | None) -> None:
        super().__init__(sandbox)
        self.filepath = filepath
        self._timeout_seconds = timeout_seconds

    async def _send_bytes(self, stream: ClientStream, data: bytes) -> None:
        """Send them at the gateway's pace; not all of them if the stream ends before."""
        rest = memoryview(data)
        while rest.nbytes and self._outcome is None:
            if room := stream.room():
                stream.send(bytes(rest[:room]))
                rest = rest[room:]
            else:
                await self._wait_changed()

    async def _until_done(self, stream: ClientStream) -> None:
        while self._outcome is None:
            await self._wait_changed()
        seen = await self._exit_status()
        if seen != Exited(0):
            raise SandboxFileError(f"{self.filepath}: the transfer ended with {seen}", filepath=self.filepath)

    def _params(self, sandbox_id: str) -> dict[str, Any]:
        assert self.filepath is not None
        return {
            "sandbox_id": sandbox_id,
            "path": self.filepath,
            "timeout_seconds": self._timeout_seconds,
            "wait_seconds": self._sandbox.wait_seconds,
        }


class ReadFile(FileOperation):
    """Reads a whole file."""

    def __init__(self, sandbox: SandboxCore, filepath: str, timeout_seconds: float | None) -> None:
        super().__init__(sandbox, filepath, timeout_seconds)
        self._parts: list[bytes] = []
        self._stream: ClientStream | None = None

    async def __call__(self) -> bytes:
        """The file's content. Cancelling ends the transfer."""
        from cwsandbox.wire.channel import StreamKind
        from cwsandbox.wire.streams import ReadOpen

        sandbox_id = await self._sandbox.ensure_started()
        stream = self._stream = await self._open(StreamKind.READ, ReadOpen(**self._params(sandbox_id)).to_params())
        try:
            await self._until_done(stream)
        except anyio.get_cancelled_exc_class():
            await self._give_up(stream)
            raise
        parts, self._parts = self._parts, []
        if sum(map(len, parts)) > _THREAD_BYTES:
            return await anyio.to_thread.run_sync(b"".join, parts)
        return b"".join(parts)

    def data(self, code: int, data: bytes) -> None:
        """A part of the file. The result is held in memory as a whole, so there is nothing to wait for."""
        self._parts.append(data)
        assert self._stream is not None
        self._stream.consumed(len(data), code)


class WriteFile(FileOperation):
    """Writes a whole file, atomically."""

    def __init__(self, sandbox: SandboxCore, filepath: str, contents: bytes, timeout_seconds: float | None) -> None:
        super().__init__(sandbox, filepath, timeout_seconds)
        self._contents = contents

    async def __call__(self) -> None:
        """Write it. Cancelled before its end, the file is as it was."""
        from cwsandbox.wire.channel import StreamKind
        from cwsandbox.wire.streams import WriteOpen

        sandbox_id = await self._sandbox.ensure_started()
        params = WriteOpen(size=len(self._contents), **self._params(sandbox_id)).to_params()
        stream = await self._open(StreamKind.WRITE, params)
        try:
            await self._send_bytes(stream, self._contents)
            stream.send_eof()
            await self._until_done(stream)
        except anyio.get_cancelled_exc_class():
            await self._give_up(stream)
            raise
