"""One direction of one substream: what was sent and may have to be sent again, what was received and is owed credit.

All positions are absolute byte offsets from the substream's start, on both sides and across connections:

    sender      base <= sent <= end <= limit     kept [base, sent), unsent [sent, end), room [end, limit)
    receiver    consumed <= received <= limit

The sender never takes more than the receiver granted, so everything queued may go out, and what it keeps is bounded by
`WINDOW_BYTES` beyond what the peer consumed.
"""

from __future__ import annotations

from collections import deque

from cwsandbox.wire.errors import ProtocolError
from cwsandbox.wire.frames import WINDOW_BYTES

__all__ = ["ReceiveFlow", "SendFlow"]

_MERGE_BYTES = 4096
"""Neighbouring chunks are joined up to this size, so that a flow of single bytes does not cost an object for each."""
_OWED_BYTES = WINDOW_BYTES // 4
"""Credit is given in portions of this size."""

Chunk = bytes | memoryview


def _append(chunks: deque[Chunk], chunk: Chunk) -> None:
    if chunks and len(chunks[-1]) + len(chunk) <= _MERGE_BYTES:
        chunks[-1] = b"".join((chunks[-1], chunk))
    else:
        chunks.append(chunk)


class SendFlow:
    """The sending end of a substream.

    Attributes:
        sent: Offset of the next byte to put into a frame.
        end: Offset behind the last byte queued.
        limit: Offset up to which the peer granted credit.
        consumed: What the peer's user is known to have taken.
        eof: No more will be queued.
        eof_sent: The peer was told so, on the present connection.
    """

    __slots__ = ("_base", "_kept", "_unsent", "consumed", "end", "eof", "eof_sent", "limit", "sent")

    def __init__(self) -> None:
        self._base = 0
        self._kept: deque[Chunk] = deque()
        self._unsent: deque[Chunk] = deque()
        self.sent: int = 0
        self.end: int = 0
        self.limit: int = WINDOW_BYTES
        self.consumed: int = 0
        self.eof: bool = False
        self.eof_sent: bool = False

    @classmethod
    def restored(cls, base: int, data: bytes) -> SendFlow:
        """A flow that goes on where another process left it: before `base` everything was consumed."""
        flow = cls()
        flow._base = flow.sent = flow.consumed = flow.end = base
        flow.append(data)
        flow.limit = max(base + WINDOW_BYTES, flow.end)
        return flow

    @property
    def room(self) -> int:
        """Bytes that may be queued."""
        return self.limit - self.end

    @property
    def kept_bytes(self) -> int:
        """Bytes held, sent and unsent."""
        return self.end - self._base

    def append(self, data: bytes) -> None:
        """Queue bytes; the caller has checked `room`."""
        self.end += len(data)
        _append(self._unsent, data)

    def take(self, max_bytes: int) -> list[Chunk]:
        """Take up to `max_bytes` queued bytes to put into a frame. They are kept until acknowledged."""
        pieces: list[Chunk] = []
        unsent = self._unsent
        while unsent and max_bytes > 0:
            chunk = unsent.popleft()
            if len(chunk) > max_bytes:
                view = memoryview(chunk)
                unsent.appendleft(view[max_bytes:])
                chunk = view[:max_bytes]
            pieces.append(chunk)
            _append(self._kept, chunk)
            self.sent += len(chunk)
            max_bytes -= len(chunk)
        return pieces

    def acknowledge(self, consumed: int, limit: int) -> bool:
        """Note what the peer consumed and grants; True if there is more room than before.

        Raises:
            ProtocolError: The peer claims to have consumed what was never sent.
        """
        if consumed > self.sent:
            raise ProtocolError("credit for bytes that were never sent")
        self.consumed = max(self.consumed, consumed)
        kept = self._kept
        while kept and self._base + len(kept[0]) <= consumed:
            self._base += len(kept.popleft())
        # A peer that grants without bound would have us keep without bound.
        limit = min(limit, consumed + WINDOW_BYTES)
        if limit <= self.limit:
            return False
        self.limit = limit
        return True

    def rewind(self, received: int) -> None:
        """Continue after what the peer received, on a new connection.

        Raises:
            ProtocolError: The peer has less than it once acknowledged, or more than was ever queued.
        """
        if not self._base <= received <= self.end:
            raise ProtocolError(f"cannot continue at {received}: held are {self._base} to {self.end}")
        chunks = self._kept
        chunks.extend(self._unsent)
        while chunks and self._base + len(chunks[0]) <= received:
            self._base += len(chunks.popleft())
        if chunks and received > self._base:
            chunks[0] = memoryview(chunks[0])[received - self._base :]
        # The peer's user holds everything below, in the same process as before: nobody will ask for it again.
        self._base = self.sent = received
        self._kept, self._unsent = deque(), chunks
        self.eof_sent = False

    def discard(self) -> None:
        """Let go of everything: the peer closed."""
        self._kept.clear()
        self._unsent.clear()
        self._base = self.sent = self.end


class ReceiveFlow:
    """The receiving end of a substream.

    Attributes:
        received: Offset of the next byte expected.
        consumed: What the local user took.
        limit: Offset up to which the peer was granted credit.
        eof: The peer sent everything.
        adjust_due: A WINDOW_ADJUST should go out.
    """

    __slots__ = ("adjust_due", "consumed", "eof", "limit", "received")

    def __init__(self) -> None:
        self.received: int = 0
        self.consumed: int = 0
        self.limit: int = WINDOW_BYTES
        self.eof: bool = False
        self.adjust_due: bool = False

    @classmethod
    def restored(cls, received: int) -> ReceiveFlow:
        """A flow that goes on where another process left it: what was received is taken care of."""
        flow = cls()
        flow.received = flow.consumed = received
        flow.grant()
        return flow

    def accept(self, offset: int, data: bytes) -> bytes:
        """Take a DATA frame's bytes; returns those that are new.

        Raises:
            ProtocolError: Bytes are missing before it, it is past the granted credit, or past the end.
        """
        end = offset + len(data)
        if offset > self.received:
            raise ProtocolError(f"data at {offset}, {self.received} expected")
        if end > self.limit:
            raise ProtocolError(f"data up to {end}, beyond the credit of {self.limit}")
        if end <= self.received:
            return b""
        if self.eof:
            raise ProtocolError("data after the end of the substream")
        new = data[self.received - offset :]
        self.received = end
        return new

    def finish(self, length: int) -> bool:
        """Take an EOF; False if it was known already.

        Raises:
            ProtocolError: It does not come at the end of what was received.
        """
        if length != self.received:
            raise ProtocolError(f"end of a substream at {length}, received {self.received}")
        if self.eof:
            return False
        self.eof = True
        self.adjust_due = self.consumed == length > 0
        return True

    def consume(self, count: int) -> bool:
        """The local user took `count` bytes; True if a WINDOW_ADJUST became due.

        Raises:
            ValueError: More than was received.
        """
        if not 0 <= count <= self.received - self.consumed:
            raise ValueError(f"consumed {count} of {self.received - self.consumed} bytes")
        self.consumed += count
        if self.eof:
            # No credit is needed any more, but the sender wants to know when all of it arrived.
            due = count > 0 and self.consumed == self.received
        else:
            due = self.consumed + WINDOW_BYTES - self.limit >= _OWED_BYTES
        newly = due and not self.adjust_due
        self.adjust_due |= due
        return newly

    def grant(self) -> int:
        """Extend the credit to a full window and return the new limit, which the peer is now told."""
        self.adjust_due = False
        self.limit = self.consumed + WINDOW_BYTES
        return self.limit
