"""The exec channel of a client: streams over a WebSocket that may break and come back.

`wire.channel` is the protocol; this module gives it a transport, a clock and a memory across transports. The transport
is connected when a stream needs it. When it is lost, live streams are resumed on a new one within the gateway's grace;
a stream that cannot be resumed ends as `Lost`. A command is never run twice: a gateway knows exec ids, and one that was
restarted finds them in the sandboxes that it takes back. What is no command is asked for again there only if doing it
twice does no harm, or if no gateway can have seen it.
"""

from __future__ import annotations

import copy
import logging
import math
import random
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from attrs import frozen

from cwsandbox._client.errors import TransportError, request_timed_out, unreachable
from cwsandbox._client.stream import ClientStream, Exited, Lost, Outcome, Refused, Signaled
from cwsandbox._runtime._loops import background
from cwsandbox.exceptions import CWSandboxError, SandboxUnavailableError
from cwsandbox.wire.channel import (
    Channel,
    Closed,
    Confirmed,
    Credit,
    Data,
    Eof,
    Event,
    ExitSignalReceived,
    ExitStatusReceived,
    Failed,
    Hello,
    PeerSilentError,
    ProtocolError,
    Role,
    StreamEvent,
    StreamKind,
)
from cwsandbox.wire.errors import Code

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from cwsandbox._client.stream import StreamSink

_logger = logging.getLogger("cwsandbox")
_EXPECTED = (TransportError, PeerSilentError, ProtocolError, CWSandboxError)
_ASKED_FOR_AGAIN = frozenset({StreamKind.EXEC, StreamKind.SHELL, StreamKind.READ, StreamKind.LOGS})
_COMPANY_SECONDS = 0.01
# A connection that breaks within a message has not carried it: smaller ones get further on a bad network.
_MESSAGE_BYTES = 128 * 1024


class MessageSocket(Protocol):
    """A WebSocket as the channel needs it. Failures are `TransportError`."""

    @property
    def has_reply(self) -> bool:
        """Whether there is something to send even without a message."""

    async def receive_message(self) -> bytes:
        """Receive one message; `b""` if only `has_reply` changed."""

    async def send_message(self, message: bytes | None) -> None:
        """Send a reply that is due, and a message."""


@frozen
class Connection:
    """A connected transport.

    Attributes:
        socket: The WebSocket.
        instance: The id of the gateway process at its other end.
    """

    socket: MessageSocket
    instance: str


@frozen
class Timing:
    """How patient the channel is. All in seconds.

    Attributes:
        connect: For one attempt to connect.
        first_connect: For all attempts, while the gateway has seen none of the streams.
        grace: For all attempts, while streams wait to be resumed; the gateway's own word replaces it.
        first_delay: Before the second attempt; doubled for each one after.
        longest_delay: Where the doubling ends.
        farewell: For the gateway to end what runs when the channel is closed.
        ping: After which silence to ask whether the gateway is there.
        silence: After which silence it is not.
    """

    connect: float = 10.0
    first_connect: float = 5.0
    grace: float = 30.0
    first_delay: float = 0.05
    longest_delay: float = 2.0
    farewell: float = 5.0
    ping: float = 15.0
    silence: float = 45.0


