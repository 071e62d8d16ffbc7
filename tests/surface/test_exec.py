"""exec: results, check, cwd, time limits, sharing, parallel runs (S23 to S27, S68 to S75; FIX-G to FIX-Q where they touch exec)."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

from cwsandbox import ProcessResult, Sandbox, SandboxExecutionError, SandboxTimeoutError
from tests.support.processes import assert_gone, new_marker, processes_with

if TYPE_CHECKING:
    from tests.support.gateway import ServedGateway


@pytest.mark.row("S23", "S24")
def test_s023_s024_exec_echo(sb: Sandbox) -> None:
    result = sb.exec(["echo", "hello"]).result()
    assert isinstance(result, ProcessResult)
    assert (result.stdout, result.stderr, result.returncode) == ("hello\n", "", 0)
    assert (result.stdout_bytes, result.stderr_bytes) == (b"hello\n", b"")
    assert result.command == ["echo", "hello"]


@pytest.mark.row("S23", "S24")
async def test_s023_s024_exec_echo_async(asb: Sandbox) -> None:
    result = await asb.exec(["echo", "hello"])
    assert (result.stdout, result.stderr, result.returncode) == ("hello\n", "", 0)


def test_stderr_is_apart_from_stdout(sb: Sandbox) -> None:
    result = sb.exec(["sh", "-c", "echo out; echo err >&2; exit 3"]).result()
    assert (result.stdout, result.stderr, result.returncode) == ("out\n", "err\n", 3)


@pytest.mark.row("S25", "S26")
def test_s025_s026_check_raises_with_the_result(sb: Sandbox) -> None:
    process = sb.exec(["python", "-c", "raise ValueError('oops')"], check=True)
    with pytest.raises(SandboxExecutionError) as caught:
        process.result()
    assert caught.value.exec_result is not None
    assert caught.value.exec_result.returncode == 1
    assert "ValueError: oops" in caught.value.exec_result.stderr
    assert process.returncode is None
    assert process.poll() is None


@pytest.mark.row("S25", "S26")
async def test_s025_s026_check_raises_with_the_result_async(asb: Sandbox) -> None:
    with pytest.raises(SandboxExecutionError) as caught:
        await asb.exec(["python", "-c", "raise ValueError('oops')"], check=True)
    assert caught.value.exec_result is not None
    assert caught.value.exec_result.returncode == 1
    assert "ValueError: oops" in caught.value.exec_result.stderr


@pytest.mark.row("S27")
def test_s027_a_failing_command_is_a_result(sb: Sandbox) -> None:
    process = sb.exec(["false"])
    assert process.result().returncode == 1
    assert process.returncode == 1


@pytest.mark.row("S27")
async def test_s027_a_failing_command_is_a_result_async(asb: Sandbox) -> None:
    assert (await asb.exec(["false"])).returncode == 1


@pytest.mark.parametrize(("signal", "returncode"), [("KILL", 137), ("TERM", 143)])
def test_a_command_killed_by_a_signal_returns_128_plus_its_number(sb: Sandbox, signal: str, returncode: int) -> None:
    assert sb.exec(["sh", "-c", f"kill -{signal} $$"]).result().returncode == returncode


@pytest.mark.row("S68")
def test_s068_cwd_changes_the_directory(sb: Sandbox) -> None:
    assert sb.exec(["pwd"], cwd="/usr/lib").result().stdout == "/usr/lib\n"
    process = sb.exec(["sh", "-c", 'cd /; pwd; echo "$1"', "sh", "it's quoted"], cwd="/tmp")
    result = process.result()
    assert result.stdout == "/\nit's quoted\n"
    assert process.command == result.command == ["sh", "-c", 'cd /; pwd; echo "$1"', "sh", "it's quoted"]


@pytest.mark.row("S68")
async def test_s068_cwd_changes_the_directory_async(asb: Sandbox) -> None:
    assert (await asb.exec(["pwd"], cwd="/usr/lib")).stdout == "/usr/lib\n"


def test_a_missing_cwd_is_a_failed_command(sb: Sandbox) -> None:
    result = sb.exec(["pwd"], cwd="/no/such/folder").result()
    assert result.returncode not in {0, None}
    assert "/no/such/folder" in result.stderr


@pytest.mark.row("S69")
@pytest.mark.parametrize("cwd", ["", "relative/path", "./here"])
def test_s069_cwd_must_be_absolute(sb: Sandbox, cwd: str) -> None:
    with pytest.raises(ValueError, match=re.escape(cwd) or "cwd"):
        sb.exec(["pwd"], cwd=cwd)
    assert sb.exec_stats["exec_count"] == 0


@pytest.mark.row("S69")
async def test_s069_cwd_must_be_absolute_async(asb: Sandbox) -> None:
    for cwd in ("", "relative"):
        with pytest.raises(ValueError, match=r"cwd|relative"):
            asb.exec(["pwd"], cwd=cwd)


@pytest.mark.row("S70", "S72", "FIX-O")
def test_s070_s072_a_time_limit_raises_in_time_and_kills(sb: Sandbox) -> None:
    marker = new_marker()
    sb.wait()
    begin = time.monotonic()
    process = sb.exec(["sleep", marker], timeout_seconds=0.5)
    with pytest.raises(SandboxTimeoutError, match=r"0\.5") as caught:
        process.result()
    assert time.monotonic() - begin > 0.4
    assert "sleep" in str(caught.value)
    assert_gone(marker)
    assert list(process.stdout) == []
    assert process.returncode is None
    assert sb.exec(["echo", "usable"]).result().stdout == "usable\n"


@pytest.mark.row("S70", "S72", "FIX-O")
async def test_s070_s072_a_time_limit_raises_in_time_and_kills_async(asb: Sandbox) -> None:
    marker = new_marker()
    await asb
    begin = time.monotonic()
    with pytest.raises(SandboxTimeoutError):
        await asb.exec(["sleep", marker], timeout_seconds=0.5)
    assert time.monotonic() - begin > 0.4
    assert_gone(marker)


@pytest.mark.row("S71")
def test_s071_the_time_limit_does_not_cover_startup(gateway: ServedGateway) -> None:
    gateway.making.close()
    sandbox = Sandbox(base_url=gateway.url)
    process = sandbox.exec(["echo", "in time"], timeout_seconds=0.5)
    gateway.making.wait_for_arrivals(1)
    with pytest.raises(TimeoutError):
        process.result(timeout=0.8)
    gateway.making.open()
    assert process.result().stdout == "in time\n"
    sandbox.stop().result()


@pytest.mark.row("S71")
async def test_s071_the_time_limit_does_not_cover_startup_async(gateway: ServedGateway) -> None:
    gateway.making.close()
    async with Sandbox(base_url=gateway.url) as sandbox:
        process = sandbox.exec(["echo", "in time"], timeout_seconds=0.5)
        await anyio.to_thread.run_sync(gateway.making.wait_for_arrivals, 1)

        def outwait() -> None:
            with pytest.raises(TimeoutError):
                process.result(timeout=0.8)

        await anyio.to_thread.run_sync(outwait)
        gateway.making.open()
        assert (await process).stdout == "in time\n"


CODE = """
import json
data = {"result": 42}
print(json.dumps(data))
"""


@pytest.mark.row("S73")
def test_s073_json_round_trip(sb: Sandbox) -> None:
    assert json.loads(sb.exec(["python", "-c", CODE]).result().stdout) == {"result": 42}


@pytest.mark.row("S73")
async def test_s073_json_round_trip_async(asb: Sandbox) -> None:
    assert json.loads((await asb.exec(["python", "-c", CODE])).stdout) == {"result": 42}


@pytest.mark.row("S74")
def test_s074_commands_share_the_sandbox(sb: Sandbox) -> None:
    sb.exec(["sh", "-c", "echo kept > /tmp/kept"], check=True).result()
    assert sb.exec(["cat", "/tmp/kept"]).result().stdout == "kept\n"


@pytest.mark.row("S74")
async def test_s074_commands_share_the_sandbox_async(asb: Sandbox) -> None:
    await asb.exec(["sh", "-c", "echo kept > /tmp/kept"], check=True)
    assert (await asb.exec(["cat", "/tmp/kept"])).stdout == "kept\n"


MEET = "mkdir -p /tmp/meet; : > /tmp/meet/$1; until [ $(ls /tmp/meet | wc -l) -ge 8 ]; do sleep 0.01; done; echo $1"
"""Each of eight commands ends only when all eight run: run one after the other they would never end."""


@pytest.mark.row("S75")
def test_s075_commands_run_in_parallel(sb: Sandbox) -> None:
    processes = [sb.exec(["sh", "-c", MEET, "sh", str(n)], timeout_seconds=30) for n in range(8)]
    assert [process.result().stdout for process in processes] == [f"{n}\n" for n in range(8)]


@pytest.mark.row("S75")
async def test_s075_commands_run_in_parallel_async(asb: Sandbox) -> None:
    processes = [asb.exec(["sh", "-c", MEET, "sh", str(n)], timeout_seconds=30) for n in range(8)]
    assert [(await process).stdout for process in processes] == [f"{n}\n" for n in range(8)]


@pytest.mark.row("S75")
def test_s075_commands_run_in_parallel_over_sandboxes(home_folder: object) -> None:
    sandboxes = [Sandbox.run() for _ in range(3)]
    processes = [sandbox.exec(["python", "-c", f"print({n})"]) for n, sandbox in enumerate(sandboxes)]
    assert [process.result().stdout for process in processes] == ["0\n", "1\n", "2\n"]
    for sandbox in sandboxes:
        sandbox.stop().result()


def test_env_is_added_to_the_command(sb: Sandbox) -> None:
    result = sb.exec(["sh", "-c", 'echo "$A-$B-${HOME:+home}"'], env={"A": "1", "B": "two words = x"}).result()
    assert result.stdout == "1-two words = x-home\n"
    assert sb.exec(["sh", "-c", 'echo "[$A]"']).result().stdout == "[]\n"


async def test_env_is_added_to_the_command_async(asb: Sandbox) -> None:
    assert (await asb.exec(["sh", "-c", 'echo "$A"'], env={"A": "1"})).stdout == "1\n"


def test_an_environment_value_is_in_no_message_and_no_repr(sb: Sandbox) -> None:
    process = sb.exec(["sh", "-c", "exit 1"], env={"TOKEN": "s3cr3t-value"}, check=True)
    with pytest.raises(SandboxExecutionError) as caught:
        process.result()
    for text in (repr(process), repr(caught.value), str(caught.value), repr(caught.value.exec_result)):
        assert "s3cr3t-value" not in text


def test_exec_stats_count_each_outcome_once(sb: Sandbox) -> None:
    sb.exec(["true"]).result()
    sb.exec(["false"]).result()
    for process in (sb.exec(["false"], check=True), sb.exec(["sleep", "60"], timeout_seconds=0.2)):
        with pytest.raises((SandboxExecutionError, SandboxTimeoutError)):
            process.result()
    with pytest.raises(ValueError, match="command"):
        sb.exec([])
    assert sb.exec_stats == {
        "exec_count": 4,
        "exec_completed_ok": 1,
        "exec_completed_nonzero": 1,
        "exec_failures": 2,
    }


def test_a_daemon_that_keeps_stdout_open_does_not_hold_the_result(sb: Sandbox) -> None:
    marker = new_marker()
    result = sb.exec(["sh", "-c", f"sleep {marker} & echo started"], timeout_seconds=30).result()
    assert result.stdout == "started\n"
    assert result.returncode == 0
    sb.exec(["pkill", "-f", marker]).result()


def test_text_is_decoded_with_replacement_and_bytes_are_exact(sb: Sandbox) -> None:
    result = sb.exec(["printf", r"a\377b\303\244\n"]).result()
    assert result.stdout_bytes == b"a\xffb\xc3\xa4\n"
    assert result.stdout == "a\ufffdbä\n"


def test_all_byte_values_come_through(sb: Sandbox) -> None:
    code = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 1000)"
    assert sb.exec(["python", "-c", code]).result().stdout_bytes == bytes(range(256)) * 1000


def test_processes_of_a_stopped_sandbox_are_gone(home_folder: object) -> None:
    marker = new_marker()
    with Sandbox.run() as sandbox:
        process = sandbox.exec(["sh", "-c", f"sleep {marker} & setsid sleep {marker} & echo up; wait"])
        assert next(process.stdout) == "up\n"
    assert_gone(marker)
    assert processes_with(marker) == []


@pytest.mark.parametrize("size", [0, 10_000_000])
def test_a_failed_check_tells_the_last_line_of_any_amount_of_errors(sb: Sandbox, size: int) -> None:
    script = f"head -c {size} /dev/zero >&2; echo >&2; echo the reason >&2; exit 3"
    with pytest.raises(SandboxExecutionError, match=r"exited with 3: the reason$") as caught:
        sb.exec(["sh", "-c", script], check=True).result()
    assert caught.value.exec_result is not None
    assert len(caught.value.exec_result.stderr_bytes) == size + len("\nthe reason\n")
