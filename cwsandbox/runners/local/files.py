"""Files, on the agent's side: the sandbox's own root and rights, so plain resolution of paths is right."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import NamedTuple

from cwsandbox.runners.local import syscalls as linux
from cwsandbox.runners.local.descriptors import memory_file
from cwsandbox.runners.local.protocol import INLINE_FILE_BYTES

_NEW_MODE = 0o644
_LARGEST_COPY = 16 * 1024 * 1024
_NO_BLOCKING = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Pending(NamedTuple):
    """A file that is being written: invisible under a temporary name until it is put in place."""

    fd: int
    temporary: str
    target: str
    replaces: bool


def open_regular(path: str) -> int:
    """Open a regular file for reading; never waits, whatever the path is."""
    fd = os.open(path, os.O_RDONLY | _NO_BLOCKING)
    try:
        _must_be_regular(os.fstat(fd).st_mode, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_small(fd: int) -> bytes | None:
    """The whole content if it is small, also of files that do not know their size (/proc); else None."""
    if os.fstat(fd).st_size > INLINE_FILE_BYTES:
        return None
    parts: list[bytes] = []
    room = INLINE_FILE_BYTES + 1
    while room > 0:
        part = os.read(fd, room)
        if not part:
            return b"".join(parts)
        parts.append(part)
        room -= len(part)
    return None


def with_known_size(fd: int) -> int:
    """A descriptor of the same content that knows its size: a copy in memory of what the kernel makes up (/proc)."""
    if os.fstat(fd).st_size > 0:
        return fd
    memory = memory_file("copy")
    try:
        _copy(fd, memory)
    except OSError:
        os.close(memory)
        raise
    os.close(fd)
    return memory


def _copy(fd: int, memory: int) -> None:
    os.lseek(fd, 0, os.SEEK_SET)
    room = _LARGEST_COPY
    while part := os.read(fd, INLINE_FILE_BYTES):
        room -= len(part)
        if room < 0:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        os.write(memory, part)


def begin_write(path: str) -> Pending:
    """Make the missing folders and a temporary file beside the target; symlinks lead to their target."""
    target = os.path.realpath(path)
    if path.endswith("/"):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    mode, replaces = _NEW_MODE, True
    try:
        old = os.stat(target)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        replaces = False
    else:
        _must_be_regular(old.st_mode, path)
        mode = stat.S_IMODE(old.st_mode)
    temporary = f"{os.path.dirname(target)}/.{os.urandom(8).hex()}.part"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.fchmod(fd, mode)
    return Pending(fd, temporary, target, replaces)


def commit(pending: Pending) -> None:
    """Put a written file in place."""
    os.close(pending.fd)
    try:
        if not (pending.replaces and _exchange(pending)):
            os.rename(pending.temporary, pending.target)
    except BaseException:
        _unlink(pending.temporary)
        raise


def _exchange(pending: Pending) -> bool:
    """Replace the old file by exchanging the two and removing it: as atomic as a rename, and half the price.

    ext4 writes a file to the disk at once that is renamed over another (`auto_da_alloc`), for programs that hope to
    survive a crash of the machine without asking for it. No sandbox survives that.
    """
    try:
        linux.exchange(pending.temporary, pending.target)
    except OSError:
        return False  # Not there any more, or a file system that cannot.
    try:
        os.unlink(pending.temporary)
    except IsADirectoryError:
        linux.exchange(pending.temporary, pending.target)  # A folder took its place meanwhile.
        raise
    return True


def abort(pending: Pending) -> None:
    """Drop what was written."""
    os.close(pending.fd)
    _unlink(pending.temporary)


def write_whole(path: str, content: bytes) -> None:
    """Write a small file in one go, as atomically as a large one."""
    pending = begin_write(path)
    try:
        write_all(pending.fd, content)
    except BaseException:
        abort(pending)
        raise
    commit(pending)


def write_all(fd: int, content: bytes) -> None:
    """Write all of `content` to a blocking descriptor."""
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def place(path: str, content: bytes) -> bool:
    """Put a read-only file where none is, for boxes that share their host's files; False if the same is there already.

    Raises:
        FileExistsError: Something else is there.
    """
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444)
    except FileExistsError:
        with open(open_regular(path), "rb") as old:
            if old.read(len(content) + 1) == content:
                return False
        raise
    with open(fd, "wb") as file:
        file.write(content)
    return True


def _must_be_regular(mode: int, path: str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", path)


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
