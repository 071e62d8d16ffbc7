"""The exec channel: one connection that carries many streams, as a state machine without I/O.

Both sides use it. The transport hands every received message to `Channel.receive` and acts on the events; after any
call it sends what `Channel.message_to_send` gives until that is None. Time comes in as arguments, on any monotonic
clock. A WebSocket has to carry binary messages of up to `MAX_MESSAGE_BYTES`, in order.

How a stream ends. Each side closes once; `Closed` reports the peer's CLOSE; the channel forgets a stream when both
are through:

    peer's CLOSE    own close()    state
    no              no             open
    no              yes            closing: what is queued goes out, then CLOSE. Of the peer only its result and
                                   Closed are reported
    yes             no             half-open (server): the command is to be killed, then `close()` is called. A
                                   client's channel calls close() itself, at once
    yes             yes            closed, as soon as CLOSE has been sent; late frames for the number are ignored

So the usual end is the server's result and CLOSE, answered by the client's channel. A client that closes first
gives up: the server kills, closes, and the client's `Closed` says that the command is dead.

How a connection is replaced. The client calls `resume` for each new transport, the server `abandon` on the old
channel. The client asks for every stream again, saying what it received, and holds everything but CLOSE until the
server says what that has. The server reports `Opened`, with `stream.attach` set if the client has heard of the
stream before:

    exec id known          `adopt(old, opened)`, whether attach is set or not
    unknown, attach None   a new stream: the first OPEN never arrived
    unknown, attach set    `stream.fail(...)`: it was forgotten, or the server restarted

A client closes streams whose end it has seen without a chance to say so on a broken connection, so abandoned
streams that nobody asked for within the grace are simply dropped. `Closed` can be reported again after a re-attach.
"""

from __future__ import annotations

import types
from collections import deque
from typing import TYPE_CHECKING, Any

from cwsandbox.wire.errors import PeerSilentError, ProtocolError
from cwsandbox.wire.events import (
    Closed,
    Confirmed,
    Credit,
    Data,
    Eof,
    Event,
    ExitSignalReceived,
    ExitStatusReceived,
    Failed,
    Goodbye,
    Hello,
    Opened,
    SignalReceived,
    StreamEvent,
    WindowChanged,
)
from cwsandbox.wire.frames import (
    MAX_MESSAGE_BYTES,
    MESSAGE_BYTES,
    PROTOCOL_VERSION,
    WINDOW_BYTES,
    FrameType,
    MessageBuilder,
    dump_json,
    parse_message,
)
from cwsandbox.wire.opening import Attach, Role, StreamKind, is_exec_id
from cwsandbox.wire.receiving import HANDLERS
from cwsandbox.wire.stream_state import Stream

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MAX_MESSAGE_BYTES",
    "PROTOCOL_VERSION",
    "WINDOW_BYTES",
    "Attach",
    "Channel",
    "Closed",
    "Confirmed",
    "Credit",
    "Data",
    "Eof",
    "Event",
    "ExitSignalReceived",
    "ExitStatusReceived",
    "Failed",
    "Goodbye",
    "Hello",
    "Opened",
    "PeerSilentError",
    "ProtocolError",
    "Role",
    "SignalReceived",
    "Stream",
    "StreamEvent",
    "StreamKind",
    "WindowChanged",
]

_LAST_ID = 2**32 - 1
_LEAST_DATA_BYTES = 4096
"""A message that has room for less is full: a turn is not spent on a scrap."""


