"""The form in which folders travel: a tree of files as one stream of bytes, in the order in which it is walked.

A record is a fixed head, a name, and for some kinds content:

    TOTAL      size: bytes of all files; first, if asked for
    FOLDER     name, mode, mtime; what follows is inside, until UP
    FILE       name, mode, mtime, size as far as known; CHUNKs follow, then DONE
    CHUNK      size bytes of content
    DONE       the file is complete
    LINK       name, mtime; content: where the symlink leads
    SKIPPED    name; content: why it is not here (a device, a socket)
    UP         the folder is complete
    END        everything is complete

A name is a single component, never a path, and the root's is empty: a stream cannot speak of anything outside of its
root. That, and a receiver that opens every folder from the one above without following symlinks, makes it safe to
receive one from a sandbox, where tar's paths have to be examined. Plain standard library: the agent uses it too.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CHUNK_BYTES", "FolderStreamError", "Kind", "Reader", "Record", "encode", "link_stays_inside"]

CHUNK_BYTES = 256 * 1024
"""The largest content of a record, and about how much a packer gathers before it sends."""
DEEPEST = 200
"""Folders within folders; each costs a descriptor while it is open."""

_HEAD = struct.Struct("!BHIqQ")
_NAME_BYTES = 255
_SIZE_LIMIT = 2**62


class FolderStreamError(ValueError):
    """Not a folder stream, or one that wants to leave its root."""


class Kind(enum.IntEnum):
    """What a record is."""

    TOTAL = 1
    FOLDER = 2
    FILE = 3
    CHUNK = 4
    DONE = 5
    LINK = 6
    SKIPPED = 7
    UP = 8
    END = 9


_WITH_CONTENT = frozenset({Kind.CHUNK, Kind.LINK, Kind.SKIPPED})
_NAMED = frozenset({Kind.FOLDER, Kind.FILE, Kind.LINK, Kind.SKIPPED})


class Record(NamedTuple):
    """One record; see the module for which kind has what."""

    kind: Kind
    name: bytes = b""
    mode: int = 0
    mtime_ns: int = 0
    size: int = 0
    content: bytes = b""


def encode(  # noqa: PLR0917 - the fields of a record, in order
    kind: Kind, name: bytes = b"", mode: int = 0, mtime_ns: int = 0, size: int = 0, content: bytes = b""
) -> bytes:
    """The bytes of one record; `size` is that of the content where there is one."""
    return _HEAD.pack(kind, len(name), mode, mtime_ns, len(content) or size) + name + content


class Reader:
    """Records from bytes that come in pieces. Checks everything that can be checked without looking at a disk."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._depth = 0
        self._in_file = False
        self._rooted = False
        self.ended: bool = False
        """The END was seen."""

    def feed(self, data: bytes) -> Iterator[Record]:
        """The records that are complete with `data`; use all of them before the next call.

        Raises:
            FolderStreamError: This is no folder stream.
        """
        self._buffer += data
        position = 0
        try:
            while (found := self._next(position)) is not None:
                record, position = found
                self._check(record)
                yield record
        finally:
            del self._buffer[:position]

    def finish(self) -> None:
        """The bytes have ended.

        Raises:
            FolderStreamError: The stream has not.
        """
        if not self.ended:
            raise FolderStreamError("the stream was cut off")

    def _next(self, position: int) -> tuple[Record, int] | None:
        buffer = self._buffer
        if len(buffer) - position < _HEAD.size:
            return None
        number, name_bytes, mode, mtime_ns, size = _HEAD.unpack_from(buffer, position)
        try:
            kind = Kind(number)
        except ValueError:
            raise FolderStreamError(f"a record of kind {number}") from None
        if name_bytes > _NAME_BYTES:
            raise FolderStreamError("a name that is too long")
        content_bytes = size if kind in _WITH_CONTENT else 0
        if content_bytes > CHUNK_BYTES:
            raise FolderStreamError("a record that is too large")
        begin = position + _HEAD.size
        middle, end = begin + name_bytes, begin + name_bytes + content_bytes
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view:
            return Record(kind, bytes(view[begin:middle]), mode, mtime_ns, size, bytes(view[middle:end])), end

    def _check(self, record: Record) -> None:
        kind = record.kind
        if self.ended:
            raise FolderStreamError("more after the end")
        if self._in_file != (kind in {Kind.CHUNK, Kind.DONE}):
            raise FolderStreamError(f"{kind.name} where it cannot be")
        if kind in _NAMED:
            self._check_name(record)
            if kind is Kind.FILE:
                self._in_file = True
            elif kind is Kind.FOLDER:
                self._depth += 1
                if self._depth > DEEPEST:
                    raise FolderStreamError(f"folders deeper than {DEEPEST}")
        elif record.name:
            raise FolderStreamError(f"{kind.name} with a name")
        elif kind is Kind.DONE:
            self._in_file = False
        elif kind is Kind.UP:
            self._depth -= 1
            if self._depth < 0:
                raise FolderStreamError("UP from the root")
        elif kind is Kind.TOTAL and self._rooted:
            raise FolderStreamError("TOTAL where it cannot be")
        elif kind is Kind.END:
            if self._depth or not self._rooted:
                raise FolderStreamError("END within a folder")
            self.ended = True

    def _check_name(self, record: Record) -> None:
        name = record.name
        if self._depth == 0:
            if self._rooted or name:
                raise FolderStreamError("more than one root")
            self._rooted = True
        elif name in {b"", b".", b".."} or b"/" in name or b"\0" in name:
            raise FolderStreamError(f"the name {name!r}, which leads elsewhere")
        if record.size > _SIZE_LIMIT:
            raise FolderStreamError("a size that cannot be")


def link_stays_inside(target: bytes, depth: int) -> bool:
    """Whether a symlink `depth` folders below the root cannot lead out of it, whatever other such links there are.

    Steps up are allowed only in front, where they start from the link's own real folder, and not beyond the root.
    Behind a name they would start from wherever that name leads.
    """
    if not target or target.startswith(b"/") or b"\0" in target:
        return False
    parts = [part for part in target.split(b"/") if part not in {b"", b"."}]
    ups = 0
    while ups < len(parts) and parts[ups] == b"..":
        ups += 1
    return ups <= depth and b".." not in parts[ups:]
