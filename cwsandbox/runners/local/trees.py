"""Remove a directory that a sandbox has written: by descriptor, through any modes, never through a symlink."""

from __future__ import annotations

import contextlib
import os
import stat

_DEEPEST = 64
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: str) -> None:
    """Remove `path` and all below it; one that is gone already is fine.

    Blocking. Another process may be doing the same.

    Raises:
        OSError: A name cannot be removed (a busy mount).
    """
    parent, name = os.path.split(path)
    try:
        directory = os.open(parent, _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        _remove_entry(directory, name)
    finally:
        os.close(directory)


def _remove_entry(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        pass
    else:
        return
    with contextlib.suppress(FileNotFoundError):
        _remove_directory(parent, name)


def _remove_directory(parent: int, name: str) -> None:
    # Depth is bounded by descriptors, not by Python's stack: a sandbox can make a very deep tree.
    stack = [_open_directory(parent, name)]
    names = [name]
    pending = [os.listdir(stack[0])]
    try:
        while stack:
            if pending[-1]:
                child = pending[-1].pop()
                if _unlink(stack[-1], child):
                    continue
                if len(stack) >= _DEEPEST and _hoist(stack[-1], child, stack[0], pending[0]):
                    continue
                inner = _open_directory(stack[-1], child)
                stack.append(inner)
                names.append(child)
                pending.append(os.listdir(inner))
                continue
            os.close(stack.pop())
            pending.pop()
            os.rmdir(names.pop(), dir_fd=stack[-1] if stack else parent)
    finally:
        for fd in stack:
            os.close(fd)


def _unlink(directory: int, name: str) -> bool:
    """Remove a name unless it is a directory; True when it is gone."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            return False
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    return True


def _hoist(directory: int, name: str, top: int, top_pending: list[str]) -> bool:
    """Move a deep directory to the top of the tree, to be removed from there; False if that cannot be done."""
    moved = f".deep-{len(top_pending)}-{os.urandom(6).hex()}"
    try:
        os.rename(name, moved, src_dir_fd=directory, dst_dir_fd=top)
    except OSError:
        return False
    top_pending.append(moved)
    return True


def _open_directory(parent: int, name: str) -> int:
    try:
        return _prepare(os.open(name, _DIRECTORY, dir_fd=parent))
    except PermissionError:
        # Not following symlinks is a promise of the stat just before and of nobody else writing here any more.
        os.chmod(name, 0o700, dir_fd=parent)
        return os.open(name, _DIRECTORY, dir_fd=parent)


def _prepare(directory: int) -> int:
    """Make sure that names can be removed from a directory."""
    if os.fstat(directory).st_mode & 0o300 != 0o300:
        with contextlib.suppress(PermissionError):
            os.fchmod(directory, 0o700)
    return directory
