"""Changes of files as the kernel tells them (inotify), for a child of the agent.

Events are `[kind, path, is_folder, target]`: kinds are created, modified, deleted, moved (with a target) and overflow
(the kernel dropped events: what changed meanwhile is unknown). A folder that appears below a recursive watch is watched
too, and what was made in it before that is reported as created: such a name may be reported twice, but never not at
all.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_libc = ctypes.CDLL(None, use_errno=True)
_HEAD = struct.Struct("iIII")

_MODIFY, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF = 0x400, 0x800
_OVERFLOW, _IGNORED, _IS_FOLDER = 0x4000, 0x8000, 0x4000_0000
_DONT_FOLLOW, _ONLY_FOLDERS = 0x0200_0000, 0x0100_0000
_CHANGES = _MODIFY | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF

_PAIR_MILLISECONDS = 20
"""How long the second half of a move may take to come after the first: both are queued in one go."""

Event = list[str | bool | None]


class _Raw(NamedTuple):
    watch: int
    mask: int
    cookie: int
    name: str


def watch(path: str, *, recursive: bool) -> Iterator[list[Event]]:
    """Changes of what is in a folder, or of a file. Empty at first: the watch is in place.

    Ends when the watched path itself is gone.

    Raises:
        OSError: The path cannot be watched; ENOSPC is the user's limit of watches.
    """
    watcher = _Watcher(path, recursive)
    try:
        yield []
        while not watcher.over:
            if events := watcher.read():
                yield events
    finally:
        watcher.close()


class _Watcher:
    def __init__(self, path: str, recursive: bool) -> None:
        self.over = False
        self._root = path
        self._recursive = recursive
        self._paths: dict[int, str] = {}
        self._fd = _checked(_libc.inotify_init1(ctypes.c_int(os.O_CLOEXEC)), "inotify")
        try:
            self._root_watch = self._add(path, 0)
            if recursive and os.path.isdir(path):
                self._add_below(path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._fd)

    def _add(self, path: str, flags: int) -> int:
        mask = ctypes.c_uint32(_CHANGES | flags)
        watch = _checked(_libc.inotify_add_watch(ctypes.c_int(self._fd), os.fsencode(path), mask), path)
        self._paths[watch] = path
        return watch

    def _add_below(self, path: str) -> list[Event]:
        """Watch the folders below `path`, too; what is there already."""
        found: list[Event] = []
        folders = [path]
        while folders:
            try:
                entries = list(os.scandir(folders.pop()))
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                found.append(["created", entry.path, is_folder, None])
                if is_folder and self._add_if_there(entry.path):
                    folders.append(entry.path)
        return found

    def _add_if_there(self, path: str) -> bool:
        try:
            self._add(path, _DONT_FOLLOW | _ONLY_FOLDERS)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.EACCES}:
                return False
            raise
        return True

    def read(self) -> list[Event]:
        """Wait for changes."""
        raw = self._read_raw()
        while raw and raw[-1].mask & _MOVED_FROM and _readable(self._fd, _PAIR_MILLISECONDS):
            raw += self._read_raw()
        events: list[Event] = []
        arrivals = {event.cookie: event for event in raw if event.mask & _MOVED_TO}
        paired: set[int] = set()
        for event in raw:
            if event.mask & _MOVED_FROM and event.cookie in arrivals:
                paired.add(event.cookie)
                self._moved(event, arrivals[event.cookie], events)
            elif not (event.mask & _MOVED_TO and event.cookie in paired):
                self._single(event, events)
        return [event for index, event in enumerate(events) if index == 0 or event != events[index - 1]]

    def _read_raw(self) -> list[_Raw]:
        data = os.read(self._fd, 64 * 1024)
        raw, position = [], 0
        while position < len(data):
            watch, mask, cookie, length = _HEAD.unpack_from(data, position)
            position += _HEAD.size
            raw.append(_Raw(watch, mask, cookie, os.fsdecode(data[position : position + length].rstrip(b"\0"))))
            position += length
        return raw

    def _path(self, event: _Raw) -> str | None:
        folder = self._paths.get(event.watch)
        return folder if folder is None or not event.name else os.path.join(folder, event.name)

    def _moved(self, source: _Raw, target: _Raw, events: list[Event]) -> None:
        old, new = self._path(source), self._path(target)
        if old is None or new is None:
            return
        is_folder = bool(source.mask & _IS_FOLDER)
        events.append(["moved", old, is_folder, new])
        if is_folder:
            for watch, path in self._paths.items():
                if path == old or path.startswith(f"{old}/"):
                    self._paths[watch] = new + path[len(old) :]

    def _single(self, event: _Raw, events: list[Event]) -> None:
        if event.mask & _OVERFLOW:
            events.append(["overflow", self._root, True, None])
            if self._recursive:
                self._add_below(self._root)
            return
        path, is_folder = self._path(event), bool(event.mask & _IS_FOLDER)
        if path is None:
            return
        if event.mask & _IGNORED:
            del self._paths[event.watch]
            self.over = self.over or event.watch == self._root_watch
        elif event.mask & (_DELETE_SELF | _MOVE_SELF):
            # Below the root, the folder above says the same.
            if event.watch == self._root_watch:
                events.append(["deleted", path, is_folder, None])
                self.over = True
        elif event.mask & (_CREATE | _MOVED_TO):
            events.append(["created", path, is_folder, None])
            if is_folder and self._recursive and self._add_if_there(path):
                events += self._add_below(path)
        elif event.mask & (_DELETE | _MOVED_FROM):
            events.append(["deleted", path, is_folder, None])
            if event.mask & _MOVED_FROM and is_folder:
                self._forget_below(path)
        elif event.mask & _MODIFY:
            events.append(["modified", path, is_folder, None])

    def _forget_below(self, path: str) -> None:
        """A folder was moved to where nobody looks: what is reported of it from now on has other paths."""
        for watch, known in list(self._paths.items()):
            if known == path or known.startswith(f"{path}/"):
                del self._paths[watch]
                _libc.inotify_rm_watch(ctypes.c_int(self._fd), ctypes.c_int(watch))


def _readable(fd: int, milliseconds: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(milliseconds))


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result
