"""The exec and shell streams: one command, its three byte streams, its deadline, its end.

How a command's stream ends:

    the command exited                  EXIT_STATUS
    it could not be started             the message on stderr, EXIT_STATUS 127, 126 or 2
    its time was over                   killed, output so far, STATUS DEADLINE_EXCEEDED / COMMAND_TIMEOUT
    its sandbox ended                   STATUS FAILED_PRECONDITION / SANDBOX_NOT_RUNNING, never an exit status
    the client closed the stream        killed, then CLOSE: the client knows that nothing of it is left

A command on a terminal takes everything that it started along, however it ends; where it is given up it is hung up on
first, so that a shell or an editor can save what it has to.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import signal
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
import anyio.lowlevel
from attrs import asdict, frozen

from cwsandbox.gateway.controls import Controls
from cwsandbox.gateway.errors import StatusError, error, invalid, not_running
from cwsandbox.gateway.pulse import Pulse
from cwsandbox.gateway.stdin import StdinFeeder
from cwsandbox.gateway.streamtask import StreamTask
from cwsandbox.runners.errors import BoxGoneError, CommandNotStartedError, CommandTooLargeError, RunnerError
from cwsandbox.runners.specs import ExecSpec, TerminalSize
from cwsandbox.wire.channel import Stream, StreamKind
from cwsandbox.wire.errors import Code, Reason
from cwsandbox.wire.flow import SendFlow
from cwsandbox.wire.signals import signal_name, signal_number
from cwsandbox.wire.streams import ExecOpen
from cwsandbox.wire.streams import TerminalSize as ClientSize

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from cwsandbox.gateway.sandbox import LiveSandbox
    from cwsandbox.gateway.service import Service
    from cwsandbox.runners.base import Command, OutputSource

_log = logging.getLogger(__name__)

# A kill takes milliseconds; a box that takes longer is lost, and its sandbox's task finds that out.
_KILL_SECONDS: Final = 10.0
# What SIGHUP does in a shell or an editor takes a moment; what ignores it is killed.
_HANGUP_SECONDS: Final = 1.0
# After a time-out: how long the output of the killed command may take to reach a client that reads.
_LAST_OUTPUT_SECONDS: Final = 5.0
# The output usually ends a moment before the exit is known: one message for both.
_TOGETHER_SECONDS: Final = 0.01


@frozen
class Note:
    """What goes into the box with a command, for the gateway that takes the box back.

    Attributes:
        kind: Of the stream.
        detach: It outlives its client.
        limit: Its time in seconds, as it was asked for.
        deadline: When that is over, on the monotonic clock, which all processes share until the machine restarts.
    """

    kind: StreamKind = StreamKind.EXEC
    detach: bool = False
    limit: float | None = None
    deadline: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The note as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: object) -> Note:
        """Read it back. It comes out of the box, which by lying could give its own command more time, and no more."""
        if not isinstance(document, dict):
            return cls()
        limit, deadline = _seconds(document.get("limit")), _seconds(document.get("deadline"))
        if limit is None or deadline is None:
            limit = deadline = None
        return cls(
            kind=StreamKind.SHELL if document.get("kind") == StreamKind.SHELL else StreamKind.EXEC,
            detach=document.get("detach") is True,
            limit=limit,
            deadline=deadline,
        )


class Execution(StreamTask):
    """One command of one client."""

    def __init__(self, service: Service, principal: str, stream: Stream, request: ExecOpen) -> None:
        super().__init__(service, principal, stream)
        self._request = request
        self._command: Command | None = None
        self._exited = False
        self._limit = math.inf
        self._stdin = StdinFeeder(self._start_soon, self._acknowledge) if request.stdin else None
        self._controls = Controls(self._start_soon)
        # By substream: everything was passed on.
        self._ended = [False, False]
        self._stderr_ended = Pulse()
        # The deadline of a command that an earlier gateway started.
        self._inherited: float | None = None

    @classmethod
    def resume(cls, service: Service, sandbox: LiveSandbox, command: Command) -> Self:
        """Go on with a command that an earlier gateway started; its client can take it over."""
        note = Note.from_json(command.note)
        request = ExecOpen(
            sandbox_id=sandbox.record.sandbox_id,
            argv=(command.exec_id,),  # It runs already.
            stdin=command.stdin is not None,
            terminal=ClientSize() if command.stderr is None else None,
            detach=note.detach,
        )
        outputs = [_restored(command.stdout), _restored(command.stderr)]
        received = 0 if command.stdin is None else command.stdin.taken_bytes
        stream = Stream.restored(note.kind, command.exec_id, {"pid": command.pid}, outputs, received)
        execution = cls(service, sandbox.record.principal, stream, request)
        execution._command = command
        execution._limit = math.inf if note.limit is None else note.limit
        execution._inherited = math.inf if note.deadline is None else note.deadline
        return execution

    @property
    def runs_on(self) -> bool:
        """Detached and started."""
        return self._request.detach and self._command is not None

    # -- called by the connection

    def on_data(self, data: bytes) -> None:
        """Pass data on to stdin."""
        if self._stdin is None:
            super().on_data(data)
        else:
            self._stdin.feed(data)

    def on_eof(self) -> None:
        """Close stdin behind what was passed on."""
        if self._stdin is not None:
            self._stdin.end()

    def on_signal(self, name: str) -> None:
        """Send the signal, at once or when the command has started; names unknown to this system are ignored."""
        with contextlib.suppress(ValueError):
            self._controls.signal(signal_number(name))

    def on_window_change(self, columns: int, rows: int) -> None:
        """Resize the terminal, if the command has one."""
        if self._request.terminal is not None:
            self._controls.resize(TerminalSize(columns, rows))

    def on_credit(self) -> None:
        """The client can take more, and will not ask again for what it took."""
        super().on_credit()
        command = self._command
        if command is not None:
            command.stdout.release(self.stream.taken(0))
            if command.stderr is not None:
                command.stderr.release(self.stream.taken(1))

    def abort(self) -> None:
        """Kill the command and all it started, unless it is detached: then it runs on and its output is dropped."""
        if self.runs_on:
            self._unwatch()
        else:
            super().abort()

    # -- the task

    async def _serve(self) -> None:
        request = self._request
        sandbox = self.service.get(self.principal, request.sandbox_id)
        with sandbox.in_use():
            try:
                if self._command is None:
                    self._limit = sandbox.limit(request.timeout_seconds)
                    box = await self._box(sandbox, request.wait_seconds)
                    self._command = await box.exec(self._spec())
                    self._announce(self._command)
                self._begin(self._command)
                await self._finish(sandbox, self._command)
            except CommandNotStartedError as problem:
                self._confirm({})
                if request.terminal is None:
                    self._send(f"{problem}\n".encode(errors="replace"), 1)
                else:
                    self._send(f"{problem}\r\n".encode(errors="replace"))
                self.stream.exit_status(problem.status)
            except BoxGoneError:
                raise not_running(sandbox.record) from None
            except CommandTooLargeError as problem:
                raise invalid(str(problem)) from problem
            except RunnerError as problem:
                raise error(Code.RESOURCE_EXHAUSTED, str(problem)) from problem

    def _spec(self) -> ExecSpec:
        request = self._request
        limited = math.isfinite(self._limit)
        note = Note(
            kind=self.stream.kind,
            detach=request.detach,
            limit=self._limit if limited else None,
            deadline=monotonic() + self._limit if limited else None,
        )
        terminal = request.terminal
        return ExecSpec(
            exec_id=self.stream.exec_id,
            argv=tuple(request.argv),
            cwd=request.cwd or None,
            env=request.env,
            stdin=request.stdin,
            terminal=None if terminal is None else TerminalSize(terminal.columns, terminal.rows),
            note=note.to_json(),
        )

    def _announce(self, command: Command) -> None:
        """The command was started: tell the client."""
        request = self._request
        self._confirm({"pid": command.pid})
        if request.stdin or request.detach or request.terminal is not None:
            self.wake()  # Somebody waits for the start; otherwise the confirmation goes with the first output.

    def _begin(self, command: Command) -> None:
        """The command runs: its time counts; pass on what came early, begin to carry its diagnostics."""
        if self._inherited is None:
            self._scope.deadline = anyio.current_time() + self._limit
        else:
            self._scope.deadline = anyio.current_time() + self._inherited - monotonic()
        if command.stderr is not None:
            self._start_soon(functools.partial(self._pump_stderr, command.stderr))
        else:
            self._ended[1] = True
        self._controls.begin(command)
        if self._stdin is not None and command.stdin is not None:
            if command.stdin.sent_bytes < command.stdin.taken_bytes:
                self._stdin.feed(b"")  # What an earlier gateway took goes first.
            self._stdin.begin(command.stdin)

    async def _finish(self, sandbox: LiveSandbox, command: Command) -> None:
        """Carry the output to its end, then report how the command ended."""
        if self._request.terminal is None:
            await self._carry(command)
        else:
            async with anyio.create_task_group() as tasks:
                # Whoever is left on a terminal keeps it open, so its end would never come.
                tasks.start_soon(_kill_what_is_left, command)
                await self._carry(command)
        try:
            with anyio.move_on_after(_TOGETHER_SECONDS) as limit:
                status = await command.wait()
            if limit.cancelled_caught:
                self.wake()  # The output ended long before the command does.
                status = await command.wait()
        except BoxGoneError:
            raise not_running(sandbox.record) from None
        if status.signal == signal.SIGKILL and sandbox.ending:
            raise not_running(sandbox.record)
        self._exited = True
        if status.signal is not None:
            self.stream.exit_signal(signal_name(status.signal))
        else:
            self.stream.exit_status(status.returncode)

    async def _expired(self) -> None:
        """The time of the command is over."""
        command = self._command
        assert command is not None
        with anyio.move_on_after(_TOGETHER_SECONDS) as limit, contextlib.suppress(BoxGoneError):
            status = await command.wait()
            if self._inherited is not None and status.signal == signal.SIGKILL:
                limit.cancel()  # The earlier gateway killed it when its time was over, and could not say so.
                await anyio.lowlevel.checkpoint()
        if not limit.cancelled_caught:
            # It ended in time: only its reader is slow.
            self._scope = anyio.CancelScope()
            with self._scope:
                await self._finish(self.service.get(self.principal, self._request.sandbox_id), command)
            return
        await _kill(command)
        with anyio.move_on_after(_LAST_OUTPUT_SECONDS):
            await self._carry(command)
        raise _timed_out(self._limit)

    async def _clean_up(self) -> None:
        command = self._command
        if command is None:
            return
        if self._stdin is not None:
            self._stdin.stop()
        if not self._exited:
            with anyio.move_on_after(_KILL_SECONDS, shield=True):
                if self._request.terminal is not None:
                    await _hang_up(command)
                await _kill(command)

    def forget(self) -> None:
        """Let the box forget the command: until here another gateway could have gone on with it."""
        if self._command is not None:
            self._command.forget()

    # -- carrying bytes

    async def _carry(self, command: Command) -> None:
        """Pass on the output until all of it has ended."""
        if not self._ended[0]:
            await self._pump(command.stdout, 0)
        while not self._ended[1]:
            await self._stderr_ended.wait()

    async def _pump(self, source: OutputSource, code: int) -> None:
        """Send what comes out, as fast as the client takes it."""
        try:
            while True:
                self._send(await source.receive(await self._room(code)), code)
                if self.abandoned or self.stream.closing:
                    source.release(source.position)
        except anyio.EndOfStream:
            pass
        except (BoxGoneError, anyio.ClosedResourceError, anyio.BrokenResourceError):
            pass  # `wait` tells the same, with the right words.
        self.stream.send_eof(code)
        self._ended[code] = True

    async def _pump_stderr(self, source: OutputSource) -> None:
        try:
            await self._pump(source, 1)
        except Exception:
            _log.exception("stderr of command %s cannot be read", self.stream.exec_id)
            self._ended[1] = True
        self._stderr_ended.notify()

    def _acknowledge(self, taken: int) -> None:
        self.stream.consumed(taken)
        self.wake()

    def _start_soon(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.service.start_soon(function, name=self.stream.exec_id)


async def _kill(command: Command) -> None:
    """Kill the tree."""
    try:
        await command.kill()
    except BoxGoneError:
        pass  # And the command with it.
    except (RunnerError, OSError):
        _log.exception("command %s could not be killed", command.exec_id)


async def _kill_what_is_left(command: Command) -> None:
    """Kill the tree when its first process has ended."""
    with contextlib.suppress(BoxGoneError):
        await command.wait()
        await _kill(command)


async def _hang_up(command: Command) -> None:
    """Tell the command that its terminal is gone, and give it a moment to end."""
    with anyio.move_on_after(_HANGUP_SECONDS), contextlib.suppress(RunnerError, OSError):
        await command.signal(signal.SIGHUP)
        await command.wait()


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value <= sys.float_info.max else None


def _restored(source: OutputSource | None) -> SendFlow:
    if source is None:
        return SendFlow()
    base = source.position
    return SendFlow.restored(base, source.recall())


def _timed_out(limit: float) -> StatusError:
    return error(
        Code.DEADLINE_EXCEEDED,
        f"the command ran longer than {limit:g} s and was killed",
        Reason.COMMAND_TIMEOUT,
        {"timeoutSeconds": f"{limit:g}"},
    )
