"""What an exec, a read and a write have in common: one operation that is one stream of the exec channel."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import anyio

from cwsandbox._client.errors import status_error
from cwsandbox._client.stream import Exited, Lost, Refused, Signaled
from cwsandbox._lifecycle import Phase
from cwsandbox._runtime.operation import Outcome
from cwsandbox.exceptions import SandboxFailedError, SandboxNotRunningError, SandboxTerminatedError
from cwsandbox.status import SandboxStatus

if TYPE_CHECKING:
    from cwsandbox._client.stream import ClientStream
    from cwsandbox._client.stream import Outcome as StreamOutcome
    from cwsandbox._core import SandboxCore
    from cwsandbox._runtime.operation import OperationRef
    from cwsandbox.exceptions import CWSandboxError
    from cwsandbox.wire.channel import StreamKind

__all__ = ["StreamOperation", "end_of_stream"]

_CANCEL_SECONDS = 5.0
"""How long a cancelled operation waits for the gateway to confirm that the command is dead (design, section 3)."""


def end_of_stream(ref: OperationRef[Any]) -> BaseException | None:
    """What a reader gets at the end of the stream of an operation that has ended.

    A stream that was cut off is not one that ended. A reader that cut it off itself, by closing, asks for nothing more.
    """
    if ref._outcome is Outcome.CANCELLED:
        return SandboxNotRunningError(
            "the stream was cut off: the context it belongs to was left, or its event loop has ended"
        )
    return ref._error


class StreamOperation:
    """Base of the operations on a sandbox that use a stream; the channel calls it (`StreamSink`), it wakes its task.

    Runs on the scope's loop only.
    """

    filepath: str | None = None

    def __init__(self, sandbox: SandboxCore) -> None:
        self._sandbox = sandbox
        self._changed: anyio.Event | None = None
        """Set to wake the task; made by the task, as an event belongs to the loop that it is made on."""
        self._confirmed = False
        self._outcome: StreamOutcome | None = None

    # What the channel calls.

    def data(self, code: int, data: bytes) -> None:
        """Nothing is expected from the gateway, unless a subclass says so."""

    def eof(self, code: int) -> None:
        """The end of the stream says all that an end of file could."""

    def credit(self, code: int) -> None:
        """More may be sent."""
        self._wake()

    def confirmed(self, info: dict[str, Any]) -> None:
        """The gateway has begun. All but the log of an ended sandbox begin only where the sandbox runs."""
        from cwsandbox.wire.streams import SandboxInfo

        self._confirmed = True
        told, life = info.pop("sandbox", None), self._sandbox.life
        if told is not None and life.phase is Phase.STARTING:
            life.running(SandboxInfo.from_params(told))

    def ended(self, outcome: StreamOutcome) -> None:
        """The stream is over."""
        self._outcome = outcome
        self._wake()

    # What subclasses use.

    async def _open(self, kind: StreamKind, params: dict[str, Any]) -> ClientStream:
        """Open the stream on the sandbox's connection. The sandbox has been started."""
        client = await self._sandbox.client()
        return client.channel.open(kind, params, uuid.uuid4().hex, self, self._sandbox.timeout)

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()

    async def _wait_changed(self) -> None:
        """Wait until something happens after this call; check before."""
        self._changed = anyio.Event()
        await self._changed.wait()

    async def _give_up(self, stream: ClientStream) -> None:
        """Cancelled: have the gateway end it, and wait until it says that it has."""
        stream.close()
        with anyio.move_on_after(_CANCEL_SECONDS, shield=True):
            await stream.wait_closed()

    async def _exit_status(self) -> Exited | Signaled:
        """How it ended, if the gateway saw an end.

        Raises:
            CWSandboxError: The gateway refused or failed it, or the stream was lost.
        """
        match self._outcome:
            case Exited() | Signaled() as seen:
                return seen
            case Refused(status):
                error = status_error(status, sandbox_id=self._sandbox.sandbox_id, filepath=self.filepath)
                if isinstance(error, SandboxNotRunningError) and not self._confirmed:
                    await self._raise_ended(error)
                raise error
            case Lost(error):
                raise error
            case None:
                raise AssertionError("the stream is not over")

    async def _raise_ended(self, refusal: CWSandboxError) -> None:
        """The sandbox ended before it ran: say how, unless that was our own doing."""
        life = self._sandbox.life
        ran = life.phase is not Phase.STARTING
        await self._sandbox.refresh()
        if ran or life.stop_owned:
            return
        if life.status is SandboxStatus.FAILED:
            raise SandboxFailedError(self._sandbox.ended_message(), reason=refusal.reason) from refusal
        if life.status is SandboxStatus.TERMINATED:
            raise SandboxTerminatedError(self._sandbox.ended_message(), reason=refusal.reason) from refusal
