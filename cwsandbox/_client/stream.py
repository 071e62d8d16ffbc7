"""One stream of the exec channel as its user sees it: what to call, what gets called, and how it can end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.lowlevel
from attrs import define, field, frozen

if TYPE_CHECKING:
    from cwsandbox._client.channel import ExecChannel
    from cwsandbox.exceptions import CWSandboxError
    from cwsandbox.wire.channel import Stream
    from cwsandbox.wire.errors import Status


@frozen
class Exited:
    """The command ended by itself; the server saw this exit status."""

    status: int


@frozen
class Signaled:
    """The command was ended by a signal, such as `SIGKILL`."""

    name: str


@frozen
class Refused:
    """The server ended the stream with an error: it could not be opened, or failed later."""

    status: Status


@frozen
class Lost:
    """The stream ended without a word on its outcome: the command may or may not have run.

    Attributes:
        error: Why, ready to be raised: mostly `SandboxUnavailableError`.
    """

    error: CWSandboxError


Outcome = Exited | Signaled | Refused | Lost


class StreamSink(Protocol):
    """What one stream tells its user. All are called on the channel's loop, in order, and must not block.

    `ended` comes exactly once, and last. What a callback raises ends that stream as `Lost`, and no other.
    """

    def data(self, code: int, data: bytes) -> None:
        """Bytes arrived on a substream (0: data, 1: extended data). Answer with `ClientStream.consumed` when taken."""

    def eof(self, code: int) -> None:
        """The substream has ended."""

    def credit(self, code: int) -> None:
        """More may be sent: `ClientStream.room` grew."""

    def confirmed(self, info: dict[str, Any]) -> None:
        """The server runs it."""

    def ended(self, outcome: Outcome) -> None:
        """It is over."""


@define(eq=False, slots=True)
class ClientStream:
    """A stream that `ExecChannel.open` made. Use it on the channel's loop only.

    After the end all methods but `room` (0) do nothing: a sender need not race with the end.
    """

    _channel: ExecChannel
    _wire: Stream
    _sink: StreamSink
    outcome: Outcome | None = None
    """How it ended; None while it lives."""
    _verdict: Outcome | None = None
    """What the server said of the end; becomes `outcome` at the close, when all data has been delivered."""
    _shown_to: str | None = None
    """The gateway instance that may have seen it; None while no byte about it was sent."""
    _ended: anyio.Event | None = field(default=None)
    _reach_seconds: float = math.inf
    """How long a gateway may take to be reached,"""
    _reach_by: float = math.inf
    """and until when, on the loop's clock."""

    @property
    def exec_id(self) -> str:
        """The name under which the server knows it, across connections."""
        return self._wire.exec_id

    def room(self, code: int = 0) -> int:
        """How many bytes may be sent now."""
        return 0 if self.outcome else self._wire.room(code)

    def send(self, data: bytes, code: int = 0) -> None:
        """Send bytes.

        Raises:
            ValueError: They are more than `room` allows.
        """
        if not self.outcome:
            self._wire.send(data, code)
            self._channel._wake()

    def send_eof(self, code: int = 0) -> None:
        """Say that no more bytes follow."""
        if not self.outcome:
            self._wire.send_eof(code)
            self._channel._wake()

    def consumed(self, count: int, code: int = 0) -> None:
        """Give the server credit for received bytes that have been taken."""
        if not self.outcome:
            self._wire.consumed(count, code)
            if not self._wire.peer_closed:
                self._channel._wake()

    def signal(self, name: str) -> None:
        """Send a signal, such as `SIGINT`, to the command."""
        if not self.outcome:
            self._wire.signal(name)
            self._channel._wake()

    def window_change(self, columns: int, rows: int) -> None:
        """Tell the terminal its new size in characters."""
        if not self.outcome:
            self._wire.window_change(columns, rows)
            self._channel._wake()

    def close(self) -> None:
        """End the stream; the server kills what runs. `ended` follows when the server has confirmed it."""
        if not self.outcome:
            self._wire.close()
            self._channel._wake()

    async def wait_closed(self) -> Outcome:
        """Wait until the stream is over. Cancelling this wait does not end the stream.

        Returns:
            How it ended.
        """
        if self.outcome is None:
            if self._ended is None:
                self._ended = anyio.Event()
            await self._ended.wait()
        else:
            await anyio.lowlevel.checkpoint()
        assert self.outcome is not None
        return self.outcome

    def _finish(self, outcome: Outcome) -> None:
        if self.outcome is not None:
            return
        self.outcome = outcome
        if self._ended is not None:
            self._ended.set()
        self._sink.ended(outcome)
