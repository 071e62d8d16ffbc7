"""The file with the API keys of a gateway on a port: read while it serves, and edited.

A gateway notices a change at the next request, so that keys come and go without a restart.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from typing import TYPE_CHECKING

from cwsandbox.gateway.auth import new_key, read_key_file
from cwsandbox.gateway.errors import error
from cwsandbox.wire.errors import Code

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cwsandbox.gateway.auth import KeyAuthenticator, Peer

_log = logging.getLogger(__name__)


class KeyFileAuthenticator:
    """Lets in who holds a key of the file as it is now.

    While the file cannot be used, nobody is let in: the change that broke it may have been to keep somebody out.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a key file, has no keys, or others may write to it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._mark = _mark(os.stat(path))
        self._keys: KeyAuthenticator | None = _read(path)

    def principal(self, peer: Peer | None, authorization: str) -> str:
        """Return the name of the key.

        Raises:
            StatusError: UNAUTHENTICATED; UNAVAILABLE while the file cannot be used.
        """
        self._refresh()
        if self._keys is None:
            raise error(Code.UNAVAILABLE, "the gateway's key file cannot be used; its log says why")
        return self._keys.principal(peer, authorization)

    def _refresh(self) -> None:
        # Looking at a local file's inode takes 2 us of the loop's thread; a watcher would be more machinery than that.
        try:
            mark = _mark(os.stat(self._path))
        except OSError:
            mark = ()
        if mark == self._mark:
            return
        self._mark, self._keys = mark, None
        try:
            self._keys = _read(self._path)
        except (OSError, ValueError) as problem:
            _log.error("the key file cannot be used, so nobody is let in: %s", problem)
        else:
            _log.info("the key file was read again")


def add_key(path: str, name: str) -> str:
    """Add a key to the file, which is made if there is none; return the key, for its holder alone.

    Raises:
        ValueError: The name is taken or cannot be one.
        OSError: The file cannot be read or written.
    """
    key, line = new_key(name)
    with _edited(path) as lines:
        if any(_name(old) == name for old in lines):
            raise ValueError(f"there is a key {name!r} already; revoke it first, or choose another name")
        lines.append(line)
    return key


def rotate_key(path: str, name: str) -> str:
    """Make another key of this name; the one before it stays valid until the next rotation, older ones do not.

    So the holder can change over while both work. They are one principal: they see the same sandboxes.

    Raises:
        KeyError: There is none of this name.
        OSError: The file cannot be read or written.
    """
    key, line = new_key(name)
    with _edited(path) as lines:
        ours = [number for number, old in enumerate(lines) if _name(old) == name]
        if not ours:
            raise KeyError(name)
        lines.insert(ours[-1] + 1, line)
        for number in reversed(ours[:-1]):
            del lines[number]
    return key


def revoke_key(path: str, name: str) -> None:
    """Take all keys of this name out of the file.

    Raises:
        KeyError: There is none of this name.
        OSError: The file cannot be read or written.
    """
    with _edited(path) as lines:
        kept = [line for line in lines if _name(line) != name]
        if len(kept) == len(lines):
            raise KeyError(name)
        lines[:] = kept


def key_names(path: str) -> list[str]:
    """The names of the keys in the file, in its order; none if there is no file.

    Raises:
        OSError: The file cannot be read.
    """
    return list(dict.fromkeys(name for line in _lines(path) if (name := _name(line))))


def _read(path: str) -> KeyAuthenticator:
    with open(path, encoding="ascii") as file:
        if os.fstat(file.fileno()).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ValueError(f"others may write to {path}: run `chmod go-w` on it")
        return read_key_file(file)


def _mark(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode


def _name(line: str) -> str | None:
    """The name of the key on this line; None for a comment."""
    text = line.strip()
    return text.partition(":")[0] if text and not text.startswith("#") else None


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def _edited(path: str) -> Iterator[list[str]]:
    """The lines to change; they are put in place at once, or not at all if the body fails."""
    draft = f"{path}.new"
    try:
        # Exclusive: two who edit at once would lose a key.
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as problem:
        raise FileExistsError(f"{draft} exists: somebody is changing the keys; remove it if nobody is") from problem
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            lines = _lines(path)
            yield lines
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(descriptor)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
