"""The read and write streams: one file each way.

Both end with EXIT_STATUS 0 when all bytes are through. A file that could not be opened, read, or put in place ends the
stream with a STATUS whose reason says why, and a write that did not end leaves the old file as it was.
"""

from __future__ import annotations

import abc
import contextlib
import errno
from collections import deque
from typing import TYPE_CHECKING

import anyio

from cwsandbox.gateway.errors import StatusError, error, not_running
from cwsandbox.gateway.pulse import Pulse
from cwsandbox.gateway.streamtask import StreamTask
from cwsandbox.runners.errors import BoxGoneError, RunnerError
from cwsandbox.wire.errors import Code, Reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from cwsandbox.gateway.sandbox import LiveSandbox
    from cwsandbox.gateway.service import Service
    from cwsandbox.runners.base import Box
    from cwsandbox.wire.channel import Stream
    from cwsandbox.wire.streams import FilesOpen, ReadOpen, WriteOpen


class Transfer(StreamTask):
    """What all streams about files have in common: a running sandbox, a limit, and errors with the path in them."""

    def __init__(
        self, service: Service, principal: str, stream: Stream, request: ReadOpen | WriteOpen | FilesOpen
    ) -> None:
        super().__init__(service, principal, stream)
        self._request = request

    async def _serve(self) -> None:
        request = self._request
        sandbox = self.service.get(self.principal, request.sandbox_id)
        with sandbox.in_use():
            box = await self._box(sandbox, request.wait_seconds)
            seconds = sandbox.limit(request.timeout_seconds)
            with _file_errors(sandbox, request.path), anyio.move_on_after(seconds) as limit:
                await self._transfer(box)
            if limit.cancelled_caught:
                raise _timed_out(request.path, seconds)
            self.stream.exit_status(0)

    @abc.abstractmethod
    async def _transfer(self, box: Box) -> None:
        """Move the bytes; OSErrors become statuses with the path in them."""


class ReadTransfer(Transfer):
    """A file on its way to the client."""

    async def _transfer(self, box: Box) -> None:
        source = await box.open_file(self._request.path)
        try:
            self._confirm({"size": source.size})
            while True:
                self._send(await source.receive(await self._room()))
        except anyio.EndOfStream:
            self.stream.send_eof()
        finally:
            with anyio.move_on_after(1, shield=True):
                await source.aclose()


class Upload:
    """What a client sends, until it is passed on; the stream's window bounds it, as credit is given for what was taken.

    Attributes:
        complete: The client has sent everything.
    """

    def __init__(self, stream: Stream, wake: Callable[[], None]) -> None:
        self._stream = stream
        self._wake = wake
        self._received: deque[bytes] = deque()
        self._arrived = Pulse()
        self.complete: bool = False

    def put(self, data: bytes) -> None:
        """Data came."""
        self._received.append(data)
        self._arrived.notify()

    def end(self) -> None:
        """That was all."""
        self.complete = True
        self._arrived.notify()

    async def pass_on(self, send: Callable[[bytes], Awaitable[None]]) -> int:
        """Give everything to `send`, to the end; returns how many bytes that was. Raises what `send` raises."""
        count = 0
        while self._received or not self.complete:
            if not self._received:
                await self._arrived.wait()
                continue
            await send(self._received[0])
            taken = len(self._received.popleft())
            count += taken
            self._stream.consumed(taken)
            if not self.complete:
                self._wake()  # For credit; a client that has sent all needs none.
        return count


class WriteTransfer(Transfer):
    """A file on its way into the box: in place when the client's EOF was received, and not before."""

    def __init__(self, service: Service, principal: str, stream: Stream, request: WriteOpen) -> None:
        super().__init__(service, principal, stream, request)
        self._size = request.size
        self._upload = Upload(stream, self.wake)

    def on_data(self, data: bytes) -> None:
        """Queue data."""
        self._upload.put(data)

    def on_eof(self) -> None:
        """The file is complete."""
        self._upload.end()

    async def _transfer(self, box: Box) -> None:
        target = await box.create_file(self._request.path, size=self._size)
        try:
            self._confirm({})
            if not self._upload.complete:
                self.wake()  # A client that came back sends nothing before it hears this.
            written = await self._upload.pass_on(target.send)
            if self._size is not None and written != self._size:
                raise error(
                    Code.INVALID_ARGUMENT,
                    f"{self._size} bytes were announced for {self._request.path} and {written} came",
                    Reason.FILE_IO_FAILED,
                    {"filepath": _as_text(self._request.path)},
                )
            await target.commit()
        finally:
            with anyio.move_on_after(1, shield=True):
                await target.aclose()


@contextlib.contextmanager
def _file_errors(sandbox: LiveSandbox, path: str) -> Iterator[None]:
    """Turn what the box's kernel said into a status with the path in it."""
    try:
        yield
    except BoxGoneError:
        raise not_running(sandbox.record) from None
    except RunnerError as problem:
        raise error(Code.RESOURCE_EXHAUSTED, str(problem), metadata={"filepath": _as_text(path)}) from problem
    except OSError as problem:
        raise _file_error(problem, path) from problem


def _file_error(problem: OSError, path: str) -> StatusError:
    code, reason = _REASONS.get(problem.errno or 0, (Code.INTERNAL, Reason.FILE_IO_FAILED))
    text = problem.strerror or str(problem)
    # In a folder, say which file.
    path = _as_text(problem.filename if isinstance(problem.filename, str) and problem.filename else path)
    metadata = {"filepath": path}
    if problem.errno is not None:
        metadata["errno"] = str(problem.errno)
    return error(code, f"{path}: {text}", reason, metadata)


_REASONS = {
    errno.ENOENT: (Code.NOT_FOUND, Reason.FILE_NOT_FOUND),
    errno.EISDIR: (Code.FAILED_PRECONDITION, Reason.FILE_IS_DIRECTORY),
    errno.ENOTDIR: (Code.FAILED_PRECONDITION, Reason.FILE_NOT_A_DIRECTORY),
    errno.EEXIST: (Code.ALREADY_EXISTS, Reason.FILE_EXISTS),
    errno.ENOTEMPTY: (Code.FAILED_PRECONDITION, Reason.FILE_DIRECTORY_NOT_EMPTY),
    errno.EACCES: (Code.PERMISSION_DENIED, Reason.FILE_PERMISSION_DENIED),
    errno.EPERM: (Code.PERMISSION_DENIED, Reason.FILE_PERMISSION_DENIED),
}


def _as_text(path: str) -> str:
    """A path for people and JSON: not every path is text."""
    return path.encode(errors="replace").decode()


def _timed_out(path: str, seconds: float) -> StatusError:
    path = _as_text(path)
    return error(Code.DEADLINE_EXCEEDED, f"{path} took longer than {seconds:g} s", metadata={"filepath": path})
