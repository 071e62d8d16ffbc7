"""OperationRef and Process as handles (S1 to S5, behaviour 4.1 and 4.2)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import dataclasses
import pickle
import threading
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

import cwsandbox
from cwsandbox import OperationRef, Process, ProcessResult, Sandbox, SandboxFileError
from tests.support.processes import assert_gone, new_marker

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.row("S1")
def test_s001_a_ref_gives_its_value_to_result_and_to_await(sb: Sandbox) -> None:
    sb.write_file("/tmp/value", b"same").result()
    ref = sb.read_file("/tmp/value")

    async def await_it() -> bytes:
        return await ref

    assert isinstance(ref, OperationRef)
    assert ref.result() == b"same"
    assert asyncio.run(await_it()) == b"same"


@pytest.mark.row("S1")
async def test_s001_a_ref_gives_its_value_to_await_and_to_result(asb: Sandbox) -> None:
    await asb.write_file("/tmp/value", b"same")
    ref = asb.read_file("/tmp/value")
    assert await ref == b"same"
    assert await anyio.to_thread.run_sync(ref.result) == b"same"


@pytest.mark.row("S2")
async def test_s002_result_and_await_raise_the_same_error(asb: Sandbox) -> None:
    ref = asb.read_file("/no/such/file")
    with pytest.raises(SandboxFileError) as awaited:
        await ref
    with pytest.raises(SandboxFileError) as waited:
        await anyio.to_thread.run_sync(ref.result)
    assert type(awaited.value) is type(waited.value)
    assert vars(awaited.value) == vars(waited.value)
    assert awaited.value.args == waited.value.args
    assert awaited.value.filepath == "/no/such/file"
    assert awaited.value.reason == "CWSANDBOX_FILE_NOT_FOUND"


@pytest.mark.row("S2")
def test_s002_a_failed_ref_raises_the_same_error_every_time(sb: Sandbox) -> None:
    ref = sb.read_file("/no/such/file")
    with pytest.raises(SandboxFileError) as first:
        ref.result()
    with pytest.raises(SandboxFileError) as second:
        ref.result()
    assert vars(first.value) == vars(second.value)


@pytest.mark.row("S3")
def test_s003_exec_returns_a_process_which_is_a_ref(sb: Sandbox) -> None:
    process = sb.exec(["true"])
    assert isinstance(process, Process)
    assert isinstance(process, OperationRef)
    assert isinstance(process.result(), ProcessResult)


@pytest.mark.row("S3")
async def test_s003_awaiting_a_process_gives_a_process_result(asb: Sandbox) -> None:
    process = asb.exec(["true"])
    assert isinstance(process, Process)
    first = await process
    assert isinstance(first, ProcessResult)
    assert await process is first


@pytest.mark.row("S4")
def test_s004_a_process_has_streams_and_stdin(sb: Sandbox) -> None:
    process = sb.exec(["cat"], stdin=True)
    assert isinstance(process.stdout, cwsandbox.StreamReader)
    assert isinstance(process.stderr, cwsandbox.StreamReader)
    assert isinstance(process.stdin, cwsandbox.StreamWriter)
    assert process.command == ["cat"]
    process.stdin.close().result()
    process.result()


@pytest.mark.row("S4")
async def test_s004_a_process_has_streams_and_stdin_async(asb: Sandbox) -> None:
    process = asb.exec(["cat"], stdin=True)
    assert isinstance(process.stdout, cwsandbox.StreamReader)
    assert isinstance(process.stderr, cwsandbox.StreamReader)
    assert isinstance(process.stdin, cwsandbox.StreamWriter)
    await process.stdin.close()
    assert (await process).stdout == ""


@pytest.mark.row("S5")
def test_s005_result_then_await_on_one_ref(sb: Sandbox) -> None:
    process = sb.exec(["echo", "twice"])

    async def await_it() -> ProcessResult:
        return await process

    assert process.result() is asyncio.run(await_it())
    assert process.result().stdout == "twice\n"


@pytest.mark.row("S5")
async def test_s005_a_ref_of_the_background_loop_is_awaitable_on_any_loop(sb: Sandbox) -> None:
    result = await sb.exec(["echo", "elsewhere"])
    assert result.stdout == "elsewhere\n"


async def test_several_tasks_await_one_ref(asb: Sandbox) -> None:
    process = asb.exec(["echo", "shared"])
    results: list[ProcessResult] = []

    async def await_it() -> None:
        results.append(await process)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(await_it)
    assert [result.stdout for result in results] == ["shared\n"] * 5


async def test_a_ref_is_awaitable_from_another_loop_in_another_thread(asb: Sandbox) -> None:
    process = asb.exec(["echo", "abroad"])

    async def await_it() -> str:
        return (await process).stdout

    assert await anyio.to_thread.run_sync(lambda: asyncio.run(await_it())) == "abroad\n"
    assert await anyio.to_thread.run_sync(lambda: anyio.run(await_it, backend="trio")) == "abroad\n"


def test_result_timeout_raises_timeouterror_and_leaves_the_operation_running(sb: Sandbox) -> None:
    process = sb.exec(["cat"], stdin=True)
    assert process.stdin is not None
    with pytest.raises(TimeoutError):
        process.result(timeout=0.05)
    assert process.poll() is None
    process.stdin.write(b"still here").result()
    process.stdin.close().result()
    assert process.result(timeout=30).stdout == "still here"


def test_wait_timeout_raises_timeouterror_and_leaves_the_operation_running(sb: Sandbox) -> None:
    process = sb.exec(["cat"], stdin=True)
    assert process.stdin is not None
    with pytest.raises(TimeoutError):
        process.wait(timeout=0.05)
    process.stdin.close().result()
    assert process.wait(timeout=30) == 0


async def test_blocking_on_the_loop_that_would_run_the_operation_is_an_error_that_names_await(asb: Sandbox) -> None:
    process = asb.exec(["echo", "hello"])
    with pytest.raises(RuntimeError, match="await"):
        process.result()
    with pytest.raises(RuntimeError, match="async for"):
        next(iter(process.stdout))
    assert (await process).stdout == "hello\n"


async def test_cancelling_one_of_two_awaiters_leaves_the_operation_running(asb: Sandbox) -> None:
    process = asb.exec(["cat"], stdin=True)
    assert process.stdin is not None
    results: list[str] = []
    waiting = anyio.Event()

    async def keep_waiting() -> None:
        waiting.set()
        results.append((await process).stdout)

    async with anyio.create_task_group() as group:
        group.start_soon(keep_waiting)
        await waiting.wait()
        with anyio.move_on_after(0.05) as scope:
            await process
        assert scope.cancelled_caught
        await process.stdin.write(b"alive")
        await process.stdin.close()
    assert results == ["alive"]


async def test_cancelling_the_last_awaiter_cancels_the_operation(asb: Sandbox) -> None:
    marker = new_marker()
    process = asb.exec(["sleep", marker])
    with anyio.move_on_after(0.05) as scope:
        await process
    assert scope.cancelled_caught
    assert_gone(marker, within=0)
    with pytest.raises(concurrent.futures.CancelledError):
        await anyio.to_thread.run_sync(process.result)


def test_results_come_to_any_thread(sb: Sandbox) -> None:
    process = sb.exec(["echo", "threads"])
    seen: list[str] = []
    threads = [threading.Thread(target=lambda: seen.append(process.result().stdout)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen == ["threads\n"] * 4


def test_handles_say_what_they_are(sb: Sandbox) -> None:
    read = sb.read_file("/no/such/file")
    cwsandbox.wait([read])
    process = sb.exec(["cat"], stdin=True)
    assert process.stdin is not None
    assert [repr(process), repr(process.stdin), repr(process.stdout)] == [
        "<Process ['cat'] running>",
        "<StreamWriter open>",
        "<LineReader open>",
    ]
    process.cancel()
    cwsandbox.wait([process])
    assert [repr(read), repr(process), repr(process.stdin), repr(OperationRef.completed(1)), repr(sb.files)] == [
        "<OperationRef raised SandboxFileError>",
        "<Process ['cat'] cancelled>",
        "<StreamWriter closed>",
        "<OperationRef done>",
        f"<Files of {sb!r}>",
    ]


@pytest.mark.parametrize("pack", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_lives_in_this_process_cannot_be_sent_or_copied(sb: Sandbox, pack: Callable[[object], object]) -> None:
    """A copy would be stopped, warned about and closed a second time."""
    for handle in (sb, cwsandbox.Session(), sb.exec(["true"]), OperationRef.completed(1)):
        with pytest.raises(TypeError, match=r"in (its|their) process"):
            pack(handle)


def test_a_result_can_be_handled_as_the_dataclass_that_it_was(sb: Sandbox) -> None:
    result = sb.exec(["sh", "-c", "echo out; echo err >&2; exit 3"]).result()
    assert dataclasses.asdict(result) == {
        "stdout": "out\n",
        "stderr": "err\n",
        "returncode": 3,
        "stdout_bytes": b"out\n",
        "stderr_bytes": b"err\n",
        "command": ["sh", "-c", "echo out; echo err >&2; exit 3"],
    }
    assert dataclasses.replace(result, returncode=0).returncode == 0
    match result:
        case ProcessResult(out, err, returncode=3):
            assert (out, err) == ("out\n", "err\n")
        case _:
            pytest.fail("not matched")
