"""The operations of `sandbox.files` that are one question and one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from cwsandbox._files.whole import FileOperation
from cwsandbox.exceptions import SandboxError

if TYPE_CHECKING:
    from cwsandbox._client.stream import ClientStream
    from cwsandbox._core import SandboxCore
    from cwsandbox._files.entries import FileEntry
    from cwsandbox.wire.streams import FileInfo

__all__ = ["FilesStream", "ListOperation", "PlainOperation", "QuickOperation"]


class FilesStream(FileOperation):
    """A stream of the kind FILES.

    Args:
        sandbox: Where.
        action: The value of a `FileAction`.
        filepath: What it is about.
        timeout_seconds: Limit for the operation.
        options: Further fields of `FilesOpen`.
    """

    def __init__(
        self, sandbox: SandboxCore, action: str, filepath: str, timeout_seconds: float | None, **options: Any
    ) -> None:
        super().__init__(sandbox, filepath, timeout_seconds)
        self._action = action
        self._options = options
        self._info: dict[str, Any] = {}
        self._stream: ClientStream | None = None

    def confirmed(self, info: dict[str, Any]) -> None:
        """It has begun; quick ones have their answer."""
        super().confirmed(info)
        self._info = info

    async def _begin(self) -> ClientStream:
        from cwsandbox.wire.channel import StreamKind
        from cwsandbox.wire.streams import FileAction, FilesOpen

        sandbox_id = await self._sandbox.ensure_started()
        params = FilesOpen(action=FileAction(self._action), **self._params(sandbox_id), **self._options)
        self._stream = await self._open(StreamKind.FILES, params.to_params())
        return self._stream

    async def _to_its_end(self) -> None:
        stream = await self._begin()
        try:
            await self._until_done(stream)
        except anyio.get_cancelled_exc_class():
            await self._give_up(stream)
            raise


class QuickOperation(FilesStream):
    """One that answers with what it found."""

    async def __call__(self) -> FileInfo:
        """Do it. Cancelling stops it if it is not done yet."""
        from cwsandbox.wire.errors import WireError
        from cwsandbox.wire.streams import FileInfo

        await self._to_its_end()
        try:
            return FileInfo.from_params(self._info)
        except WireError as error:
            raise SandboxError(f"{self.filepath}: the gateway's answer makes no sense: {error}") from error


class PlainOperation(FilesStream):
    """One that has nothing to tell but its end."""

    async def __call__(self) -> None:
        """Do it. Cancelling stops it, however far it has come."""
        await self._to_its_end()


class ListOperation(FilesStream):
    """The entries of a folder, all at once."""

    def __init__(self, sandbox: SandboxCore, filepath: str, timeout_seconds: float | None) -> None:
        from cwsandbox._files.entries import Lines, read_entry

        super().__init__(sandbox, "list", filepath, timeout_seconds)
        self._lines = Lines(lambda row: read_entry(filepath, row))
        self._entries: list[FileEntry] = []

    async def __call__(self) -> list[FileEntry]:
        """List it, sorted by name."""
        await self._to_its_end()
        return sorted(self._entries, key=lambda entry: entry.name)

    def data(self, code: int, data: bytes) -> None:
        """Some entries. The result is held in memory as a whole, so there is nothing to wait for."""
        self._entries += self._lines.feed(data)
        assert self._stream is not None
        self._stream.consumed(len(data), code)
