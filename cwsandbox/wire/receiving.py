"""What a channel does with each type of frame that comes in.

Every handler takes a channel and a frame, changes the stream that the frame is for, and appends what happened to the
events. Frames come from a peer that may be hostile: whatever is not as the protocol has it raises ProtocolError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from cwsandbox.wire.errors import Code, ProtocolError, Status
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
    WindowChanged,
)
from cwsandbox.wire.flow import ReceiveFlow, SendFlow
from cwsandbox.wire.frames import PROTOCOL_VERSION, Frame, FrameType, dump_json, load_json_object
from cwsandbox.wire.opening import Attach, Role, StreamKind, is_exec_id, offsets
from cwsandbox.wire.signals import is_signal_name
from cwsandbox.wire.stream_state import SIGNALS_CODE, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cwsandbox.wire.channel import Channel

__all__ = ["HANDLERS"]

_Flow = TypeVar("_Flow", SendFlow, ReceiveFlow)


def _find(channel: Channel, frame: Frame) -> Stream | None:
    """The stream of a frame; None if it was forgotten."""
    stream = channel._streams.get(frame.stream)
    if stream is None and not 0 < frame.stream <= channel._last_id:
        raise ProtocolError(f"a frame for stream {frame.stream}, which was never opened")
    return stream


def _find_listening(channel: Channel, frame: Frame) -> Stream | None:
    """The stream of a frame that only matters while this side has not closed, and the peer must not have."""
    stream = _find(channel, frame)
    if stream is None:
        return None
    if stream.peer_closed:
        raise ProtocolError(f"stream {frame.stream} goes on after its end")
    if channel.role is Role.CLIENT and (not stream.confirmed or stream._held) and not stream.closing:
        raise ProtocolError(f"stream {frame.stream} goes on before it was confirmed")
    return None if stream.closing else stream


def _only_from(channel: Channel, role: Role, frame: Frame) -> None:
    if channel.role is role:
        raise ProtocolError(f"only a {role.value} sends frames of type {frame.type}")


def _on_hello(channel: Channel, frame: Frame, events: list[Event]) -> None:
    if channel._got_hello:
        raise ProtocolError("introduced itself twice")
    info = load_json_object(frame.payload)
    version = info.pop("protocol", None)
    if version != PROTOCOL_VERSION:
        raise ProtocolError(f"the peer speaks protocol {version!s:.20}, this side {PROTOCOL_VERSION}")
    channel._got_hello = True
    events.append(Hello(info))


def _on_open(channel: Channel, frame: Frame, events: list[Event]) -> None:
    _only_from(channel, Role.CLIENT, frame)
    if frame.stream <= channel._last_id:
        raise ProtocolError(f"stream number {frame.stream} is used again")
    document = load_json_object(frame.payload)
    kind, exec_id, params = document.get("kind"), document.get("execId"), document.get("params", {})
    if not isinstance(kind, str) or not isinstance(exec_id, str) or not isinstance(params, dict):
        raise ProtocolError("an OPEN without kind, execId or params")
    if not is_exec_id(exec_id):
        raise ProtocolError("an OPEN with a malformed execId")
    attach = Attach.from_json(document["attach"], 2) if "attach" in document else None
    channel._last_id = frame.stream
    if kind not in StreamKind.__members__.values():
        _refuse(channel, frame.stream, Status.make(Code.UNIMPLEMENTED, "this server does not know such streams"))
        return
    held = channel._open_bytes + len(frame.payload)
    if len(channel._streams) >= channel._max_streams or held > channel._max_open_bytes:
        _refuse(
            channel, frame.stream, Status.make(Code.RESOURCE_EXHAUSTED, "too many commands at once on a connection")
        )
        return
    stream = Stream(
        channel,
        channel.role,
        stream_id=frame.stream,
        kind=StreamKind(kind),
        params=params,
        exec_id=exec_id,
        attach=attach,
    )
    channel._streams[stream.id] = stream
    channel._open_bytes = held
    stream._open_bytes = len(frame.payload)
    events.append(Opened(stream))


def _refuse(channel: Channel, stream_id: int, status: Status) -> None:
    """Answer an OPEN without a stream; not without bound, should the peer not read the answers."""
    if len(channel._refused) >= channel._max_streams:
        raise ProtocolError("too many streams opened")
    channel._refused.append((stream_id, dump_json(status.to_json())))


def _on_confirmation(channel: Channel, frame: Frame, events: list[Event]) -> None:
    _only_from(channel, Role.SERVER, frame)
    stream = _find(channel, frame)
    if stream is None:
        return
    document = load_json_object(frame.payload)
    grown: list[int] = []
    if stream._held and not stream.peer_closed:
        received = offsets(document.get("received"), len(stream._out))
        consumed = offsets(document.get("consumed"), len(stream._out))
        signals = document.get("signals", 0)
        if type(signals) is not int or signals < 0:
            raise ProtocolError("a confirmation with malformed signals")
        grown = stream._release(received, consumed, signals)
    info = document.get("info")
    if isinstance(info, dict) and not stream.confirmed:
        stream.confirmed = stream._heard = True
        if not stream.closing:
            events.append(Confirmed(stream, info))
    if not stream.closing:
        events.extend(Credit(stream, code) for code in grown)


def _on_data(channel: Channel, frame: Frame, events: list[Event]) -> None:
    stream = _find_listening(channel, frame)
    if stream is None:
        return
    flow = _flow(stream._in, frame)
    data = flow.accept(frame.offset, frame.payload)
    if data:
        events.append(Data(stream, frame.code, data))


def _on_eof(channel: Channel, frame: Frame, events: list[Event]) -> None:
    stream = _find_listening(channel, frame)
    if stream is None:
        return
    flow = _flow(stream._in, frame)
    if flow.finish(frame.offset):
        events.append(Eof(stream, frame.code))
        if flow.adjust_due:
            channel._wake(stream)


def _on_adjust(channel: Channel, frame: Frame, events: list[Event]) -> None:
    stream = _find_listening(channel, frame)
    if stream is None:
        return
    if frame.code == SIGNALS_CODE and channel.role is Role.CLIENT:
        stream._signals.acknowledge(frame.offset)
        return
    if len(frame.payload) != 8:
        raise ProtocolError("a WINDOW_ADJUST without its limit")
    limit = int.from_bytes(frame.payload, "big")
    if _flow(stream._out, frame).acknowledge(frame.offset, limit):
        events.append(Credit(stream, frame.code))


def _on_result(channel: Channel, frame: Frame, events: list[Event]) -> None:
    _only_from(channel, Role.SERVER, frame)
    stream = _find(channel, frame)
    if stream is None:
        return
    if stream.peer_closed:
        raise ProtocolError(f"stream {frame.stream} goes on after its end")
    event: Event
    if frame.type == FrameType.STATUS:
        event = Failed(stream, Status.from_json(load_json_object(frame.payload)))
    elif not stream.confirmed and not stream.closing:
        raise ProtocolError(f"stream {frame.stream} ended before it was confirmed")
    elif frame.type == FrameType.EXIT_STATUS and len(frame.payload) == 4:
        event = ExitStatusReceived(stream, int.from_bytes(frame.payload, "big"))
    elif frame.type == FrameType.EXIT_SIGNAL:
        event = ExitSignalReceived(stream, _signal_name(frame))
    else:
        raise ProtocolError("a malformed exit status")
    if not stream._got_result:
        stream._got_result = stream._heard = True
        events.append(event)


def _on_close(channel: Channel, frame: Frame, events: list[Event]) -> None:
    stream = _find(channel, frame)
    if stream is None or stream.peer_closed:
        return
    stream._peer_close()
    events.append(Closed(stream))
    if stream._close_sent:
        channel._forget(stream)
    elif channel.role is Role.CLIENT:
        stream.close()


def _on_signal(channel: Channel, frame: Frame, events: list[Event]) -> None:
    _only_from(channel, Role.CLIENT, frame)
    stream = _find_listening(channel, frame)
    if stream is None:
        return
    name = _signal_name(frame)
    if frame.offset > stream._signals_received + 1:
        raise ProtocolError("a signal is missing")
    if frame.offset == stream._signals_received + 1:
        stream._signals_received += 1
        stream._signals_ack_due = True
        channel._wake(stream)
        events.append(SignalReceived(stream, name))


def _on_window_change(channel: Channel, frame: Frame, events: list[Event]) -> None:
    _only_from(channel, Role.CLIENT, frame)
    if len(frame.payload) != 8:
        raise ProtocolError("a WINDOW_CHANGE without a size")
    stream = _find_listening(channel, frame)
    if stream is not None:
        columns, rows = (int.from_bytes(part, "big") for part in (frame.payload[:4], frame.payload[4:]))
        events.append(WindowChanged(stream, columns, rows))


def _on_ping(channel: Channel, frame: Frame, events: list[Event]) -> None:
    # One answer is enough for any number of questions: nothing piles up if the peer does not read.
    channel._pong = frame.offset


def _on_pong(channel: Channel, frame: Frame, events: list[Event]) -> None:
    """Having been heard is all it is for."""


def _on_goodbye(channel: Channel, frame: Frame, events: list[Event]) -> None:
    _only_from(channel, Role.CLIENT, frame)
    channel._got_goodbye = True
    events.append(Goodbye())


def _flow(flows: Sequence[_Flow], frame: Frame) -> _Flow:
    if frame.code >= len(flows):
        raise ProtocolError(f"no substream {frame.code} in this direction")
    return flows[frame.code]


def _signal_name(frame: Frame) -> str:
    name = frame.payload[:32].decode("ascii", "replace")
    if len(frame.payload) > 32 or not is_signal_name(name):
        raise ProtocolError("not the name of a signal")
    return name


HANDLERS: Mapping[int, Callable[[Channel, Frame, list[Event]], None]] = {
    FrameType.HELLO: _on_hello,
    FrameType.OPEN: _on_open,
    FrameType.OPEN_CONFIRMATION: _on_confirmation,
    FrameType.DATA: _on_data,
    FrameType.WINDOW_ADJUST: _on_adjust,
    FrameType.EOF: _on_eof,
    FrameType.EXIT_STATUS: _on_result,
    FrameType.EXIT_SIGNAL: _on_result,
    FrameType.STATUS: _on_result,
    FrameType.CLOSE: _on_close,
    FrameType.SIGNAL: _on_signal,
    FrameType.WINDOW_CHANGE: _on_window_change,
    FrameType.PING: _on_ping,
    FrameType.PONG: _on_pong,
    FrameType.GOODBYE: _on_goodbye,
}
