"""Output spools: what is kept, who sets the pace, and how readers on any thread or loop get it."""

from __future__ import annotations

import concurrent.futures
import errno
import gc
import itertools
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwsandbox._runtime._loops import LoopHandle
from cwsandbox._runtime.portal import portal_scope, run_blocking
from cwsandbox._runtime.readers import PARTIAL_LINE_CHARACTERS, StreamReader
from cwsandbox._runtime.spool import UNREAD_BYTES, Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cwsandbox._runtime.latch import Latch

MEBIBYTE = 1024 * 1024
WINDOW = MEBIBYTE


class Failure(Exception):
    pass


def spool_of(*pieces: bytes, close: bool = True, **options: Any) -> Spool:
    """A spool on the portal's loop, fed with the pieces."""
    spool = Spool(loop=portal_scope().loop, **options)

    async def feed() -> None:
        for piece in pieces:
            await spool.feed(piece)

    run_blocking(feed)
    if close:
        spool.close()
    return spool


def more(spool: Spool, data: bytes) -> None:
    run_blocking(spool.feed, data)


class Credits(list[int]):
    """What was credited."""

    @property
    def total(self) -> int:
        return sum(self)


class WatchedSpool(Spool):
    """Says when somebody waits for it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(loop=portal_scope().loop, **options)
        self.waited_for = threading.Event()

    def _add_waiter(self) -> Latch:
        waiter = super()._add_waiter()
        self.waited_for.set()
        return waiter


def settle(spool: Spool) -> None:
    """Wait until what was asked of the loop before has been done."""
    done = threading.Event()
    assert spool._loop is not None
    spool._loop.run_soon(done.set)
    assert done.wait(5)


# What is kept.


def test_everything_is_kept_whatever_readers_did() -> None:
    spool = spool_of(b"one\ntw", b"o\nthree")
    assert list(spool.lines()) == ["one\n", "two\n", "three"]
    assert spool.getvalue() == b"one\ntwo\nthree"
    assert (spool.total_bytes, spool.dropped_bytes, spool.truncated) == (13, 0, False)


@pytest.mark.parametrize("piece", [1000, 64 * 1024, 256 * 1024, 3 * MEBIBYTE])
def test_what_does_not_fit_in_memory_goes_to_the_disk_and_comes_back(piece: int) -> None:
    data = os.urandom(5 * MEBIBYTE + 123)
    spool = spool_of(*(data[at : at + piece] for at in range(0, len(data), piece)), memory_bytes=MEBIBYTE)
    assert spool._storage._written > 2 * MEBIBYTE
    assert len(spool._storage._head) == MEBIBYTE
    assert spool.getvalue() == data
    assert b"".join(spool.chunks()) == data


def test_the_file_has_no_name_and_is_private() -> None:
    spool = spool_of(b"x" * 2 * MEBIBYTE, memory_bytes=0)
    status = os.fstat(spool._storage._descriptor)
    assert status.st_nlink == 0
    assert status.st_mode & 0o077 == 0


def test_the_file_is_closed_with_the_spool(recwarn: pytest.WarningsRecorder) -> None:
    spool = spool_of(b"x" * 2 * MEBIBYTE, memory_bytes=0)
    descriptor = spool._storage._descriptor
    del spool
    run_blocking(anyio.to_thread.run_sync, int)  # An idle worker thread remembers its last call.
    gc.collect()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)
    assert not recwarn.list


def test_past_the_limit_bytes_are_dropped_and_counted() -> None:
    spool = spool_of(b"12345", b"67890", b"x", limit_bytes=7)
    assert spool.getvalue() == b"1234567"
    assert (spool.total_bytes, spool.dropped_bytes, spool.truncated) == (11, 4, True)
    assert list(spool.lines()) == ["1234567"]


def test_a_full_disk_truncates_and_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cwsandbox._runtime.storage.os.pwrite", full)
    spool = spool_of(b"a" * 1000, b"b" * MEBIBYTE, b"c" * 1000, memory_bytes=1000)
    assert spool.getvalue() == b"a" * 1000 + b"b" * MEBIBYTE
    assert (spool.truncated, spool.dropped_bytes) == (True, 1000)
    assert b"".join(spool.chunks()) == spool.getvalue()


def test_a_disk_that_fails_while_reading_raises_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    spool = spool_of(b"x" * 2 * MEBIBYTE, memory_bytes=0)
    reader = spool.chunks()
    with monkeypatch.context() as patch:

        def broken(*args: object) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr("cwsandbox._runtime.storage.os.pread", broken)
        with pytest.raises(OSError, match="Input/output"):
            next(reader)
        with pytest.raises(OSError, match="Input/output"):
            spool.getvalue()
    assert b"".join(reader) == b"x" * 2 * MEBIBYTE


async def test_what_fits_into_memory_can_be_fed_without_waiting() -> None:
    spool = Spool(memory_bytes=10)
    assert spool.feed_nowait(b"12345\n")
    assert not spool.feed_nowait(b"67890")
    await spool.feed(b"67890")
    spool.close()
    assert spool.getvalue() == b"12345\n67890"
    assert [line async for line in spool.lines()] == ["12345\n", "67890"]


# Lines.


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([], []),
        ([b""], []),
        ([b"a\nb", b"c\n"], ["a\n", "bc\n"]),
        ([b"a\n\n\nb"], ["a\n", "\n", "\n", "b"]),
        ([b"a\r", b"\nb\rc\n"], ["a\r\n", "b\rc\n"]),
        (["a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\n".encode()], ["a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\n"]),
        ([b"\xe2", b"\x98", b"\x83\n"], ["☃\n"]),
        ([b"\xf0\x9f\x98", b"\x80"], ["😀"]),
        ([b"\xff\n", b"\xe2\x98"], ["\ufffd\n", "\ufffd"]),
    ],
)
def test_lines(pieces: list[bytes], lines: list[str]) -> None:
    assert list(spool_of(*pieces).lines()) == lines


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.one_of(st.binary(max_size=12), st.text("aé☃😀\n\r\u2028", max_size=8).map(str.encode))),
)
def test_lines_joined_are_the_text_and_end_in_newlines(pieces: list[bytes]) -> None:
    spool = spool_of(*pieces)
    lines = list(spool.lines())
    assert "".join(lines) == b"".join(pieces).decode(errors="replace")
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines[:-1])


def test_a_line_arrives_before_the_stream_ends_and_a_partial_one_does_not() -> None:
    spool = spool_of(b"whole\npart", close=False)
    reader = spool.lines()
    assert next(reader) == "whole\n"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, reader)
        more(spool, b"ial")
        assert not waiting.done()
        more(spool, b"\n")
        assert waiting.result(5) == "partial\n"


def test_a_line_beyond_a_mebibyte_comes_in_parts() -> None:
    spool = spool_of(b"x" * PARTIAL_LINE_CHARACTERS, close=False)
    reader = spool.lines()
    assert next(reader) == "x" * PARTIAL_LINE_CHARACTERS
    more(spool, b"tail\nnext\n")
    spool.close()
    assert list(reader) == ["tail\n", "next\n"]


def test_the_end_is_final_and_what_was_not_read_is_replayed() -> None:
    spool = spool_of(b"a\nb\nc\n", close=False)
    reader = spool.lines()
    assert next(reader) == "a\n"
    spool.close()
    assert spool.lines() is reader
    assert list(reader) == ["b\n", "c\n"]
    assert list(reader) == []


def test_a_stream_is_read_one_way() -> None:
    spool = spool_of(b"a\n")
    spool.chunks()
    with pytest.raises(RuntimeError, match="either"):
        spool.lines()


def test_an_error_reaches_one_reader_after_the_data() -> None:
    spool = spool_of(b"a\nb", close=False)
    spool.close(Failure("lost"))
    spool.close(Failure("not this one"))
    reader = spool.lines()
    assert [next(reader), next(reader)] == ["a\n", "b"]
    with pytest.raises(Failure, match="lost"):
        next(reader)
    assert list(reader) == []


async def test_async_iteration_sees_the_same() -> None:
    spool = Spool()
    await spool.feed(b"a\nb\nc")
    spool.close(Failure("lost"))
    reader = spool.lines()
    assert await anext(reader) == "a\n"
    assert next(reader) == "b\n"
    with pytest.raises(Failure):
        async for line in reader:
            assert line == "c"
    assert [line async for line in reader] == []


async def test_async_iteration_reads_from_the_disk() -> None:
    spool = Spool(memory_bytes=10)
    for _ in range(30):
        await spool.feed(b"x" * 99_999 + b"\n")
    spool.close()
    assert spool._storage._written
    assert [len(line) async for line in spool.lines()] == [100_000] * 30


# Waking.


async def test_lines_from_another_loop_reach_an_idle_loop() -> None:
    spool = WatchedSpool()

    async def until_idle() -> None:
        assert await anyio.to_thread.run_sync(spool.waited_for.wait, 5)
        spool.waited_for.clear()

    async def produce() -> None:
        for number in range(3):
            await until_idle()
            await spool.feed(b"%d\n" % number)
        await until_idle()
        spool.close()

    ref = portal_scope().start(produce)
    with anyio.fail_after(5):
        got = [(line, ref._finished) async for line in spool.lines()]
    assert got == [("0\n", False), ("1\n", False), ("2\n", False)]


async def test_lines_from_the_own_loop() -> None:
    spool = Spool()
    got: list[str] = []

    async def consume() -> None:
        got.extend([line async for line in spool.lines()])

    async with anyio.create_task_group() as group:
        group.start_soon(consume)
        await anyio.wait_all_tasks_blocked()
        await spool.feed(b"a\n")
        await anyio.wait_all_tasks_blocked()
        assert got == []  # A list comprehension in one go; the end brings it.
        spool.close()
    assert got == ["a\n"]


def test_a_blocked_reader_is_woken_by_data_the_end_and_close() -> None:
    wakers: list[tuple[Callable[[Spool], None], list[str]]] = [
        (lambda spool: more(spool, b"a\n"), ["a\n"]),
        (lambda spool: spool.close(), []),
        (lambda spool: spool.lines().close(), []),
    ]
    for wake, expected in wakers:
        spool = WatchedSpool()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(lambda reader: list(itertools.islice(reader, 1)), spool.lines())
            assert spool.waited_for.wait(5)
            wake(spool)
            assert waiting.result(5) == expected


async def test_cancelling_a_waiting_reader_loses_nothing() -> None:
    spool = Spool()
    reader = spool.lines()
    with anyio.move_on_after(0.01):
        await anext(reader)
    assert not spool._waiters
    await spool.feed(b"a\nb\n")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anext(reader)
    assert await anext(reader) == "a\n"
    spool.close()
    assert [line async for line in reader] == ["b\n"]


async def test_blocking_iteration_on_the_feeding_loop_names_the_async_form() -> None:
    spool = Spool()
    spool.bind(LoopHandle.current())
    reader = spool.lines()
    with pytest.raises(RuntimeError, match="async for"):
        next(reader)
    await spool.feed(b"a\n")
    assert next(reader) == "a\n"  # What is there does not block.
    spool.close()
    assert list(reader) == []


def test_several_threads_split_the_items() -> None:
    spool = spool_of(close=False)
    numbers = range(20_000)

    async def produce() -> None:
        for at in range(0, len(numbers), 100):
            await spool.feed(b"".join(b"%d\n" % number for number in numbers[at : at + 100]))
        spool.close()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        consumers = [pool.submit(list, spool.lines()) for _ in range(4)]
        portal_scope().start(produce)
        shares = [[int(line) for line in consumer.result(20)] for consumer in consumers]
    assert sorted(number for share in shares for number in share) == list(numbers)
    assert all(share == sorted(share) for share in shares)


async def test_threads_and_tasks_split_the_items() -> None:
    spool = spool_of(close=False)
    shares: list[list[int]] = []

    async def consume() -> None:
        shares.append([int(line) async for line in spool.lines()])

    async def consume_in_thread() -> None:
        shares.append(await anyio.to_thread.run_sync(lambda: [int(line) for line in spool.lines()]))

    async def produce() -> None:
        for number in range(2000):
            await spool.feed(b"%d\n" % number)
        spool.close()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for consumer in (consume, consume_in_thread, consume, consume_in_thread):
                group.start_soon(consumer)
            portal_scope().start(produce)
    assert len(shares) == 4
    assert sorted(number for share in shares for number in share) == list(range(2000))


# Pace.


def paced_spool(**options: Any) -> tuple[Spool, Credits]:
    granted = Credits()
    return Spool(loop=portal_scope().loop, on_credit=granted.append, **options), granted


def test_without_a_reader_everything_is_credited_at_once() -> None:
    spool, granted = paced_spool()
    more(spool, b"x" * 1000)
    more(spool, b"y" * 24)
    assert granted == [1000, 24]


def test_a_reader_sets_the_pace() -> None:
    spool, granted = paced_spool()
    more(spool, b"first\n")
    reader = spool.lines()
    assert next(reader) == "first\n"
    for _ in range(10):
        more(spool, b"x" * 99_999 + b"\n")
    assert granted.total == 6
    for _ in range(10):
        next(reader)
    settle(spool)
    # The last pull is credited only when the reader comes back for more.
    assert 6 + 500_000 < granted.total < 6 + 1_000_000
    more(spool, b"last\n")
    assert next(reader) == "last\n"
    settle(spool)
    assert granted.total == 6 + 1_000_000


@pytest.mark.parametrize("how", ["close", "run_on", "set_unpaced"])
def test_what_lets_the_sender_run_on(how: str) -> None:
    spool, granted = paced_spool()
    more(spool, b"a\nb\n")
    reader = spool.lines()
    next(reader)
    more(spool, b"x" * 1000)
    assert granted.total == 4
    (reader.close if how == "close" else getattr(spool, how))()
    settle(spool)
    assert granted.total == 1004
    more(spool, b"y")
    assert granted.total == 1005
    assert spool.getvalue() == b"a\nb\n" + b"x" * 1000 + b"y"


def test_the_pace_returns_when_nobody_waits_any_more() -> None:
    spool, granted = paced_spool()
    next(iter(spool_reader(spool, b"a\n")))
    spool.run_on()
    spool.run_on()
    more(spool, b"b\n")
    spool.stop_running_on()
    more(spool, b"c\n")
    assert granted.total == 6
    spool.stop_running_on()
    more(spool, b"d\n")
    assert granted.total == 6


def spool_reader(spool: Spool, data: bytes) -> StreamReader[str]:
    more(spool, data)
    return spool.lines()


@pytest.mark.parametrize("options", [{}, {"keep": False}, {"limit_bytes": 100}], ids=["kept", "not kept", "past limit"])
def test_a_slow_reader_keeps_what_is_unread_within_the_window(options: Mapping[str, Any]) -> None:
    """A sender that obeys credit, a reader that is slow: what is in between is bounded, and nothing is lost."""
    spool = WatchedSpool(**options)
    total = 8 * MEBIBYTE
    line = b"x" * 1023 + b"\n"
    unread_at_most = 0

    async def send() -> None:
        nonlocal unread_at_most
        granted, sent, news = WINDOW, 0, anyio.Event()

        def on_credit(count: int) -> None:
            nonlocal granted
            granted += count
            news.set()

        spool.on_credit = on_credit
        while sent < total:
            news = anyio.Event()
            if granted < 32 * len(line):
                await news.wait()
                continue
            await spool.feed(line * 32)
            granted -= 32 * len(line)
            sent += 32 * len(line)
            unread_at_most = max(unread_at_most, sent - reader._position)
        spool.close()

    reader = spool.lines()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, reader)  # Begins to read before anything comes, so it sets the pace from the start.
        assert spool.waited_for.wait(5)
        ref = portal_scope().start(send)
        got = len(first.result(5))
    for item in reader:
        got += len(item)
    ref.result(5)
    assert got == total
    assert unread_at_most <= WINDOW
    assert len(spool._window) <= WINDOW
    kept = {"keep": 0, "limit_bytes": 100}.get(next(iter(options), ""), total)
    assert len(spool.getvalue()) == kept
    assert spool.dropped_bytes == (total - 100 if "limit_bytes" in options else 0)


def test_past_the_limit_a_reader_that_stopped_setting_the_pace_ends_there() -> None:
    spool, _ = paced_spool(limit_bytes=4)
    reader = spool_reader(spool, b"a\nb\nc\n")
    assert [next(reader), next(reader)] == ["a\n", "b\n"]
    assert list(reader) == []
    assert (spool.getvalue(), spool.dropped_bytes) == (b"a\nb\n", 2)


def test_not_kept_means_forgotten_when_read_and_paced_before_the_first_read() -> None:
    spool, granted = paced_spool(keep=False)
    more(spool, b"a\nb\n")
    assert granted == []
    reader = spool.lines()
    assert [next(reader), next(reader)] == ["a\n", "b\n"]
    assert not spool._window
    spool.run_on()
    more(spool, b"c\n")
    assert next(reader) == "c\n"
    reader.close()
    more(spool, b"d\n")
    settle(spool)
    assert granted.total == 8
    assert (spool.getvalue(), spool.truncated) == (b"", False)


def test_not_kept_and_never_asked_for_is_dropped_while_the_result_is_waited_for() -> None:
    spool, granted = paced_spool(keep=False)
    more(spool, bytes(UNREAD_BYTES))
    assert granted == []
    spool.run_on()
    settle(spool)
    more(spool, b"lost")
    assert granted.total == UNREAD_BYTES + 4
    spool.stop_running_on()
    more(spool, b"lost")  # A reader that can get no further sets no pace.
    assert (granted.total, spool.dropped_bytes) == (UNREAD_BYTES + 8, 8)
    spool.close(Failure())
    reader = spool.chunks()
    assert next(reader) == bytes(UNREAD_BYTES)
    with pytest.raises(Failure):
        next(reader)


def test_not_kept_and_asked_for_is_paced_although_the_result_is_waited_for() -> None:
    spool, granted = paced_spool(keep=False)
    spool.expect_reader()
    spool.run_on()
    more(spool, bytes(UNREAD_BYTES))
    settle(spool)
    assert granted == []


def test_a_long_line_does_not_stall_on_the_window() -> None:
    granted, news = Credits(), threading.Semaphore(0)

    def credit(count: int) -> None:
        granted.append(count)
        news.release()

    spool = Spool(loop=portal_scope().loop, on_credit=credit)
    reader = spool.lines()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, reader)
        waiting.add_done_callback(lambda _: news.release())
        sent = 0
        while not waiting.done():
            if sent - granted.total < WINDOW:
                more(spool, b"x" * 64 * 1024)
                sent += 64 * 1024
            else:
                assert news.acquire(timeout=20), "it stalls"
        assert len(waiting.result()) >= PARTIAL_LINE_CHARACTERS


def test_closing_a_reader_calls_back_once_and_discards() -> None:
    calls: list[int] = []
    spool = spool_of(b"a\nb\n", close=False)
    reader = spool.lines(on_close=lambda: calls.append(1))
    assert next(reader) == "a\n"
    reader.close()
    reader.close()
    assert calls == [1]
    assert list(reader) == []
    spool.close(Failure("after close"))
    assert list(reader) == []


def test_a_large_output_that_is_kept_to_the_end_of_the_program_is_no_warning() -> None:
    code = (
        "from cwsandbox._runtime.storage import Storage\n"
        "kept = Storage(1); kept.append(b'x' * 2**21); kept.write_tail(); kept.drop_tail()"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("count", [0, 5, 50, MEBIBYTE + 50, 5 * MEBIBYTE])
def test_the_last_bytes_lie_in_memory_or_on_the_disk(count: int) -> None:
    data = bytes(range(256)) * (3 * MEBIBYTE // 256) + b"the end"
    spool = spool_of(data[:10], data[10 : 2 * MEBIBYTE], data[2 * MEBIBYTE :], memory_bytes=100)
    pieces = [piece if isinstance(piece, bytes) else piece.read() for piece in spool.last_pieces(count)]
    assert b"".join(pieces) == data[len(data) - min(count, len(data)) :]
