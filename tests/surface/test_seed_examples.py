"""The examples of the published guides, as they are written there: sync, and the awaited forms on asyncio and trio."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import pytest

import cwsandbox
from cwsandbox import Sandbox, SandboxDefaults, SandboxExecutionError, SandboxTimeoutError, Session


def printed(function: Any) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        function()
    return out.getvalue()


# -------------------------------------------------------------------------------------------- sync and async patterns


def test_a_ref_two_ways(sb: Sandbox) -> None:
    sandbox = sb
    sandbox.write_file("/output/data.txt", b"data").result()
    ref = sandbox.read_file("/output/data.txt")
    data = ref.result()
    assert data == b"data"


async def test_a_ref_two_ways_async(asb: Sandbox) -> None:
    sandbox = asb
    await sandbox.write_file("/output/data.txt", b"data")
    ref = sandbox.read_file("/output/data.txt")
    data = await ref
    assert data == b"data"


def test_context_manager(home_folder: object) -> None:
    with Sandbox.run() as sb:
        result = sb.exec(["echo", "hello"]).result()
    assert result.stdout == "hello\n"


async def test_context_manager_async(home_folder: object) -> None:
    sb = Sandbox()
    async with sb as sb:
        result = await sb.exec(["echo", "hello"])
    assert result.stdout == "hello\n"


def test_start(home_folder: object) -> None:
    sb = Sandbox()
    sb.start().result()
    assert printed(lambda: print(sb.sandbox_id)) == f"{sb.sandbox_id}\n"
    assert sb.sandbox_id
    sb.stop().result()
    sb.stop(missing_ok=True).result()


async def test_start_async(home_folder: object) -> None:
    sb = Sandbox()
    await sb.start()
    assert sb.sandbox_id
    await sb.stop()
    await sb.stop(missing_ok=True)


def test_exec(sb: Sandbox) -> None:
    result = sb.exec(["echo", "hello"]).result()
    assert result.stdout == "hello\n"
    with pytest.raises(SandboxExecutionError):
        result = sb.exec(["python", "-c", "exit(1)"], check=True).result()


async def test_exec_async(asb: Sandbox) -> None:
    sb = asb
    result = await sb.exec(["echo", "hello"])
    assert result.stdout == "hello\n"
    with pytest.raises(SandboxExecutionError):
        result = await sb.exec(["python", "-c", "exit(1)"], check=True)


def test_files(sb: Sandbox) -> None:
    sb.write_file("/input/data.txt", b"content").result()
    data = sb.read_file("/input/data.txt").result()
    assert data.decode() == "content"


async def test_files_async(asb: Sandbox) -> None:
    sb = asb
    await sb.write_file("/input/data.txt", b"content")
    data = await sb.read_file("/input/data.txt")
    assert data.decode() == "content"


def test_wait(home_folder: object) -> None:
    sb = Sandbox.run().wait()
    result = sb.exec(["echo", "ready"]).result()
    assert result.stdout == "ready\n"
    sb.stop().result()


async def test_wait_async(home_folder: object) -> None:
    sb = Sandbox()
    await sb
    result = await sb.exec(["echo", "ready"])
    assert result.stdout == "ready\n"
    await sb.stop()


def test_wait_until_complete(home_folder: object) -> None:
    sb = Sandbox.run("python", "-c", "print('done')")
    sb.wait_until_complete().result()
    assert f"Exit code: {sb.returncode}" == "Exit code: 0"
    sb.wait_until_complete(raise_on_termination=False).result()


async def test_wait_until_complete_async(home_folder: object) -> None:
    sb = Sandbox(command="python", args=["-c", "print('done')"])
    await sb.wait_until_complete()
    assert f"Exit code: {sb.returncode}" == "Exit code: 0"
    await sb.wait_until_complete(raise_on_termination=False)


def test_get_status(home_folder: object) -> None:
    sb = Sandbox.run().wait()
    status = sb.get_status()
    assert f"Sandbox is {status}" == "Sandbox is running"
    sb.stop().result()


def test_list_from_id_delete(home_folder: object) -> None:
    started = Sandbox.run(tags=["my-job"])
    sandboxes = Sandbox.list(tags=["my-job"]).result()
    assert next(f"{sb.sandbox_id}: {sb.status}" for sb in sandboxes).startswith(f"{started.sandbox_id}: ")
    sb = Sandbox.from_id(str(started.sandbox_id)).result()
    result = sb.exec(["echo", "reconnected"]).result()
    assert result.stdout == "reconnected\n"
    Sandbox.delete(str(started.sandbox_id)).result()
    Sandbox.delete(str(started.sandbox_id), missing_ok=True).result()
    started.stop(missing_ok=True).result()


async def test_list_from_id_delete_async(home_folder: object) -> None:
    started = Sandbox(tags=["my-job-async"])
    await started.start()
    sandboxes = await Sandbox.list(tags=["my-job-async"])
    assert [sb.sandbox_id for sb in sandboxes] == [started.sandbox_id]
    sb = await Sandbox.from_id(str(started.sandbox_id))
    result = await sb.exec(["echo", "reconnected"])
    assert result.stdout == "reconnected\n"
    await Sandbox.delete(str(started.sandbox_id))
    await Sandbox.delete(str(started.sandbox_id), missing_ok=True)
    await started.stop(missing_ok=True)


def test_session_list_and_from_id(home_folder: object) -> None:
    with Session(SandboxDefaults(tags=("my-session",))) as session:
        session.sandbox().start().result()
        sandboxes = session.list().result()
        assert len([f"{sb.sandbox_id}: {sb.status}" for sb in sandboxes]) == 1
        sb = session.from_id(str(sandboxes[0].sandbox_id)).result()
        result = sb.exec(["echo", "adopted"]).result()
        assert result.stdout == "adopted\n"


async def test_session_list_and_from_id_async(home_folder: object) -> None:
    async with Session(SandboxDefaults(tags=("my-session-async",))) as session:
        await session.sandbox().start()
        sandboxes = await session.list()
        assert len(sandboxes) == 1
        sb = await session.from_id(str(sandboxes[0].sandbox_id))
        result = await sb.exec(["echo", "adopted"])
        assert result.stdout == "adopted\n"


COUNT = ["python", "-c", "import time; [print(i) or time.sleep(0.1) for i in range(5)]"]


def test_streaming_stdout(sb: Sandbox) -> None:
    process = sb.exec(COUNT)

    def show() -> None:
        for line in process.stdout:
            print(line, end="")

    assert printed(show) == "0\n1\n2\n3\n4\n"
    result = process.result()
    assert result.stdout == "0\n1\n2\n3\n4\n"


async def test_streaming_stdout_async(asb: Sandbox) -> None:
    process = asb.exec(COUNT)
    lines = []
    async for line in process.stdout:
        lines.append(line)
    result = await process
    assert "".join(lines) == result.stdout == "0\n1\n2\n3\n4\n"


def test_streaming_stdin(sb: Sandbox) -> None:
    process = sb.exec(["cat"], stdin=True)
    assert process.stdin
    process.stdin.write(b"hello ").result()
    process.stdin.writeline("world").result()
    process.stdin.close().result()
    result = process.result()
    assert result.stdout == "hello world\n"


async def test_streaming_stdin_async(asb: Sandbox) -> None:
    process = asb.exec(["cat"], stdin=True)
    assert process.stdin
    await process.stdin.write(b"hello ")
    await process.stdin.writeline("world")
    await process.stdin.close()
    result = await process
    assert result.stdout == "hello world\n"


def test_results(sb: Sandbox) -> None:
    files = [f"/f{n}" for n in range(3)]
    for file in files:
        sb.write_file(file, file.encode()).result()
    data = cwsandbox.results(sb.read_file("/f0"))
    all_data = cwsandbox.results([sb.read_file(f) for f in files])
    assert (data, all_data) == (b"/f0", [b"/f0", b"/f1", b"/f2"])


def test_wait_function(home_folder: object) -> None:
    sandboxes = [Sandbox.run() for _ in range(5)]
    done, pending = cwsandbox.wait(sandboxes)
    assert (len(done), len(pending)) == (5, 0)
    sb = sandboxes[0]
    files = ["/etc/hostname"] * 4
    refs = [sb.read_file(f) for f in files]
    done_refs, pending_refs = cwsandbox.wait(refs, num_returns=2)
    assert (len(done_refs), len(pending_refs)) == (2, 2)
    procs = [sb.exec(["true"]) for sb in sandboxes]
    done_procs, _ = cwsandbox.wait(procs, timeout=30.0)
    assert len(done_procs) == 5
    for sb in sandboxes:
        sb.stop().result()


def test_parallel_startup_by_session(home_folder: object) -> None:
    with Session(SandboxDefaults()) as session:
        sandboxes = [session.sandbox() for _ in range(3)]
        processes = [sb.exec(["echo", f"sb-{i}"]) for i, sb in enumerate(sandboxes)]
        results = [p.result() for p in processes]
    assert [result.stdout for result in results] == ["sb-0\n", "sb-1\n", "sb-2\n"]


def test_parallel_startup_by_start_refs(home_folder: object) -> None:
    sandboxes = [Sandbox() for _ in range(3)]
    start_refs = [sb.start() for sb in sandboxes]
    for ref in start_refs:
        ref.result()
    processes = [sb.exec(["echo", f"sb-{i}"]) for i, sb in enumerate(sandboxes)]
    results = [p.result() for p in processes]
    for sb in sandboxes:
        sb.stop().result()
    assert [result.stdout for result in results] == ["sb-0\n", "sb-1\n", "sb-2\n"]


async def test_notebook(home_folder: object) -> None:
    sandbox = Sandbox.run()
    sandbox.wait()
    result = sandbox.exec(["python", "-c", "print(1+1)"]).result()
    assert result.stdout == "2\n"
    assert isinstance(await Sandbox.list(tags=["notebook"]), list)
    sandbox.stop().result()


# ------------------------------------------------------------------------------------------------- executing commands


def test_basic_execution(home_folder: object) -> None:
    with Sandbox.run() as sandbox:
        result = sandbox.exec(["echo", "Hello, World!"]).result()
        assert printed(lambda: print(result.stdout)) == "Hello, World!\n\n"
        assert result.returncode == 0


def test_getting_results(sb: Sandbox) -> None:
    sandbox = sb
    process = sandbox.exec(["python", "-c", "print('hello')"])
    result = process.result()
    assert (result.stdout, result.stderr, result.returncode) == ("hello\n", "", 0)
    result = sandbox.exec(["ls", "-la"]).result()
    assert result.returncode == 0


async def test_getting_results_async(asb: Sandbox) -> None:
    result = await asb.exec(["python", "-c", "print('hello')"])
    assert (result.stdout, result.stderr, result.returncode) == ("hello\n", "", 0)


def test_streaming_a_long_script(sb: Sandbox) -> None:
    sandbox = sb
    sandbox.write_file("/srv/long_script.py", b"for n in range(3):\n    print('step', n)\n").result()
    process = sandbox.exec(["python", "long_script.py"], cwd="/srv")

    def show() -> None:
        for line in process.stdout:
            print(f"[stdout] {line}", end="")

    assert printed(show) == "[stdout] step 0\n[stdout] step 1\n[stdout] step 2\n"
    assert f"Exit code: {process.result().returncode}" == "Exit code: 0"


def test_stdin_guide(home_folder: object) -> None:
    with Sandbox.run() as sandbox:
        process = sandbox.exec(["cat"], stdin=True)
        assert process.stdin
        process.stdin.write(b"hello world\n").result()
        process.stdin.close().result()
        result = process.result()
        assert result.stdout == "hello world\n"


def test_several_writes(sb: Sandbox) -> None:
    process = sb.exec(["cat"], stdin=True)
    assert process.stdin
    process.stdin.writeline("line 1").result()
    process.stdin.writeline("line 2").result()
    process.stdin.writeline("line 3").result()
    process.stdin.close().result()
    assert process.result().stdout == "line 1\nline 2\nline 3\n"


def test_an_interpreter(sb: Sandbox) -> None:
    process = sb.exec(["python3"], stdin=True)
    assert process.stdin
    process.stdin.writeline("x = 40 + 2").result()
    process.stdin.writeline("print(f'answer: {x}')").result()
    process.stdin.close().result()
    assert process.result().stdout == "answer: 42\n"


def test_input_and_streamed_output(sb: Sandbox) -> None:
    process = sb.exec(["cat"], stdin=True)
    assert process.stdin
    process.stdin.writeline("hello").result()
    process.stdin.writeline("world").result()
    process.stdin.close().result()
    stdout = process.stdout

    def show() -> None:
        for line in stdout:
            print(f"[out] {line}", end="")

    assert printed(show) == "[out] hello\n[out] world\n"
    assert process.result().returncode == 0


def test_a_command_that_needs_the_end_of_input(sb: Sandbox) -> None:
    process = sb.exec(["sort"], stdin=True)
    assert process.stdin
    process.stdin.writeline("banana").result()
    process.stdin.writeline("apple").result()
    process.stdin.writeline("cherry").result()
    process.stdin.close().result()
    assert process.result().stdout == "apple\nbanana\ncherry\n"


async def test_stdin_guide_async(home_folder: object) -> None:
    async with Sandbox.run() as sandbox:
        process = sandbox.exec(["cat"], stdin=True)
        assert process.stdin
        await process.stdin.write(b"async hello\n")
        await process.stdin.close()
        result = await process
        assert result.stdout == "async hello\n"


def test_working_directory(sb: Sandbox) -> None:
    sb.write_file("/app/data/file", b"").result()
    result = sb.exec(["ls", "-la"], cwd="/app/data").result()
    assert "file" in result.stdout


def test_time_limit(sb: Sandbox) -> None:
    caught = ""
    try:
        sb.exec(["sleep", "60"], timeout_seconds=1.0).result()
    except SandboxTimeoutError:
        caught = "Command timed out"
    assert caught == "Command timed out"


async def test_time_limit_async(asb: Sandbox) -> None:
    caught = ""
    try:
        await asb.exec(["sleep", "60"], timeout_seconds=1.0)
    except SandboxTimeoutError:
        caught = "Command timed out"
    assert caught == "Command timed out"


def test_check(sb: Sandbox) -> None:
    sandbox = sb
    result = sandbox.exec(["false"]).result()
    assert result.returncode == 1
    lines = []
    try:
        result = sandbox.exec(["python", "-c", "raise ValueError('oops')"], check=True).result()
    except SandboxExecutionError as e:
        assert e.exec_result  # noqa: PT017 - the guide's own form
        lines = [f"Command failed: {e.exec_result.returncode}", f"stderr: {e.exec_result.stderr}"]
    assert lines[0] == "Command failed: 1"
    assert "ValueError: oops" in lines[1]


def test_python_code(sb: Sandbox) -> None:
    sandbox = sb
    result = sandbox.exec(["python", "-c", "import sys; print(sys.version)"]).result()
    assert result.stdout.startswith("3.")
    code = """
