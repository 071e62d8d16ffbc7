"""Files over the application's exec channel, and what the main command printed."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import anyio
import pytest

from cwsandbox._logs import _Place
from cwsandbox.gateway.mainlog import Entry, MainLog, tail
from cwsandbox.wire.channel import StreamKind
from cwsandbox.wire.codec import PosixPath
from cwsandbox.wire.errors import Code, Reason
from cwsandbox.wire.streams import LogsOpen, ReadOpen, WriteOpen
from tests.gateway.conftest import spec_of

if TYPE_CHECKING:
    from pathlib import Path

    from cwsandbox.gateway.sandbox import LiveSandbox
    from tests.gateway.client import ChannelClient, Result
    from tests.gateway.conftest import World


async def write(client: ChannelClient, result: Result, data: bytes) -> Result:
    at = 0
    while at < len(data) and not result.ended.is_set():
        room = min(result.stream.room(), len(data) - at)
        if not room:
            await result.news.wait()
            continue
        result.stream.send(data[at : at + room])
        at += room
        client.wake()
    result.stream.send_eof()
    client.wake()
    return await result.wait()


class TestFiles:
    @pytest.mark.parametrize("size", [0, 1, 300_000, 5_000_000])
    async def test_a_file_goes_in_and_comes_out(self, world: World, folder: Path, size: int) -> None:
        sandbox, client = await world.sandbox(), await world.client()
        data, path = os.urandom(size), PosixPath(str(folder / "file"))
        opened = client.open(
            StreamKind.WRITE, WriteOpen(sandbox_id=sandbox.record.sandbox_id, path=path, size=size), "w"
        )
        assert (await write(client, opened, data)).status == 0
        read = client.open(StreamKind.READ, ReadOpen(sandbox_id=sandbox.record.sandbox_id, path=path), "r")
        await read.wait()
        assert (read.stdout, read.status, read.confirmed) == (data, 0, {"size": size})

    async def test_a_write_that_is_given_up_leaves_the_old_file(self, world: World, folder: Path) -> None:
        sandbox, client = await world.sandbox(), await world.client()
        path = folder / "file"
        path.write_bytes(b"old")
        opened = client.open(
            StreamKind.WRITE, WriteOpen(sandbox_id=sandbox.record.sandbox_id, path=PosixPath(str(path)))
        )
        opened.stream.send(b"new")
        client.wake()
        await opened.confirmed_event.wait()
        opened.stream.close()
        client.wake()
        await opened.wait()
        assert path.read_bytes() == b"old"
        assert min(os.listdir(folder)) == "file"
        assert not (folder / "file.part").exists()

    async def test_a_write_of_another_size_than_announced_is_not_made(self, world: World, folder: Path) -> None:
        sandbox, client = await world.sandbox(), await world.client()
        path = PosixPath(str(folder / "file"))
        opened = client.open(StreamKind.WRITE, WriteOpen(sandbox_id=sandbox.record.sandbox_id, path=path, size=10))
        result = await write(client, opened, b"four")
        assert result.failure is not None
        assert result.failure.metadata["filepath"] == path
        assert not os.path.exists(path)

    @pytest.mark.parametrize(
        ("path", "code", "reason"),
        [
            ("/no/such/file", Code.NOT_FOUND, Reason.FILE_NOT_FOUND),
            ("/tmp", Code.FAILED_PRECONDITION, Reason.FILE_IS_DIRECTORY),
            ("/proc/self/mem/x", Code.FAILED_PRECONDITION, Reason.FILE_NOT_A_DIRECTORY),
        ],
    )
    async def test_errors_of_files_are_typed(self, world: World, path: str, code: Code, reason: Reason) -> None:
        sandbox, client = await world.sandbox(), await world.client()
        result = await client.open(
            StreamKind.READ, ReadOpen(sandbox_id=sandbox.record.sandbox_id, path=PosixPath(path)), "r"
        ).wait()
        assert result.failure is not None
        assert (result.failure.code, result.failure.reason) == (code, reason)
        assert result.failure.metadata["filepath"] == path

    async def test_permission_denied_is_typed(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        sandbox, client = await world.sandbox(), await world.client()

        async def refuse(path: str) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(world.runner.boxes[sandbox.record.sandbox_id], "open_file", refuse)
        result = await client.open(
            StreamKind.READ, ReadOpen(sandbox_id=sandbox.record.sandbox_id, path=PosixPath("/x"))
        ).wait()
        assert result.failure is not None
        assert result.failure.reason == Reason.FILE_PERMISSION_DENIED

    async def test_a_transfer_has_its_own_limit(self, world: World, folder: Path) -> None:
        sandbox, client = await world.sandbox(), await world.client()
        path = PosixPath(str(folder / "file"))
        opened = client.open(
            StreamKind.WRITE, WriteOpen(sandbox_id=sandbox.record.sandbox_id, path=path, timeout_seconds=0.1)
        )
        result = await opened.wait()
        assert result.failure is not None
        assert result.failure.code is Code.DEADLINE_EXCEEDED
        assert not os.path.exists(path)

    async def test_files_of_an_ended_sandbox_cannot_be_read(self, world: World) -> None:
        sandbox, client = await world.sandbox(), await world.client()
        world.service.stop(sandbox.record.principal, sandbox.record.sandbox_id, 0)
        result = await client.open(
            StreamKind.READ, ReadOpen(sandbox_id=sandbox.record.sandbox_id, path=PosixPath("/x"))
        ).wait()
        assert result.failure is not None
        assert result.failure.reason == Reason.SANDBOX_NOT_RUNNING


PRINTER = ("sh", "-c", "echo one; echo two >&2; echo three; sleep 1000")


async def printed(sandbox: LiveSandbox, size: int) -> None:
    with anyio.fail_after(10):
        snapshot = await sandbox.log.read()
        while sum(len(entry.data) for entry in snapshot.entries) < size:
            await sandbox.log.wait_beyond(snapshot.position)
            snapshot = await sandbox.log.read()


def logs(client: ChannelClient, sandbox: LiveSandbox, **fields: object) -> Result:
    return client.open(StreamKind.LOGS, LogsOpen(sandbox_id=sandbox.record.sandbox_id, **fields))  # type: ignore[arg-type]


class TestLogs:
    async def test_what_main_printed(self, world: World) -> None:
        sandbox, client = await world.sandbox(*PRINTER), await world.client()
        await printed(sandbox, 14)
        result = await logs(client, sandbox).wait()
        assert sorted(result.stdout.splitlines()) == [b"one", b"three", b"two"]
        assert result.status == 0

    async def test_the_tail(self, world: World) -> None:
        sandbox, client = await world.sandbox("sh", "-c", "seq 100; sleep 1000"), await world.client()
        await printed(sandbox, 292)
        assert (await logs(client, sandbox, tail_lines=2).wait()).stdout == b"99\n100\n"
        assert (await logs(client, sandbox, tail_lines=1000).wait()).stdout.startswith(b"1\n2\n")

    async def test_since_and_timestamps(self, world: World) -> None:
        sandbox, client = await world.sandbox("sh", "-c", "echo a; sleep 1000"), await world.client()
        await printed(sandbox, 2)
        later = datetime.now(UTC) + timedelta(seconds=5)
        assert (await logs(client, sandbox, since_time=later).wait()).stdout == b""
        stamped = (await logs(client, sandbox, timestamps=True).wait()).stdout
        assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z a\n", stamped)

    async def test_following_ends_with_the_sandbox(self, world: World) -> None:
        sandbox = await world.sandbox("sh", "-c", "trap 'echo bye; exit' TERM; echo hi; while :; do sleep 0.01; done")
        client = await world.client()
        result = logs(client, sandbox, follow=True)
        await result.wait_output(3)
        world.service.stop(sandbox.record.principal, sandbox.record.sandbox_id, 10)
        await result.wait()
        assert (result.stdout, result.status) == (b"hi\nbye\n", 0)

    @pytest.mark.parametrize("timestamps", [False, True])
    async def test_a_lost_stream_is_gone_on_with_at_any_byte(self, world: World, timestamps: bool) -> None:
        sandbox, client = await world.sandbox("sh", "-c", "printf 'a\\n\\nbc'; sleep 1000"), await world.client()
        await printed(sandbox, 5)
        whole = (await logs(client, sandbox, timestamps=timestamps).wait()).stdout
        place = _Place(0, stamps=timestamps)
        for taken in range(len(whole) + 1):
            fields = {"position": place.position, "stamp_bytes": place.stamp_bytes}
            rest = await logs(client, sandbox, timestamps=timestamps, **fields).wait()
            assert rest.stdout == whole[taken:]
            place.advance(whole[taken : taken + 1])

    async def test_what_is_no_longer_kept_is_not_skipped_in_silence(self, world: World) -> None:
        sandbox, client = await world.sandbox(), await world.client()
        sandbox.log._half = 1000
        for _ in range(100):
            await sandbox.log.append(b"x" * 99 + b"\n")
        result = await logs(client, sandbox, position=5).wait()
        assert result.failure is not None
        assert result.failure.code is Code.DATA_LOSS

    async def test_the_time_limit_ends_a_follower(self, world: World) -> None:
        sandbox, client = await world.sandbox("sh", "-c", "printf part; sleep 1000"), await world.client()
        await printed(sandbox, 4)
        result = await logs(client, sandbox, follow=True, timeout_seconds=0.2).wait()
        assert result.stdout == b"part"
        assert result.failure is not None
        assert result.failure.code is Code.DEADLINE_EXCEEDED

    async def test_history_of_an_ended_sandbox(self, world: World) -> None:
        sandbox, client = await world.service.create("uid:1000", spec_of("echo", "was here")), await world.client()
        await world.service.wait_for("uid:1000", sandbox.record.sandbox_id, "terminal", 10)
        assert (await logs(client, sandbox).wait()).stdout == b"was here\n"
        refused = await logs(client, sandbox, follow=True).wait()
        assert refused.failure is not None
        assert refused.failure.reason == Reason.SANDBOX_NOT_RUNNING

    async def test_a_reader_that_gives_up_ends_the_stream(self, world: World) -> None:
        sandbox, client = await world.sandbox(), await world.client()
        result = logs(client, sandbox, follow=True)
        await result.confirmed_event.wait()
        result.stream.close()
        client.wake()
        await result.wait()


class TestMainLog:
    async def test_it_keeps_the_end_within_its_limit(self, folder: Path) -> None:
        log = MainLog(str(folder / "log"), limit_bytes=10_000)
        for number in range(1000):
            await log.append(b"%04d" % number * 10)
        snapshot = await log.read()
        assert snapshot.position == 40_000
        assert snapshot.entries[-1].data == b"0999" * 10
        assert snapshot.oldest == 40_000 - 40 * len(snapshot.entries)
        assert sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()) < 11_000
        assert len(snapshot.entries) > 90
        again = MainLog.reopen(str(folder / "log"))
        assert [entry.data for entry in (await again.read()).entries] == [entry.data for entry in snapshot.entries]
        await log.remove()
        assert [name for name in os.listdir(folder) if name.startswith("log") and name != "logs"] == []

    async def test_what_was_logged_and_not_released_is_not_logged_again(self, folder: Path) -> None:
        class Replay:
            """A stream that an earlier gateway had released up to 2."""

            def __init__(self, content: bytes) -> None:
                self.position = 2
                self._content = content

            async def receive(self, max_bytes: int = 65536) -> bytes:
                data = self._content[self.position : self.position + 3]
                if not data:
                    raise anyio.EndOfStream
                self.position += len(data)
                return data

            def release(self, offset: int) -> None:
                assert offset == self.position

        log = MainLog(str(folder / "log"))
        await log.append(b"abc", 0, 3)
        await log.append(b"12345", 1, 5)
        await log.append(b"def", 0, 6)
        again = MainLog.reopen(str(folder / "log"))
        await again.pump(Replay(b"abcdefghi"), 0)  # type: ignore[arg-type]
        await again.pump(Replay(b"1234567"), 1)  # type: ignore[arg-type]
        assert b"".join(entry.data for entry in (await again.read()).entries) == b"abc12345defghi67"

    async def test_a_reader_goes_on_at_any_byte_in_memory_and_on_disk(self, folder: Path) -> None:
        log = MainLog(str(folder / "log"))
        text = b"".join(b"%06d\n" % number for number in range(60_000))
        for begin in range(0, len(text), 50_000):
            await log.append(text[begin : begin + 50_000])
        for reopened in (log, MainLog.reopen(str(folder / "log"))):
            for position in (0, 1, 49_999, 50_000, 123_456, len(text) - 3, len(text)):
                snapshot = await reopened.read(position)
                assert b"".join(entry.data for entry in snapshot.entries) == text[position:]
                assert (snapshot.oldest, snapshot.position) == (0, len(text))

    async def test_the_log_of_what_ended_before_is_read_from_its_files(self, folder: Path) -> None:
        log = MainLog(str(folder / "log"), limit_bytes=2000)
        for number in range(200):
            await log.append(b"%04d\n" % number)
        kept = await log.read()
        log = MainLog(str(folder / "log"))
        log.close()
        assert (await log.read()).entries == kept.entries
        assert (await log.read()).position == 1000
        assert [entry.data for entry in (await log.read(991)).entries] == [b"198\n", b"0199\n"]
        assert (await log.read(1000)).entries == ()
        assert (await log.read(1000)).position == 1000

    async def test_half_an_entry_at_the_end_is_cut_off(self, folder: Path) -> None:
        path = folder / "log"
        log = MainLog(str(path))
        await log.append(b"whole\n")
        size = path.stat().st_size
        await log.append(b"half\n")
        os.truncate(path, path.stat().st_size - 2)
        log = MainLog.reopen(str(path))
        assert path.stat().st_size == size
        await log.append(b"next\n")
        log = MainLog.reopen(str(path))
        assert b"".join(entry.data for entry in (await log.read()).entries) == b"whole\nnext\n"

    async def test_positions_go_on_after_the_older_half_was_dropped(self, folder: Path) -> None:
        log = MainLog(str(folder / "log"), limit_bytes=2000)
        for number in range(200):
            await log.append(b"%04d\n" % number)
        again = MainLog.reopen(str(folder / "log"))
        before, after = await log.read(), await again.read()
        assert (after.oldest, after.position) == (before.oldest, before.position)
        assert before.position == 1000
        assert before.oldest > 0
        assert after.entries == before.entries

    async def test_files_that_cannot_be_removed_are_told_of(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (folder / "file").touch()
        await MainLog(str(folder / "file" / "log")).remove()
        assert "could not be removed" in caplog.text

    def test_tails(self) -> None:
        entries = tuple(Entry(0, data) for data in (b"a\nb", b"c\n", b"d\ne\n", b"f"))
        assert [b"".join(entry.data for entry in tail(entries, lines)) for lines in (1, 2, 3, 9)] == [
            b"f",
            b"e\nf",
            b"d\ne\nf",
            b"a\nbc\nd\ne\nf",
        ]
        assert tail((), 3) == ()
