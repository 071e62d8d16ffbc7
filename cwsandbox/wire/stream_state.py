"""One stream's state, which outlives connections.

What is due on the wire is derived from the state and from what the present connection has already been told, never
queued as frames: a new connection only has to forget what was told.

Order on the wire, per stream: OPEN or OPEN_CONFIRMATION; then WINDOW_ADJUST, SIGNAL and WINDOW_CHANGE at any time;
DATA; EOF of each substream behind its data; the result (EXIT_STATUS, EXIT_SIGNAL or STATUS) behind all data queued
before; CLOSE last.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

from cwsandbox.wire.flow import ReceiveFlow, SendFlow
from cwsandbox.wire.frames import FRAME_BYTES, WINDOW_BYTES, FrameType, MessageBuilder, dump_json
from cwsandbox.wire.opening import Attach, Role, StreamKind, by_code
from cwsandbox.wire.signals import SignalQueue, is_signal_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cwsandbox.wire.errors import Status

__all__ = ["SIGNALS_CODE", "Stream"]

SIGNALS_CODE = 2
"""The WINDOW_ADJUST code that acknowledges signals."""

_STATUS_MESSAGE_CHARS = 16 * 1024


class Scheduler(Protocol):
    """What a stream needs from the channel it is on."""

    def _wake(self, stream: Stream) -> None: ...


class Stream:
    """One stream, made by `Channel.open` or reported by `Opened`. It lives on while its connection is replaced.

    Nothing here waits: what is sent goes out with the channel's next message. After `close`, or after the peer
    closed, data is discarded and there is always room, so that nobody gets stuck on a stream that nobody reads.

    Attributes:
        id: Its number on the present connection.
        kind: What it is for.
        exec_id: What names it across connections.
        params: The OPEN's parameters; empty on a re-attach.
        attach: Server, in the answer to `Opened`: set if a client that came back has had this stream before.
        confirmed: The server confirmed it.
        peer_closed: `Closed` was reported.
        closing: `close` was called, or on a client the server closed.
        closed: Both sides closed; the channel has forgotten it.
    """

    def __init__(
        self,
        channel: Scheduler | None,
        role: Role,
        *,
        stream_id: int,
        kind: StreamKind,
        params: dict[str, Any],
        exec_id: str,
        attach: Attach | None = None,
    ) -> None:
        self.id: int = stream_id
        self.kind = kind
        self.exec_id = exec_id
        self.params = params
        self.attach = attach
        self.confirmed: bool = False
        self.peer_closed: bool = False
        self.closing: bool = False
        self.closed = False
        self._channel = channel
        self._role = role
        self._successor: Stream | None = None
        client = role is Role.CLIENT
        self._out = tuple(SendFlow() for _ in range(1 if client else 2))
        self._in = tuple(ReceiveFlow() for _ in range(2 if client else 1))
        self._open: bytes | None = None
        self._open_bytes = 0
        self._held = False
        self._heard = False
        self._got_result = False
        self._info = b""
        self._info_due = False
        self._attach_due = False
        self._result: tuple[FrameType, bytes] | None = None
        self._result_sent = False
        self._close_sent = False
        self._signals = SignalQueue()
        self._signals_received = 0
        self._signals_ack_due = False
        self._size: tuple[int, int] | None = None
        self._size_due = False
        self._urgent = False
        self._in_turn = False
        self._last_code = 0

    @classmethod
    def restored(
        cls, kind: StreamKind, exec_id: str, info: Mapping[str, Any], outputs: Sequence[SendFlow], received: int
    ) -> Stream:
        """Server: a confirmed stream that another process began; it waits for its client, as after `abandon`.

        Args:
            kind: What it is for.
            exec_id: What the client asks for it by.
            info: What it was confirmed with.
            outputs: What the client may not have taken yet, by substream (`SendFlow.restored`).
            received: How many bytes of the client's were received.
        """
        stream = cls(None, Role.SERVER, stream_id=0, kind=kind, params={}, exec_id=exec_id)
        stream.confirm(info)
        stream._out = tuple(outputs)
        stream._in = (ReceiveFlow.restored(received),)
        return stream

    def __repr__(self) -> str:
        state = "closed" if self.closed else "closing" if self.closing else "open" if self.confirmed else "opening"
        return f"<Stream {self.id} {self.kind.value} {self.exec_id} {state}>"

    # Sending bytes

    def room(self, code: int = 0) -> int:
        """Bytes that `send` takes now; a full window once nobody reads any more.

        Raises:
            ValueError: This side does not send on that substream.
        """
        return WINDOW_BYTES if self._deaf else self._sender(code).room

    def send(self, data: bytes | bytearray, code: int = 0) -> None:
        """Queue bytes, kept until the peer consumed them.

        Raises:
            ValueError: Longer than `room(code)`, after `send_eof(code)`, on a substream this side does not send on, or
                on a server before `confirm`.
        """
        flow = self._sender(code)
        if self._deaf:
            return
        self._must_be_confirmed()
        if flow.eof:
            raise ValueError("send after send_eof")
        if len(data) > flow.room:
            raise ValueError(f"{len(data)} bytes to send, there is room for {flow.room}")
        if data:
            flow.append(data if type(data) is bytes else bytes(data))
            self._wake()

    def send_eof(self, code: int = 0) -> None:
        """Say that the substream is complete. Again is harmless.

        Raises:
            ValueError: As `send`.
        """
        flow = self._sender(code)
        if self._deaf or flow.eof:
            return
        self._must_be_confirmed()
        flow.eof = True
        self._wake()

    def taken(self, code: int = 0) -> int:
        """Offset up to which the peer's user is known to have taken what was sent.

        Raises:
            ValueError: This side does not send on that substream.
        """
        return self._sender(code).consumed

    # Receiving bytes

    def consumed(self, count: int, code: int = 0) -> None:
        """The local user took `count` received bytes: lets the peer send as many more.

        Raises:
            ValueError: More than was received.
        """
        if not 0 <= code < len(self._in):
            raise ValueError(f"nothing is received on substream {code}")
        if self._in[code].consume(count) and not self._deaf:
            self._wake()

    # Ending

    def exit_status(self, code: int) -> None:
        """Server: report how the command exited. The first result counts; call `close` afterwards.

        Raises:
            ValueError: Not a u32, or before `confirm`.
        """
        if not 0 <= code < 2**32:
            raise ValueError(f"{code} is not an exit status")
        self._end(FrameType.EXIT_STATUS, code.to_bytes(4, "big"))

    def exit_signal(self, name: str) -> None:
        """Server: report the signal that killed the command, as in `cwsandbox.wire.signals`. Else as `exit_status`.

        Raises:
            ValueError: Not a signal name, or before `confirm`.
        """
        if not is_signal_name(name):
            raise ValueError(f"no signal is called {name!r}")
        self._end(FrameType.EXIT_SIGNAL, name.encode())

    def fail(self, status: Status) -> None:
        """Server: refuse the stream, or end it as failed, and close it.

        A message beyond 16 Ki characters is cut, and details that no frame holds are left out: to say what went wrong
        must not fail.

        Raises:
            ValueError: On a client.
        """
        self._must_be(Role.SERVER)
        if not self.closing:
            self._result = self._result or (FrameType.STATUS, _status_payload(status))
            self.close()

    def close(self) -> None:
        """Close this side, behind everything queued; again is harmless.

        On a client this tells the server to kill: of the server only the result and `Closed` are reported from now
        on, and `Closed` says that it is done. On a server, call it when nothing of the command is left.
        """
        if not self.closing:
            self.closing = True
            self._wake()

    # Controlling

    def confirm(self, info: Mapping[str, Any]) -> None:
        """Server: say that what was asked for has started; `info` is JSON for the client's `Confirmed`.

        Raises:
            ValueError: A second time, or `info` has no JSON form.
        """
        self._must_be(Role.SERVER)
        if self.confirmed:
            raise ValueError("the stream is confirmed already")
        self._info = dump_json(dict(info))
        self.confirmed = self._info_due = True
        self._wake()

    def signal(self, name: str) -> None:
        """Client: ask for a signal to be sent to the command; as a process's pending signals, one not yet sent merges.

        Raises:
            ValueError: Not a name of `cwsandbox.wire.signals`.
        """
        self._must_be(Role.CLIENT)
        if not is_signal_name(name):
            raise ValueError(f"no signal is called {name!r}")
        if not self._deaf:
            self._signals.put(name)
            self._wake()

    def window_change(self, columns: int, rows: int) -> None:
        """Client: tell the terminal's new size, in characters.

        Raises:
            ValueError: Not u32 numbers.
        """
        self._must_be(Role.CLIENT)
        if not (0 <= columns < 2**32 and 0 <= rows < 2**32):
            raise ValueError(f"{columns} x {rows} is not a terminal size")
        if not self._deaf:
            self._size, self._size_due = (columns, rows), True
            self._wake()

    # Internals, first the checks.

    @property
    def _deaf(self) -> bool:
        return self.closing or self.peer_closed

    def _sender(self, code: int) -> SendFlow:
        if not 0 <= code < len(self._out):
            raise ValueError(f"nothing is sent on substream {code}")
        return self._out[code]

    def _must_be(self, role: Role) -> None:
        if self._role is not role:
            raise ValueError(f"only a {role.value} may do this")

    def _must_be_confirmed(self) -> None:
        if self._role is Role.SERVER and not self.confirmed:
            raise ValueError("confirm the stream first")

    def _end(self, kind: FrameType, payload: bytes) -> None:
        self._must_be(Role.SERVER)
        if self.closing:
            return
        self._must_be_confirmed()
        if self._result is None:
            self._result = (kind, payload)
            self._wake()

    def _wake(self) -> None:
        if self._channel is not None and (not self._held or self.closing):
            self._channel._wake(self)

    # Internals: writing, for the channel

    @property
    def _data_due(self) -> bool:
        if self._held or self._close_sent:
            return False
        return any([flow.sent < flow.end for flow in self._out])  # noqa: C419 - twice as fast for two

    @property
    def _due(self) -> bool:
        """Whether a turn would write anything."""
        if self._opening_due or (self.closing and not self._close_sent):
            return True
        if self._held or self._close_sent:
            return False
        if self._may_adjust and (self._signals_ack_due or any(flow.adjust_due for flow in self._in)):
            return True
        if self._size_due or self._signals.due:
            return True
        ends = (self._result is not None and not self._result_sent) or any(f.eof and not f.eof_sent for f in self._out)
        return ends or self._data_due

    @property
    def _may_adjust(self) -> bool:
        # Until it is confirmed, a client may ask for it as if for the first time, with everything from the start.
        return self.confirmed and not self._deaf

    @property
    def _opening_due(self) -> bool:
        return self._open is not None or self._attach_due or self._info_due

    def _write_control(self, message: MessageBuilder) -> bool:
        """Write everything due that is not data; False if the message had no place for the first of it."""
        opening = self._opening_payload()
        if opening is not None:
            kind, payload = opening
            if not message.fits(len(payload)):
                return False
            message.add(kind, self.id, payload=payload)
            self._open, self._attach_due, self._info_due = None, False, False
        if not self._held and not self._close_sent:
            self._write_adjustments(message)
            self._write_requests(message)
        self._write_ends(message)
        return True

    def _opening_payload(self) -> tuple[FrameType, bytes] | None:
        if self._open is not None:
            return FrameType.OPEN, self._open
        if self._attach_due:
            document: dict[str, Any] = {
                "received": by_code(flow.received for flow in self._in),
                "consumed": by_code(flow.consumed for flow in self._in),
                "signals": self._signals_received,
            }
            if self._info_due:
                document["info"] = json.loads(self._info)
            return FrameType.OPEN_CONFIRMATION, dump_json(document)
        if self._info_due:
            return FrameType.OPEN_CONFIRMATION, b'{"info":' + self._info + b"}"
        return None

    def _write_adjustments(self, message: MessageBuilder) -> None:
        if not self._may_adjust:
            return
        for code, flow in enumerate(self._in):
            if flow.adjust_due:
                limit = flow.grant().to_bytes(8, "big")
                message.add(FrameType.WINDOW_ADJUST, self.id, code=code, offset=flow.consumed, payload=limit)
        if self._signals_ack_due:
            self._signals_ack_due = False
            message.add(FrameType.WINDOW_ADJUST, self.id, code=SIGNALS_CODE, offset=self._signals_received)

    def _write_requests(self, message: MessageBuilder) -> None:
        while self._signals.due:
            number, name = self._signals.take()
            message.add(FrameType.SIGNAL, self.id, offset=number, payload=name.encode())
        if self._size_due and self._size is not None:
            self._size_due = False
            columns, rows = self._size
            payload = columns.to_bytes(4, "big") + rows.to_bytes(4, "big")
            message.add(FrameType.WINDOW_CHANGE, self.id, payload=payload)

    def _write_turn(self, message: MessageBuilder, max_bytes: int) -> None:
        """Take one turn: a DATA frame of one substream, then what had to wait behind it."""
        if self._data_due:
            # Substreams alternate, so that a flood on one does not hold up the other.
            code = (self._last_code + 1) % len(self._out)
            if self._out[code].sent == self._out[code].end:
                code = self._last_code
            self._last_code = code
            flow = self._out[code]
            offset = flow.sent
            pieces = flow.take(min(max_bytes, FRAME_BYTES))
            message.add_data(self.id, code, offset, pieces, flow.sent - offset)
        self._write_ends(message)

    def _write_ends(self, message: MessageBuilder) -> None:
        if self._close_sent:
            return
        if not self._held:
            for code, flow in enumerate(self._out):
                if flow.eof and not flow.eof_sent and flow.sent == flow.end:
                    flow.eof_sent = True
                    message.add(FrameType.EOF, self.id, code=code, offset=flow.end)
            if self._data_due:
                return
            if self._result is not None and not self._result_sent:
                self._result_sent = True
                kind, payload = self._result
                message.add(kind, self.id, payload=payload)
        if self.closing:
            self._close_sent = True
            message.add(FrameType.CLOSE, self.id)

    # Internals: what the peer did, for the channel

    def _peer_close(self) -> None:
        self.peer_closed = True
        for flow in self._out:
            flow.discard()

    # Internals: changing connections, for the channel

    def _detach(self) -> None:
        """The connection is gone: forget what only it was told."""
        self._channel = None
        self._urgent = self._in_turn = False
        self._result_sent = self._close_sent = False

    def _reopen(self, channel: Scheduler, stream_id: int) -> None:
        """Client: ask for the stream on a new connection, and hold everything until the server says what it has."""
        self._channel, self.id = channel, stream_id
        document: dict[str, Any] = {"kind": self.kind.value, "execId": self.exec_id}
        # A command that is only to be killed must not be started by asking again.
        if self._heard or self.closing:
            received = tuple(flow.received for flow in self._in)
            consumed = tuple(flow.consumed for flow in self._in)
            document["attach"] = Attach(received, consumed, self.confirmed, self._signals.acknowledged).to_json()
            for flow in self._in:
                flow.grant()
        else:
            document["params"] = self.params
        self._open = dump_json(document)
        self._held = True

    def _release(self, received: tuple[int, ...], consumed: tuple[int, ...], signals: int) -> list[int]:
        """Client: continue where the server is; returns the substreams that have more room than before."""
        grown = []
        for code, flow in enumerate(self._out):
            flow.rewind(received[code])
            if flow.acknowledge(consumed[code], consumed[code] + WINDOW_BYTES):
                grown.append(code)
        self._signals.acknowledge(signals)
        self._signals.rewind()
        self._size_due = self._size is not None
        self._held = False
        self._heard = True
        self._wake()
        return grown

    def _adopt(self, channel: Scheduler, placeholder: Stream) -> None:
        """Server: take over the re-attach `placeholder` of a new connection."""
        attach = placeholder.attach or Attach(received=(0, 0), consumed=(0, 0))
        for code, flow in enumerate(self._out):
            if not self.peer_closed:
                flow.rewind(attach.received[code])
            flow.acknowledge(attach.consumed[code], attach.consumed[code] + WINDOW_BYTES)
        # Another process may have received them.
        self._signals_received = max(self._signals_received, attach.signals)
        self._channel, self.id = channel, placeholder.id
        for in_flow in self._in:
            in_flow.grant()
        self._attach_due = True
        self._info_due = self.confirmed and not attach.confirmed
        if placeholder.peer_closed:
            self._peer_close()
        placeholder._successor = self
        self._wake()


def _status_payload(status: Status) -> bytes:
    message = status.message[:_STATUS_MESSAGE_CHARS].encode(errors="replace").decode()
    document = {**status.to_json(), "message": message}
    try:
        payload = dump_json(document)
    except ValueError:
        payload = b""
    return payload if 0 < len(payload) <= FRAME_BYTES else dump_json({**document, "details": []})
