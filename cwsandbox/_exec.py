"""The operations behind commands: a stream, its output into the spools, its input from the queue."""

from __future__ import annotations

import abc
import itertools
import threading
from collections import deque
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import anyio
import anyio.to_thread

from cwsandbox._client.stream import Exited
from cwsandbox._metrics import OUTCOMES
from cwsandbox._runtime.latch import Latch
from cwsandbox._runtime.storage import FilePiece
from cwsandbox._stream_operation import StreamOperation
from cwsandbox._text import short_repr
from cwsandbox.exceptions import SandboxCommandTimeoutError, SandboxError, SandboxExecutionError, SandboxRefusedError
from cwsandbox.process import ProcessResult
from cwsandbox.wire.signals import signal_number

if TYPE_CHECKING:
    from cwsandbox._client.stream import ClientStream
    from cwsandbox._core import SandboxCore
    from cwsandbox._metrics import Metrics
    from cwsandbox._running import RunningCommand
    from cwsandbox._runtime.spool import Spool
    from cwsandbox.process import Process
    from cwsandbox.terminal import TerminalResult
    from cwsandbox.wire.streams import TerminalSize

__all__ = ["CommandOperation", "ExecOperation", "ExecStats"]

R = TypeVar("R", "ProcessResult", "TerminalResult")

_LAST_BYTES = 4096
"""How much of the end of standard error is looked at for a message."""


class ExecStats:
    """How the commands of one sandbox ended. Thread-safe.

    Attributes:
        metrics: Of the session that counts them too, if one does.
    """

    _numbers = itertools.count()

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(("exec_count", *OUTCOMES), 0)
        self._number = next(self._numbers)
        self._running = 0
        self._idle = Latch()
        """Set when the last one that ran has ended; a new one is made then."""
        self.metrics: Metrics | None = None

    def add(self, name: str) -> None:
        """Count one: `exec_count` when a command or shell begins, one of `OUTCOMES` when it ends."""
        metrics = self.metrics
        if metrics is not None and name in OUTCOMES:
            metrics.exec_ended(self._number, name)
        with self._lock:
            self._counts[name] += 1
            self._running += -1 if name in OUTCOMES else 1
            if self._running:
                return
            idle, self._idle = self._idle, Latch()
        idle.set()

    async def wait_idle(self) -> None:
        """Wait until everything that has begun was counted as ended. Any loop."""
        with self._lock:
            if not self._running:
                return
            idle = self._idle
        await idle.wait()

    def snapshot(self) -> dict[str, int]:
        """The counts now."""
        with self._lock:
            return dict(self._counts)


