"""Reading output while a command runs (S53 to S56, FIX-H to FIX-K, behaviour 4.4 and 5.4).

That a line arrives before the command ends is shown by commands which wait for an answer on stdin before they go on.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

from cwsandbox import Sandbox, SandboxNotRunningError, SandboxTimeoutError

if TYPE_CHECKING:
    from tests.support.gateway import ServedGateway

TURNS = "for i in 0 1 2; do echo $i; read answer || exit 1; done; echo done"


@pytest.mark.row("S53", "S56")
def test_s053_s056_lines_arrive_before_the_command_ends(sb: Sandbox) -> None:
    process = sb.exec(["sh", "-c", TURNS], stdin=True)
    assert process.stdin is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line != "done\n":
            assert process.poll() is None
            process.stdin.writeline("go on").result()
    assert seen == ["0\n", "1\n", "2\n", "done\n"]
    result = process.result()
    assert result.stdout == "".join(seen)
    assert result.returncode == 0


@pytest.mark.row("S53", "S56")
async def test_s053_s056_lines_arrive_before_the_command_ends_async(asb: Sandbox) -> None:
    process = asb.exec(["sh", "-c", TURNS], stdin=True)
    assert process.stdin is not None
    seen = []
    async for line in process.stdout:
        seen.append(line)
        if line != "done\n":
            assert process.poll() is None
            await process.stdin.writeline("go on")
    assert seen == ["0\n", "1\n", "2\n", "done\n"]
    result = await process
    assert result.stdout == "".join(seen)
    assert result.returncode == 0


@pytest.mark.row("S54", "S56", "FIX-H")
async def test_s054_lines_arrive_promptly_on_an_idle_loop(asb: Sandbox) -> None:
    process = asb.exec(["sh", "-c", TURNS], stdin=True)
    assert process.stdin is not None
    seen = []
    async for line in process.stdout:
        seen.append(line)
        if line != "done\n":
            await process.stdin.writeline("go on")
    assert seen == ["0\n", "1\n", "2\n", "done\n"]
    assert (await process).stdout == "".join(seen)


@pytest.mark.row("S54", "FIX-H")
async def test_s054_lines_of_a_background_sandbox_arrive_promptly_on_any_idle_loop(sb: Sandbox) -> None:
    process = sb.exec(["sh", "-c", TURNS], stdin=True)
    assert process.stdin is not None
    seen = []
    async for line in process.stdout:
        seen.append(line)
        if line != "done\n":
            process.stdin.writeline("go on")
    assert seen == ["0\n", "1\n", "2\n", "done\n"]
    assert (await process).returncode == 0


@pytest.mark.row("S55", "FIX-J")
def test_s055_items_are_lines(sb: Sandbox) -> None:
    process = sb.exec(["printf", r"a\nb\n\nlast"])
    assert list(process.stdout) == ["a\n", "b\n", "\n", "last"]
    assert list(process.stdout) == []


@pytest.mark.row("S55", "FIX-J")
async def test_s055_items_are_lines_async(asb: Sandbox) -> None:
    process = asb.exec(["printf", r"a\nb\n\nlast"])
    assert [line async for line in process.stdout] == ["a\n", "b\n", "\n", "last"]
    assert [line async for line in process.stdout] == []


@pytest.mark.row("S55", "FIX-J")
def test_s055_a_line_written_in_pieces_is_one_item(sb: Sandbox) -> None:
    code = "printf 'half '; echo got >&2; read x; printf 'line\\n'; echo end"
    process = sb.exec(["sh", "-c", code], stdin=True)
    assert process.stdin is not None
    assert next(process.stderr) == "got\n"
    process.stdin.writeline("").result()
    assert list(process.stdout) == ["half line\n", "end\n"]


@pytest.mark.row("S55")
@pytest.mark.parametrize("separator", ["\\r", "\\x0b", "\\x0c", "\\u2028", "\\x85"])
def test_s055_only_newline_ends_a_line(sb: Sandbox, separator: str) -> None:
    code = f"import sys; sys.stdout.buffer.write('a{separator}b\\nc'.encode())"
    process = sb.exec(["python", "-c", code])
    lines = list(process.stdout)
    assert len(lines) == 2
    assert lines[1] == "c"


@pytest.mark.row("FIX-K")
def test_fix_k_a_character_split_over_writes_stays_whole(sb: Sandbox) -> None:
    code = r"printf '\303'; echo half >&2; read x; printf '\244\n'"
    process = sb.exec(["sh", "-c", code], stdin=True)
    assert process.stdin is not None
    assert next(process.stderr) == "half\n"
    process.stdin.writeline("").result()
    assert list(process.stdout) == ["ä\n"]
    assert process.result().stdout == "ä\n"


@pytest.mark.row("FIX-K")
async def test_fix_k_a_character_split_over_writes_stays_whole_async(asb: Sandbox) -> None:
    code = r"printf '\303'; echo half >&2; read x; printf '\244\n'"
    process = asb.exec(["sh", "-c", code], stdin=True)
    assert process.stdin is not None
    assert await anext(process.stderr) == "half\n"
    await process.stdin.writeline("")
    assert [line async for line in process.stdout] == ["ä\n"]
    assert (await process).stdout == "ä\n"


def test_stdout_and_stderr_are_independent(sb: Sandbox) -> None:
    process = sb.exec(["sh", "-c", "echo out; echo err >&2"])
    assert list(process.stderr) == ["err\n"]
    assert list(process.stdout) == ["out\n"]


@pytest.mark.row("S56")
def test_s056_iterating_after_the_result_gives_everything(sb: Sandbox) -> None:
    process = sb.exec(["seq", "1000"])
    result = process.result()
    assert "".join(process.stdout) == result.stdout
    assert result.stdout.splitlines() == [str(n) for n in range(1, 1001)]


@pytest.mark.row("S56")
async def test_s056_iterating_after_the_result_gives_everything_async(asb: Sandbox) -> None:
    process = asb.exec(["seq", "1000"])
    result = await process
    assert "".join([line async for line in process.stdout]) == result.stdout


def test_lines_join_to_the_result_for_large_output(sb: Sandbox) -> None:
    process = sb.exec(["seq", "300000"])
    lines = list(process.stdout)
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)
    assert len(lines) == 300000
    assert "".join(lines) == process.result().stdout


def test_output_without_newlines_comes_in_bounded_pieces(sb: Sandbox) -> None:
    process = sb.exec(["sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x"])
    pieces = list(process.stdout)
    assert "".join(pieces) == "x" * 5_000_000
    assert max(map(len, pieces)) <= 2 * 1024 * 1024


def test_next_works_and_the_end_is_sticky(sb: Sandbox) -> None:
    process = sb.exec(["printf", r"one\ntwo\n"])
    assert iter(process.stdout) is process.stdout
    assert next(process.stdout) == "one\n"
    assert next(process.stdout) == "two\n"
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(process.stdout)


def test_closing_a_reader_stops_iteration_only(sb: Sandbox) -> None:
    process = sb.exec(["sh", "-c", "echo one; read x; echo two"], stdin=True)
    assert process.stdin is not None
    assert next(process.stdout) == "one\n"
    process.stdout.close()
    process.stdout.close()
    assert list(process.stdout) == []
    process.stdin.writeline("go").result()
    assert process.result().stdout == "one\ntwo\n"


def test_closing_a_reader_wakes_a_blocked_consumer(sb: Sandbox) -> None:
    process = sb.exec(["cat"], stdin=True)
    assert process.stdin is not None
    waiting, seen = threading.Event(), []

    def consume() -> None:
        waiting.set()
        seen.append(list(process.stdout))

    thread = threading.Thread(target=consume)
    thread.start()
    assert waiting.wait(30)
    process.stdout.close()
    thread.join(30)
    assert seen == [[]]
    process.stdin.close().result()
    process.result()


def test_two_consumers_split_the_lines_and_both_end(sb: Sandbox) -> None:
    process = sb.exec(["seq", "2000"])
    seen: list[list[str]] = []
    threads = [threading.Thread(target=lambda: seen.append(list(process.stdout))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == 2
    assert sorted(int(line) for part in seen for line in part) == list(range(1, 2001))


@pytest.mark.row("FIX-I")
def test_fix_i_streams_end_when_the_sandbox_is_already_stopped(home_folder: object) -> None:
    sandbox = Sandbox.run()
    sandbox.stop().result()
    process = sandbox.exec(["echo", "hello"])
    assert list(process.stdout) == []
    assert list(process.stderr) == []
    with pytest.raises(SandboxNotRunningError):
        process.result()


@pytest.mark.row("FIX-I")
async def test_fix_i_streams_end_when_the_sandbox_is_already_stopped_async(home_folder: object) -> None:
    sandbox = Sandbox()
    await sandbox.stop()
    process = sandbox.exec(["echo", "hello"])
    assert [line async for line in process.stdout] == []
    with pytest.raises(SandboxNotRunningError):
        await process


@pytest.mark.row("FIX-I")
def test_fix_i_streams_end_when_the_start_fails(gateway: ServedGateway) -> None:
    gateway.refuse("create", times=10)
    process = Sandbox(base_url=gateway.url).exec(["echo", "hello"])
    assert list(process.stdout) == []


@pytest.mark.row("FIX-I")
def test_streams_end_on_a_time_out(sb: Sandbox) -> None:
    process = sb.exec(["sh", "-c", "echo one; sleep 60"], timeout_seconds=1)
    assert list(process.stdout) == ["one\n"]
    with pytest.raises(SandboxTimeoutError):
        process.result()


def test_a_slow_reader_gets_every_byte(sb: Sandbox) -> None:
    process = sb.exec(["seq", "500000"])
    lines = [next(process.stdout) for _ in range(10)]
    sb.exec(["seq", "500000"]).result()
    lines.extend(process.stdout)
    assert lines == [f"{n}\n" for n in range(1, 500001)]


def test_a_stalled_reader_delays_no_other_command(sb: Sandbox) -> None:
    stalled = sb.exec(["sh", "-c", "seq 3000000"])
    assert next(stalled.stdout) == "1\n"
    for _ in range(20):
        assert sb.exec(["echo", "quick"]).result(timeout=30).stdout == "quick\n"
    stalled.stdout.close()
    assert stalled.result().returncode == 0


async def test_leaving_iteration_early_and_awaiting_the_result(asb: Sandbox) -> None:
    process = asb.exec(["seq", "400000"])
    async for line in process.stdout:
        assert line == "1\n"
        break
    result = await process
    assert result.stdout.endswith("400000\n")


async def test_cancelling_iteration_loses_no_line(asb: Sandbox) -> None:
    process = asb.exec(["sh", "-c", "read x; seq 3"], stdin=True)
    assert process.stdin is not None
    with anyio.move_on_after(0.05) as scope:
        await anext(process.stdout)
    assert scope.cancelled_caught
    await process.stdin.writeline("go")
    assert [line async for line in process.stdout] == ["1\n", "2\n", "3\n"]


def test_a_reader_serves_threads_and_loops_in_turn(sb: Sandbox) -> None:
    process = sb.exec(["seq", "4"])
    assert next(process.stdout) == "1\n"

    async def take_one() -> str:
        return await anext(process.stdout)

    assert asyncio.run(take_one()) == "2\n"
    assert anyio.run(take_one, backend="trio") == "3\n"
    assert list(process.stdout) == ["4\n"]


def test_logs_of_the_main_command(home_folder: object) -> None:
    sandbox = Sandbox.run("sh", "-c", "echo out; echo err >&2; printf tail")
    sandbox.wait_until_complete().result()
    # The two streams are logged as they come: the end of one may be in the middle of the other's.
    assert "".join(sandbox.stream_logs()) in {"out\nerr\ntail", "err\nout\ntail", "out\ntailerr\n"}


async def test_following_logs_ends_with_the_sandbox(home_folder: object) -> None:
    async with Sandbox(command="sh", args=["-c", "echo one; sleep 0.2; echo two"]) as sandbox:
        assert [line async for line in sandbox.stream_logs(follow=True)] == ["one\n", "two\n"]


def test_logs_never_show_commands_and_take_tail_lines(home_folder: object) -> None:
    with Sandbox.run("sh", "-c", "seq 10; sleep 60") as sandbox:
        following = sandbox.stream_logs(follow=True)
        assert [next(following) for _ in range(10)][-1] == "10\n"
        following.close()
        sandbox.exec(["echo", "not a log"]).result()
        assert list(sandbox.stream_logs(tail_lines=2)) == ["9\n", "10\n"]
        stamped = list(sandbox.stream_logs(tail_lines=1, timestamps=True))
        assert stamped[0].endswith(" 10\n")
        assert stamped[0][:2] == "20"
