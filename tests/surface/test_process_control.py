"""poll, wait, signals and cancel (S85, S86, behaviour 4.2 and the additions)."""

from __future__ import annotations

import concurrent.futures
import signal

import anyio
import anyio.to_thread
import pytest

from cwsandbox import Process, Sandbox, SandboxTimeoutError
from tests.support.processes import PROCESS_TREE, TREE_SIZE, assert_gone, new_marker, processes_with

REPORT = "trap 'echo got TERM; exit 7' TERM; trap 'echo got HUP; exit 8' HUP; echo up; while :; do sleep 0.05; done"


def started(sb: Sandbox) -> Process:
    process = sb.exec(["sh", "-c", REPORT])
    assert next(process.stdout) == "up\n"
    return process


@pytest.mark.row("S85")
def test_s085_poll_is_none_while_running(sb: Sandbox) -> None:
    process = sb.exec(["cat"], stdin=True)
    assert process.poll() is None
    assert process.returncode is None
    assert process.stdin is not None
    process.stdin.close().result()
    process.result()
    assert process.poll() == 0


@pytest.mark.row("S85")
async def test_s085_poll_is_none_while_running_async(asb: Sandbox) -> None:
    process = asb.exec(["cat"], stdin=True)
    assert process.poll() is None
    assert process.stdin is not None
    await process.stdin.close()
    await process
    assert process.poll() == 0


@pytest.mark.row("S85")
def test_s085_poll_is_none_after_a_failure(sb: Sandbox) -> None:
    process = sb.exec(["sleep", "60"], timeout_seconds=0.2)
    with pytest.raises(SandboxTimeoutError):
        process.wait()
    assert process.poll() is None


@pytest.mark.row("S86")
def test_s086_wait_returns_the_exit_code(sb: Sandbox) -> None:
    assert sb.exec(["sh", "-c", "exit 5"]).wait() == 5
    assert sb.exec(["true"]).wait(timeout=30) == 0


@pytest.mark.row("S86")
async def test_s086_a_thread_waits_for_the_exit_code_of_a_loops_command(asb: Sandbox) -> None:
    assert await anyio.to_thread.run_sync(asb.exec(["sh", "-c", "exit 5"]).wait) == 5


def test_terminate_sends_term(sb: Sandbox) -> None:
    process = started(sb)
    process.terminate()
    result = process.result(timeout=30)
    assert result.returncode == 7
    assert "got TERM\n" in result.stdout


async def test_terminate_sends_term_async(asb: Sandbox) -> None:
    process = asb.exec(["sh", "-c", REPORT])
    assert await anext(process.stdout) == "up\n"
    process.terminate()
    assert (await process).returncode == 7


def test_send_signal_takes_numbers_and_members(sb: Sandbox) -> None:
    process = started(sb)
    process.send_signal(signal.SIGHUP)
    assert process.result(timeout=30).returncode == 8
    process = started(sb)
    process.send_signal(int(signal.SIGKILL))
    assert process.result(timeout=30).returncode == 137


def test_kill_ends_the_whole_tree_and_leaves_a_result(sb: Sandbox) -> None:
    marker = new_marker()
    process = sb.exec(["python3", "-c", PROCESS_TREE, marker])
    assert next(process.stdout) == "ready\n"
    assert len(processes_with(marker)) == TREE_SIZE
    process.terminate()
    process.kill()
    assert process.result(timeout=30).returncode == 137
    assert_gone(marker)


def test_signals_after_the_end_do_nothing(sb: Sandbox) -> None:
    process = sb.exec(["true"])
    process.result()
    process.terminate()
    process.kill()
    process.send_signal(signal.SIGINT)
    assert process.result().returncode == 0


@pytest.mark.parametrize("wrong", [0, -1, 65, 1000])
def test_a_wrong_signal_is_a_value_error(sb: Sandbox, wrong: int) -> None:
    process = sb.exec(["cat"], stdin=True)
    with pytest.raises(ValueError, match=str(wrong)):
        process.send_signal(wrong)
    assert process.stdin is not None
    process.stdin.close().result()
    assert process.result().returncode == 0


def test_cancel_kills_and_ends_the_streams(sb: Sandbox) -> None:
    marker = new_marker()
    process = sb.exec(["sh", "-c", f"echo up; exec sleep {marker}"])
    assert next(process.stdout) == "up\n"
    assert process.cancel() is True
    with pytest.raises(concurrent.futures.CancelledError):
        process.result(timeout=30)
    assert_gone(marker)
    assert list(process.stdout) == []
    assert process.cancel() is False
    assert process.poll() is None
    assert sb.exec_stats["exec_failures"] == 1


def test_cancel_of_a_finished_process_is_false(sb: Sandbox) -> None:
    process = sb.exec(["true"])
    process.result()
    assert process.cancel() is False
    assert process.result().returncode == 0


async def test_cancel_async(asb: Sandbox) -> None:
    marker = new_marker()
    process = asb.exec(["sleep", marker])
    assert process.cancel() is True
    with pytest.raises(concurrent.futures.CancelledError):
        await process
    await anyio.to_thread.run_sync(assert_gone, marker)
