"""Files that are read from a box or written into it.

Small ones travel inside a message. For larger ones the agent passes a descriptor of a regular file, which this side
reads or writes in worker threads, for the kernel has no readiness for files.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread

from cwsandbox.runners.local.protocol import INLINE_FILE_BYTES

if TYPE_CHECKING:
    from cwsandbox.runners.local.box import LocalBox
    from cwsandbox.runners.local.protocol import Message

_CHUNK_BYTES = 1024 * 1024


def only_file(box: LocalBox, reply: Message) -> int:
    """The descriptor that came with a reply, if it is one on which reads and writes always come to an end.

    Raises:
        BoxGoneError: It is not; the box ends.
    """
    if len(reply.fds) != 1 or not stat.S_ISREG(os.fstat(reply.fds[0]).st_mode):
        reply.close_fds()
        raise box._broken("a file that is none")
    return reply.fds[0]


class InlineFile:
    """A small file that came as a whole."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    @property
    def size(self) -> int:
        """Bytes at the time of opening."""
        return len(self._content)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """The next bytes.

        Raises:
            anyio.EndOfStream: That was all.
        """
        # Not a full checkpoint: what is here already goes out with its end, in one message.
        await anyio.lowlevel.checkpoint_if_cancelled()
        data = self._content[self._position : self._position + max_bytes]
        if not data:
            raise anyio.EndOfStream
        self._position += len(data)
        return data

    async def aclose(self) -> None:
        """Drop the content."""
        self._content = b""


class OpenFile:
    """A larger file, read up to the size that it had when it was opened."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._position = 0
        self._busy = False

    @property
    def size(self) -> int:
        """Bytes at the time of opening."""
        return self._size

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """The next bytes. Cancelling waits for the read that is under way, and loses nothing.

        Raises:
            anyio.EndOfStream: That was all, or the file has become shorter.
            anyio.ClosedResourceError: The file was closed on this side.
        """
        if self._fd < 0:
            raise anyio.ClosedResourceError
        wanted = min(max_bytes, _CHUNK_BYTES, self._size - self._position)
        self._busy = True
        try:
            data = await anyio.to_thread.run_sync(os.pread, self._fd, wanted, self._position)
        finally:
            self._busy = False
        if not data:
            raise anyio.EndOfStream
        self._position += len(data)
        return data

    async def aclose(self) -> None:
        """Close the file."""
        if self._fd >= 0 and not self._busy:
            fd, self._fd = self._fd, -1
            os.close(fd)


class FileWriter:
    """A file being written into a box; invisible until `commit`.

    What fits into one message is kept until then, so that errors of small files come from `commit`.
    """

    def __init__(self, box: LocalBox, path: str) -> None:
        self._box = box
        self._path = path
        self._buffer = bytearray()
        self._number = 0
        self._fd = -1
        self._done = False

    async def send(self, data: bytes) -> None:
        """Take all of `data`.

        Raises:
            OSError: What the box's kernel said (ENOSPC, ENOTDIR, ...).
            BoxGoneError: The box ended.
        """
        if self._done:
            raise anyio.ClosedResourceError
        self._buffer += data
        if len(self._buffer) > INLINE_FILE_BYTES:
            if self._fd < 0:
                await self.open()
            await self._flush()
        else:
            await anyio.lowlevel.checkpoint_if_cancelled()

    async def open(self) -> None:
        """Have the agent make the file under a temporary name, and take its descriptor."""
        number = self._box._next_request()
        try:
            reply = await self._box._ask({"op": "create", "path": self._path})
        except anyio.get_cancelled_exc_class():
            self._box._post({"op": "abort", "file": number})
            raise
        self._fd, self._number = only_file(self._box, reply), number

    async def _flush(self) -> None:
        data, self._buffer = self._buffer, bytearray()
        await anyio.to_thread.run_sync(_write_all, self._fd, data)

    async def commit(self) -> None:
        """Put the file in place, atomically. If cancelled, it is in place or not, but never in part.

        Raises:
            OSError: What the box's kernel said.
            BoxGoneError: The box ended.
        """
        if self._done:
            raise anyio.ClosedResourceError
        if self._fd < 0:
            reply = await self._box._ask({"op": "put", "path": self._path}, bytes(self._buffer))
        else:
            await self._flush()
            reply = await self._box._ask({"op": "commit", "file": self._number})
            self._number = 0
        reply.close_fds()
        await self.aclose()

    async def aclose(self) -> None:
        """Drop what was written unless it was committed."""
        self._done = True
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
            if self._number:
                self._box._post({"op": "abort", "file": self._number})


def _write_all(fd: int, data: bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
