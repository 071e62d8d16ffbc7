"""The byte spool of one output stream: fed on the scope's loop, read from anywhere."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from cwsandbox._runtime._loops import LoopHandle
from cwsandbox._runtime.latch import Latch, check_process, fork_count
from cwsandbox._runtime.readers import ChunkReader, LineReader, StreamReader
from cwsandbox._runtime.storage import FilePiece, Storage

if TYPE_CHECKING:
    from collections.abc import Callable

    R = TypeVar("R", bound=StreamReader[Any])

MEMORY_BYTES = 8 * 1024 * 1024
LIMIT_BYTES = 2 * 1024 * 1024 * 1024
UNREAD_BYTES = 256 * 1024
"""Less than any window: a sender that has come this far can be told to go on before it has to wait."""


class Spool:
    """Keeps what a stream brought, gives credit for it, and lets one reader set the pace.

    As long as nobody iterates, bytes are credited as soon as they are spooled. While a reader iterates, they are
    credited as it comes to them, so that the sender stops when its window is used up; until the reader is closed, or
    somebody waits for the result.

    Args:
        memory_bytes: how much is kept in memory; the rest goes to an unnamed temporary file.
        limit_bytes: how much is kept at all. What comes after that reaches a reader that sets the pace, but is not
            kept; else it is dropped, and readers end there.
        keep: False if nothing has to be kept for later: bytes are forgotten when they were read, and the reader always
            sets the pace, even before it begins. Only if none was asked for, those who called `run_on` let the sender
            run on past `UNREAD_BYTES`, and what comes then is dropped.
        loop: the loop that feeds it; by default the one of the first `feed`. Blocking reads on that loop are refused.
        on_credit: called on that loop with a number of bytes that may be credited.
    """

    # _lock guards every field; it is held for at most one copy of PULL_BYTES. The cursor, decoder and items belong to
    # the reader.
    def __init__(
        self,
        *,
        memory_bytes: int = MEMORY_BYTES,
        limit_bytes: int = LIMIT_BYTES,
        keep: bool = True,
        loop: LoopHandle | None = None,
        on_credit: Callable[[int], object] | None = None,
    ) -> None:
        self.on_credit = on_credit
        self._loop = loop
        self._made_under = fork_count()
        self._lock = threading.Lock()
        self._waiters: list[Latch] = []
        self._keep = keep
        self._storage = Storage(memory_bytes)
        self._limit_bytes = limit_bytes if keep else 0
        self._window = bytearray()  # Bytes up to _readable_end that are not kept and not yet read.
        self._total = 0
        self._dropped = 0
        self._cut: int | None = None  # The position of the first byte that no reader will get.
        self._ended = False
        self._error: BaseException | None = None
        self._reader: StreamReader[Any] | None = None
        self._reading = False
        self._read_bytes = 0  # What the reader has handed out completely.
        self._reader_closed = False
        self._running_on = 0
        self._credited = 0
        self._credit_due = False

    # Facts.

    @property
    def total_bytes(self) -> int:
        """How many bytes the stream brought so far."""
        return self._total

    @property
    def dropped_bytes(self) -> int:
        """How many of them `getvalue` lacks, all of them at the end."""
        return self._dropped

    @property
    def truncated(self) -> bool:
        """Whether `getvalue` lacks bytes: the limit was reached, or the disk was full."""
        return self._dropped > 0

    @property
    def ended(self) -> bool:
        """Whether the stream has ended."""
        return self._ended

    def getvalue(self) -> bytes:
        """All that is kept, whatever readers did. Blocks if part of it is on the disk.

        Raises:
            OSError: the disk failed.
        """
        self._check_process()
        with self._lock:
            pieces = self._storage.snapshot()
        return b"".join(piece.read() if isinstance(piece, FilePiece) else piece for piece in pieces)

    def last_pieces(self, count: int) -> list[bytes | FilePiece]:
        """The last at most `count` bytes that are kept, whatever readers did; a `FilePiece` lies on the disk."""
        pieces: list[bytes | FilePiece] = []
        with self._lock:
            end = self._storage.size
            position = max(end - count, 0)
            while position < end:
                piece = self._storage.piece(position, end - position)
                pieces.append(piece)
                position += piece.length if isinstance(piece, FilePiece) else len(piece)
        return pieces

    # Feeding, on the loop.

    def bind(self, loop: LoopHandle) -> None:
        """Name the loop that will feed it, so that blocking reads there are refused from the beginning."""
        self._loop = loop

    async def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes, from one task at a time. Cancellation loses nothing; what was passed is in.

        A disk that fails does not fail the stream: it is truncated there.
        """
        if self.feed_nowait(data):
            await checkpoint()
            return
        with self._lock:
            self._add(data)
            due = self._storage.tail_is_due
        self._wake_waiters()
        if due:
            await anyio.to_thread.run_sync(self._flush)
        else:
            await checkpoint()
        self._settle_credit()

    def feed_nowait(self, data: bytes | bytearray | memoryview) -> bool:
        """Add bytes on the loop if they fit into memory.

        Returns:
            False, with nothing taken, if they do not: use `feed`.
        """
        if self._loop is None:
            self._loop = LoopHandle.current()
        with self._lock:
            if not self._storage.fits(len(data)):
                return False
            self._add(data)
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.set()
        self._settle_credit()
        return True

    def close(self, error: BaseException | None = None) -> None:
        """End the stream, from any thread; the second time does nothing.

        Args:
            error: what a reader gets, once, when it comes to the end.
        """
        with self._lock:
            if not self._ended:
                self._ended, self._error = True, error
        self._wake_waiters()

    def _add(self, data: bytes | bytearray | memoryview) -> None:
        self._total += len(data)
        room = self._limit_bytes - self._storage.size
        if len(data) <= room:
            self._storage.append(data)
            return
        view, room = memoryview(data), max(room, 0)
        self._storage.append(view[:room])
        rest = view[room:]
        reaches_reader = self._cut is None and self._paced
        if self._keep or not (reaches_reader or self._reader_closed):
            self._dropped += len(rest)
        if reaches_reader:
            self._window += rest
        elif self._cut is None:
            self._cut = self._total - len(rest)

    def _flush(self) -> None:
        try:
            self._storage.write_tail()
        except OSError:
            # What is in memory stays, and nothing is added to it.
            with self._lock:
                self._limit_bytes = self._storage.size
            return
        with self._lock:
            self._storage.drop_tail()

    # Pace.

    @property
    def _paced(self) -> bool:
        if self._reader_closed:
            return False
        if self._keep:
            return self._reading and self._running_on == 0
        if self._cut is not None:
            return False  # The reader can get no further, so it can set no pace.
        return self._reading or self._running_on == 0 or self._total < UNREAD_BYTES

    def run_on(self) -> None:
        """Somebody waits for the result: stop waiting for the reader. From any thread; ended by `stop_running_on`."""
        with self._lock:
            self._running_on += 1
        self._request_credit(1)

    def stop_running_on(self) -> None:
        """One of those who called `run_on` waits no more."""
        with self._lock:
            self._running_on -= 1

    def expect_reader(self) -> None:
        """A reader was asked for and will come: from now on it sets the pace. From any thread."""
        with self._lock:
            self._reading = True

    def set_unpaced(self) -> None:
        """Never again wait for the reader. From any thread."""
        self.run_on()

    def _owed(self) -> int:
        return (self._read_bytes if self._paced else self._total) - self._credited

    def _settle_credit(self) -> None:
        with self._lock:
            self._credit_due = False
            owed = self._owed()
            if owed > 0:
                self._credited += owed
        if owed > 0 and self.on_credit is not None:
            self.on_credit(owed)

    def _request_credit(self, at_least: int) -> None:
        with self._lock:
            if self._loop is None or self._credit_due or self._owed() < at_least:
                return
            self._credit_due = True
        if self._loop.is_current():
            self._settle_credit()
        else:
            self._loop.run_soon(self._settle_credit)

    # Reading.

    def lines(self, *, on_close: Callable[[], object] | None = None) -> LineReader:
        """The reader of whole lines; always the same object.

        Args:
            on_close: called once if the reader is closed.

        Raises:
            RuntimeError: the stream is being read as chunks.
        """
        return self._the_reader(LineReader, on_close)

    def chunks(self, *, on_close: Callable[[], object] | None = None) -> ChunkReader:
        """The reader of bytes as they come, at most 256 KiB at a time; always the same object.

        Args:
            on_close: called once if the reader is closed.

        Raises:
            RuntimeError: the stream is being read as lines.
        """
        return self._the_reader(ChunkReader, on_close)

    def _the_reader(self, kind: type[R], on_close: Callable[[], object] | None) -> R:
        with self._lock:
            if self._reader is None:
                self._reader = kind(self, on_close)
            reader = self._reader
        if not isinstance(reader, kind):
            raise RuntimeError("a stream is read either as lines or as chunks")  # noqa: TRY004 - a matter of state.
        return reader

    @property
    def _readable_end(self) -> int:
        return self._total if self._cut is None else self._cut

    def _piece(self, position: int, limit: int) -> bytes | FilePiece:
        """Bytes at the reader's position, which is below `_readable_end`; under the lock."""
        if position < self._storage.size:
            return self._storage.piece(position, limit)
        # The reader is past what is kept, and past what it took from the window before: it begins at our position.
        return bytes(memoryview(self._window)[:limit])

    def _passed(self, start: int, count: int) -> None:
        """The reader took bytes; under the lock."""
        if start >= self._storage.size:
            del self._window[:count]

    @property
    def _no_more(self) -> bool:
        """Whether a reader that is at `_readable_end` is at the end."""
        return self._ended or (self._keep and self._cut is not None)

    def _take_error(self) -> BaseException | None:
        error, self._error = self._error, None
        return None if self._reader_closed else error

    def _close_reader(self) -> bool:
        """The reader will read no more.

        Returns:
            False if that was known.
        """
        with self._lock:
            first, self._reader_closed = not self._reader_closed, True
            self._window.clear()
        self._wake_waiters()
        self._request_credit(1)
        return first

    def _add_waiter(self) -> Latch:
        """A latch for the next news of any kind; under the lock."""
        waiter = Latch()
        self._waiters.append(waiter)
        return waiter

    def _discard_waiter(self, waiter: Latch) -> None:
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake_waiters(self) -> None:
        with self._lock:
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.set()

    def _check_process(self) -> None:
        if not self._ended:
            check_process(self._made_under)