class Channel:
    """One connection's state.

    Args:
        role: Which side this is.
        hello: What to tell the peer beside the protocol version. A client's HELLO is queued at once; a server's too if
            this is given, else by `hello()`.
        max_streams: Server: how many streams may be open at once; more are refused with RESOURCE_EXHAUSTED.
        max_open_bytes: Server: how many bytes the OPENs of all streams may have together; likewise.
        ping_seconds: After how long a silence to send a PING.
        silence_seconds: After how long a silence the peer is given up.

    Attributes:
        role: Which side this is.
    """

    def __init__(
        self,
        role: Role,
        *,
        hello: Mapping[str, Any] | None = None,
        max_streams: int = 4096,
        max_open_bytes: int = 64 * 1024 * 1024,
        ping_seconds: float = 15.0,
        silence_seconds: float = 45.0,
    ) -> None:
        self.role = role
        self._hello_info = hello
        self._max_streams = max_streams
        self._max_open_bytes = max_open_bytes
        self._ping_seconds = ping_seconds
        self._silence_seconds = silence_seconds
        self._streams: dict[int, Stream] = {}
        self._streams_view = types.MappingProxyType(self._streams)
        self._open_bytes = 0
        self._last_id = 0
        self._hello: bytes | None = None
        self._refused: list[tuple[int, bytes]] = []
        self._ping_due = False
        self._pong: int | None = None
        self._heard_at: float | None = None
        self._ping_sent = False
        self._got_hello = False
        self._got_goodbye = False
        self._goodbye = False
        self._over = False
        # Streams with something to write that is not data, and streams with data, in turn.
        self._urgent: deque[Stream] = deque()
        self._turns: deque[Stream] = deque()
        if role is Role.CLIENT or hello is not None:
            self.hello(hello or {})

    @property
    def streams(self) -> Mapping[int, Stream]:
        """The streams that are not closed on both sides, by number."""
        return self._streams_view

    # What the local side does

    def hello(self, info: Mapping[str, Any]) -> None:
        """Queue the HELLO, as the first frame. A server calls this once it has seen the client's.

        Raises:
            ValueError: `info` has no JSON form.
        """
        self._hello = dump_json({**info, "protocol": PROTOCOL_VERSION})

    def open(self, kind: StreamKind, params: dict[str, Any], exec_id: str) -> Stream:
        """Client: open a stream. Data may follow at once, without waiting for the confirmation.

        Args:
            kind: What for.
            params: What the kind needs (`cwsandbox.wire.streams`).
            exec_id: What names the stream across connections; new for each, 1 to 128 of letters, digits, `_.:-`.

        Raises:
            ValueError: `params` have no JSON form or are too large, or the exec id is malformed.
            RuntimeError: After `goodbye`, or on a server.
        """
        if self.role is Role.SERVER:
            raise RuntimeError("a server does not open streams")
        if self._goodbye or self._last_id == _LAST_ID:
            raise RuntimeError("the channel opens no more streams")
        if not is_exec_id(exec_id):
            raise ValueError(f"{exec_id!r} is not an exec id")
        payload = dump_json({"kind": kind.value, "execId": exec_id, "params": params})
        self._last_id += 1
        stream = Stream(self, self.role, stream_id=self._last_id, kind=kind, params=params, exec_id=exec_id)
        stream._open = payload
        self._streams[stream.id] = stream
        self._wake(stream)
        return stream

    def withdraw(self, stream: Stream) -> None:
        """Client: forget a stream of which no message has told the server yet."""
        self._forget(stream)

    def goodbye(self) -> None:
        """Client: say, behind everything queued, that what runs undetached is to be killed. The last frame."""
        self._goodbye = True

    def resume(self) -> Channel:
        """Client: the channel for a new connection, with the same streams. This one is of no further use.

        Not after `receive` raised ProtocolError: what that message carried is lost.
        """
        if self.role is Role.SERVER:
            raise RuntimeError("a client resumes")
        self._over = True
        successor = Channel(
            self.role,
            hello=self._hello_info,
            max_streams=self._max_streams,
            max_open_bytes=self._max_open_bytes,
            ping_seconds=self._ping_seconds,
            silence_seconds=self._silence_seconds,
        )
        successor.hello({**(self._hello_info or {}), "resume": True})
        successor._goodbye = self._goodbye
        for stream in list(self._streams.values()):
            self._take_out(stream)
            if stream.peer_closed:
                stream.closed = True
                continue
            successor._last_id += 1
            successor._streams[successor._last_id] = stream
            stream._reopen(successor, successor._last_id)
            successor._wake(stream)
        return successor

    def abandon(self) -> list[Stream]:
        """Server: the connection is gone; returns the streams to keep for `adopt`, until the grace passed."""
        self._over = True
        streams = list(self._streams.values())
        for stream in streams:
            self._take_out(stream)
        return streams

    def adopt(self, old: Stream, opened: Opened) -> None:
        """Server: let a stream from an earlier connection take the place of the one just opened.

        If its old connection was not abandoned yet, it is taken from there. What the client lacks is sent again.

        Raises:
            ProtocolError: The client claims to have received what it cannot have.
            ValueError: `opened` is not a stream of this channel that awaits its answer, or of another kind.
        """
        placeholder = opened._stream
        if self._streams.get(placeholder.id) is not placeholder or placeholder.confirmed or placeholder.closing:
            raise ValueError("the stream does not await an answer")
        if old.kind is not placeholder.kind or old.exec_id != placeholder.exec_id or old.closed:
            raise ValueError("the streams do not belong together")
        if isinstance(old._channel, Channel):
            old._channel._take_out(old)
        self._take_out(placeholder)
        old._adopt(self, placeholder)
        self._streams[placeholder.id] = old
        self._open_bytes += old._open_bytes
        self._wake(old)

    # Time

    def deadline(self) -> float | None:
        """When to call `check` next; None until the clock was started by `check` or `receive`."""
        if self._heard_at is None:
            return None
        return self._heard_at + (self._silence_seconds if self._ping_sent else self._ping_seconds)

    def check(self, now: float) -> None:
        """Look at the clock; queues a PING when one is due. The first call starts the clock.

        Raises:
            PeerSilentError: Nothing was heard for `silence_seconds`.
        """
        if self._heard_at is None:
            self._heard_at = now
        silence = now - self._heard_at
        if silence >= self._silence_seconds:
            raise PeerSilentError(f"nothing was heard from the peer for {silence:.0f} s")
        if silence >= self._ping_seconds and not self._ping_sent:
            self._ping_sent = self._ping_due = True

    # Writing

    @property
    def has_output(self) -> bool:
        """Whether `message_to_send` has something."""
        if self._over:
            return False
        return (
            self._hello is not None
            or self._ping_due
            or self._pong is not None
            or bool(self._refused)
            or self._goodbye
            or any(stream._due for stream in self._urgent)
            or any(stream._due for stream in self._turns)
        )

    def message_to_send(self, max_bytes: int = MESSAGE_BYTES) -> bytes | None:
        """The next message: everything that is ready, up to about `max_bytes`; None if nothing is.

        A single control frame can be larger (argv and environment); `MAX_MESSAGE_BYTES` is never exceeded.

        Args:
            max_bytes: At most 1 MiB.
        """
        if self._over:
            return None
        message = MessageBuilder(min(max_bytes, MESSAGE_BYTES))
        self._write_connection(message)
        while self._urgent and (message.free_bytes > 0 or not message.size):
            stream = self._urgent[0]
            if not stream._write_control(message):
                break
            self._urgent.popleft()
            stream._urgent = False
            self._wrote(stream)
        while self._turns and (message.free_bytes >= _LEAST_DATA_BYTES or not message.size):
            stream = self._turns.popleft()
            stream._in_turn = False
            stream._write_turn(message, max(message.free_bytes, _LEAST_DATA_BYTES))
            self._wrote(stream)
        if self._goodbye and not self._urgent and not self._turns:
            message.add(FrameType.GOODBYE, 0)
            self._over = True
        return message.finish()

    def _write_connection(self, message: MessageBuilder) -> None:
        if self._hello is not None:
            message.add(FrameType.HELLO, 0, payload=self._hello)
            self._hello = None
        if self._pong is not None:
            message.add(FrameType.PONG, 0, offset=self._pong)
            self._pong = None
        if self._ping_due:
            message.add(FrameType.PING, 0)
            self._ping_due = False
        for stream_id, status in self._refused:
            message.add(FrameType.STATUS, stream_id, payload=status)
            message.add(FrameType.CLOSE, stream_id)
        self._refused.clear()

    def _wrote(self, stream: Stream) -> None:
        """Forget a stream that is through, or give it its next turn."""
        if stream.peer_closed and stream._close_sent:
            self._forget(stream)
        elif not stream._in_turn and stream._data_due:
            stream._in_turn = True
            self._turns.append(stream)

    def _wake(self, stream: Stream) -> None:
        if not stream._urgent:
            stream._urgent = True
            self._urgent.append(stream)

    def _forget(self, stream: Stream) -> None:
        stream.closed = True
        self._take_out(stream)

    def _take_out(self, stream: Stream) -> None:
        """Let go of a stream, which may go on elsewhere."""
        if stream._urgent:
            self._urgent.remove(stream)
        if stream._in_turn:
            self._turns.remove(stream)
        del self._streams[stream.id]
        self._open_bytes -= stream._open_bytes
        stream._detach()

    # Reading

    def receive(self, message: bytes, now: float) -> list[Event]:
        """Take a message from the peer; returns what happened, in order.

        Args:
            message: One whole WebSocket message.
            now: The present time, in seconds.

        Raises:
            ProtocolError: The peer broke the protocol; drop the connection, and end its streams.
        """
        if self._over:
            return []
        self._heard_at, self._ping_sent = now, False
        events: list[Event] = []
        for frame in parse_message(message):
            if self._got_goodbye:
                break
            handler = HANDLERS.get(frame.type)
            if handler is None:
                raise ProtocolError(f"a frame of unknown type {frame.type}")
            if not self._got_hello and self.role is Role.SERVER and frame.type != FrameType.HELLO:
                raise ProtocolError("the client did not introduce itself")
            handler(self, frame, events)
        return events
