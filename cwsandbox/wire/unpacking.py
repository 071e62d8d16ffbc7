"""A folder on a disk from a folder stream, safe against what a sandbox may send.

Blocking standard-library code: the client runs it in worker threads, the agent in children.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import NamedTuple

from cwsandbox.wire.folderstream import FolderStreamError, Kind, Reader, Record, link_stays_inside
from cwsandbox.wire.packing import OPEN_FOLDER, Tally, naming

__all__ = ["Unpacker", "make_parents"]

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


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
            with naming(self._where(record.name)):
                self._STEPS[record.kind](self, record)

    def finish(self) -> None:
        """Put a new folder in place. Raises as `feed`; also if the stream has not come to its end."""
        self._reader.finish()
        if self._fresh:
            with naming(self._target):
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
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._folder())
            file, self._file = self._file, -1
            os.close(file)
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
            root = os.open(self._target, OPEN_FOLDER)
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
    return _Open(os.open(name, OPEN_FOLDER, dir_fd=parent), record, made)


def _set_attributes(fd: int, record: Record, mode: int) -> None:
    os.fchmod(fd, mode)
    os.utime(fd, ns=(record.mtime_ns, record.mtime_ns))


def _remove(parent: int, name: bytes) -> None:
    """Remove what this module made: nobody else knows it, and it is no deeper than `DEEPEST`."""
    try:
        os.unlink(name, dir_fd=parent)
    except (IsADirectoryError, PermissionError):  # What Linux and what POSIX say of a folder.
        fd = os.open(name, OPEN_FOLDER, dir_fd=parent)
        try:
            os.fchmod(fd, 0o700)
            for child in os.listdir(fd):
                _remove(fd, os.fsencode(child))
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent)