import json
data = {"result": 42}
print(json.dumps(data))
"""
    result = sandbox.exec(["python", "-c", code]).result()
    assert json.loads(result.stdout) == {"result": 42}


def test_parallel_commands_and_waiting_for_two(home_folder: object) -> None:
    sandboxes = [Sandbox.run() for _ in range(3)]
    processes = [sb.exec(["python", "-c", f"print({i})"]) for i, sb in enumerate(sandboxes)]
    results = [p.result() for p in processes]
    assert [r.stdout for r in results] == ["0\n", "1\n", "2\n"]
    processes = [sb.exec(["python", "-c", "print('task')"]) for sb in sandboxes]
    done, pending = cwsandbox.wait(processes, num_returns=2)
    assert [p.result().stdout for p in done] == ["task\n"] * 2
    assert [p.result().stdout for p in pending] == ["task\n"]
    for sb in sandboxes:
        sb.stop().result()


def test_process_control(sb: Sandbox) -> None:
    process = sb.exec(["python", "-c", "import time; time.sleep(0.5)"])
    assert process.poll() is None
    exit_code = process.wait()
    assert f"Exited with code: {exit_code}" == "Exited with code: 0"


# -------------------------------------------------------------------------------------------------------- front page


def test_quick_start(home_folder: object) -> None:
    with Sandbox.run() as sandbox:
        result = sandbox.exec(["echo", "Hello, CWSandbox!"]).result()
        assert printed(lambda: print(result.stdout)) == "Hello, CWSandbox!\n\n"


def test_ten_reads(sb: Sandbox) -> None:
    sandbox = sb
    for i in range(10):
        sandbox.write_file(f"/app/file{i}.txt", str(i).encode()).result()
    refs = [sandbox.read_file(f"/app/file{i}.txt") for i in range(10)]
    contents = [ref.result() for ref in refs]
    assert contents == [str(i).encode() for i in range(10)]
