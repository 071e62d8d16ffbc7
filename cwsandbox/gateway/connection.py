"""One WebSocket of a client: frames in, frames out, nothing else.

Three tasks: the reader turns messages into calls of stream tasks, the writer sends whenever the channel has output
(however many streams woke it: one message), and the timer lets the channel ping. What serves the streams lives in the
service and survives the connection; see `streamtask`.
"""

from __future__ import annotations

import logging
import math
from time import monotonic
from typing import TYPE_CHECKING, Protocol

import anyio

from cwsandbox.gateway.execution import Execution
from cwsandbox.gateway.fileops import FileOperation
from cwsandbox.gateway.logstream import LogStream
from cwsandbox.gateway.transfer import ReadTransfer, WriteTransfer
from cwsandbox.wire import events
from cwsandbox.wire.channel import Channel, Role, StreamKind
from cwsandbox.wire.errors import Code, PeerSilentError, ProtocolError, Status, WireError
from cwsandbox.wire.streams import ExecOpen, FilesOpen, LogsOpen, ReadOpen, WriteOpen

if TYPE_CHECKING:
    from collections.abc import Callable

    from cwsandbox.gateway.registry import PeerProcess
    from cwsandbox.gateway.service import Service
    from cwsandbox.gateway.streamtask import StreamTask
    from cwsandbox.wire.channel import Stream

_log = logging.getLogger(__name__)

# Longer than a kill may take.
_FAREWELL_SECONDS = 12.0
_LOST = (
    "the stream is lost: the gateway was restarted, or the client was away for longer than the grace; "
    "what the command printed in between cannot be delivered"
)


class Transport(Protocol):
    """What carries messages: a WebSocket that was accepted."""

    async def receive(self) -> bytes | None:
        """Return the next message; None when the client is gone."""
        ...

    async def send(self, message: bytes) -> None:
        """Send a message; waits while the client does not take it. OSError when it is gone."""
        ...


