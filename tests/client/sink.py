"""A stream's user for tests."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import anyio

from cwsandbox.wire.channel import StreamKind

if TYPE_CHECKING:
    from cwsandbox._client.channel import ExecChannel
    from cwsandbox._client.stream import ClientStream, Outcome

_numbers = itertools.count()


class Sink:
    """Keeps what came; gives credit at once unless `greedy` is off.

    Attributes:
        log: The names of the callbacks, in order.
    """

    stream: ClientStream

    def __init__(self, *, greedy: bool = True) -> None:
        self.greedy = greedy
        self.received = bytearray()
        self.log: list[str] = []
        self.info: dict[str, Any] | None = None
        self.outcome: Outcome | None = None
        self.over = anyio.Event()
        self.running = anyio.Event()
        self.changed = anyio.Event()

    def data(self, code: int, data: bytes) -> None:
        self.log.append("data")
        self.received += data
        if self.greedy:
            self.stream.consumed(len(data), code)
        self._change()

    def eof(self, code: int) -> None:
        self.log.append(f"eof {code}")

    def credit(self, code: int) -> None:
        self._change()

    def confirmed(self, info: dict[str, Any]) -> None:
        self.log.append("confirmed")
        self.info = info
        self.running.set()

    def ended(self, outcome: Outcome) -> None:
        assert self.outcome is None
        self.log.append("ended")
        self.outcome = outcome
        self.running.set()
        self.over.set()
        self._change()

    def _change(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    async def result(self) -> Outcome:
        with anyio.fail_after(20):
            await self.over.wait()
        assert self.outcome is not None
        return self.outcome

    async def wait_bytes(self, count: int) -> None:
        with anyio.fail_after(20):
            while len(self.received) < count:
                await self.changed.wait()

    async def send_all(self, data: bytes) -> None:
        with anyio.fail_after(20):
            while data and self.outcome is None:
                room = self.stream.room()
                if not room:
                    await self.changed.wait()
                    continue
                self.stream.send(data[:room])
                data = data[room:]


def run(
    channel: ExecChannel,
    *argv: str,
    greedy: bool = True,
    exec_id: str | None = None,
    reach_seconds: float = math.inf,
    kind: StreamKind = StreamKind.EXEC,
) -> Sink:
    """Open a stream on the scripted front."""
    sink = Sink(greedy=greedy)
    exec_id = exec_id or f"exec-{next(_numbers)}"
    sink.stream = channel.open(kind, {"argv": list(argv)}, exec_id, sink, reach_seconds)
    return sink
