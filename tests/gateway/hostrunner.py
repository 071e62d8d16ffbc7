"""A runner whose boxes are bare process groups of this machine: no isolation, but doors where faults are injected."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

import anyio
import anyio.abc
import anyio.lowlevel
from anyio.streams.buffered import BufferedByteReceiveStream

from cwsandbox.runners.errors import BoxGoneError, CommandNotStartedError, RunnerError
from cwsandbox.runners.local import fileops
from cwsandbox.runners.local.filejob import read_info, request_body
from cwsandbox.runners.specs import BoxSpec, Capabilities, ExecSpec, ExitStatus, IsolationLevel, TerminalSize
from cwsandbox.wire.streams import FileAction

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from cwsandbox.runners.base import Box, Connection, Listener
    from cwsandbox.wire.streams import FileInfo, FilesOpen


class HostSource:
    """Keeps nothing: what it gave out does not survive the gateway."""

    def __init__(self, stream: anyio.abc.ByteReceiveStream) -> None:
        self._stream = stream
        self.position = 0

    def recall(self) -> bytes:
        return b""

    def release(self, offset: int) -> None:
        assert offset <= self.position

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await self._stream.receive(max_bytes)
        self.position += len(data)
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


class HostSink:
    def __init__(self, stream: anyio.abc.ByteSendStream) -> None:
        self._stream = stream
        self.sent_bytes = self.taken_bytes = 0

    async def send(self, data: bytes) -> None:
        self.taken_bytes += len(data)
        await self._stream.send(data)
        self.sent_bytes += len(data)

    async def aclose(self) -> None:
        await self._stream.aclose()


class HostCommand:
    def __init__(self, exec_id: str, process: anyio.abc.Process, note: object = None) -> None:
        self.exec_id = exec_id
        self.note = note
        self.process = process
        self.pid = process.pid
        assert process.stdout is not None
        self.stdout = HostSource(process.stdout)
        self.stderr = HostSource(process.stderr) if process.stderr is not None else None
        self.stdin = HostSink(process.stdin) if process.stdin is not None else None
        self.gone = False
        self.killed = anyio.Event()
        self.sizes: list[TerminalSize] = []

    async def wait(self) -> ExitStatus:
        code = await self.process.wait()
        if self.gone:
            raise BoxGoneError("the box is gone")
        return ExitStatus(code=code) if code >= 0 else ExitStatus(signal=-code)

    async def signal(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.Signals(signum))

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self.process.wait()
        self.killed.set()

    async def resize(self, size: TerminalSize) -> None:
        await anyio.lowlevel.checkpoint()
        self.sizes.append(size)

    def forget(self) -> None:
        self.forgotten = True


class HostFile:
    def __init__(self, file: anyio.AsyncFile[bytes], size: int) -> None:
        self._file = file
        self.size = size

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await self._file.read(max_bytes)
        if not data:
            raise anyio.EndOfStream
        return data

    async def aclose(self) -> None:
        await self._file.aclose()


class HostTarget:
    def __init__(self, file: anyio.AsyncFile[bytes], path: Path) -> None:
        self._file = file
        self._path = path

    async def send(self, data: bytes) -> None:
        await self._file.write(data)

    async def commit(self) -> None:
        await self._file.flush()
        os.rename(f"{self._path}.part", self._path)

    async def aclose(self) -> None:
        await self._file.aclose()
        Path(f"{self._path}.part").unlink(missing_ok=True)


class HostJob:
    """A file operation as a process of its own: its status comes on stderr."""

    CODE = (
        "import json, sys; from cwsandbox.runners.local import fileops; fileops._run(json.loads(sys.argv[1]), 1, 2, 0)"
    )

    def __init__(self, process: anyio.abc.Process, *, has_input: bool) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.input = HostSink(process.stdin) if has_input else None
        self.output = process.stdout
        self._status = BufferedByteReceiveStream(process.stderr)

    async def read_status(self) -> None:
        try:
            said = json.loads(await self._status.receive_until(b"\n", 10_000))
        except (anyio.IncompleteRead, anyio.ClosedResourceError):
            raise OSError(errno.EIO, "the file operation was killed") from None
        if "errno" in said:
            raise OSError(said["errno"], said["message"], said["path"])

    async def wait(self) -> None:
        await self.read_status()

    async def aclose(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        with anyio.CancelScope(shield=True):
            await self.process.aclose()


class HostBox:
    """A process group.

    Attributes:
        kept: It cannot be stopped: its gateway is about to end as if it were killed.
        stops: With which grace it was stopped.
        jobs: Its file operations.
    """

    isolation = IsolationLevel.PROCESS

    def __init__(self, runner: HostRunner, spec: BoxSpec, main: HostCommand) -> None:
        self.sandbox_id = spec.sandbox_id
        self.main = main
        self._runner = runner
        self._spec = spec
        self._commands: list[HostCommand] = []
        self._gone = anyio.Event()
        self.kept = False
        self.stops: list[float] = []
        self.jobs: list[HostJob] = []

    async def exec(self, spec: ExecSpec) -> HostCommand:
        if self._gone.is_set() or self.main.process.returncode is not None:
            raise BoxGoneError("the box is gone")
        if spec.cwd is not None and not os.path.isdir(spec.cwd):
            raise CommandNotStartedError(f"cannot change to {spec.cwd}", 2)
        joined = spec.terminal is not None  # A terminal is a pipe here: one stream, and no echo.
        command = await _spawn(spec.exec_id, spec.argv, dict(spec.env), stdin=spec.stdin, joined=joined, note=spec.note)
        self._commands.append(command)
        self._runner.executed.append(spec)
        return command

    def commands(self) -> Sequence[HostCommand]:
        return [command for command in self._commands if command.process.returncode is None]

    async def open_file(self, path: str) -> HostFile:
        size = os.stat(path).st_size
        return HostFile(await anyio.open_file(path, "rb"), size)

    async def create_file(self, path: str, *, size: int | None = None) -> HostTarget:
        if os.path.isdir(path):
            raise IsADirectoryError(21, "Is a directory")
        return HostTarget(await anyio.open_file(f"{path}.part", "wb"), Path(path))

    async def file_info(self, request: FilesOpen) -> FileInfo:
        info = read_info(fileops.quick(request_body(request)))
        assert info is not None
        return info

    async def file_job(self, request: FilesOpen) -> HostJob:
        argv = [sys.executable, "-c", HostJob.CODE, json.dumps(request_body(request))]
        job = HostJob(await anyio.open_process(argv), has_input=request.action is FileAction.UNPACK)
        self.jobs.append(job)
        try:
            await job.read_status()
        except BaseException:
            await job.aclose()
            raise
        return job

    async def connect(self, port: int) -> Connection:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "nothing of it is exposed")

    async def listen(self, port: int) -> Listener:
        raise OSError(errno.EADDRINUSE, "it has no loopback of its own")

    async def stop(self, grace_seconds: float) -> None:
        if self.kept:
            raise RuntimeError("the gateway that asks is dead")
        self.stops.append(grace_seconds)
        try:
            if grace_seconds > 0 and self.main.process.returncode is None:
                await self.main.signal(signal.SIGTERM)
                with anyio.move_on_after(grace_seconds):
                    await self.main.process.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await self._kill_all()
        await anyio.lowlevel.checkpoint()

    async def _kill_all(self) -> None:
        for command in [self.main, *self._commands]:
            if command.process.returncode is None:
                command.gone = command.gone or command is not self.main
                await command.kill()
            await command.process.aclose()
        self._runner.boxes.pop(self.sandbox_id, None)
        self._gone.set()

    async def lose(self) -> None:
        """The agent dies, and everything with it."""
        self.main.gone = True
        await self._kill_all()

    async def wait_gone(self) -> None:
        await self._gone.wait()


class HostRunner:
    """See the module.

    Attributes:
        boxes: The boxes that live, by sandbox id.
        gate: Creating waits until this is set.
        failure: What creating raises.
        refusal: What checking raises.
        creating: How many creates are waiting or were done.
    """

    runner_id = "host"

    def __init__(self) -> None:
        self.boxes: dict[str, HostBox] = {}
        self.gate = anyio.Event()
        self.gate.set()
        self.arrived = anyio.Event()
        self.failure: Exception | None = None
        self.refusal: RunnerError | None = None
        self.created = 0
        self.executed: list[ExecSpec] = []
        self.survivors: list[HostBox] = []
        self.limits = frozenset({"memory"})
        self.healthy = True
        self.specs: list[BoxSpec] = []

    def capabilities(self) -> Capabilities:
        return Capabilities(
            isolation=IsolationLevel.PROCESS,
            cpu_millicores=2000,
            memory_bytes=1024**3,
            architecture="x86_64",
            enforced_limits=self.limits,
            healthy=self.healthy,
        )

    def check(self, spec: BoxSpec) -> None:
        if self.refusal is not None:
            raise self.refusal

    async def create(self, spec: BoxSpec) -> HostBox:
        self.created += 1
        self.specs.append(spec)
        self.arrived.set()
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        box = HostBox(self, spec, await _spawn("main", spec.argv, dict(spec.env), stdin=False))
        self.boxes[spec.sandbox_id] = box
        return box

    async def recover(self) -> Sequence[Box]:
        return self.survivors

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            for box in list(self.boxes.values()):
                await box.stop(0)


async def _spawn(
    exec_id: str,
    argv: Sequence[str],
    env: dict[str, str],
    *,
    stdin: bool,
    joined: bool = False,
    note: object = None,
) -> HostCommand:
    try:
        process = await anyio.open_process(
            list(argv),
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if joined else subprocess.PIPE,
            env={**os.environ, **env},
            start_new_session=True,
        )
    except FileNotFoundError:
        raise CommandNotStartedError(f"{argv[0]}: not found", 127) from None
    except PermissionError:
        raise CommandNotStartedError(f"{argv[0]}: not executable", 126) from None
    return HostCommand(exec_id, process, note)
