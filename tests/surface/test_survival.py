"""The gateway is killed (SIGKILL) while commands run: the next one goes on with them, and nobody notices.

Promises 2, 3, 5 of the design: no byte lost, none twice, an exit status only if it was seen, time-outs at their time.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

from cwsandbox import Sandbox, SandboxTimeoutError
from cwsandbox._client.folders import prepare_folders
from tests.support.processes import processes_with

if TYPE_CHECKING:
    from cwsandbox.process import Process

WRITER = """
import hashlib, sys
digest = hashlib.sha256()
for number in range({count}):
    line = f"{{number:07}} {padding}\\n"
    digest.update(line.encode())
    sys.stdout.write(line)
sys.stdout.flush()
print(digest.hexdigest(), file=sys.stderr)
"""


def kill_gateway() -> None:
    """SIGKILL the embedded gateway of the test run; the next operation starts another."""
    (pid,) = processes_with(prepare_folders().socket)
    os.kill(pid, signal.SIGKILL)


def writer(sandbox: Sandbox, megabytes: int) -> Process:
    script = WRITER.format(count=megabytes * 1024, padding="x" * 1015)
    return sandbox.exec(["python3", "-c", script])


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def test_output_is_complete_when_the_gateway_is_killed_again_and_again(asb: Sandbox) -> None:
    process = writer(asb, 24)
    lines = 0
    parts = []
    async for line in process.stdout:
        parts.append(line)
        lines += 1
        if lines in {10, 5_000, 12_000}:
            await anyio.to_thread.run_sync(kill_gateway)
    result = await process
    assert result.returncode == 0
    assert len(result.stdout_bytes) == 24 * 1024 * 1024
    assert digest("".join(parts)) == digest(result.stdout) == result.stderr.strip()


def test_what_nobody_has_read_yet_survives(sb: Sandbox) -> None:
    process = writer(sb, 6)
    first = next(process.stdout)  # From here on the reader sets the pace: windows and pipes fill up.
    time.sleep(0.3)  # Nothing tells when they are full; the test holds at any moment.
    kill_gateway()
    rest = "".join(process.stdout)
    result = process.result(30)
    assert digest(first + rest) == result.stderr.strip()


async def test_input_arrives_once_when_the_gateway_is_killed(asb: Sandbox) -> None:
    process = asb.exec(["sh", "-c", "sleep 0.5; tee /tmp/copy | sha256sum; wc -c < /tmp/copy"], stdin=True)
    assert process.stdin is not None
    expected = hashlib.sha256()
    for number in range(64):
        block = bytes([number]) * 131_072
        expected.update(block)
        await process.stdin.write(block)
        if number in {8, 40}:
            await anyio.to_thread.run_sync(kill_gateway)
    await process.stdin.close()
    with anyio.fail_after(30):
        result = await process
    assert result.stdout.split()[0] == expected.hexdigest()
    assert result.stdout.split()[-1] == str(64 * 131_072)


def test_an_exit_while_no_gateway_runs_is_reported(sb: Sandbox) -> None:
    process = sb.exec(["sh", "-c", "echo begun; sleep 0.2; echo ended; exit 7"])
    assert next(process.stdout) == "begun\n"
    kill_gateway()
    result = process.result(30)
    assert (result.stdout, result.returncode) == ("begun\nended\n", 7)


def test_a_command_is_run_once_whenever_the_gateway_is_killed(sb: Sandbox) -> None:
    for delay in (0.0, 0.0005, 0.001, 0.002, 0.01):
        processes = [sb.exec(["sh", "-c", f"echo run >> /tmp/{delay}.{number}"]) for number in range(5)]
        time.sleep(delay)
        kill_gateway()
        assert [process.result(30).returncode for process in processes] == [0] * 5
        counts = sb.exec(["sh", "-c", f"cat /tmp/{delay}.* | wc -l"]).result(30)
        assert counts.stdout.strip() == "5"


def test_a_time_out_keeps_its_time(sb: Sandbox) -> None:
    began = time.monotonic()
    process = sb.exec(["sh", "-c", "echo begun; sleep 600"], timeout_seconds=2.0)
    assert next(process.stdout) == "begun\n"
    kill_gateway()
    with pytest.raises(SandboxTimeoutError, match="2"):
        process.result(30)
    assert time.monotonic() - began > 1.9


def test_a_write_that_was_under_way_is_an_error_or_done(sb: Sandbox) -> None:
    content = os.urandom(8 * 1024 * 1024)
    sb.write_file("/tmp/file", b"before").result(30)
    written = sb.write_file("/tmp/file", content)
    time.sleep(0.005)  # Somewhere in the middle, or not.
    kill_gateway()
    try:
        written.result(30)
    except Exception:
        assert sb.read_file("/tmp/file").result(30) in {b"before", content}
    else:
        assert sb.read_file("/tmp/file").result(30) == content


def test_a_shell_goes_on(sb: Sandbox) -> None:
    session = sb.shell(["sh"], width=80, height=24)
    session.stdin.write(b"stty -echo; PS1=; number=0; echo no prompt from here $((0))\n").result()
    seen = b""
    while b"from here 0" not in seen:
        seen += next(session.output)
    session.stdin.write(b"while [ $number -lt 20000 ]; do number=$((number+1)); echo line $number; done\n").result()
    for chunk in session.output:
        kill = b"line 2000\r" not in seen and b"line 2000\r" in seen + chunk
        seen += chunk
        if kill:
            kill_gateway()
            session.stdin.write(b"echo typed while $((1 + 1)) gateways; exit 3\n").result()
    assert session.result(30).returncode == 3
    lines = [line for line in seen.decode().splitlines() if line.startswith("line ")]
    assert lines == [f"line {number}" for number in range(1, 20_001)]
    assert b"typed while 2 gateways" in seen


def test_the_log_of_the_main_command_has_everything_once(home_folder: object) -> None:
    script = "import time\nfor n in range(60_000):\n print('line', n, flush=n % 50 == 0)\n n % 500 or time.sleep(0.01)"
    with Sandbox.run("python3", "-c", script) as sandbox:
        sandbox.wait()
        for _ in range(4):
            time.sleep(0.15)  # It goes on printing between the kills; to read along would be another test.
            kill_gateway()
            sandbox.get_status()
        sandbox.wait_until_complete(timeout=60).result()
        logged = list(sandbox.stream_logs())
    assert logged == [f"line {number}\n" for number in range(60_000)]
