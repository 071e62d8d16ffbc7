"""Folders on their way into a sandbox and out of it.

A folder is one stream (`wire.folderstream`), so that a thousand small files cost as many system calls and no round
trips. Disks are used in worker threads, a quarter of a MiB at a time.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from attrs import frozen

from cwsandbox._files.operations import FilesStream
from cwsandbox.exceptions import SandboxFileError
from cwsandbox.wire.folderstream import FolderStreamError
from cwsandbox.wire.packing import Tally, pack, tree_bytes
from cwsandbox.wire.unpacking import Unpacker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cwsandbox._client.stream import ClientStream
    from cwsandbox._core import SandboxCore

__all__ = ["Download", "Progress", "SkippedFile", "TransferReport", "Upload"]

Progress = Callable[[int, int | None], object]
"""Called with the bytes that are through and the bytes there are, from the event loop that transfers: it must be quick.
What it raises ends the transfer."""

logger = logging.getLogger("cwsandbox")

_TIDY_SECONDS = 30.0
"""How long a transfer that failed waits until what it began on the disk is removed; the thread then goes on alone."""


@frozen
class SkippedFile:
    """Something that was left out of a transfer, and why."""

    path: str
    why: str


@frozen
class TransferReport:
    """What was transferred.

    Attributes:
        files: How many files, without folders and symlinks.
        bytes: Their content.
        skipped: What was left out: devices, pipes, sockets; from a sandbox also symlinks that lead out of the folder.
            The last 100.
        skipped_count: How much was left out.
    """

    files: int
    bytes: int
    skipped: tuple[SkippedFile, ...] = ()
    skipped_count: int = 0


def _report(tally: Tally, what: str) -> TransferReport:
    if tally.skipped_count:
        logger.warning("%s: %d left out, such as %s", what, tally.skipped_count, ": ".join(tally.skipped[0]))
    skipped = tuple(SkippedFile(*one) for one in tally.skipped)
    return TransferReport(tally.files, tally.bytes, skipped, tally.skipped_count)


async def _tidy_up(close: Callable[[], object]) -> None:
    with anyio.move_on_after(_TIDY_SECONDS, shield=True):
        await anyio.to_thread.run_sync(close, abandon_on_cancel=True)


class Upload(FilesStream):
    """A local file or folder on its way into the sandbox."""

    def __init__(
        self,
        sandbox: SandboxCore,
        local: str,
        remote: str,
        progress: Progress | None,
        timeout_seconds: float | None,
    ) -> None:
        super().__init__(sandbox, "unpack", remote, timeout_seconds)
        self._local = local
        self._progress = progress
        self._tally = Tally()

    async def __call__(self) -> TransferReport:
        """Send it. Cancelled, nothing incomplete is left in the sandbox."""
        if self._progress is not None:
            self._tally.total_bytes = await anyio.to_thread.run_sync(tree_bytes, self._local)
        pieces = pack(self._local, tally=self._tally)
        try:
            # What cannot be read here is noticed before anything is made there.
            first = await anyio.to_thread.run_sync(next, pieces, None)
            stream = await self._begin()
            try:
                await self._send_all(stream, first, pieces)
                await self._until_done(stream)
            except BaseException:
                await self._give_up(stream)
                raise
        finally:
            await _tidy_up(pieces.close)
        return _report(self._tally, f"upload of {self._local}")

    async def _send_all(self, stream: ClientStream, piece: bytes | None, pieces: Iterator[bytes]) -> None:
        while piece is not None and self._outcome is None:
            await self._send_bytes(stream, piece)
            if self._progress is not None:
                self._progress(self._tally.bytes, self._tally.total_bytes)
            piece = await anyio.to_thread.run_sync(next, pieces, None)
        stream.send_eof()


class Download(FilesStream):
    """A file or folder of the sandbox on its way to here."""

    def __init__(
        self,
        sandbox: SandboxCore,
        remote: str,
        local: str,
        progress: Progress | None,
        timeout_seconds: float | None,
    ) -> None:
        super().__init__(sandbox, "pack", remote, timeout_seconds, totals=progress is not None)
        self._local = local
        self._progress = progress
        self._arrived: deque[bytes] = deque()

    def data(self, code: int, data: bytes) -> None:
        """A piece; what waits here for the disk is bounded by the stream's window."""
        self._arrived.append(data)
        self._wake()

    async def __call__(self) -> TransferReport:
        """Receive it. Cancelled, nothing incomplete is left here."""
        unpacker = await anyio.to_thread.run_sync(partial(Unpacker, self._local, contain=True))
        try:
            stream = await self._begin()
            try:
                await self._receive_all(stream, unpacker)
                await self._until_done(stream)
            except BaseException:
                await self._give_up(stream)
                raise
            with self._its_fault():
                await anyio.to_thread.run_sync(unpacker.finish)
        finally:
            await _tidy_up(unpacker.close)
        return _report(unpacker.tally, f"download of {self.filepath}")

    async def _receive_all(self, stream: ClientStream, unpacker: Unpacker) -> None:
        while True:
            if self._arrived:
                data = b"".join(self._arrived)
                self._arrived.clear()
                with self._its_fault():
                    await anyio.to_thread.run_sync(unpacker.feed, data)
                stream.consumed(len(data))
                if self._progress is not None:
                    self._progress(unpacker.tally.bytes, unpacker.tally.total_bytes)
            elif self._outcome is not None:
                return
            else:
                await self._wait_changed()

    @contextlib.contextmanager
    def _its_fault(self) -> Iterator[None]:
        try:
            yield
        except FolderStreamError as error:
            raise SandboxFileError(
                f"{self.filepath}: what the sandbox sent is no folder: {error}", filepath=self.filepath
            ) from error