class ExecChannel:
    """Streams to one gateway. Made by `open_channel`; use it on its own loop only.

    Args:
        where: What messages call the gateway.
        connect: Makes a transport, within a time of its own. It raises `TransportError` for what may be better next
            time, `CWSandboxError` for what will not.
        timing: How patient to be.
    """

    def __init__(
        self,
        where: object,
        connect: Callable[[], AbstractAsyncContextManager[Connection]],
        timing: Timing,
    ) -> None:
        self._where = where
        self._connect = connect
        self._timing = timing
        self._grace = timing.grace
        self._mux = self._new_mux()
        self._mux_used = False
        self._streams: dict[str, ClientStream] = {}
        # Opened since the last message was sent: no gateway can have seen them.
        self._fresh: list[ClientStream] = []
        self._activity = anyio.Event()
        # A cancelled owner still says goodbye: only `open_channel` ends the connection, after a bounded farewell.
        self._life = anyio.CancelScope(shield=True)
        # What is due can wait a moment for something more urgent.
        self._can_wait = False
        self._stopped = anyio.Event()
        self._connected = False
        # Around the making of a connection: ends when a stream has waited for as long as it can.
        self._patience: anyio.CancelScope | None = None
        self._closing = False
        self._progress = False
        self._failures: list[Exception] = []

    def open(
        self,
        kind: StreamKind,
        params: dict[str, Any],
        exec_id: str,
        sink: StreamSink,
        reach_seconds: float = math.inf,
    ) -> ClientStream:
        """Open a stream. Never waits: what cannot be opened tells its sink so in `ended`.

        Args:
            kind: What the stream does.
            params: `to_params()` of the matching model in `cwsandbox.wire.streams`.
            exec_id: A name that nobody used before (1 to 128 letters, digits, `_.:-`): the gateway runs it once,
                however often it is asked.
            sink: Told what happens.
            reach_seconds: How long a gateway may take to be reached, if that is less than the channel's own patience;
                then the stream ends with `SandboxRequestTimeoutError`.

        Raises:
            SandboxUnavailableError: The channel is closed.
            ValueError: `params` are too large for one message, or `exec_id` is malformed.
        """
        if self._closing:
            raise SandboxUnavailableError(f"the connection to {self._where} is closed")
        stream = ClientStream(self, self._mux.open(kind, params, exec_id), sink)
        self._streams[exec_id] = stream
        self._fresh.append(stream)
        if math.isfinite(reach_seconds):
            stream._reach_seconds = reach_seconds
            stream._reach_by = anyio.current_time() + reach_seconds
            if self._patience is not None:
                self._patience.deadline = min(self._patience.deadline, stream._reach_by)
        self._wake()
        return stream

    def _wake(self) -> None:
        """There may be something to send. Any number of calls before the writer runs make one message."""
        if self._mux.has_output:
            self._can_wait = False
            self._activity.set()

    def _new_mux(self) -> Channel:
        return Channel(Role.CLIENT, ping_seconds=self._timing.ping, silence_seconds=self._timing.silence)

    # Connections

    @background
    async def _run(self) -> None:
        """Keep a connection while streams need one. Raises nothing but cancellation."""
        with self._life:
            await self._keep_connected()

    async def _keep_connected(self) -> None:
        outage_began: float | None = None
        attempts = 0
        try:
            while await self._is_needed():
                began = anyio.current_time()
                self._progress = False
                failure = await self._use_one_connection()
                if self._closing:
                    return
                if self._progress or outage_began is None:
                    outage_began = anyio.current_time() if self._progress else began
                    attempts = 0
                if self._gives_up(failure, anyio.current_time() - outage_began):
                    self._lose_all(failure)
                self._lose_overdue(failure)
                if not self._streams:
                    outage_began = None
                    continue
                with self._while_patient():
                    await anyio.sleep(self._delay(attempts))
                self._lose_overdue(failure)
                attempts += 1
        finally:
            self._closing = True
            self._stopped.set()

    async def _is_needed(self) -> bool:
        while not self._streams and not self._closing:
            self._activity = anyio.Event()
            await self._activity.wait()
        return not self._closing

    def _gives_up(self, failure: Exception, outage: float) -> bool:
        if not isinstance(failure, (TransportError, PeerSilentError)):
            return True
        seen = any(stream._shown_to for stream in self._streams.values())
        return outage >= (self._grace if seen else self._timing.first_connect)

    @contextmanager
    def _while_patient(self) -> Iterator[anyio.CancelScope]:
        """Within, without a connection, no stream waits for longer than it can."""
        deadline = min((stream._reach_by for stream in self._fresh if not stream.outcome), default=math.inf)
        with anyio.CancelScope(deadline=deadline) as scope:
            self._patience = scope
            try:
                yield scope
            finally:
                self._patience = None

    def _lose_overdue(self, failure: Exception) -> None:
        """End the streams that have waited for as long as they can. No gateway has seen them."""
        now = anyio.current_time()
        for stream in [stream for stream in self._fresh if stream._reach_by <= now and not stream.outcome]:
            self._mux.withdraw(stream._wire)
            self._fresh.remove(stream)
            self._lose(stream, request_timed_out("exec channel", self._where, stream._reach_seconds, failure))

    def _delay(self, attempts: int) -> float:
        longest: float = min(self._timing.longest_delay, self._timing.first_delay * 2**attempts)
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing

    async def _use_one_connection(self) -> Exception:
        """Connect and serve until that ends; returns why."""
        self._failures.clear()
        try:
            with self._while_patient() as patience:
                async with self._connect() as connection:
                    patience.deadline, self._patience = math.inf, None
                    await self._serve(connection)
            if patience.cancelled_caught:
                self._failures.append(TransportError("it took too long", sent=False))
        except Exception as error:
            self._fail(error)
        finally:
            self._connected = False
        return self._failures[0]

    async def _serve(self, connection: Connection) -> None:
        self._take_over(connection.instance)
        self._connected = True
        socket = connection.socket
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._until_failure, tasks.cancel_scope, self._read, socket)
            tasks.start_soon(self._until_failure, tasks.cancel_scope, self._write, socket, connection.instance)
            tasks.start_soon(self._until_failure, tasks.cancel_scope, self._watch)

    @background
    async def _until_failure(self, scope: anyio.CancelScope, part: Callable[..., Awaitable[None]], *args: Any) -> None:
        try:
            await part(*args)
        except Exception as error:
            self._fail(error)
            scope.cancel()

    def _fail(self, error: Exception) -> None:
        """Remember why a connection ended: nothing but cancellation may leave a background task."""
        if not isinstance(error, _EXPECTED):
            _logger.error("the connection to %s failed", self._where, exc_info=error)
        self._failures.append(error)

    def _take_over(self, instance: str) -> None:
        """Prepare what is to be resumed for a new connection, and let go of what only another gateway could know."""
        for stream in list(self._streams.values()):
            wire = stream._wire
            if stream._shown_to not in {None, instance} and not wire.confirmed and wire.kind not in _ASKED_FOR_AGAIN:
                # Asking again could do it again. A stream that is being closed is never asked for, only killed.
                wire.close()
                self._lose(stream, TransportError("the gateway was restarted", sent=True))
        if self._mux_used:
            self._mux = self._mux.resume()
        self._mux_used = True

    async def _read(self, socket: MessageSocket) -> None:
        while True:
            message = await socket.receive_message()
            ended = False
            for event in self._mux.receive(message, anyio.current_time()):
                ended = ended or type(event) is Closed
                self._dispatch(event)
            if not self._activity.is_set() and (self._mux.has_output or socket.has_reply):
                self._can_wait = ended
                self._activity.set()

    async def _write(self, socket: MessageSocket, instance: str) -> None:
        while True:
            if self._can_wait:
                await self._wait_for_company()
            message = self._mux.message_to_send(_MESSAGE_BYTES)
            if message is not None or socket.has_reply:
                for stream in self._fresh:
                    stream._shown_to = instance
                self._fresh.clear()
                await socket.send_message(message)
                continue
            self._activity = anyio.Event()
            await self._activity.wait()

    async def _wait_for_company(self) -> None:
        """Only the answer to the end of a stream is due: the next command usually follows soon, and takes it along."""
        self._activity = anyio.Event()
        with anyio.move_on_after(_COMPANY_SECONDS):
            await self._activity.wait()
        self._can_wait = False

    async def _watch(self) -> None:
        self._mux.check(anyio.current_time())
        while True:
            await anyio.sleep_until(self._mux.deadline() or math.inf)
            self._mux.check(anyio.current_time())
            self._wake()

    # Events

    def _dispatch(self, event: Event) -> None:
        if isinstance(event, StreamEvent):
            stream = self._streams.get(event.stream.exec_id)
            if stream is None:
                return
            self._progress = True
            try:
                self._dispatch_to(stream, event)
            except Exception as error:
                _logger.exception("a stream's user failed")
                stream._wire.close()
                self._lose(stream, error)
        elif isinstance(event, Hello):
            grace = event.info.get("grace_seconds")
            if isinstance(grace, int | float):
                self._grace = float(grace)

    def _dispatch_to(self, stream: ClientStream, event: StreamEvent) -> None:
        match event:
            case Data():
                stream._sink.data(event.code, event.data)
            case Closed():
                self._end(
                    stream,
                    stream._verdict
                    or _lost(stream, self._where, TransportError("it ended without a result", sent=True)),
                )
            case ExitStatusReceived():
                stream._verdict = Exited(event.status)
            case Eof():
                stream._sink.eof(event.code)
            case Confirmed():
                stream._sink.confirmed(dict(event.info))
            case Credit():
                stream._sink.credit(event.code)
            case ExitSignalReceived():
                stream._verdict = Signaled(event.name)
            case Failed():
                # ABORTED is how a gateway says that it no longer knows a stream that we want to go on with.
                if event.status.code is Code.ABORTED:
                    stream._verdict = _lost(stream, self._where, TransportError(event.status.message, sent=True))
                else:
                    stream._verdict = Refused(event.status)
            case _:
                pass

    def _end(self, stream: ClientStream, outcome: Outcome) -> None:
        self._streams.pop(stream.exec_id, None)
        stream._finish(outcome)

    def _lose(self, stream: ClientStream, cause: Exception) -> None:
        self._streams.pop(stream.exec_id, None)
        try:
            stream._finish(_lost(stream, self._where, cause))
        except Exception:
            _logger.exception("a stream's user failed")

    def _lose_all(self, cause: Exception) -> None:
        """End all streams; the connection's state is of no use without them."""
        for stream in list(self._streams.values()):
            self._lose(stream, cause)
        self._fresh.clear()
        self._mux, self._mux_used = self._new_mux(), False

    async def _close(self) -> None:
        """Have the gateway kill what runs, and wait for that; bounded."""
        self._closing = True
        self._activity.set()
        if self._connected:
            self._mux.goodbye()
            self._wake()
            with anyio.move_on_after(self._timing.farewell, shield=True):
                await self._stopped.wait()
        self._life.cancel()


