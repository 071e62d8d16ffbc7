"""A folder on a disk as a folder stream.

Blocking standard-library code: the client runs it in worker threads, the agent in children.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from cwsandbox.wire.folderstream import CHUNK_BYTES, DEEPEST, Kind, encode

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

__all__ = ["OPEN_FOLDER", "Skipped", "Tally", "naming", "pack", "tree_bytes"]

OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags to open a folder from the one above."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_SKIPPED_KEPT = 100
_MADE_UP_BYTES = 16 * 1024 * 1024


class Skipped(NamedTuple):
    """Something that was left out, and why."""

    path: str
    why: str


class Tally:
    """What has been packed or unpacked so far.

    Attributes:
        files: Files, without folders and symlinks.
        bytes: Their content.
        total_bytes: What it will come to, if that is known.
        skipped: What was left out; the last 100.
        skipped_count: How much was left out.
    """

    def __init__(self) -> None:
        self.files: int = 0
        self.bytes: int = 0
        self.total_bytes: int | None = None
        self.skipped: deque[Skipped] = deque(maxlen=_SKIPPED_KEPT)
        self.skipped_count: int = 0

    def skip(self, path: str, why: str) -> None:
        """Something was left out."""
        self.skipped.append(Skipped(path, why))
        self.skipped_count += 1


def tree_bytes(path: str) -> int:
    """The bytes of all files below `path`, or of the file that it is."""
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size
    total, folders = 0, [path]
    while folders:
        with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def pack(path: str, *, totals: bool = False, tally: Tally | None = None) -> Generator[bytes]:
    """The folder or file `path` as a folder stream, in pieces of about `CHUNK_BYTES`.

    A symlink that `path` itself is is followed; those below are packed as symlinks. What is neither file, folder nor
    symlink is skipped, and said so in the stream.

    Args:
        path: What to pack.
        totals: Count first, and begin with the sum.
        tally: Kept up to date on the way.

    Raises:
        OSError: Something cannot be read, or is not what it was a moment ago.
    """
    gathered = bytearray()
    for part in _Packer(tally or Tally()).records(path, totals):
        gathered += part
        if len(gathered) >= CHUNK_BYTES:
            yield bytes(gathered)
            gathered.clear()
    yield bytes(gathered)


class _Packer:
    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def records(self, path: str, totals: bool) -> Iterator[bytes]:
        if totals:
            self._tally.total_bytes = tree_bytes(path)
            yield encode(Kind.TOTAL, size=self._tally.total_bytes)
        # Not blocked by a pipe that the path may be.
        root = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        mode = os.fstat(root).st_mode
        if stat.S_ISDIR(mode):
            yield from self._folder(root, b"", path)
        elif stat.S_ISREG(mode):
            yield from self._file(root, b"")
        else:
            os.close(root)
            raise OSError(errno.EINVAL, "not a regular file or a folder", path)
        yield encode(Kind.END)

    def _folder(self, root: int, name: bytes, path: str) -> Iterator[bytes]:
        """Walk with a stack of our own: what is pending is bounded by the largest folders on the way."""
        walk: list[tuple[int, Iterator[str], str]] = []
        try:
            yield _enter(walk, root, name, path)
            while walk:
                folder, names, where = walk[-1]
                child = next(names, None)
                if child is None:
                    walk.pop()
                    os.close(folder)
                    yield encode(Kind.UP)
                    continue
                with naming(f"{where}/{child}"):
                    try:
                        status = os.lstat(child, dir_fd=folder)
                    except FileNotFoundError:
                        continue  # Removed meanwhile.
                    if stat.S_ISDIR(status.st_mode):
                        if len(walk) >= DEEPEST:
                            raise OSError(errno.ELOOP, f"folders deeper than {DEEPEST}")
                        fd = os.open(child, OPEN_FOLDER, dir_fd=folder)
                        yield _enter(walk, fd, os.fsencode(child), f"{where}/{child}")
                    else:
                        yield from self._other(folder, child, status, where)
        finally:
            for folder, _, _ in walk:
                os.close(folder)

    def _other(self, folder: int, child: str, status: os.stat_result, where: str) -> Iterator[bytes]:
        name, mode = os.fsencode(child), status.st_mode
        if stat.S_ISREG(mode):
            yield from self._file(os.open(child, _READ, dir_fd=folder), name)
        elif stat.S_ISLNK(mode):
            target = os.fsencode(os.readlink(child, dir_fd=folder))
            yield encode(Kind.LINK, name, 0o777, status.st_mtime_ns, content=target)
        else:
            why = next((why for test, why in _SPECIAL if test(mode)), "of an unknown kind")
            self._tally.skip(f"{where}/{child}", why)
            yield encode(Kind.SKIPPED, name, content=why.encode())

    def _file(self, fd: int, name: bytes) -> Iterator[bytes]:
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file any more")
            yield encode(Kind.FILE, name, stat.S_IMODE(status.st_mode), status.st_mtime_ns, status.st_size)
            # A file that grows must not keep us for ever; one of the kernel's making (/proc) does not know its size.
            left = status.st_size or _MADE_UP_BYTES
            while left and (data := os.read(fd, min(left, CHUNK_BYTES))):
                left -= len(data)
                self._tally.bytes += len(data)
                yield encode(Kind.CHUNK, content=data)
            yield encode(Kind.DONE)
            self._tally.files += 1
        finally:
            os.close(fd)


def _enter(walk: list[tuple[int, Iterator[str], str]], fd: int, name: bytes, path: str) -> bytes:
    try:
        status = os.fstat(fd)
        names = iter(sorted(os.listdir(fd)))
    except BaseException:
        os.close(fd)
        raise
    walk.append((fd, names, path))
    return encode(Kind.FOLDER, name, stat.S_IMODE(status.st_mode), status.st_mtime_ns)


_SPECIAL = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Errors carry the whole path."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror or os.strerror(error.errno), path) from error