class CommandOperation(StreamOperation, abc.ABC, Generic[R]):
    """Runs one command.

    Args:
        sandbox: Where.
        process: What the caller holds.
        cwd: Directory in the sandbox, or None for its own.
        env: Added to the sandbox's environment.
        timeout_seconds: The command's limit, enforced by the gateway; None has no limit.
    """

    def __init__(
        self,
        sandbox: SandboxCore,
        process: RunningCommand[R],
        *,
        cwd: str | None,
        env: dict[str, str],
        timeout_seconds: float | None,
    ) -> None:
        super().__init__(sandbox)
        self._process: RunningCommand[R] = process
        self._cwd = cwd
        self._env = env
        self._timeout_seconds = timeout_seconds
        self._stream: ClientStream | None = None
        self._arrived: deque[tuple[int, bytes]] = deque()
        self._settled = False

    async def __call__(self) -> R:
        """Run the command to its end. Cancelling kills it, children included."""
        try:
            result = await self._run()
        except BaseException as error:
            self.settle(error)
            raise
        self.settle(None, result)
        return result

    def start(self) -> None:
        """Count it and begin; whatever happens is told through what the caller holds."""
        self._sandbox.stats.add("exec_count")
        self._process.add_done_callback(lambda ref: self.settle(ref._error))
        self._sandbox.operate(self, ref=self._process, name=self.name)

    def settle(self, error: BaseException | None, result: R | None = None) -> None:
        """End the streams and count the outcome, once, on every path."""
        if self._settled:
            return
        self._settled = True
        self._process._disconnect(error)
        outcome = "exec_failures"
        if result is not None:
            outcome = "exec_completed_nonzero" if result.returncode else "exec_completed_ok"
        self._sandbox.stats.add(outcome)

    # What the channel calls.

    def data(self, code: int, data: bytes) -> None:
        """Output arrived. What waits here for the spool's disk is bounded by the stream's window."""
        if self._arrived or not self._process._spools[code].feed_nowait(data):
            self._arrived.append((code, data))
            self._wake()

    def credit(self, code: int) -> None:
        """The command takes more input."""
        self._send_input()

    async def _run(self) -> R:
        sandbox, process = self._sandbox, self._process
        sandbox_id = await sandbox.ensure_started()
        # Loaded by now, in a thread.
        from cwsandbox.wire.channel import StreamKind
        from cwsandbox.wire.streams import ExecOpen

        terminal = self._terminal()
        params = ExecOpen(
            sandbox_id=sandbox_id,
            argv=tuple(process.command),
            cwd=self._cwd,
            env=self._env,
            timeout_seconds=self._timeout_seconds,
            wait_seconds=sandbox.wait_seconds,
            stdin=process._stdin is not None,
            terminal=terminal,
        )
        kind = StreamKind.EXEC if terminal is None else StreamKind.SHELL
        stream = self._stream = await self._open(kind, params.to_params())
        try:
            process._connect(stream.consumed, self._send_input)
            await self._until_ended()
        except anyio.get_cancelled_exc_class():
            await self._give_up(stream)
            raise
        return await self._result()

    async def _until_ended(self) -> None:
        while True:
            while self._arrived:
                code, data = self._arrived.popleft()
                await self._process._spools[code].feed(data)
            if self._outcome is not None:
                return
            await self._wait_changed()

    def _send_input(self) -> None:
        """Hand over what is queued, as far as the credit goes. On the scope's loop."""
        stream, process = self._stream, self._process
        if stream is None:
            return
        process._send_controls(stream)
        stdin = process._stdin
        if stdin is None:
            return
        while (room := stream.room()) and (data := stdin._take(room)) is not None:
            stream.send(data)
        if stdin._take_eof():
            stream.send_eof()

    async def _result(self) -> R:
        try:
            seen = await self._exit_status()
        except SandboxCommandTimeoutError as error:
            command = short_repr(self._process.command)
            own = "" if self._timeout_seconds is None else f"{self._timeout_seconds:g}"
            limit = error.metadata.get("timeoutSeconds", own)
            bound = "" if limit == own else ", the sandbox's max_timeout_seconds"
            error.args = (f"the command {command} was killed after timeout_seconds={limit}{bound}",)
            raise
        except SandboxError as error:
            if type(error) in {SandboxError, SandboxRefusedError}:
                raise SandboxExecutionError(str(error), reason=error.reason, metadata=error.metadata) from error
            raise
        return await self._make_result(seen.status if isinstance(seen, Exited) else 128 + signal_number(seen.name))

    # What kinds of commands differ in.

    name: ClassVar[str] = "command"
    """What the task is called."""

    def _terminal(self) -> TerminalSize | None:
        """The size of its terminal, if it has one."""
        return None

    @abc.abstractmethod
    async def _make_result(self, returncode: int) -> R:
        """What the caller gets."""


class ExecOperation(CommandOperation[ProcessResult]):
    """Runs one command and keeps its output.

    Args:
        sandbox: Where.
        process: What the caller holds.
        cwd: Directory in the sandbox, or None for its own.
        env: Added to the sandbox's environment.
        check: A non-zero exit is a `SandboxExecutionError`.
        timeout_seconds: The command's limit, enforced by the gateway; None has no limit.
    """

    name = "exec"

    def __init__(
        self,
        sandbox: SandboxCore,
        process: Process,
        *,
        cwd: str | None,
        env: dict[str, str],
        check: bool,
        timeout_seconds: float | None,
    ) -> None:
        super().__init__(sandbox, process, cwd=cwd, env=env, timeout_seconds=timeout_seconds)
        self._check = check

    async def _make_result(self, returncode: int) -> ProcessResult:
        stdout, stderr = self._process._spools
        command = self._process.command
        result = ProcessResult._from_spools(stdout, stderr, returncode, command)
        if self._check and returncode:
            raise SandboxExecutionError(
                f"the command {short_repr(command)} exited with {returncode}: {await _last_line(stderr)}",
                exec_result=result,
            )
        return result


async def _last_line(spool: Spool) -> str:
    """Of what may be gigabytes on the disk, without looking at all of it."""
    end = b""
    for piece in spool.last_pieces(_LAST_BYTES):
        end += await anyio.to_thread.run_sync(piece.read) if isinstance(piece, FilePiece) else piece
    lines = end.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:500] if lines else "nothing on stderr"
