"""Writing a file in the sandbox piece by piece."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from cwsandbox._files.whole import FileOperation, WriteFile
from cwsandbox._runtime._loops import LoopHandle
from cwsandbox._runtime.operation import CANCEL_WAIT_SECONDS, OperationRef
from cwsandbox._stdin import StreamWriter
from cwsandbox._validate import check_bytes
from cwsandbox.exceptions import SandboxFileError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Self

    from cwsandbox._client.stream import ClientStream
    from cwsandbox._core import SandboxCore

__all__ = ["FileWriter", "write_from"]


class FileWriter:
    """A file being written; see `Files.open_write`.

    It appears at once, complete, when `close` has resolved; until then an old file stays as it was. As a context
    manager it is closed by leaving, or given up if the body raises. Any thread and any event loop may write.
    """

    def __init__(self, sandbox: SandboxCore, filepath: str, timeout_seconds: float | None) -> None:
        self._filepath = filepath
        self._queue = _Pieces(filepath)
        self._ref: OperationRef[None] = OperationRef()
        self._ref.add_done_callback(lambda ref: self._queue.set_exception(ref._error or _closed(filepath)))
        sandbox.operate(_WriteQueue(sandbox, filepath, self._queue, timeout_seconds), ref=self._ref, name="write file")

    def write(self, data: bytes) -> OperationRef[None]:
        """Write bytes, after those of earlier calls.

        Returns:
            A ref that resolves when they are queued, at once while fewer than 16 pieces are; wait for it, and the
            sandbox sets the pace.

        Raises:
            TypeError: `data` is not bytes-like.
            SandboxFileError: It was closed, given up, or has failed.
        """
        return self._queue.write(data)

    def close(self) -> OperationRef[None]:
        """Complete the file.

        Returns:
            A ref that resolves when the file is in place. Cancelling whoever awaits it gives the file up.

        Raises:
            SandboxFileError: From the ref: a directory, no permission, no space; see `reason` and `filepath`.
        """
        self._queue.close()
        return self._ref

    def abort(self) -> None:
        """Give it up: an old file stays as it was. Harmless after the end."""
        self._ref._cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc is None:
            self.close().result()
        else:
            self.abort()
            loop = self._ref._loop
            if loop is None or not loop.is_current():
                self._ref._latch.wait_blocking(CANCEL_WAIT_SECONDS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc is None:
            await self.close()
        else:
            self.abort()
            with anyio.move_on_after(CANCEL_WAIT_SECONDS, shield=True):
                await self._ref._latch.wait()


class _Pieces(StreamWriter):
    """What waits to be sent."""

    def __init__(self, filepath: str) -> None:
        super().__init__(self._on_queued)
        self._filepath = filepath
        self.on_input: Callable[[], object] | None = None
        """Called, on any thread, when there is something to send; until the stream is open, pieces only queue up."""

    def _on_queued(self) -> None:
        if self.on_input is not None:
            self.on_input()

    def _refuse_if_over(self) -> None:
        if self._failure is not None:
            raise self._over(self._failure)
        if self._closed:
            raise _closed(self._filepath)

    def _over(self, cause: BaseException) -> BaseException:
        error = SandboxFileError(
            f"{self._filepath}: the file is not being written any more: {cause}",
            filepath=self._filepath,
            reason=getattr(cause, "reason", None),
        )
        error.__cause__ = cause
        return error


def _closed(filepath: str) -> SandboxFileError:
    return SandboxFileError(f"{filepath}: the writer is closed", filepath=filepath)


class _Writing(FileOperation, abc.ABC):
    """A write stream whose size nobody knows before its end."""

    async def __call__(self) -> None:
        """Write until the end. Cancelled before it, the file is as it was."""
        from cwsandbox.wire.channel import StreamKind
        from cwsandbox.wire.streams import WriteOpen

        sandbox_id = await self._sandbox.ensure_started()
        stream = await self._open(StreamKind.WRITE, WriteOpen(**self._params(sandbox_id)).to_params())
        try:
            await self._send_all(stream)
            await self._until_done(stream)
        except BaseException:
            # The source's failure, too: an end of the stream now would put half a file in place.
            await self._give_up(stream)
            raise

    @abc.abstractmethod
    async def _send_all(self, stream: ClientStream) -> None:
        """Send everything that there is."""


class _WriteQueue(_Writing):
    def __init__(self, sandbox: SandboxCore, filepath: str, queue: _Pieces, timeout_seconds: float | None) -> None:
        super().__init__(sandbox, filepath, timeout_seconds)
        self._queue = queue

    async def _send_all(self, stream: ClientStream) -> None:
        loop = LoopHandle.current()
        self._queue.on_input = lambda: loop.run_soon(self._wake)
        while self._outcome is None:
            while (room := stream.room()) and (data := self._queue._take(room)) is not None:
                stream.send(data)
            if self._queue._take_eof():
                stream.send_eof()
                return
            await self._wait_changed()


class _WriteFrom(_Writing):
    """Writes what a source gives.

    Args:
        sandbox: Where.
        filepath: The file.
        source: Bytes-like pieces. A plain iterable is asked in a worker thread; cancelling does not wait for it.
        timeout_seconds: Limit for the transfer.
    """

    def __init__(
        self,
        sandbox: SandboxCore,
        filepath: str,
        source: Iterable[bytes] | AsyncIterable[bytes],
        timeout_seconds: float | None,
    ) -> None:
        super().__init__(sandbox, filepath, timeout_seconds)
        self._source = source

    async def _send_all(self, stream: ClientStream) -> None:
        if hasattr(self._source, "__aiter__"):
            async for piece in self._source:
                if not await self._send_piece(stream, piece):
                    return
        else:
            pieces = iter(self._source)
            while (piece := await self._next_piece(pieces)) is not None:
                if not await self._send_piece(stream, piece):
                    return
        stream.send_eof()

    async def _next_piece(self, pieces: Iterator[bytes]) -> bytes | None:
        return await anyio.to_thread.run_sync(next, pieces, None, abandon_on_cancel=True)

    async def _send_piece(self, stream: ClientStream, piece: object) -> bool:
        """False when no more is wanted."""
        await self._send_bytes(stream, check_bytes(piece, "a piece of source"))
        return self._outcome is None


def write_from(
    sandbox: SandboxCore,
    filepath: str,
    source: Any,
    timeout_seconds: float | None,
) -> OperationRef[None]:
    """Write a file from pieces.

    Raises:
        TypeError: `source` is not bytes-like or iterable, or an async iterable that would run on another loop.
    """
    operation: FileOperation
    if isinstance(source, bytes | bytearray | memoryview):
        operation = WriteFile(sandbox, filepath, check_bytes(source, "source"), timeout_seconds)
    elif hasattr(source, "__aiter__"):
        if not sandbox.scope().loop.is_current():
            raise TypeError(
                "an async source needs a sandbox of this event loop: use `async with Sandbox()`, or files.open_write()"
            )
        operation = _WriteFrom(sandbox, filepath, source, timeout_seconds)
    elif isinstance(source, str) or not hasattr(source, "__iter__"):
        raise TypeError(f"source must be bytes or an iterable of bytes, not {type(source).__name__}")
    else:
        operation = _WriteFrom(sandbox, filepath, source, timeout_seconds)
    return sandbox.operate(operation, name="write file")
