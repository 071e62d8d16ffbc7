"""What the main command of a sandbox printed, kept on disk in a bounded ring.

Two files of half the limit each: the current one grows, and when it is full it replaces the previous one. Entries are
framed with the time they arrived at, because `since_time` and `timestamps` ask for it; with the position of their first
byte in all that was ever printed, so that a reader can go on where it was, after a restart of the gateway too; and with
its offset in the stream that it came from, so that a restarted gateway logs nothing twice.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
from attrs import evolve, frozen

from cwsandbox.gateway.pulse import Pulse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cwsandbox.runners.base import OutputSource

_log = logging.getLogger(__name__)

LIMIT_BYTES: Final = 16 * 1024 * 1024
_CHUNK_BYTES: Final = 64 * 1024
_FRAME: Final = struct.Struct("!dQBQI")
# The newest bytes are kept in memory: who follows a log does not read the files again for every line.
_RECENT_BYTES: Final = 128 * 1024


@frozen
class Entry:
    """Some bytes.

    Attributes:
        time: When they arrived, in seconds since the epoch.
        position: Of the first one, in all that was printed.
        stream: Which stream they come from: 0 is stdout, 1 stderr.
        offset: Of the first one, in that stream.
    """

    time: float
    data: bytes
    position: int = 0
    stream: int = 0
    offset: int = 0

    @property
    def end(self) -> int:
        """The position after the last byte."""
        return self.position + len(self.data)

    def cut(self, position: int) -> Entry:
        """What it holds from a position on."""
        skip = position - self.position
        return evolve(self, data=self.data[skip:], position=position, offset=self.offset + skip) if skip > 0 else self


@frozen
class Snapshot:
    """What the log holds.

    Attributes:
        entries: From the wanted position on, as far as they are still there.
        oldest: The position of the oldest byte that is still there.
        position: Where to go on from.
    """

    entries: tuple[Entry, ...]
    oldest: int
    position: int


class MainLog:
    """The log of one sandbox.

    Args:
        path: The file; the older half has `.1` appended.
        limit_bytes: How much is kept at most, default 16 MiB.
    """

    def __init__(self, path: str, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._path = path
        self._half = limit_bytes // 2
        self._lock = anyio.Lock()
        self._size = 0
        # Positions of bytes: after the last one, of the first one in the current file, and of the first one kept.
        self._end = 0
        self._current = 0
        self._oldest = 0
        # Offsets in the streams: after what is in the log.
        self._logged = [0, 0]
        self._recent: deque[Entry] = deque()
        self._grown = Pulse()
        self._closed = False

    @property
    def closed(self) -> bool:
        """There will be no more."""
        return self._closed

    def close(self) -> None:
        """Say that there will be no more; followers end."""
        self._closed = True
        self._recent.clear()
        self._grown.notify()

    async def pump(self, source: OutputSource, stream: int) -> None:
        """Append everything from `source` until its end; a full disk loses log lines, never blocks the sandbox.

        What an earlier gateway logged in its last moment, and could not release any more, is known by its offset.
        """
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                data = await source.receive(_CHUNK_BYTES)
                known = self._logged[stream] - (source.position - len(data))
                try:
                    await self.append(data[max(0, known) :], stream, source.position)
                except OSError as error:
                    _log.warning("a sandbox's output could not be logged: %s", error)
                source.release(source.position)

    async def append(self, data: bytes, stream: int = 0, end: int = 0) -> None:
        """Append `data`, which ends at the offset `end` of its stream, with the present time."""
        if not data:
            return
        async with self._lock:
            entry = Entry(time.time(), data, self._end, stream, max(0, end - len(data)))
            await anyio.to_thread.run_sync(self._append, entry)
            self._keep_recent(entry)
        self._grown.notify()

    def _keep_recent(self, entry: Entry) -> None:
        recent = self._recent
        if self._closed or (recent and recent[-1].end != entry.position):
            recent.clear()  # Nobody follows any more, or an append was cancelled when it was on the disk.
        if not self._closed:
            recent.append(entry)
        begin = max(self._oldest, self._end - _RECENT_BYTES)
        while recent and recent[0].position < begin:
            recent.popleft()

    async def wait_beyond(self, position: int) -> None:
        """Wait until there is more than `position`, or the log is closed."""
        while self._end <= position and not self._closed:
            await self._grown.wait()

    async def read(self, position: int = 0) -> Snapshot:
        """Return what is kept from `position` on."""
        async with self._lock:
            entries: Iterable[Entry] = self._recent
            if not self._recent or position < self._recent[0].position:
                entries = await anyio.to_thread.run_sync(self._read, position)
            wanted = tuple(entry.cut(position) for entry in entries if entry.end > position)
            # The log of a sandbox that had ended before this gateway began was not counted.
            end = wanted[-1].end if wanted else max(position, self._end)
            return Snapshot(wanted, self._oldest, end)

    async def remove(self) -> None:
        """Delete the files; what the disk refuses stays, and is logged."""
        self.close()
        async with self._lock:
            try:
                await anyio.to_thread.run_sync(remove_files, self._path)
            except OSError as error:
                _log.warning("the log of an ended sandbox could not be removed: %s", error)

    def _append(self, entry: Entry) -> None:
        if self._size >= self._half:
            os.replace(self._path, self._path + ".1")
            self._size, self._oldest, self._current = 0, self._current, self._end
        frame = _FRAME.pack(entry.time, entry.position, entry.stream, entry.offset, len(entry.data)) + entry.data
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        try:
            if os.write(descriptor, frame) != len(frame):
                os.ftruncate(descriptor, self._size)  # Half an entry would make the rest unreadable.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
        self._size += len(frame)
        self._end = entry.end
        self._logged[entry.stream] = entry.offset + len(entry.data)

    def _read(self, position: int) -> list[Entry]:
        files = itertools.chain(_entries(self._path + ".1"), _entries(self._path))
        return [entry for entry in files if entry.end > position]

    @classmethod
    def reopen(cls, path: str) -> MainLog:
        """Take over the log that an earlier gateway wrote. Blocking."""
        log = cls(path)
        previous, current = list(_entries(path + ".1")), list(_entries(path))
        log._size = sum(_FRAME.size + len(entry.data) for entry in current)
        if kept := previous + current:
            log._oldest, log._end = kept[0].position, kept[-1].end
            log._current = current[0].position if current else log._end
        for entry in kept:
            log._logged[entry.stream & 1] = entry.offset + len(entry.data)
        with contextlib.suppress(FileNotFoundError):
            os.truncate(path, log._size)  # The gateway may have died in the middle of an entry.
        return log


def remove_files(path: str) -> None:
    """Delete a log by its path. Blocking."""
    for name in (path, path + ".1"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _entries(path: str) -> Iterator[Entry]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    with os.fdopen(descriptor, "rb") as file:
        while len(header := file.read(_FRAME.size)) == _FRAME.size:
            when, position, stream, offset, length = _FRAME.unpack(header)
            data = file.read(length)
            if len(data) < length:
                return  # The gateway died in the middle of this entry.
            yield Entry(when, data, position, stream, offset)


def tail(entries: tuple[Entry, ...], lines: int) -> tuple[Entry, ...]:
    """Return the last `lines` lines of `entries`; an unfinished last line counts as one."""
    kept: deque[Entry] = deque()
    # The newline that ends the last line does not begin another one.
    wanted = lines + 1 if entries and entries[-1].data.endswith(b"\n") else lines
    for entry in reversed(entries):
        found = entry.data.count(b"\n")
        if found < wanted:
            wanted -= found
            kept.appendleft(entry)
            continue
        cut = len(entry.data)
        for _ in range(wanted):
            cut = entry.data.rindex(b"\n", 0, cut)
        kept.appendleft(entry.cut(entry.position + cut + 1))
        break
    return tuple(kept)
