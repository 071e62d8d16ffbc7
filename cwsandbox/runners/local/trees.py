"""Remove a directory that a sandbox has written: by descriptor, through any modes, never through a symlink."""

from __future__ import annotations

import contextlib
import errno
import os

_DEEPEST = 64
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: str) -> None:
    """Remove `path` and all below it; one that is gone already is fine.

    Blocking. Others may be removing the same tree, but nobody may be adding to it.

    Raises:
        OSError: A name cannot be removed (a busy mount).
    """
    parent, name = os.path.split(path)
    try:
        directory = os.open(parent, _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        if not _unlink(directory, name):
            _Removal(directory).remove(name)
    finally:
        os.close(directory)


class _Removal:
    """A walk that keeps a bounded number of descriptors open, however deep a sandbox made its tree."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._open: list[int] = []
        self._names: list[str] = []
        self._pending: list[list[str]] = []

    def remove(self, name: str) -> None:
        try:
            self._enter(name)
            while self._open:
                if self._pending[-1]:
                    self._remove_one(self._pending[-1].pop())
                else:
                    self._leave()
        finally:
            for fd in self._open:
                os.close(fd)

    def _remove_one(self, name: str) -> None:
        if not _unlink(self._open[-1], name) and not (len(self._open) >= _DEEPEST and self._hoist(name)):
            self._enter(name)

    def _enter(self, name: str) -> None:
        try:
            fd = _open_directory(self._open[-1] if self._open else self._parent, name)
        except FileNotFoundError:
            return
        self._open.append(fd)
        self._names.append(name)
        self._pending.append(os.listdir(fd))

    def _leave(self) -> None:
        left = os.listdir(self._open[-1])
        if left:
            self._pending[-1] = left  # Something hoisted came back, or another remover moved it here.
            return
        os.close(self._open.pop())
        self._pending.pop()
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self._names.pop(), dir_fd=self._open[-1] if self._open else self._parent)

    def _hoist(self, name: str) -> bool:
        """Move a deep directory to the top of the tree, to be removed from there; False if that cannot be done."""
        moved = f".deep-{os.urandom(8).hex()}"
        try:
            os.rename(name, moved, src_dir_fd=self._open[-1], dst_dir_fd=self._open[0])
        except OSError:
            return False
        self._pending[0].append(moved)
        return True


def _unlink(directory: int, name: str) -> bool:
    """Remove a name unless it is a directory; True when it is gone."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        # Linux says EISDIR for a directory, POSIX EPERM.
        if error.errno in {errno.EISDIR, errno.EPERM}:
            return False
        raise
    return True


def _open_directory(parent: int, name: str) -> int:
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
    except PermissionError:
        # It is a directory, as `_unlink` found, and nobody exchanges names here any more.
        os.chmod(name, 0o700, dir_fd=parent)
        return os.open(name, _DIRECTORY, dir_fd=parent)
    if os.fstat(fd).st_mode & 0o700 != 0o700:
        with contextlib.suppress(PermissionError):
            os.fchmod(fd, 0o700)
    return fd
