"""What `sandbox.files` tells about files, and how it is read from what a sandbox says."""

from __future__ import annotations

import enum
import json
import posixpath
import stat
from typing import TYPE_CHECKING, Any

from attrs import frozen

from cwsandbox.exceptions import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from cwsandbox.wire.streams import FileInfo

    T = TypeVar("T")

__all__ = ["FileEntry", "FileEvent", "FileEventKind", "FileType", "Lines", "entry_from_info"]

_LONGEST_LINE = 16 * 1024 * 1024


class FileType(enum.StrEnum):
    """What a path is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"
    """A device, a pipe, or a socket."""

    @classmethod
    def of_mode(cls, mode: int) -> FileType:
        """The type in a `stat` mode."""
        return _TYPES.get(stat.S_IFMT(mode), cls.OTHER)


_TYPES = {stat.S_IFREG: FileType.FILE, stat.S_IFDIR: FileType.DIRECTORY, stat.S_IFLNK: FileType.SYMLINK}


@frozen
class FileEntry:
    """A file, a folder, or something else in a sandbox, as it was when it was looked at.

    Attributes:
        name: The last part of its path.
        path: Its path.
        type: What it is.
        size: Bytes.
        mode: Permissions, such as 0o644.
        mtime_ns: When it was last changed, in ns since 1970.
    """

    name: str
    path: str
    type: FileType
    size: int
    mode: int
    mtime_ns: int

    @property
    def mtime(self) -> float:
        """When it was last changed, in seconds since 1970, as `os.stat` has it."""
        return self.mtime_ns / 1e9

    @property
    def is_dir(self) -> bool:
        """It is a folder."""
        return self.type is FileType.DIRECTORY

    @property
    def is_file(self) -> bool:
        """It is a regular file."""
        return self.type is FileType.FILE


class FileEventKind(enum.StrEnum):
    """What happened to a path."""

    CREATED = "created"
    MODIFIED = "modified"
    DELETED = "deleted"
    MOVED = "moved"
    """From `path` to `target`. A move that only begins or ends in what is watched is DELETED or CREATED."""
    OVERFLOW = "overflow"
    """More happened than could be noted: look again at what is below `path`."""


@frozen
class FileEvent:
    """A change of a file.

    Attributes:
        kind: What happened.
        path: To what.
        is_dir: It is, or was, a folder.
        target: MOVED: where it is now.
    """

    kind: FileEventKind
    path: str
    is_dir: bool = False
    target: str | None = None


def entry_from_info(path: str, info: FileInfo) -> FileEntry:
    """The entry for a path that was asked about."""
    return _entry(posixpath.basename(path.rstrip("/")) or path, path, info.mode, int(info.size), int(info.mtime_ns))


def _entry(name: str, path: str, mode: int, size: int, mtime_ns: int) -> FileEntry:
    return FileEntry(name, path, FileType.of_mode(mode), size, stat.S_IMODE(mode), mtime_ns)


def read_entry(folder: str, row: Any) -> FileEntry:
    """An entry of `folder` from its row.

    Raises:
        ValueError: It is none.
    """
    name, mode, size, mtime_ns = row
    if type(name) is not str or not name or any(type(number) is not int for number in (mode, size, mtime_ns)):
        raise ValueError("not an entry")
    return _entry(posixpath.basename(name), posixpath.join(folder, name), mode, size, mtime_ns)


def read_event(row: Any) -> FileEvent:
    """An event from its row.

    Raises:
        ValueError: It is none.
    """
    kind, path, is_folder, target = row
    if type(path) is not str or type(is_folder) is not bool or not (target is None or type(target) is str):
        raise ValueError("not an event")
    return FileEvent(FileEventKind(kind), path, is_folder, target)


class Lines:
    """Rows from lines that come in pieces; what a sandbox says is checked, and bounded.

    Args:
        read: Makes an item of a row; ValueError for one that is none.
    """

    def __init__(self, read: Callable[[Any], T]) -> None:
        self._read = read
        self._partial = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Items of the lines that are complete with `data`.

        Raises:
            SandboxError: The sandbox said something that makes no sense.
        """
        self._partial += data
        end = self._partial.rfind(b"\n") + 1
        if len(self._partial) - end > _LONGEST_LINE:
            raise SandboxError("the sandbox's answer makes no sense: an endless line")
        lines = bytes(self._partial[:end]).splitlines()
        del self._partial[:end]
        try:
            for line in lines:
                yield from map(self._read, json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise SandboxError(f"the sandbox's answer makes no sense: {error}") from error
