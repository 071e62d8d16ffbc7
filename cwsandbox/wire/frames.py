"""The frames of the exec channel: the smallest units, without meaning.

A WebSocket binary message is a concatenation of frames. A frame is a fixed header (type u8, code u8, stream u32,
offset u64, length u32, big-endian) and `length` bytes of payload. Names and meanings are those of the SSH
connection protocol (RFC 4254); what each field holds, by type ("-" is zero or empty, and ignored):

    type               code       stream  offset                  payload
    HELLO              -          0       -                       JSON: protocol, and what the side says of itself
    OPEN               -          new id  -                       JSON: kind, execId, params | attach
    OPEN_CONFIRMATION  -          id      -                       JSON: info, after a re-attach what was received
    DATA               substream  id      of the first byte       at most 256 KiB
    WINDOW_ADJUST      substream  id      bytes consumed          u64: limit up to which the peer may send
    WINDOW_ADJUST      2          id      signals received        -
    EOF                substream  id      length of the substream -
    EXIT_STATUS        -          id      -                       u32
    EXIT_SIGNAL        -          id      -                       name without "SIG"
    STATUS             -          id      -                       JSON: google.rpc.Status; the stream failed
    CLOSE              -          id      -                       -
    SIGNAL             -          id      number, from 1          name without "SIG"
    WINDOW_CHANGE      -          id      -                       u32 columns, u32 rows
    PING, PONG         -          0       token                   -
    GOODBYE            -          0       -                       -

Substream 0 is data (stdin up, stdout down), 1 is extended data (stderr, down only).
"""

from __future__ import annotations

import enum
import json
import struct
from typing import Any, NamedTuple

from cwsandbox.wire.errors import ProtocolError

__all__ = [
    "FRAME_BYTES",
    "HEADER",
    "MAX_CONTROL_BYTES",
    "MAX_FRAMES",
    "MAX_MESSAGE_BYTES",
    "MESSAGE_BYTES",
    "PROTOCOL_VERSION",
    "WINDOW_BYTES",
    "Frame",
    "FrameType",
    "MessageBuilder",
    "dump_json",
    "load_json_object",
    "parse_message",
]

PROTOCOL_VERSION = 1
HEADER = struct.Struct("!BBIQI")
FRAME_BYTES = 256 * 1024
"""The largest payload of a DATA frame, and what a stream may send in one turn."""
WINDOW_BYTES = 1024 * 1024
"""How far a sender may run ahead of what the receiver consumed, per substream; also what it may send at first."""
MESSAGE_BYTES = 1024 * 1024
"""How much a message is filled with."""
MAX_CONTROL_BYTES = 8 * 1024 * 1024
"""The largest payload of any frame but DATA: an OPEN carries argv and environment, which Linux allows megabytes of."""
MAX_MESSAGE_BYTES = MAX_CONTROL_BYTES + 2 * MESSAGE_BYTES
"""The largest message that is accepted: one large control frame in a full message."""
MAX_FRAMES = 65536
"""The most frames in a message: a full message of empty ones. Bounds the work that one message can cause."""


class FrameType(enum.IntEnum):
    """What a frame is; the module's docstring has the table."""

    HELLO = 1
    OPEN = 2
    OPEN_CONFIRMATION = 3
    DATA = 4
    WINDOW_ADJUST = 5
    EOF = 6
    EXIT_STATUS = 7
    EXIT_SIGNAL = 8
    STATUS = 9
    CLOSE = 10
    SIGNAL = 11
    WINDOW_CHANGE = 12
    PING = 13
    PONG = 14
    GOODBYE = 15


class Frame(NamedTuple):
    """One frame as received. `type` is a plain number, which may be one that this version does not know."""

    type: int
    code: int
    stream: int
    offset: int
    payload: bytes


def parse_message(message: bytes) -> list[Frame]:
    """Cut a message into frames.

    Raises:
        ProtocolError: The message is too large, has too many frames, or ends inside of one.
    """
    total = len(message)
    if total > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a message of {total} bytes; {MAX_MESSAGE_BYTES} are allowed")
    frames: list[Frame] = []
    position, header_bytes = 0, HEADER.size
    while position < total:
        start = position + header_bytes
        if start > total:
            raise ProtocolError("the message ends inside a frame header")
        kind, code, stream, offset, length = HEADER.unpack_from(message, position)
        position = start + length
        if position > total:
            raise ProtocolError("the message ends inside a frame")
        if length > (FRAME_BYTES if kind == FrameType.DATA else MAX_CONTROL_BYTES):
            raise ProtocolError(f"a frame of type {kind} with {length} bytes is too large")
        frames.append(Frame(kind, code, stream, offset, message[start:position]))
        if len(frames) > MAX_FRAMES:
            raise ProtocolError(f"more than {MAX_FRAMES} frames in a message")
    return frames


class MessageBuilder:
    """Collects frames for one message; payloads are copied once, by the join in `finish`.

    Args:
        max_bytes: When the message counts as full. Frames are never cut, so it can end up larger.

    Attributes:
        size: Bytes collected so far.
    """

    __slots__ = ("_max_bytes", "_parts", "size")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parts: list[bytes | memoryview] = []
        self.size: int = 0

    @property
    def free_bytes(self) -> int:
        """Payload bytes that still fit; not positive when full."""
        return self._max_bytes - self.size - HEADER.size

    def fits(self, payload_bytes: int) -> bool:
        """Whether a frame with such a payload belongs into this message; the first one always does."""
        return not self._parts or payload_bytes <= self.free_bytes

    def add(self, kind: FrameType, stream: int, *, code: int = 0, offset: int = 0, payload: bytes = b"") -> None:
        """Append a frame."""
        self._parts.append(HEADER.pack(kind, code, stream, offset, len(payload)))
        if payload:
            self._parts.append(payload)
        self.size += HEADER.size + len(payload)

    def add_data(self, stream: int, code: int, offset: int, pieces: list[bytes | memoryview], length: int) -> None:
        """Append a DATA frame whose payload is in pieces of `length` bytes together."""
        self._parts.append(HEADER.pack(FrameType.DATA, code, stream, offset, length))
        self._parts += pieces
        self.size += HEADER.size + length

    def finish(self) -> bytes | None:
        """The message, or None if there is nothing in it."""
        return b"".join(self._parts) if self._parts else None


def dump_json(document: Any) -> bytes:
    """Compact UTF-8 JSON, fit for a control frame.

    Raises:
        ValueError: Not finite numbers, text that is not Unicode (lone surrogates), or larger than a frame may be.
        TypeError: Something that JSON has no form for.
    """
    data = _ENCODER.encode(document).encode()
    if len(data) > MAX_CONTROL_BYTES:
        raise ValueError(f"{len(data)} bytes of JSON; {MAX_CONTROL_BYTES} fit into a frame")
    return data


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# Made once: `json.dumps` and `json.loads` make new ones for every call that has options.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def load_json_object(payload: bytes) -> dict[str, Any]:
    """Parse a control frame's JSON object.

    Raises:
        ProtocolError: It is not a JSON object, is nested too deeply, or holds text that is not Unicode.
    """
    try:
        text = payload.decode()
        document = _DECODER.decode(text)
        if "\\u" in text:
            # Escapes can spell lone surrogates, which every later encode() of the text would stumble over.
            _ENCODER.encode(document).encode()
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a control frame does not hold JSON") from error
    if not isinstance(document, dict):
        raise ProtocolError("a control frame's JSON is not an object")
    return document
