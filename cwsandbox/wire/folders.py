"""Folders on a disk as folder streams, and back: for worker threads of the client and for the agent's children.

The one module of `wire` that touches the file system, because both ends do the same there. All of it blocks, and it is
plain standard library.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from cwsandbox.wire.folderstream import (
    CHUNK_BYTES,
    DEEPEST,
    FolderStreamError,
    Kind,
    Reader,
    Record,
    encode,
    link_stays_inside,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

__all__ = ["Skipped", "Tally", "Unpacker", "make_parents", "pack", "tree_bytes"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
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
                with _named(f"{where}/{child}"):
                    try:
                        status = os.lstat(child, dir_fd=folder)
                    except FileNotFoundError:
                        continue  # Removed meanwhile.
                    if stat.S_ISDIR(status.st_mode):
                        if len(walk) >= DEEPEST:
                            raise OSError(errno.ELOOP, f"folders deeper than {DEEPEST}")
                        fd = os.open(child, _FOLDER, dir_fd=folder)
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
def _named(path: str) -> Iterator[None]:
    """Errors carry the whole path."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror or os.strerror(error.errno), path) from error


class _Open(NamedTuple):
    """A folder that is being filled; `made` if it is ours to finish."""

    fd: int
    record: Record
    made: bool


class Unpacker:
    """Makes what a folder stream says.

    A folder that is new appears at once and complete, by a rename at the end; into one that was there before, files are
    put one by one, each at once and complete. Either way nothing outside is touched: names are single components, and
    no symlink is followed below the target.

    Args:
        target: What the stream's root becomes. Missing parents are made.
        contain: Leave out symlinks that could lead out of the target, and write rights for others. For streams that
            come from a sandbox.
    """

    def __init__(self, target: str, *, contain: bool) -> None:
        self._target = os.path.realpath(target)
        self._contain = contain
        self._reader = Reader()
        self._open: list[_Open] = []
        self._path: list[str] = []
        self._parent = -1
        self._final = b""
        self._fresh = b""  # The temporary name of a new root folder.
        self._file = -1
        self._file_record = Record(Kind.FILE)
        self._temporary = b""
        self.tally: Tally = Tally()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream.

        Raises:
            FolderStreamError: They are no folder stream.
            OSError: Something cannot be written; with its path.
        """
        for record in self._reader.feed(data):
            with _named(self._where(record.name)):
                self._STEPS[record.kind](self, record)

    def finish(self) -> None:
        """Put a new folder in place. Raises as `feed`; also if the stream has not come to its end."""
        self._reader.finish()
        if self._fresh:
            with _named(self._target):
                try:
                    os.rename(self._fresh, self._final, src_dir_fd=self._parent, dst_dir_fd=self._parent)
                except OSError as error:
                    # Somebody made the folder meanwhile: as good as any other reason to say that it exists.
                    if error.errno == errno.ENOTEMPTY:
                        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
                    raise
            self._fresh = b""
        self.close()

    def close(self) -> None:
        """Let go of everything, and remove what is not complete. Again is harmless."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._folder())
        while self._open:
            os.close(self._open.pop().fd)
        if self._fresh:
            with contextlib.suppress(OSError):
                _remove(self._parent, self._fresh)
            self._fresh = b""
        if self._parent >= 0:
            os.close(self._parent)
            self._parent = -1

    def _where(self, name: bytes) -> str:
        return "/".join([self._target, *self._path, *filter(None, [os.fsdecode(name)])])

    def _folder(self) -> int:
        return self._open[-1].fd if self._open else self._parent

    def _open_parent(self) -> None:
        parent, name = os.path.split(self._target)
        make_parents(self._target)
        self._parent = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._final = os.fsencode(name)

    # One method for each kind of record.

    def _total(self, record: Record) -> None:
        self.tally.total_bytes = record.size

    def _enter(self, record: Record) -> None:
        if self._parent < 0:
            self._open_root(record)
            return
        self._open.append(_make_folder(self._folder(), record.name, record, merge=not self._fresh))
        self._path.append(os.fsdecode(record.name))

    def _open_root(self, record: Record) -> None:
        self._open_parent()
        try:
            root = os.open(self._target, _FOLDER)
        except FileNotFoundError:
            self._fresh = _temporary_name()
            self._open.append(_make_folder(self._parent, self._fresh, record, merge=False))
        else:
            self._open.append(_Open(root, record, made=False))

    def _begin_file(self, record: Record) -> None:
        if self._parent < 0:
            self._open_parent()
        # In a folder that nobody sees yet, names need not be temporary.
        self._temporary = record.name if self._fresh else _temporary_name()
        self._file = os.open(self._temporary, _NEW, 0o600, dir_fd=self._folder())
        self._file_record = record

    def _write(self, record: Record) -> None:
        view = memoryview(record.content)
        while view:
            view = view[os.write(self._file, view) :]
        self.tally.bytes += len(record.content)

    def _end_file(self, record: Record) -> None:
        made = self._file_record
        _set_attributes(self._file, made, self._mode(made))
        if not self._fresh:
            folder = self._folder()
            os.rename(self._temporary, made.name or self._final, src_dir_fd=folder, dst_dir_fd=folder)
        os.close(self._file)
        self._file = -1
        self.tally.files += 1

    def _link(self, record: Record) -> None:
        if self._parent < 0:
            raise FolderStreamError("a symlink as the root")
        if self._contain and not link_stays_inside(record.content, len(self._open) - 1):
            self._skip(record._replace(content=b"a symlink that leads out of the folder"))
            return
        folder = self._folder()
        temporary = record.name if self._fresh else _temporary_name()
        os.symlink(record.content, temporary, dir_fd=folder)
        if temporary != record.name:
            try:
                os.rename(temporary, record.name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:
                os.unlink(temporary, dir_fd=folder)
                raise

    def _skip(self, record: Record) -> None:
        if self._parent < 0:
            raise FolderStreamError("nothing as the root")
        path = "/".join([*self._path, os.fsdecode(record.name)])
        self.tally.skip(path, record.content[:200].decode("utf-8", "replace"))

    def _leave(self, record: Record) -> None:
        done = self._open.pop()
        if self._path:
            self._path.pop()
        try:
            if done.made:
                _set_attributes(done.fd, done.record, self._mode(done.record))
        finally:
            os.close(done.fd)

    def _end(self, record: Record) -> None:
        """`finish` does it: the stream may end well and its transport badly."""

    def _mode(self, record: Record) -> int:
        return record.mode & (0o755 if self._contain else 0o777)

    _STEPS = {  # noqa: RUF012 - never changed
        Kind.TOTAL: _total,
        Kind.FOLDER: _enter,
        Kind.FILE: _begin_file,
        Kind.CHUNK: _write,
        Kind.DONE: _end_file,
        Kind.LINK: _link,
        Kind.SKIPPED: _skip,
        Kind.UP: _leave,
        Kind.END: _end,
    }


def make_parents(path: str) -> None:
    """Make the folders above `path` that are missing.

    Raises:
        NotADirectoryError: One of them is something else.
    """
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from error


def _temporary_name() -> bytes:
    return f".{os.urandom(8).hex()}.part".encode()


def _make_folder(parent: int, name: bytes, record: Record, *, merge: bool) -> _Open:
    made = True
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        # In a new folder nothing exists but what this stream made: the same name twice, or two that a file system
        # without cases takes for one.
        if not merge:
            raise
        made = False
    return _Open(os.open(name, _FOLDER, dir_fd=parent), record, made)


def _set_attributes(fd: int, record: Record, mode: int) -> None:
    os.fchmod(fd, mode)
    os.utime(fd, ns=(record.mtime_ns, record.mtime_ns))


def _remove(parent: int, name: bytes) -> None:
    """Remove what this module made: nobody else knows it, and it is no deeper than `DEEPEST`."""
    try:
        os.unlink(name, dir_fd=parent)
    except (IsADirectoryError, PermissionError):  # What Linux and what POSIX say of a folder.
        fd = os.open(name, _FOLDER, dir_fd=parent)
        try:
            os.fchmod(fd, 0o700)
            for child in os.listdir(fd):
                _remove(fd, os.fsencode(child))
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent)
