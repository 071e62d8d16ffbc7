"""The exec channel of a client: streams over a WebSocket that may break and come back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cwsandbox._client.stream import ClientStream, StreamSink
    from cwsandbox.wire.channel import StreamKind


class ExecChannel:
    """Streams to one gateway. Use it on its own loop only."""

    def open(self, kind: StreamKind, params: dict[str, Any], exec_id: str, sink: StreamSink) -> ClientStream:
        """Open a stream. Never waits: what cannot be opened tells its sink so in `ended`.

        Args:
            kind: What the stream does.
            params: `to_params()` of the matching model in `cwsandbox.wire.streams`.
            exec_id: A name that nobody used before: the server runs it once, however often it is asked.
            sink: Told what happens.

        Raises:
            SandboxUnavailableError: The channel is closed.
        """
        raise NotImplementedError

    def _wake(self) -> None:
        raise NotImplementedError
