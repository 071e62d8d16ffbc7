"""A client and a server channel with a transport between them that can be cut at any message boundary.

The model beside them knows what every substream carried: byte `p` of it is byte `p` of an endless pattern.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from cwsandbox.wire.channel import (
    Channel,
    Closed,
    Confirmed,
    Credit,
    Data,
    Eof,
    ExitSignalReceived,
    ExitStatusReceived,
    Failed,
    Opened,
    Role,
    SignalReceived,
    Stream,
    StreamKind,
    WindowChanged,
)
from cwsandbox.wire.errors import Code, Status
from cwsandbox.wire.frames import FRAME_BYTES, MAX_MESSAGE_BYTES, WINDOW_BYTES

_PERIOD = 65521
_PATTERN = random.Random(7).randbytes(_PERIOD) * (WINDOW_BYTES // _PERIOD + 2)


def pattern(position: int, count: int) -> bytes:
    """`count` bytes of the pattern, from `position`."""
    start = position % _PERIOD
    return _PATTERN[start : start + count]


def message_of(channel: Channel) -> bytes:
    """The next message of a channel that has one."""
    message = channel.message_to_send()
    assert message is not None
    return message


@dataclass
class End:
    """What one side knows of a stream."""

    stream: Stream
    sent: dict[int, int] = field(default_factory=dict)
    received: dict[int, int] = field(default_factory=dict)
    consumed: dict[int, int] = field(default_factory=dict)
    eof_sent: set[int] = field(default_factory=set)
    eof_received: set[int] = field(default_factory=set)
    signals: list[str] = field(default_factory=list)
    size: tuple[int, int] | None = None
    result: object = None
    confirmed: bool = False
    closed: bool = False
    gave_up: bool = False

    def unread(self, code: int) -> int:
        return self.received.get(code, 0) - self.consumed.get(code, 0)

    def send(self, count: int, code: int) -> None:
        if code in self.eof_sent:
            return
        start = self.sent.get(code, 0)
        discarded = self.stream.closing or self.stream.peer_closed
        self.stream.send(pattern(start, count), code)
        self.sent[code] = start + (0 if discarded else count)

    def send_eof(self, code: int) -> None:
        self.stream.send_eof(code)
        self.eof_sent.add(code)

    def consume(self, count: int, code: int) -> None:
        count = min(count, self.unread(code))
        self.stream.consumed(count, code)
        self.consumed[code] = self.consumed.get(code, 0) + count

    def take_data(self, event: Data) -> None:
        start = self.received.get(event.code, 0)
        assert event.data == pattern(start, len(event.data)), "bytes lost, doubled or out of order"
        assert event.code not in self.eof_received
        self.received[event.code] = start + len(event.data)
        assert self.unread(event.code) <= WINDOW_BYTES, "more than the window was accepted"

    def take_eof(self, event: Eof) -> None:
        assert event.code not in self.eof_received, "EOF twice"
        self.eof_received.add(event.code)


class Pair:
    """Both channels, the transport, and the model."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self.client = Channel(Role.CLIENT, hello={"client_id": "c"}, **options)
        self.server = Channel(Role.SERVER, hello={"grace_seconds": 30}, **options)
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.clients: dict[str, End] = {}
        self.servers: dict[str, End] = {}
        self.abandoned: list[Stream] = []

    # Steps

    def open(self, kind: StreamKind = StreamKind.EXEC) -> End:
        exec_id = f"e{len(self.clients)}"
        end = self.clients[exec_id] = End(self.client.open(kind, {"argv": [exec_id]}, exec_id))
        return end

    def flush_client(self, max_bytes: int = 2**20) -> bool:
        return self._flush(self.client, self.up, max_bytes)

    def flush_server(self, max_bytes: int = 2**20) -> bool:
        return self._flush(self.server, self.down, max_bytes)

    def _flush(self, channel: Channel, queue: deque[bytes], max_bytes: int) -> bool:
        expected = channel.has_output
        message = channel.message_to_send(max_bytes)
        assert (message is not None) is expected, "has_output and message_to_send disagree"
        if message is not None:
            assert 0 < len(message) <= MAX_MESSAGE_BYTES
            queue.append(message)
        return message is not None

    def deliver_up(self) -> bool:
        if not self.up:
            return False
        for event in self.server.receive(self.up.popleft(), 0.0):
            self.on_server(event)
        return True

    def deliver_down(self) -> bool:
        if not self.down:
            return False
        for event in self.client.receive(self.down.popleft(), 0.0):
            self.on_client(event)
        return True

    def cut(self, *, noticed: bool = True) -> None:
        """Lose what is on the way and connect again. A server that has not noticed keeps its old channel for a while."""
        self.up.clear()
        self.down.clear()
        if noticed:
            self.server.abandon()
        self.client = self.client.resume()
        self.server = Channel(Role.SERVER, hello={"grace_seconds": 30}, **self._options)

    def settle(self) -> None:
        """Carry messages until nobody has any."""
        while self.flush_client() | self.flush_server() | self.deliver_up() | self.deliver_down():
            pass

    # Events

    def on_server(self, event: object) -> None:
        if isinstance(event, Opened):
            self._on_opened(event)
            return
        if not hasattr(event, "stream"):
            return
        end = self.servers.get(event.stream.exec_id)
        if end is None or event.stream is not end.stream:
            assert isinstance(event, Closed), f"{event} of a stream that was refused"
            return
        match event:
            case Data():
                end.take_data(event)
            case Eof():
                end.take_eof(event)
            case SignalReceived():
                end.signals.append(event.name)
            case WindowChanged():
                end.size = (event.columns, event.rows)
            case Closed():
                end.closed = True
            case Credit():
                assert end.stream.room(event.code) > 0
            case _:
                raise AssertionError(event)

    def _on_opened(self, event: Opened) -> None:
        stream = event.stream
        known = self.servers.get(stream.exec_id)
        if known is not None and not known.stream.closed:
            assert self.clients[stream.exec_id].stream.id == stream.id
            self.server.adopt(known.stream, event)
            assert event.stream is known.stream
        elif stream.attach is not None:
            stream.fail(Status.make(Code.ABORTED, "forgotten"))
        else:
            assert known is None, "a command was started twice"
            assert stream.params == {"argv": [stream.exec_id]}
            self.servers[stream.exec_id] = End(stream)

    def on_client(self, event: object) -> None:
        if not hasattr(event, "stream"):
            return
        end = self.clients[event.stream.exec_id]
        assert event.stream is end.stream
        if end.gave_up:
            assert isinstance(event, ExitStatusReceived | ExitSignalReceived | Failed | Closed), (
                "an event after close()"
            )
        assert not end.closed, "an event after Closed"
        match event:
            case Confirmed():
                assert not end.confirmed, "confirmed twice"
                assert event.info == {"pid": 7}
                end.confirmed = True
            case Data():
                assert end.confirmed
                assert end.result is None
                end.take_data(event)
            case Eof():
                end.take_eof(event)
            case Credit():
                assert end.stream.room(event.code) > 0
            case ExitStatusReceived() | ExitSignalReceived() | Failed():
                assert end.result is None, "two results"
                end.result = event
            case Closed():
                end.closed = True
            case _:
                raise AssertionError(event)

    # Invariants

    def check(self) -> None:
        for end in (*self.clients.values(), *self.servers.values()):
            for flow in end.stream._out:
                # What the peer consumed in part of a chunk is freed with the whole of it.
                assert flow.kept_bytes <= WINDOW_BYTES + FRAME_BYTES
                assert flow._base <= flow.sent <= flow.end <= flow.limit
                chunks = (*flow._kept, *flow._unsent)
                assert sum(map(len, chunks)) == flow.end - flow._base
                assert len(chunks) <= 2 * (flow.end - flow._base) // 4096 + 4, "one object per byte"
            for incoming in end.stream._in:
                assert incoming.consumed <= incoming.received <= incoming.limit <= incoming.consumed + WINDOW_BYTES
