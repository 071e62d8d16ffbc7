"""Readers of `sandbox.files`: a stream from the sandbox, iterated at the pace of whoever reads."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, TypeVar

import anyio

from cwsandbox._files.entries import FileEntry, FileEvent, Lines, read_entry, read_event
from cwsandbox._files.operations import FilesStream
from cwsandbox._files.whole import FileOperation
from cwsandbox._runtime.operation import OperationRef
from cwsandbox._runtime.readers import ChunkReader, StreamReader
from cwsandbox._runtime.spool import Spool
from cwsandbox._stream_operation import end_of_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Any, Self

    from cwsandbox._client.stream import ClientStream
    from cwsandbox._core import SandboxCore

__all__ = ["EntryReader", "EventReader", "FileReader", "list_entries", "open_reader", "watch_events"]

T = TypeVar("T")
R = TypeVar("R", bound="FileReader | EntryReader | EventReader")


class _Begun(OperationRef[None]):
    """Resolves when the operation of `whole` has begun. Cancelling it cancels that operation."""

    def __init__(self, whole: OperationRef[None]) -> None:
        super().__init__()
        self._whole = whole
        whole.add_done_callback(self._whole_ended)

    def _cancel(self) -> bool:
        return self._whole._cancel()

    def _whole_ended(self, whole: OperationRef[None]) -> None:
        if whole._error is not None:
            self._settle_error(whole._error)
        else:
            self._settle_cancelled()


class _Closing(StreamReader[T]):
    """A reader that is a context manager, too: entering waits until the stream has begun, leaving closes it.

    Without one, `close` it, or read to its end.
    """

    _begun: OperationRef[None]

    def __enter__(self) -> Self:
        try:
            self._begun.result()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        try:
            await self._begun
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


class FileReader(ChunkReader, _Closing[bytes]):
    """The content of a file as it comes, at most 256 KiB at a time; see `Files.open_read`."""


class EntryReader(_Closing[FileEntry]):
    """The entries of a folder, as the sandbox finds them; see `Files.iterdir` and `Files.glob`."""

    _folder = ""

    def __init__(self, spool: Spool, on_close: Callable[[], object] | None = None) -> None:
        super().__init__(spool, on_close)
        self._lines = Lines(lambda row: read_entry(self._folder, row))

    def _decode(self, data: bytes, *, final: bool = False) -> Sequence[FileEntry]:
        return list(self._lines.feed(data))


class EventReader(_Closing[FileEvent]):
    """Changes of files as they happen; see `Files.watch`. The watch is in place once it was entered."""

    def __init__(self, spool: Spool, on_close: Callable[[], object] | None = None) -> None:
        super().__init__(spool, on_close)
        self._lines = Lines(read_event)

    def _decode(self, data: bytes, *, final: bool = False) -> Sequence[FileEvent]:
        return list(self._lines.feed(data))


class _Feeding(FileOperation, abc.ABC):
    """An operation that feeds a reader, which sets the pace; closing the reader ends it."""

    def start(self, kind: type[R], name: str) -> R:
        """Begin; whatever happens is told through the reader."""
        self._spool = Spool(keep=False)
        ref: OperationRef[None] = OperationRef()
        ref.add_done_callback(lambda ref: self._spool.close(end_of_stream(ref)))
        reader = self._spool._the_reader(kind, ref._cancel)
        reader._begun = self._begun = _Begun(ref)
        self._sandbox.operate(self, ref=ref, name=name)
        if ref._loop is not None:
            self._begun._bind(ref._loop)
            self._spool.bind(ref._loop)
        return reader

    async def __call__(self) -> None:
        """Stream until the end. Cancelling ends the transfer."""
        stream = await self._begin()
        self._spool.on_credit = stream.consumed
        try:
            await self._until_done(stream)
        except anyio.get_cancelled_exc_class():
            await self._give_up(stream)
            raise

    def data(self, code: int, data: bytes) -> None:
        """The stream's window bounds what the spool holds."""
        self._spool.feed_nowait(data)

    def confirmed(self, info: dict[str, Any]) -> None:
        """It has begun."""
        super().confirmed(info)
        self._begun._settle_value(None)

    @abc.abstractmethod
    async def _begin(self) -> ClientStream:
        """Open the stream."""


class _FeedingRead(_Feeding):
    async def _begin(self) -> ClientStream:
        from cwsandbox.wire.channel import StreamKind
        from cwsandbox.wire.streams import ReadOpen

        sandbox_id = await self._sandbox.ensure_started()
        return await self._open(StreamKind.READ, ReadOpen(**self._params(sandbox_id)).to_params())


class _FeedingFiles(FilesStream, _Feeding):
    """Its stream is one of the kind FILES."""


def open_reader(sandbox: SandboxCore, path: str, timeout_seconds: float | None) -> FileReader:
    """Read a file piece by piece."""
    return _FeedingRead(sandbox, path, timeout_seconds).start(FileReader, "read file")


def list_entries(sandbox: SandboxCore, path: str, pattern: str | None, timeout_seconds: float | None) -> EntryReader:
    """List a folder, or what is in and below it and matches `pattern`."""
    if pattern is None:
        operation = _FeedingFiles(sandbox, "list", path, timeout_seconds)
    else:
        operation = _FeedingFiles(sandbox, "glob", path, timeout_seconds, pattern=pattern)
    reader = operation.start(EntryReader, "list folder")
    reader._folder = path
    return reader


def watch_events(sandbox: SandboxCore, path: str, recursive: bool, timeout_seconds: float | None) -> EventReader:
    """Watch a path."""
    operation = _FeedingFiles(sandbox, "watch", path, timeout_seconds, recursive=recursive)
    return operation.start(EventReader, "watch files")
