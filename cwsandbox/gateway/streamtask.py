"""What the handlers of all stream kinds have in common.

A `StreamTask` is one stream of a client and the task that serves it. It lives in the service, not in the connection:
while the client is away it waits for credit like behind any slow reader, and a new connection adopts it with its
stream. The connection calls the `on_` methods, which never block; the task fills `stream` and calls `wake` when there
is something to send.
"""

from __future__ import annotations

import abc
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio

from cwsandbox.gateway.errors import StatusError
from cwsandbox.gateway.pulse import Pulse
from cwsandbox.wire.errors import Code, Status
from cwsandbox.wire.streams import SandboxInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cwsandbox.gateway.sandbox import LiveSandbox
    from cwsandbox.gateway.service import Service
    from cwsandbox.runners.base import Box
    from cwsandbox.wire.channel import Stream

_log = logging.getLogger(__name__)

CHUNK_BYTES: Final = 256 * 1024


class Owner(Protocol):
    """The connection that a stream is on at the moment."""

    def wake(self) -> None:
        """A stream has something to send."""
        ...

    def release(self, task: StreamTask) -> None:
        """Nothing will come for the stream on this connection any more."""
        ...


class StreamTask(abc.ABC):
    """One stream and what serves it.

    Attributes:
        stream: The server's side of the stream; stays the same object across reconnects.
        owner: The connection it is on; None while the client is away.
        absences: How often the client went away.
        ended: The task ended; what is left is for the client to take.
    """

    def __init__(self, service: Service, principal: str, stream: Stream) -> None:
        self.service = service
        self.principal = principal
        self.stream = stream
        self.owner: Owner | None = None
        self.absences: int = 0
        self.ended: bool = False
        self._end = Pulse()
        self._scope = anyio.CancelScope()
        self._credit = Pulse()
        # The client is gone or wants no more: nothing is sent any longer.
        self._unwatched = False
        self._runs_in: LiveSandbox | None = None

    @property
    def runs_on(self) -> bool:
        """`abort` does not end it: a detached command."""
        return False

    @property
    def abandoned(self) -> bool:
        """Nobody will ask for it again: the client closed the stream, or is gone for good."""
        return self._unwatched or self.stream.peer_closed

    # -- called by the connection

    def disconnect(self) -> None:
        """The client is out of reach; it may come back."""
        self.owner = None
        self.absences += 1

    def on_credit(self) -> None:
        """The client can take more."""
        self._credit.notify()

    def on_data(self, data: bytes) -> None:
        """The client sent data; kinds that take none give the credit back."""
        self.stream.consumed(len(data))

    def on_eof(self) -> None:  # noqa: B027 - most kinds have no use for it.
        """The client will send no more data."""

    def on_signal(self, name: str) -> None:  # noqa: B027 - most kinds have no use for it.
        """The client sent a signal, by its name without SIG."""

    def on_window_change(self, columns: int, rows: int) -> None:  # noqa: B027 - most kinds have no use for it.
        """The client's terminal has a new size."""

    def abort(self) -> None:
        """The client closed the stream, said goodbye, or is gone for good: end it, and kill what it runs."""
        self._unwatch()
        self._scope.cancel()

    def _unwatch(self) -> None:
        self._unwatched = True
        self._credit.notify()

    # -- the task

    async def run(self) -> None:
        """Serve the stream to its end. Never raises but for cancellation from outside."""
        stream = self.stream
        try:
            try:
                with self._scope:
                    await self._serve()
                if self._scope.cancelled_caught and not self._unwatched:
                    await self._expired()
            finally:
                await self._clean_up()
        except StatusError as error:
            stream.fail(error.status)
        except Exception:
            _log.exception("stream %s (%s) failed", stream.exec_id, stream.kind)
            stream.fail(Status.make(Code.INTERNAL, "the gateway failed; its log says more"))
        finally:
            stream.close()
            self._credit.notify()  # What still waits for credit has nobody to send to.
            self.ended = True
            self._end.notify()
            self.wake()
            self.service.streams.settle(self)

    def forget(self) -> None:  # noqa: B027 - most kinds have nothing to keep.
        """The task ended, and its client took all of it or will not come: let go of what was kept for it."""

    async def wait_ended(self) -> None:
        """Wait until the task ended. Cancelling stops waiting only."""
        while not self.ended:
            await self._end.wait()

    @abc.abstractmethod
    async def _serve(self) -> None:
        """Do the work, in `_scope`. StatusError fails the stream with its status; anything else is a defect."""

    async def _expired(self) -> None:  # noqa: B027 - as above.
        """The deadline of `_scope` passed; only called where a kind of stream sets one."""

    async def _clean_up(self) -> None:  # noqa: B027 - as above.
        """Let go of what the work used, however it ended; may run while the task is being cancelled."""

    def wake(self) -> None:
        """Tell the connection, if there is one, that the stream has something to send."""
        if self.owner is not None:
            self.owner.wake()

    async def _box(self, sandbox: LiveSandbox, wait_seconds: float | None) -> Box:
        """The box of a sandbox that runs, or will within the time; raises as `Service.box`."""
        box = await self.service.box(sandbox, wait_seconds)
        self._runs_in = sandbox
        return box

    def _confirm(self, info: Mapping[str, Any]) -> None:
        """Say that what was asked for has started, and what is known of the sandbox since it runs."""
        sandbox = self._runs_in
        if sandbox is not None:
            running = SandboxInfo(start_time=sandbox.record.start_time, isolation=sandbox.record.isolation)
            info = {**info, "sandbox": running.to_params()}
        self.stream.confirm(info)
        if sandbox is not None and not sandbox.announced:
            sandbox.announced = True
            self.wake()  # Whoever started it sees it run now; later confirmations may go with what follows them.

    async def _room(self, code: int = 0) -> int:
        """Wait until the client can take something, and return how much, a frame at most."""
        while not self._unwatched:
            room = self.stream.room(code)
            if room:
                return min(room, CHUNK_BYTES)
            await self._credit.wait()
        return CHUNK_BYTES

    def _send(self, data: bytes, code: int = 0) -> None:
        if not self._unwatched:
            self.stream.send(data, code)
            self.wake()
