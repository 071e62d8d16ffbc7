"""Writing to a command (S57 to S67, FIX-L to FIX-N, behaviour 4.5)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from cwsandbox import OperationRef, Process, Sandbox, SandboxError, SandboxExecutionError, StreamWriter


def writer(process: Process) -> StreamWriter:
    assert process.stdin is not None
    return process.stdin


@pytest.mark.row("S57", "S61")
def test_s057_write_writeline_close(sb: Sandbox) -> None:
    process = sb.exec(["cat"], stdin=True)
    stdin = writer(process)
    stdin.write(b"hello ").result()
    stdin.writeline("world").result()
    stdin.close().result()
    assert process.result().stdout == "hello world\n"


@pytest.mark.row("S57", "S61")
async def test_s057_write_writeline_close_async(asb: Sandbox) -> None:
    process = asb.exec(["cat"], stdin=True)
    stdin = writer(process)
    await stdin.write(b"hello ")
    await stdin.writeline("world")
    await stdin.close()
    assert (await process).stdout == "hello world\n"


@pytest.mark.row("S58", "S61")
async def test_s058_write_writeline_close_async(asb: Sandbox) -> None:
    process = asb.exec(["cat"], stdin=True)
    stdin = writer(process)
    await stdin.write(b"hello ")
    await stdin.writeline("world")
    await stdin.close()
    assert (await process).stdout == "hello world\n"


@pytest.mark.row("S59")
def test_s059_without_stdin_the_attribute_is_none_and_the_input_is_empty(sb: Sandbox) -> None:
    process = sb.exec(["cat"])
    assert process.stdin is None
    assert process.result().stdout == ""


@pytest.mark.row("S59")
async def test_s059_without_stdin_the_attribute_is_none_and_the_input_is_empty_async(asb: Sandbox) -> None:
    process = asb.exec(["cat"])
    assert process.stdin is None
    assert (await process).stdout == ""


@pytest.mark.row("S60")
def test_s060_writer_methods_return_refs_of_none(sb: Sandbox) -> None:
    process = sb.exec(["cat"], stdin=True)
    stdin = writer(process)
    for ref in (stdin.write(b"a"), stdin.writeline("b"), stdin.close(), stdin.close()):
        assert isinstance(ref, OperationRef)
        assert ref.result() is None
    assert stdin.closed
    process.result()


@pytest.mark.row("S61")
def test_s061_writeline_is_utf_8_with_a_newline(sb: Sandbox) -> None:
    process = sb.exec(["cat"], stdin=True)
    stdin = writer(process)
    stdin.writeline("grün 漢").result()
    stdin.writeline("é", encoding="latin-1").result()
    stdin.close().result()
    assert process.result().stdout_bytes == "grün 漢\n".encode() + b"\xe9\n"


@pytest.mark.row("S62")
def test_s062_close_lets_pending_writes_finish(sb: Sandbox) -> None:
    process = sb.exec(["cat"], stdin=True)
    stdin = writer(process)
    refs = [stdin.write(bytes([65 + n]) * 100_000) for n in range(26)]
    refs.append(stdin.close())
    for ref in refs:
        ref.result()
    assert process.result().stdout_bytes == b"".join(bytes([65 + n]) * 100_000 for n in range(26))


@pytest.mark.row("S62")
async def test_s062_close_lets_pending_writes_finish_async(asb: Sandbox) -> None:
    process = asb.exec(["cat"], stdin=True)
    stdin = writer(process)
    refs = [stdin.write(bytes([65 + n]) * 100_000) for n in range(26)]
    closing = stdin.close()
    for ref in refs:
        await ref
    await closing
    assert (await process).stdout_bytes == b"".join(bytes([65 + n]) * 100_000 for n in range(26))


@pytest.mark.row("S63")
def test_s063_several_lines_in_order(sb: Sandbox) -> None:
    process = sb.exec(["cat"], stdin=True)
    stdin = writer(process)
    for n in (1, 2, 3):
        stdin.writeline(f"line {n}").result()
    stdin.close().result()
    assert process.result().stdout == "line 1\nline 2\nline 3\n"


@pytest.mark.row("S64")
def test_s064_an_interpreter_on_stdin(sb: Sandbox) -> None:
    process = sb.exec(["python3"], stdin=True)
    stdin = writer(process)
    stdin.writeline("x = 40 + 2").result()
    stdin.writeline("print(f'answer: {x}')").result()
    stdin.close().result()
    assert process.result().stdout == "answer: 42\n"


@pytest.mark.row("S65")
def test_s065_close_then_iterate(sb: Sandbox) -> None:
    process = sb.exec(["cat"], stdin=True)
    stdin = writer(process)
    stdin.writeline("hello").result()
    stdin.writeline("world").result()
    stdin.close().result()
    assert list(process.stdout) == ["hello\n", "world\n"]
    assert process.result().stdout == "hello\nworld\n"


@pytest.mark.row("S65")
async def test_s065_close_then_iterate_async(asb: Sandbox) -> None:
    process = asb.exec(["cat"], stdin=True)
    stdin = writer(process)
    await stdin.writeline("hello")
    await stdin.close()
    assert [line async for line in process.stdout] == ["hello\n"]
    assert (await process).stdout == "hello\n"


@pytest.mark.row("S66")
def test_s066_sort_sees_the_end_of_input(sb: Sandbox) -> None:
    process = sb.exec(["sort"], stdin=True)
    stdin = writer(process)
    for word in ("banana", "apple", "cherry"):
        stdin.writeline(word).result()
    stdin.close().result()
    assert process.result().stdout == "apple\nbanana\ncherry\n"


@pytest.mark.row("S67")
async def test_s067_async_with_run_and_stdin(home_folder: object) -> None:
    async with Sandbox.run() as sandbox:
        process = sandbox.exec(["cat"], stdin=True)
        stdin = writer(process)
        await stdin.write(b"async hello\n")
        await stdin.close()
        assert (await process).stdout == "async hello\n"


def test_data_written_before_the_sandbox_runs_arrives(home_folder: object) -> None:
    with Sandbox() as sandbox:
        process = sandbox.exec(["cat"], stdin=True)
        stdin = writer(process)
        for n in range(8):
            stdin.writeline(str(n))
        stdin.close()
        assert process.result().stdout == "".join(f"{n}\n" for n in range(8))


def test_writing_after_close_is_an_error_at_once(sb: Sandbox) -> None:
    process = sb.exec(["cat"], stdin=True)
    stdin = writer(process)
    stdin.close().result()
    with pytest.raises(SandboxExecutionError, match="closed"):
        stdin.write(b"late")
    process.result()


def test_writing_after_the_end_is_an_error_at_once(sb: Sandbox) -> None:
    process = sb.exec(["true"], stdin=True)
    process.result()
    with pytest.raises(SandboxExecutionError):
        writer(process).write(b"late")
    assert not writer(process).closed
    assert writer(process).close().result() is None


WAIT_FOR_FILE = "until [ -e /tmp/go ]; do sleep 0.01; done"


@pytest.mark.row("FIX-L")
def test_fix_l_writes_that_wait_when_the_command_ends_fail(sb: Sandbox) -> None:
    process = sb.exec(["sh", "-c", WAIT_FOR_FILE], stdin=True)
    stdin = writer(process)
    refs = [stdin.write(b"\n" * 1_000_000) for _ in range(64)]
    sb.write_file("/tmp/go", b"").result()
    assert process.result(timeout=30).returncode == 0
    outcomes = []
    for ref in refs:
        try:
            ref.result(timeout=30)
            outcomes.append("written")
        except SandboxExecutionError:
            outcomes.append("failed")
    assert outcomes[-1] == "failed"
    assert outcomes == sorted(outcomes, reverse=True)


@pytest.mark.row("FIX-L")
async def test_fix_l_writes_that_wait_when_the_command_ends_fail_async(asb: Sandbox) -> None:
    process = asb.exec(["sh", "-c", WAIT_FOR_FILE], stdin=True)
    stdin = writer(process)
    refs = [stdin.write(b"\n" * 1_000_000) for _ in range(64)]
    await asb.write_file("/tmp/go", b"")
    with anyio.fail_after(30):
        await process
        with pytest.raises(SandboxExecutionError):
            await refs[-1]


@pytest.mark.row("FIX-M")
def test_fix_m_writes_to_an_exec_that_never_ran_fail(home_folder: object) -> None:
    sandbox = Sandbox.run()
    sandbox.stop().result()
    process = sandbox.exec(["cat"], stdin=True)
    with pytest.raises(SandboxError):
        process.result()
    with pytest.raises(SandboxExecutionError):
        writer(process).write(b"x")


@pytest.mark.row("FIX-M")
async def test_fix_m_writes_to_an_exec_that_never_ran_fail_async(home_folder: object) -> None:
    async with Sandbox() as sandbox:
        await sandbox.stop()
        process = sandbox.exec(["cat"], stdin=True)
        with pytest.raises(SandboxError):
            await process
        with pytest.raises(SandboxExecutionError):
            await writer(process).write(b"x")


@pytest.mark.row("FIX-N")
@pytest.mark.parametrize("wrong", ["text", 5, None, [b"x"]])
def test_fix_n_only_bytes_are_written(sb: Sandbox, wrong: object) -> None:
    process = sb.exec(["cat"], stdin=True)
    with pytest.raises(TypeError):
        writer(process).write(wrong)  # type: ignore[arg-type]
    writer(process).write(b"fine").result()
    writer(process).close().result()
    assert process.result().stdout == "fine"


def test_a_written_bytearray_may_be_reused_at_once(sb: Sandbox) -> None:
    process = sb.exec(["cat"], stdin=True)
    buffer: Any = bytearray(b"first ")
    ref = writer(process).write(buffer)
    buffer[:] = b"XXXXXX"
    ref.result()
    view: Any = memoryview(b"second")
    writer(process).write(view).result()
    writer(process).write(b"").result()
    writer(process).close().result()
    assert process.result().stdout == "first second"


async def test_a_write_waits_for_room_and_goes_on(asb: Sandbox) -> None:
    process = asb.exec(["sh", "-c", "read x; cat > /tmp/rest; wc -c < /tmp/rest"], stdin=True)
    stdin = writer(process)
    await stdin.write(b"go\n")
    for _ in range(32):
        await stdin.write(bytes(1_000_000))
    await stdin.close()
    assert int((await process).stdout) == 32_000_000
