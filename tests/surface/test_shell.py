"""Terminal sessions (behaviour 4.6, 5.1 and 5.7; FIX-L, FIX-M, FIX-N on their stdin; contract 1, 3 and 7)."""

from __future__ import annotations

import shutil
import signal
import tempfile
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from cwsandbox import (
    OperationRef,
    Sandbox,
    SandboxExecutionError,
    SandboxNotRunningError,
    SandboxTimeoutError,
    StreamReader,
    StreamWriter,
    TerminalResult,
    TerminalSession,
    wait,
)
from tests.support.clients import run_client, started_client
from tests.support.leftovers import shut_down_and_look
from tests.support.processes import PROCESS_TREE, TREE_SIZE, assert_gone, new_marker, processes_with
from tests.support.relay import Relay, relay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.gateway import ServedGateway

BASH = ["bash", "--norc", "--noprofile"]
UP = "stty raw -echo; echo up; exec "


def read_until(session: TerminalSession, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        seen += next(session.output)
    return seen


async def aread_until(session: TerminalSession, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        seen += await anext(session.output)
    return seen


# The session and its result.


def test_a_session_is_typed_into_and_has_a_result(sb: Sandbox) -> None:
    session = sb.shell(BASH)
    assert isinstance(session, OperationRef)
    assert isinstance(session.output, StreamReader)
    assert isinstance(session.stdin, StreamWriter)
    assert session.command == BASH
    assert session.returncode is None
    session.stdin.writeline("tty; test -t 2 && echo e$((1 + 1))rr; exit 7").result()
    output = b"".join(session.output)
    assert b"/dev/pts/" in output
    assert b"e2rr\r\n" in output
    assert session.result() == TerminalResult(7, BASH)
    assert session.wait() == session.returncode == 7


async def test_a_session_is_typed_into_and_has_a_result_async(asb: Sandbox) -> None:
    session = asb.shell(BASH)
    await session.stdin.writeline("tty; echo e$((1 + 1)); exit 7")
    output = b"".join([data async for data in session.output])
    assert b"/dev/pts/" in output
    assert b"e2\r\n" in output
    assert await session == TerminalResult(7, BASH)
    assert await session is await session
    assert session.returncode == 7


def test_the_default_is_bash(sb: Sandbox) -> None:
    session = sb.shell()
    assert session.command == ["/bin/bash"]
    session.stdin.writeline("exit 3")
    assert session.wait() == 3


async def test_a_session_starts_its_sandbox(home_folder: Path) -> None:
    async with Sandbox() as sandbox:
        assert (await sandbox.shell(["true"])).returncode == 0
        assert sandbox.status == "running"


def test_directory_and_environment(sb: Sandbox) -> None:
    session = sb.shell(["sh", "-c", "pwd; echo $WORD $TERM"], cwd="/tmp", env={"WORD": "ahoy"})
    assert b"".join(session.output) == b"/tmp\r\nahoy xterm-256color\r\n"


def test_what_cannot_be_started_says_so_on_the_terminal(sb: Sandbox) -> None:
    session = sb.shell(["/no/such/program"])
    assert b"not found" in b"".join(session.output)
    assert session.wait() == 127


def test_a_signal_that_ends_it_is_its_returncode(sb: Sandbox) -> None:
    session = sb.shell(["sh", "-c", UP + "sleep 60"])
    read_until(session, b"up")
    session.terminate()
    assert session.wait() == 128 + signal.SIGTERM


def test_repr_and_results_are_values(sb: Sandbox) -> None:
    session = sb.shell(["true"])
    session.wait()
    assert repr(session) == "<TerminalSession ['true'] returncode=0>"
    assert TerminalResult(1).command == []
    with pytest.raises(AttributeError):
        session.result().returncode = 2  # type: ignore[misc]


def test_wait_takes_sessions(sb: Sandbox) -> None:
    quick, slow = sb.shell(["true"]), sb.shell(["sleep", "60"])
    assert wait([quick, slow], num_returns=1) == ([quick], [slow])
    slow.cancel()


# Size.


def test_the_size_is_the_given_one_and_resizing_tells_the_program(sb: Sandbox) -> None:
    script = "trap 'stty size; exit' WINCH; stty size; echo up; while :; do read x; done"
    session = sb.shell(["sh", "-c", script], width=101, height=37)
    assert b"37 101" in read_until(session, b"up")
    session.resize(120, 50)
    assert b"50 120" in b"".join(session.output)
    session.wait()
    with pytest.raises(SandboxExecutionError, match="ended"):
        session.resize(80, 24)


def test_one_given_side_leaves_the_other_as_usual(sb: Sandbox) -> None:
    assert b"".join(sb.shell(["stty", "size"], width=132).output) == b"24 132\r\n"
    assert b"".join(sb.shell(["stty", "size"], height=50).output) == b"50 80\r\n"


def test_of_many_sizes_the_last_one_holds(sb: Sandbox) -> None:
    session = sb.shell(["sh", "-c", "stty -echo; echo up; read x; stty size"])
    read_until(session, b"up")
    for width in range(60, 200):
        session.resize(width, 30)
    session.stdin.writeline("")
    assert b"30 199" in b"".join(session.output)


@pytest.mark.parametrize("sides", [{"width": 0}, {"height": -1}, {"width": 65536}])
def test_a_size_out_of_range_is_refused_at_the_call(sides: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="from 1 to 65535"):
        Sandbox().shell(**sides)


def test_bad_arguments_are_refused_at_the_call() -> None:
    sandbox = Sandbox()
    with pytest.raises(ValueError, match="empty"):
        sandbox.shell([])
    with pytest.raises(TypeError, match="list of arguments"):
        sandbox.shell("bash")
    with pytest.raises(TypeError, match="width"):
        sandbox.shell(width=80.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="absolute"):
        sandbox.shell(cwd="tmp")
    assert sandbox.exec_stats["exec_count"] == 0
    assert sandbox.status is None


# What is typed.


def test_control_c_reaches_the_foreground(sb: Sandbox) -> None:
    marker = new_marker()
    session = sb.shell([*BASH, "-i"])
    session.stdin.writeline(f"sh -c 'echo $((40 + 2)); exec sleep {marker}'")
    read_until(session, b"42\r\n")
    session.stdin.write(b"\x03")
    assert_gone(marker)
    session.stdin.writeline("exit 5")
    assert session.wait() == 5


async def test_control_c_reaches_the_foreground_async(asb: Sandbox) -> None:
    session = asb.shell(["sh", "-c", "echo up; exec sleep 60"])
    await aread_until(session, b"up")
    session.stdin.write(b"\x03")
    assert (await session).returncode == 128 + signal.SIGINT


def test_closing_stdin_types_the_end_of_input(sb: Sandbox) -> None:
    session = sb.shell(["cat"])
    session.stdin.writeline("line").result()
    read_until(session, b"line\r\nline\r\n")
    session.stdin.close().result()
    assert session.wait() == 0


@pytest.mark.row("FIX-N")
def test_fix_n_text_is_refused_by_write(sb: Sandbox) -> None:
    session = sb.shell(["cat"])
    with pytest.raises(TypeError, match="bytes"):
        session.stdin.write("text")  # type: ignore[arg-type]
    session.stdin.close()
    assert session.wait() == 0


@pytest.mark.row("FIX-L")
def test_fix_l_writes_that_wait_fail_when_the_session_ends(sb: Sandbox) -> None:
    session = sb.shell(["sh", "-c", UP + "sleep 60"])
    read_until(session, b"up")
    block = b"x" * 1024 * 1024
    refs = [session.stdin.write(block) for _ in range(StreamWriter.QUEUE_SIZE + 8)]
    session.kill()
    assert session.wait() == 137
    with pytest.raises(SandboxExecutionError, match="ended"):
        refs[-1].result(timeout=10)
    with pytest.raises(SandboxExecutionError, match="ended"):
        session.stdin.write(b"late")


@pytest.mark.row("FIX-M")
def test_fix_m_a_session_that_cannot_begin_takes_no_input(home_folder: Path) -> None:
    sandbox = Sandbox.run()
    sandbox.stop().result()
    session = sandbox.shell(["cat"])
    with pytest.raises(SandboxNotRunningError):
        session.result(timeout=10)
    with pytest.raises(SandboxNotRunningError):
        next(session.output)
    assert list(session.output) == []
    with pytest.raises(SandboxExecutionError):
        session.stdin.write(b"x")


# The end.


def tree(marker: str) -> list[str]:
    return ["python3", "-c", PROCESS_TREE, marker]


def test_cancelling_kills_the_whole_tree(sb: Sandbox) -> None:
    marker = new_marker()
    session = sb.shell(tree(marker))
    read_until(session, b"ready")
    assert len(processes_with(marker)) == TREE_SIZE
    assert session.cancel()
    with pytest.raises(CancelledError):
        session.result(timeout=10)
    assert processes_with(marker) == []
    assert list(session.output) == []
    assert session.returncode is None
    assert not session.cancel()


async def test_a_cancelled_await_returns_when_the_tree_is_dead(asb: Sandbox) -> None:
    marker = new_marker()
    session = asb.shell(tree(marker))
    await aread_until(session, b"ready")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await session
    assert scope.cancelled_caught
    assert processes_with(marker) == []


def test_closing_the_output_ends_the_session(sb: Sandbox) -> None:
    marker = new_marker()
    session = sb.shell(["sh", "-c", f"echo up; exec sleep {marker}"])
    read_until(session, b"up")
    session.output.close()
    assert_gone(marker)
    with pytest.raises(CancelledError):
        session.result(timeout=10)


def test_what_is_hung_up_on_gets_sighup_first(sb: Sandbox) -> None:
    script = "trap 'echo hung up > /tmp/said; exit' HUP; echo up; while :; do sleep 0.01; done"
    session = sb.shell(["sh", "-c", script])
    read_until(session, b"up")
    session.cancel()
    with pytest.raises(CancelledError):
        session.result(timeout=10)
    assert sb.read_file("/tmp/said").result() == b"hung up\n"


def test_what_a_session_leaves_in_the_background_ends_with_it(sb: Sandbox) -> None:
    marker = new_marker()
    code = "import subprocess, sys; subprocess.Popen(['sleep', sys.argv[1]], start_new_session=True); input('up'); sys.exit(4)"
    session = sb.shell(["python3", "-c", code, marker])
    read_until(session, b"up")
    assert len(processes_with(marker)) == 2
    session.stdin.writeline("")
    assert session.wait() == 4
    assert processes_with(marker) == []


async def test_leaving_the_context_ends_its_sessions(home_folder: Path) -> None:
    marker = new_marker()
    async with Sandbox() as sandbox:
        session = sandbox.shell(["sh", "-c", f"echo up; exec sleep {marker}"])
        await aread_until(session, b"up")
    assert processes_with(marker) == []
    with pytest.raises(SandboxNotRunningError):
        await session


def test_stopping_the_sandbox_is_an_error_of_the_session(sb: Sandbox) -> None:
    session = sb.shell(["sh", "-c", UP + "sleep 60"])
    read_until(session, b"up")
    sb.stop().result()
    with pytest.raises(SandboxNotRunningError):
        list(session.output)
    with pytest.raises(SandboxNotRunningError):
        session.result()
    assert session.returncode is None


KILLED = """
import os
from cwsandbox import Sandbox
sandbox = Sandbox.run()
session = sandbox.shell(["python3", "-c", os.environ["TREE"], os.environ["MARKER"]])
seen = b""
while b"ready" not in seen:
    seen += next(session.output)
print(sandbox.sandbox_id, flush=True)
session.result()
"""


def test_a_killed_client_leaves_no_session_after_the_grace(gateway: ServedGateway) -> None:
    marker = new_marker()
    with started_client(KILLED, TREE=PROCESS_TREE, MARKER=marker, CWSANDBOX_BASE_URL=gateway.url) as client:
        assert client.stdout is not None
        sandbox_id = client.stdout.readline().strip()
        assert len(processes_with(marker)) == TREE_SIZE
        client.kill()
    assert_gone(marker, within=gateway.grace_seconds + 10)
    Sandbox.delete(sandbox_id, base_url=gateway.url).result()


def test_the_longest_time_that_the_sandbox_allows_holds_for_sessions(home_folder: Path) -> None:
    marker = new_marker()
    with Sandbox(max_timeout_seconds=1) as sandbox:
        session = sandbox.shell(["sh", "-c", f"echo up; exec sleep {marker}"])
        assert read_until(session, b"up")
        with pytest.raises(SandboxTimeoutError):
            session.result(timeout=30)
        assert processes_with(marker) == []


# Output.


def test_output_is_complete(sb: Sandbox) -> None:
    session = sb.shell(["seq", "200000"])
    assert b"".join(session.output) == b"".join(b"%d\r\n" % number for number in range(1, 200_001))
    assert session.wait() == 0


def test_a_reader_that_does_not_read_stalls_the_program(sb: Sandbox) -> None:
    script = "stty raw; head -c 30000000 /dev/zero; touch /tmp/through"
    session = sb.shell(["sh", "-c", script])
    total = len(next(session.output))
    with pytest.raises(TimeoutError):
        session.result(timeout=1)
    assert sb.exec(["test", "-e", "/tmp/through"]).wait() == 1
    total += sum(map(len, session.output))
    assert total == 30_000_000
    assert session.wait() == 0


def test_waiting_for_the_result_without_ever_looking_at_the_output_does_not_stall(sb: Sandbox) -> None:
    session = sb.shell(["sh", "-c", "stty raw; head -c 5000000 /dev/zero; exit 6"])
    assert session.wait(timeout=30) == 6
    with pytest.raises(SandboxExecutionError, match="dropped"):
        list(session.output)


async def test_a_stalled_session_does_not_hold_up_others(asb: Sandbox) -> None:
    stalled = asb.shell(["sh", "-c", "stty raw; cat /dev/zero"])
    await anext(stalled.output)
    other = asb.shell(["seq", "100000"])
    assert len(b"".join([data async for data in other.output])) == 688_895
    stalled.cancel()


@pytest.fixture
def wire(gateway: ServedGateway) -> Iterator[Relay]:
    with relay(gateway.url) as wire:
        yield wire


def test_cut_connections_lose_no_byte_in_either_direction(wire: Relay) -> None:
    with Sandbox(base_url=wire.url) as sandbox:
        session = sandbox.shell(["sh", "-c", "stty raw -echo; echo up; exec cat"])
        read_until(session, b"up\n")
        sent, seen = b"", b""
        for turn in range(12):
            block = bytes([65 + turn]) * 40_000
            sent += block
            session.stdin.write(block)
            if turn % 3 == 0:
                wire.cut()
            while len(seen) < len(sent):
                seen += next(session.output)
        assert seen == sent
        assert wire.connections >= 4
        session.kill()
        assert session.wait() == 137


async def test_output_survives_cuts_exactly_once_async(wire: Relay) -> None:
    async with Sandbox(base_url=wire.url) as sandbox:
        await sandbox
        wire.cut_after(500_000)
        session = sandbox.shell(["seq", "200000"])
        seen = b"".join([data async for data in session.output])
        assert seen == b"".join(b"%d\r\n" % number for number in range(1, 200_001))
        assert (await session).returncode == 0


RESTARTS = """
import os, signal
from pathlib import Path
from cwsandbox import Sandbox
from tests.support.leftovers import gateway_processes
with Sandbox.run() as sandbox:
    session = sandbox.shell(["sh", "-c", "stty raw -echo; echo up; exec cat"])
    seen = next(session.output)
    while b"up" not in seen:
        seen += next(session.output)
    sent = seen = b""
    for turn in range(9):
        block = bytes([65 + turn]) * 30_000
        sent += block
        session.stdin.write(block)
        if turn % 3 == 1:
            for pid in gateway_processes(Path(os.environ["CWSANDBOX_RUNTIME_DIR"])):
                os.kill(pid, signal.SIGKILL)
        while len(seen) < len(sent):
            seen += next(session.output)
    assert seen == sent
    session.kill()
    print("complete", session.wait())
"""


def test_a_killed_gateway_loses_no_byte_in_either_direction() -> None:
    base = Path(tempfile.mkdtemp(prefix="cws", dir="/tmp"))
    folders = {f"CWSANDBOX_{name}_DIR": str(base / name.lower()) for name in ("RUNTIME", "STATE")}
    try:
        done = run_client(RESTARTS, seconds=50, **folders)
        assert (done.returncode, done.stdout) == (0, "complete 137\n"), done.stderr
        assert shut_down_and_look(base) == []
    finally:
        shutil.rmtree(base, ignore_errors=True)


# Counting.


def test_sessions_count_like_commands(home_folder: Path) -> None:
    with Sandbox.run() as sandbox:
        session = sandbox.shell(["true"])
        assert sandbox.exec_stats["exec_count"] == 1
        session.wait()
        sandbox.shell(["false"]).wait()
        cancelled = sandbox.shell(["sleep", "60"])
        cancelled.cancel()
        with pytest.raises(CancelledError):
            cancelled.result()
        assert sandbox.exec_stats == {
            "exec_count": 3,
            "exec_completed_ok": 1,
            "exec_completed_nonzero": 1,
            "exec_failures": 1,
        }
