"""The exec and shell streams: one command, its three byte streams, its deadline, its end.

How a command's stream ends:

    the command exited                  EXIT_STATUS
    it could not be started             the message on stderr, EXIT_STATUS 127, 126 or 2
    its time was over                   killed, output so far, STATUS DEADLINE_EXCEEDED / COMMAND_TIMEOUT
    its sandbox ended                   STATUS FAILED_PRECONDITION / SANDBOX_NOT_RUNNING, never an exit status
    the client closed the stream        killed, then CLOSE: the client knows that nothing of it is left
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
from collections import deque
from typing import TYPE_CHECKING, Final

import anyio

from cwsandbox.gateway.errors import StatusError, error, not_running
from cwsandbox.gateway.streamtask import StreamTask
from cwsandbox.runners.base import (
    BoxGoneError,
    CommandNotStartedError,
    ExecSpec,
    RunnerError,
    TerminalSize,
)
from cwsandbox.wire.errors import Code, Reason
from cwsandbox.wire.signals import signal_name, signal_number

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from cwsandbox.gateway.sandbox import LiveSandbox
    from cwsandbox.gateway.service import Service
    from cwsandbox.runners.base import ByteSink, ByteSource, Command, ExitStatus
    from cwsandbox.wire.channel import Stream
    from cwsandbox.wire.streams import ExecOpen

_log = logging.getLogger(__name__)

# A kill takes milliseconds; a box that takes longer is lost, and its sandbox's task finds that out.
_KILL_SECONDS: Final = 10.0
# After a time-out: how long the output of the killed command may take to reach a client that reads.
_LAST_OUTPUT_SECONDS: Final = 5.0
# The output usually ends a moment before the exit is known: one message for both.
_TOGETHER_SECONDS: Final = 0.01
# Signals and sizes kept for a command that has not started; a client that sends more loses the rest.
_EARLY_LIMIT: Final = 64


class Execution(StreamTask):
    """One command of one client."""

    def __init__(self, service: Service, principal: str, stream: Stream, request: ExecOpen) -> None:
        super().__init__(service, principal, stream)
        self._request = request
        self._command: Command | None = None
        self._tasks: TaskGroup | None = None
        self._stdin: deque[bytes] = deque()
        self._stdin_eof = False
        self._stdin_broken = False
        self._feeding = False
        # Signals and sizes that came before the command had started.
        self._early: list[int | TerminalSize] = []
        # By substream: everything was passed on.
        self._ended = (anyio.Event(), anyio.Event())

    # -- called by the connection

    def on_data(self, data: bytes) -> None:
        """Queue data for stdin; the stream's window bounds the queue."""
        if not self._request.stdin:
            super().on_data(data)
            return
        self._stdin.append(data)
        self._feed_stdin()

    def on_eof(self) -> None:
        """Close stdin behind what is queued."""
        self._stdin_eof = True
        self._feed_stdin()

    def on_signal(self, name: str) -> None:
        """Send the signal, at once or when the command has started; names unknown to this system are ignored."""
        with contextlib.suppress(ValueError):
            self._control(signal_number(name))

    def on_window_change(self, columns: int, rows: int) -> None:
        """Resize the terminal, if the command has one."""
        if self._request.terminal is not None:
            self._control(TerminalSize(columns, rows))

    @property
    def runs_on(self) -> bool:
        """Detached and started."""
        return self._request.detach and self._command is not None

    def abort(self) -> None:
        """Kill the command and all it started, unless it is detached: then it runs on and its output is dropped."""
        if self.runs_on:
            self._unwatched = True
            self._credit.notify()
        else:
            super().abort()

    # ------------------------------------------------------------------------------------------ the task

    async def _serve(self) -> None:
        request = self._request
        sandbox = self.service.get(self.principal, request.sandbox_id)
        with sandbox.in_use():
            box = await self.service.box(sandbox, request.wait_seconds)
            try:
                command = await box.exec(_spec(self.stream.exec_id, request))
            except CommandNotStartedError as problem:
                self._not_started(problem)
                return
            except BoxGoneError:
                raise not_running(sandbox.record) from None
            except RunnerError as problem:
                raise error(Code.RESOURCE_EXHAUSTED, str(problem)) from problem
            self._command = command
            try:
                await self._live(sandbox, command)
            finally:
                with anyio.move_on_after(_KILL_SECONDS, shield=True):
                    await command.aclose()

    async def _live(self, sandbox: LiveSandbox, command: Command) -> None:
        """Serve a command that was started, to its end."""
        request = self._request
        limit = _limit(request, sandbox)
        deadline = anyio.current_time() + limit
        self.stream.confirm({"pid": command.pid})
        if request.detach:
            self.service.remember_detached(request.sandbox_id, self.stream.exec_id)
        if request.stdin or request.detach or request.terminal is not None:
            self.wake()  # Somebody waits for the start; otherwise the confirmation goes with the first output.
        status: ExitStatus | None = None
        try:
            timed_out = await self._serve_until(command, deadline)
            if timed_out and not await self._exited(command):
                await self._kill(command)
                await self._serve_until(command, anyio.current_time() + _LAST_OUTPUT_SECONDS)
                raise _timed_out(limit)
            if timed_out:
                # It ended in time: only its reader is slow.
                await self._serve_until(command, math.inf)
            status = await command.wait()
        except BoxGoneError:
            raise not_running(sandbox.record) from None
        finally:
            if status is None:
                await self._kill(command)
        if status.signal == signal.SIGKILL and sandbox.ending:
            raise not_running(sandbox.record)
        self._report(status)

    def _report(self, status: ExitStatus) -> None:
        if status.signal is not None:
            self.stream.exit_signal(signal_name(status.signal))
        else:
            self.stream.exit_status(status.returncode)

    def _not_started(self, problem: CommandNotStartedError) -> None:
        self.stream.confirm({})
        self._send(f"{problem}\n".encode(errors="replace"), 1)
        self.stream.exit_status(problem.status)

    async def _serve_until(self, command: Command, deadline: float) -> bool:
        """Carry all streams until both outputs have ended; True if `deadline` came first."""
        async with anyio.create_task_group() as tasks:
            tasks.cancel_scope.deadline = deadline
            self._tasks = tasks
            try:
                self._begin_input()
                if command.stderr is not None:
                    tasks.start_soon(self._pump, command.stderr, 1)
                await self._pump(command.stdout, 0)
                if command.stderr is not None:
                    await self._ended[1].wait()
                await self._wait_or_wake(command)
            finally:
                self._tasks = None
            tasks.cancel_scope.cancel()
            return False
        return True

    async def _wait_or_wake(self, command: Command) -> None:
        """Wait for the exit; if it does not follow the end of the output at once, the client learns that end first."""
        with anyio.move_on_after(_TOGETHER_SECONDS), contextlib.suppress(BoxGoneError):
            await command.wait()
            return
        self.wake()
        with contextlib.suppress(BoxGoneError):
            await command.wait()

    async def _pump(self, source: ByteSource, code: int) -> None:
        """Send what comes out, as fast as the client takes it."""
        ended = self._ended[code]
        if ended.is_set():
            return
        try:
            while True:
                self._send(await source.receive(await self._room(code)), code)
        except anyio.EndOfStream:
            pass
        except (BoxGoneError, anyio.ClosedResourceError, anyio.BrokenResourceError):
            pass  # `wait` tells the same, with the right words.
        self.stream.send_eof(code)
        ended.set()

    async def _exited(self, command: Command) -> bool:
        with anyio.move_on_after(_TOGETHER_SECONDS):
            await command.wait()
            return True
        return False

    async def _kill(self, command: Command) -> None:
        """Kill the tree, bounded; a detached command only at its time-out or with its sandbox."""
        with anyio.move_on_after(_KILL_SECONDS, shield=True):
            try:
                await command.kill()
            except BoxGoneError:
                pass
            except (RunnerError, OSError):
                _log.exception("command %s could not be killed", command.exec_id)

    # ------------------------------------------------------------------------------------------ input

    def _begin_input(self) -> None:
        """The command runs: pass on what came before that."""
        early, self._early = self._early, []
        for item in early:
            self._control(item)
        self._feed_stdin()

    def _feed_stdin(self) -> None:
        """Start the stdin task if there is something to do and none runs."""
        if self._tasks is not None and not self._feeding and (self._stdin or self._stdin_eof):
            self._feeding = True
            self._tasks.start_soon(self._pump_stdin)

    async def _pump_stdin(self) -> None:
        assert self._command is not None
        sink = self._command.stdin
        try:
            while self._stdin:
                # Counted by what the sink took, so that a write cut short by a deadline is not repeated.
                await self._write_stdin(sink, self._stdin[0])
                self._acknowledge(len(self._stdin.popleft()))
            if self._stdin_eof and sink is not None:
                with contextlib.suppress(anyio.BrokenResourceError, BoxGoneError):
                    await sink.aclose()
        finally:
            self._feeding = False

    async def _write_stdin(self, sink: ByteSink | None, data: bytes) -> None:
        if sink is None or self._stdin_broken:
            return
        try:
            await sink.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, BoxGoneError):
            self._stdin_broken = True  # Nobody reads any more; the rest is taken and dropped, as a shell's pipe would.

    def _acknowledge(self, taken: int) -> None:
        self.stream.consumed(taken)
        self.wake()

    def _control(self, item: int | TerminalSize) -> None:
        if self._tasks is not None:
            self._tasks.start_soon(self._apply, item)
        elif len(self._early) < _EARLY_LIMIT:
            self._early.append(item)

    async def _apply(self, item: int | TerminalSize) -> None:
        assert self._command is not None
        try:
            if isinstance(item, TerminalSize):
                await self._command.resize(item)
            else:
                await self._command.signal(item)
        except (RunnerError, OSError) as problem:
            _log.info("command %s: %s", self._command.exec_id, problem)


def _spec(exec_id: str, request: ExecOpen) -> ExecSpec:
    terminal = request.terminal
    return ExecSpec(
        exec_id=exec_id,
        argv=tuple(request.argv),
        cwd=request.cwd or None,
        env=request.env,
        stdin=request.stdin,
        terminal=None if terminal is None else TerminalSize(terminal.columns, terminal.rows),
    )


def _limit(request: ExecOpen, sandbox: LiveSandbox) -> float:
    """Return the command's own limit, bounded by what the sandbox was created with."""
    limits = (request.timeout_seconds, sandbox.record.spec.max_timeout_seconds or None)
    return min((limit for limit in limits if limit is not None), default=math.inf)


def _timed_out(limit: float) -> StatusError:
    return error(
        Code.DEADLINE_EXCEEDED,
        f"the command ran longer than {limit:g} s and was killed",
        Reason.COMMAND_TIMEOUT,
        {"timeoutSeconds": f"{limit:g}"},
    )
