"""What the runner tests share: running commands to their end, and looking at the host from outside."""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import anyio
import pytest

from cwsandbox.runners.errors import RunnerError
from cwsandbox.runners.local.box import LocalBox
from cwsandbox.runners.specs import ExecSpec, ExitStatus
from cwsandbox.wire.codec import PosixPath
from cwsandbox.wire.streams import FileAction, FilesOpen
from tests.support.processes import assert_gone, wait_ended

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
    from typing import Any

    from cwsandbox.runners.base import Box, ByteSource, Command, InputSink
    from cwsandbox.runners.local.runner import LocalRunner

    MakeRunner: TypeAlias = Callable[..., LocalRunner]

_numbers = itertools.count()

FINISH_SECONDS = 20


def exec_id() -> str:
    return f"exec-{next(_numbers)}"


def token() -> str:
    """A word that finds a process among all of the host's."""
    return f"marker{secrets.token_hex(8)}"


async def read_all(source: ByteSource | None) -> bytes:
    if source is None:
        return b""
    parts = []
    try:
        while True:
            parts.append(await source.receive())
    except anyio.EndOfStream:
        return b"".join(parts)


async def read_until(source: ByteSource, wanted: bytes) -> bytes:
    data = b""
    with anyio.fail_after(FINISH_SECONDS):
        while wanted not in data:
            data += await source.receive()
    return data


@asynccontextmanager
async def started(box: Box, *argv: str, **options: Any) -> AsyncGenerator[Command]:
    """A command that is killed and forgotten at the end."""
    command = await box.exec(ExecSpec(exec_id(), argv, **options))
    try:
        yield command
    finally:
        with anyio.CancelScope(shield=True):
            await command.kill()
            command.forget()


class Result:
    def __init__(self, status: ExitStatus, stdout: bytes, stderr: bytes) -> None:
        self.status = status
        self.stdout = stdout
        self.stderr = stderr

    @property
    def text(self) -> str:
        return self.stdout.decode()


async def run(
    box: Box, *argv: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None, **options: Any
) -> Result:
    """Run a command to its end."""
    command = await box.exec(ExecSpec(exec_id(), argv, env=env or {}, stdin=stdin is not None, **options))
    outputs: dict[str, bytes] = {}

    async def collect(name: str, source: ByteSource | None) -> None:
        outputs[name] = await read_all(source)

    async def feed() -> None:
        if command.stdin is not None:
            await input_of(command).send(stdin or b"")
            await input_of(command).aclose()

    with anyio.fail_after(FINISH_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collect, "stdout", command.stdout)
            tasks.start_soon(collect, "stderr", command.stderr)
            tasks.start_soon(feed)
        status = await command.wait()
    command.forget()
    return Result(status, outputs["stdout"], outputs["stderr"])


async def check_full_and_emptied(box: Box, hog: Command) -> None:
    """While `hog` takes all processes of its box, a command is told so; without it there is room.

    What is started here counts too and may have kept the hog from the last one: one with an input is asked to try again
    with a line, and says with one that it has.
    """
    with anyio.fail_after(FINISH_SECONDS):
        with pytest.raises(RunnerError, match="out of processes"):
            while True:
                if hog.stdin is not None:
                    await hog.stdin.send(b"\n")
                    await read_until(hog.stdout, b"\n")
                command = await box.exec(ExecSpec(exec_id(), ("true",)))
                await command.wait()
                command.forget()
        await hog.kill()
        assert (await run(box, "echo", "room")).text == "room\n"
    hog.forget()


async def shell(box: Box, script: str, **options: Any) -> Result:
    return await run(box, "sh", "-c", script, **options)


async def python(box: Box, script: str, *arguments: str, **options: Any) -> Result:
    return await run(box, "python3", "-I", "-c", script, *arguments, **options)


async def until_gone(word: str) -> None:
    """Wait until none of the host's processes carries `word`."""
    await anyio.to_thread.run_sync(assert_gone, word)


async def until_ended(pid: int) -> None:
    """Wait until a process of the host has ended; it need not be reaped."""
    deadline = time.monotonic() + FINISH_SECONDS
    assert await anyio.to_thread.run_sync(wait_ended, pid, deadline), f"process {pid} does not end"


def input_of(command: Command) -> InputSink:
    """The input of a command that was started with one."""
    assert command.stdin is not None
    return command.stdin


async def agent_turn(box: Box) -> None:
    """Wait until the box's agent has looked at all that was ready, and answered a question."""
    await box.file_info(asked("stat", "/"))


async def read_file(box: Box, path: str) -> bytes:
    file = await box.open_file(path)
    try:
        return await read_all(file)
    finally:
        await file.aclose()


async def write_file(box: Box, path: str, content: bytes, *, size: int | None = None) -> None:
    file = await box.create_file(path, size=size)
    try:
        for start in range(0, len(content), 300_000):
            await file.send(content[start : start + 300_000])
        await file.commit()
    finally:
        await file.aclose()


def asked(action: str, path: str, **options: Any) -> FilesOpen:
    """A request about files."""
    return FilesOpen(sandbox_id="sandbox-1", action=FileAction(action), path=PosixPath(path), **options)


async def file_job(box: Box, request: FilesOpen, given: Iterable[bytes] = ()) -> bytes:
    """Do a file operation that streams; what it gives."""
    with anyio.fail_after(FINISH_SECONDS):
        job = await box.file_job(request)
        try:
            if job.input is not None:
                with contextlib.suppress(anyio.BrokenResourceError):
                    for piece in given:
                        await job.input.send(piece)
                await job.input.aclose()
            output = await read_all(job.output)
            await job.wait()
        finally:
            await job.aclose()
    return output


async def file_rows(box: Box, request: FilesOpen) -> list[list[Any]]:
    """The rows of a listing."""
    return [row for line in (await file_job(box, request)).splitlines() for row in json.loads(line)]


def host_children(box: Box) -> list[str]:
    """What runs right below a box's agent."""
    assert isinstance(box, LocalBox)
    return Path(f"/proc/{box._agent_pid}/task/{box._agent_pid}/children").read_text().split()
