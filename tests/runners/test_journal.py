"""Journals: what was put in, what was taken out, and what another holder of the descriptor makes of them."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

import anyio
import pytest

from cwsandbox.runners.local import journal
from cwsandbox.runners.local.journal import Journal
from cwsandbox.runners.local.streams import InputStream, OutputStream

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024 * 1024


@pytest.fixture
def fd() -> Iterator[int]:
    fd = journal.make()
    yield fd
    os.close(fd)


def resident(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def pipe_with(data: bytes) -> tuple[int, int]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    os.write(write, data)
    return read, write


def test_what_was_not_released_is_there_for_the_next_holder(fd: int) -> None:
    read, write = pipe_with(b"abcdef")
    first = Journal(os.dup(fd))
    assert first.fill(read, 4) == 4
    assert first.fill(read, 100) == 2
    with pytest.raises(BlockingIOError):
        first.fill(read, 100)
    first.release(2)
    first.close()
    second = Journal(os.dup(fd))
    assert (second.taken, second.end, second.read(second.taken, 100)) == (2, 6, b"cdef")
    os.close(write)
    assert second.fill(read, 100) == 0
    second.close()
    os.close(read)


def test_no_more_than_a_gateway_leaves_is_carried_on(fd: int) -> None:
    os.truncate(fd, 2**40)
    lying = Journal(os.dup(fd))
    assert (lying.taken, lying.end) == (2**40 - journal.MOST_BYTES, 2**40)
    lying.close()


def test_an_input_goes_on_behind_what_the_pipe_took(fd: int) -> None:
    read, write = pipe_with(b"")
    first = Journal(os.dup(fd))
    content = os.urandom(200_000)
    first.put(content)
    taken = first.drain(write, terminal=False)
    assert 0 < taken < len(content)
    with pytest.raises(BlockingIOError):
        first.drain(write, terminal=False)
    first.close()
    second = Journal(os.dup(fd))
    assert (second.taken, second.end) == (taken, len(content))
    arrived = b""
    while len(arrived) < len(content):
        arrived += os.read(read, 65536)
        if second.taken < second.end:
            second.drain(write, terminal=False)
    assert arrived == content
    second.close()
    for end in (read, write):
        os.close(end)


def test_memory_is_given_back_behind_what_was_released(fd: int) -> None:
    kept = Journal(os.dup(fd))
    for number in range(64):
        kept.put(bytes([number]) * MIB)
        kept.release(kept.end - 100_000)
        assert resident(fd) < 3 * MIB
    assert kept.read(kept.taken, 200_000) == b"\x3f" * 100_000
    kept.close()


def test_the_end_is_remembered(fd: int) -> None:
    read, write = pipe_with(b"late words of a daemon")
    first = Journal(os.dup(fd))
    assert not first.sealed
    first.seal()
    first.close()
    second = Journal(os.dup(fd))
    assert second.sealed
    with pytest.raises(OSError, match="not permitted"):
        second.fill(read, 100)
    second.close()
    for end in (read, write):
        os.close(end)


def test_only_memory_is_a_journal(fd: int) -> None:
    assert journal.is_journal(fd)
    file = os.open("/proc/self/status", os.O_RDONLY)
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    assert not any(journal.is_journal(other) for other in (file, read, null))
    for other in (file, read, write, null):
        os.close(other)


def test_a_position_beyond_the_end_is_the_end(fd: int) -> None:
    os.lseek(fd, 10**6, os.SEEK_SET)
    lied = Journal(os.dup(fd))
    assert (lied.taken, lied.end, lied.read(lied.taken, 10)) == (0, 0, b"")
    lied.close()


class TestAnAgentThatMeddles:
    """The agent has the descriptor too, and what is in a box may have the agent."""

    async def test_a_cut_input_is_broken_and_does_not_keep_the_loop_busy(self, fd: int) -> None:
        read, write = pipe_with(b"")
        sink = InputStream(write, Journal(os.dup(fd)), lambda: None)
        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(5), pytest.raises(anyio.BrokenResourceError):
                tasks.start_soon(cut_when_full, fd, read)
                await sink.send(bytes(200_000))
        sink.close()
        os.close(read)

    async def test_a_cut_output_ends(self, fd: int) -> None:
        read, write = pipe_with(b"abc")
        source = OutputStream(read, Journal(os.dup(fd)))
        assert await source.receive(1) == b"a"
        os.write(write, b"def")
        source._journal.fill(read, 100)
        os.ftruncate(fd, 1)
        with pytest.raises(anyio.EndOfStream):
            await source.receive()
        source.close()
        os.close(write)

    @pytest.mark.parametrize("seals", [fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SEAL])
    async def test_a_sealed_journal_fails_its_own_stream_only(self, fd: int, seals: int) -> None:
        read, write = pipe_with(b"abc")
        source = OutputStream(read, Journal(os.dup(fd)))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        os.close(write)
        source.command_exited()
        source.settle()
        with anyio.fail_after(5):
            try:
                while True:
                    await source.receive()
            except (anyio.EndOfStream, OSError):
                pass
        source.release(10)
        source.close()


async def cut_when_full(fd: int, read: int) -> None:
    await anyio.wait_all_tasks_blocked()
    os.ftruncate(fd, 0)
    os.read(read, 100_000)