@asynccontextmanager
async def open_channel(
    where: object,
    connect: Callable[[], AbstractAsyncContextManager[Connection]],
    timing: Timing | None = None,
) -> AsyncIterator[ExecChannel]:
    """Open a channel; it connects when its first stream is opened.

    Leaving says goodbye: the gateway kills what was started and not detached, and leaving waits for that, within a
    bound. Streams that live until then end as `Lost`.

    Args:
        where: What messages call the gateway.
        connect: See `ExecChannel`.
        timing: How patient to be.
    """
    channel = ExecChannel(where, connect, timing or Timing())
    failure: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel._run)
        try:
            yield channel
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            failure = error  # Raised below: in here the task group would wrap it in an ExceptionGroup.
        finally:
            await channel._close()
            channel._lose_all(SandboxUnavailableError(f"the connection to {where} was closed"))
    if failure is not None:
        raise failure


def _lost(stream: ClientStream, where: object, cause: Exception) -> Lost:
    """Make the outcome for a stream that has none; every stream gets an exception object of its own."""
    if isinstance(cause, CWSandboxError):
        error = copy.copy(cause)
    elif stream._shown_to is None:
        return Lost(unreachable(where, cause))
    else:
        error = SandboxUnavailableError(f"the connection to {where} was lost, and the outcome with it: {cause}")
    error.__cause__ = cause
    return Lost(error)
