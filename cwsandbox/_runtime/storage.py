"""Where a spool keeps bytes: the first part in memory, the rest in an unnamed temporary file."""

from __future__ import annotations

import os
import tempfile
import weakref

from attrs import define

FLUSH_BYTES = 1024 * 1024
"""The file is written in pieces of this size: a thread's round trip costs more than writing a frame."""


@define(frozen=True)
class FilePiece:
    """Bytes that lie in the file; reading them blocks."""

    descriptor: int
    position: int
    length: int

    def read(self) -> bytes:
        """Read it from the disk.

        Raises:
            OSError: the disk failed.
        """
        pieces: list[bytes] = []
        position, left = self.position, self.length
        while left:
            piece = os.pread(self.descriptor, left, position)
            if not piece:
                raise OSError("the temporary file of a spool was truncated")
            pieces.append(piece)
            position += len(piece)
            left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Storage:
    """Bytes in a row: head in memory, then the file, then a tail on its way to the file.

    Not thread-safe; the spool's lock guards it, except for `write_tail`, which runs without the lock, and never twice
    at a time.
    """

    # Invariant: size == len(head) + written + len(tail); the tail is empty until the head is full, and is not appended
    # to while write_tail runs.
    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._head = bytearray()
        self._tail = bytearray()
        self._written = 0
        self._descriptor = -1

    @property
    def size(self) -> int:
        """How many bytes it holds."""
        return len(self._head) + self._written + len(self._tail)

    @property
    def tail_is_due(self) -> bool:
        """Whether it is time for `write_tail` and `drop_tail`."""
        return len(self._tail) >= FLUSH_BYTES

    def fits(self, count: int) -> bool:
        """Whether so many bytes can be added without going to the file."""
        return len(self._head) + count <= self._memory_bytes

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes; never blocks."""
        room = self._memory_bytes - len(self._head)
        if len(data) <= room:
            self._head += data
            return
        view = memoryview(data)
        self._head += view[:room]
        self._tail += view[room:]

    def write_tail(self) -> None:
        """Write the tail to the file, where it also stays readable from memory until `drop_tail`. Blocks.

        Raises:
            OSError: no space, or the disk failed. The tail stays where it is.
        """
        if self._descriptor < 0:
            # Without a name, or with one for a moment, and 0600 in any case.
            with tempfile.TemporaryFile(buffering=0) as file:
                self._descriptor = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._descriptor).atexit = False  # The portal may still write at exit.
        data, position = memoryview(self._tail), self._written
        while data:
            count = os.pwrite(self._descriptor, data, position)
            data, position = data[count:], position + count

    def drop_tail(self) -> None:
        """Forget the tail's bytes in memory, now that they are in the file."""
        self._written += len(self._tail)
        self._tail = bytearray()

    def piece(self, position: int, limit: int) -> bytes | FilePiece:
        """At most ``limit`` bytes from ``position``, which must be below `size`."""
        if position < len(self._head):
            return bytes(memoryview(self._head)[position : position + limit])
        position -= len(self._head)
        if position < self._written:
            return FilePiece(self._descriptor, position, min(limit, self._written - position))
        position -= self._written
        return bytes(memoryview(self._tail)[position : position + limit])

    def snapshot(self) -> list[bytes | FilePiece]:
        """Everything, in order."""
        pieces: list[bytes | FilePiece] = [bytes(self._head)]
        if self._written:
            pieces.append(FilePiece(self._descriptor, 0, self._written))
        if self._tail:
            pieces.append(bytes(self._tail))
        return pieces
