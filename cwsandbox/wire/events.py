"""What `Channel.receive` reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cwsandbox.wire.errors import Status
    from cwsandbox.wire.stream_state import Stream

__all__ = [
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
    "SignalReceived",
    "StreamEvent",
    "WindowChanged",
]


@frozen
class Event:
    """Base of all events."""


@frozen
class Hello(Event):
    """The peer introduced itself. `info` holds what it said beside its protocol version, which is checked."""

    info: Mapping[str, Any]


@frozen
class Goodbye(Event):
    """Server: the client leaves for good; what it started and did not detach is to be killed."""


@frozen
class StreamEvent(Event):
    """Base of the events of one stream."""

    _stream: Stream

    @property
    def stream(self) -> Stream:
        """The stream; after `Channel.adopt` the adopted one, also in events that were reported before."""
        return self._stream._successor or self._stream


@frozen
class Opened(StreamEvent):
    """Server: a new stream, to be answered by `confirm` or `fail`, or if it is a re-attach by `Channel.adopt`."""


@frozen
class Confirmed(StreamEvent):
    """Client: the server started what was asked for. Comes once, also across reconnects."""

    info: Mapping[str, Any]


@frozen
class Data(StreamEvent):
    """Bytes arrived; give credit with `Stream.consumed` once they were taken."""

    code: int
    data: bytes = field(repr=False)


@frozen
class Credit(StreamEvent):
    """There is more `Stream.room` than before."""

    code: int


@frozen
class Eof(StreamEvent):
    """The substream is complete."""

    code: int


@frozen
class ExitStatusReceived(StreamEvent):
    """Client: the command exited. Everything the server sent before has been reported."""

    status: int


@frozen
class ExitSignalReceived(StreamEvent):
    """Client: a signal killed the command; `name` as in `cwsandbox.wire.signals`."""

    name: str


@frozen
class Failed(StreamEvent):
    """Client: the server could not do, or could not finish, what was asked for."""

    status: Status


@frozen
class Closed(StreamEvent):
    """The peer closed the stream: nothing more comes from it, and nothing more that is sent will be read."""


@frozen
class SignalReceived(StreamEvent):
    """Server: the client wants a signal sent to the command."""

    name: str


@frozen
class WindowChanged(StreamEvent):
    """Server: the client's terminal has a new size. May repeat the last one after a reconnect."""

    columns: int
    rows: int