class Connection:
    """The channel over one transport.

    Args:
        service: Whose sandboxes.
        principal: Who is at the other end.
        transport: The accepted WebSocket.
        peer: The client's process, as far as it is known.
        admitted: Asked with every message: a client whose key was revoked is cut off. It may come back for its streams
            within the grace, if it has another key of the same principal.
    """

    def __init__(
        self,
        service: Service,
        principal: str,
        transport: Transport,
        peer: PeerProcess,
        admitted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._service = service
        self._principal = principal
        self._peer = peer
        self._admitted = admitted
        self._transport = transport
        self._channel = Channel(Role.SERVER)
        self._tasks: dict[Stream, StreamTask] = {}
        self._output = anyio.Event()
        self._scope = anyio.CancelScope()
        # The client said goodbye or broke the protocol: it will not come back.
        self._final = False

    async def run(self) -> None:
        """Serve until the client is gone or said goodbye. Never raises but for cancellation.

        A client that only is gone finds its streams again within the grace; see `StreamRegistry.expire`.
        """
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._write)
                    tasks.start_soon(self._watch_silence)
                    await self._read()
                    await self._farewell()
                    self._scope.cancel()
        finally:
            self._leave()

    def wake(self) -> None:
        """There is something to send. Any number of calls before the writer runs make one message."""
        self._output.set()

    def release(self, task: StreamTask) -> None:
        """The task ended for good, or another connection took it over."""
        self._tasks.pop(task.stream, None)
        task.owner = None

    def _leave(self) -> None:
        """Leave the streams to the registry, or end them if the client will not come back."""
        self._channel.abandon()
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.disconnect()
        if self._final:
            for task in tasks:
                if not task.ended:
                    task.abort()
                self._service.streams.settle(task)
        if tasks and not self._final and not self._service.closing:
            grace = self._service.limits.grace_seconds
            self._service.start_soon(self._service.streams.expire, tasks, self._peer, grace, name="reconnect grace")
        else:
            self._peer.close()

    # ------------------------------------------------------------------------------------------ tasks

    async def _read(self) -> None:
        try:
            while (message := await self._transport.receive()) is not None and self._admitted():
                for event in self._channel.receive(message, monotonic()):
                    self._dispatch(event)
                if self._channel.has_output:
                    self.wake()
                if self._final:
                    return
        except ProtocolError as problem:
            # What came with the fault is lost, so this client cannot resume.
            _log.warning("a client of %s broke the protocol: %s", self._principal, problem)
            self._final = True

    async def _write(self) -> None:
        try:
            while True:
                await self._output.wait()
                self._output = anyio.Event()
                while (message := self._channel.message_to_send()) is not None:
                    await self._transport.send(message)
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._scope.cancel()

    async def _watch_silence(self) -> None:
        try:
            while True:
                self._channel.check(monotonic())
                deadline = self._channel.deadline()
                await anyio.sleep(math.inf if deadline is None else deadline - monotonic())
                self._channel.check(monotonic())
                if self._channel.has_output:
                    self.wake()
        except PeerSilentError as problem:
            _log.info("a client of %s is gone: %s", self._principal, problem)
            self._scope.cancel()

    async def _farewell(self) -> None:
        """After a goodbye: kill what the client started before the transport closes, so that it can wait for that."""
        if self._final:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.abort()
            with anyio.move_on_after(_FAREWELL_SECONDS):
                for task in tasks:
                    if not task.runs_on:
                        await task.wait_ended()

    # ------------------------------------------------------------------------------------------ events

    def _dispatch(self, event: events.Event) -> None:
        match event:
            case events.Opened():
                self._open(event)
            case events.Hello():
                self._channel.hello({"grace_seconds": self._service.limits.grace_seconds})
            case events.Goodbye():
                self._final = True
            case events.StreamEvent():
                task = self._tasks.get(event.stream)
                if task is not None:
                    self._dispatch_to(task, event)

    def _dispatch_to(self, task: StreamTask, event: events.StreamEvent) -> None:
        match event:
            case events.Data(data=data):
                task.on_data(data)
            case events.Credit():
                task.on_credit()
            case events.Eof():
                task.on_eof()
            case events.SignalReceived(name=name):
                task.on_signal(name)
            case events.WindowChanged(columns=columns, rows=rows):
                task.on_window_change(columns, rows)
            case events.Closed():
                if not task.ended:
                    task.abort()
                self._service.streams.settle(task)

    def _open(self, event: events.Opened) -> None:
        stream = event.stream
        known = self._service.streams.find(self._principal, stream.exec_id)
        if known is not None:
            self._adopt(known, event)
        elif stream.attach is not None:
            stream.fail(Status.make(Code.ABORTED, _LOST))
        else:
            self._begin(stream)

    def _begin(self, stream: Stream) -> None:
        try:
            task = _make_task(self._service, self._principal, stream)
        except WireError as problem:
            stream.fail(problem.to_status())
            return
        self._own(task)
        self._service.streams.add(task)
        self._service.start_soon(task.run, name=f"{stream.kind} {stream.exec_id}")

    def _adopt(self, task: StreamTask, opened: events.Opened) -> None:
        """The client is back, maybe before its old connection was noticed to be dead."""
        try:
            self._channel.adopt(task.stream, opened)
        except ValueError:
            opened.stream.fail(Status.make(Code.INVALID_ARGUMENT, "the exec id names another stream"))
            return
        if task.owner is not None:
            task.owner.release(task)
        self._own(task)
        task.on_credit()  # The client may have taken more while it was away.

    def _own(self, task: StreamTask) -> None:
        task.owner = self
        self._tasks[task.stream] = task


def _make_task(service: Service, principal: str, stream: Stream) -> StreamTask:
    """Make what serves a new stream.

    Raises:
        WireError: The parameters are wrong.
    """
    match stream.kind:
        case StreamKind.EXEC | StreamKind.SHELL:
            return Execution(service, principal, stream, ExecOpen.from_params(stream.params))
        case StreamKind.READ:
            return ReadTransfer(service, principal, stream, ReadOpen.from_params(stream.params))
        case StreamKind.WRITE:
            return WriteTransfer(service, principal, stream, WriteOpen.from_params(stream.params))
        case StreamKind.FILES:
            return FileOperation(service, principal, stream, FilesOpen.from_params(stream.params))
        case StreamKind.LOGS:
            return LogStream(service, principal, stream, LogsOpen.from_params(stream.params))
