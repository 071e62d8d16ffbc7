"""A file operation that streams, on the gateway's side."""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from cwsandbox.runners.local.pipes import PipeSink, PipeSource, adopt_pipes
from cwsandbox.runners.local.transfers import InlineFile
from cwsandbox.wire.codec import Int64
from cwsandbox.wire.streams import FileAction, FileInfo

if TYPE_CHECKING:
    from cwsandbox.runners.local import protocol
    from cwsandbox.runners.local.box import LocalBox
    from cwsandbox.wire.streams import FilesOpen

_STATUS_BYTES = 32 * 1024
_END_SECONDS = 5.0
_MAY_BE_DONE_AT_ONCE = frozenset({FileAction.LIST, FileAction.MOVE, FileAction.REMOVE})
_ENDS = (os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)


def request_body(request: FilesOpen) -> dict[str, Any]:
    """What the agent is asked."""
    return {
        "action": request.action.value,
        "path": request.path,
        "target": request.target,
        "pattern": request.pattern,
        "follow": request.follow,
        "parents": request.parents,
        "exist_ok": request.exist_ok,
        "recursive": request.recursive,
        "totals": request.totals,
    }


def read_info(found: object) -> FileInfo | None:
    """An agent's answer to a quick action; None if it makes no sense."""
    if found == []:
        return FileInfo()
    if not isinstance(found, list) or len(found) != 3:
        return None
    mode, size, mtime_ns = found
    if not (type(mode) is int and type(size) is int and type(mtime_ns) is int):
        return None
    if not (0 <= mode < 2**32 and 0 <= size < 2**63 and -(2**63) <= mtime_ns < 2**63):
        return None
    return FileInfo(mode=mode, size=Int64(size), mtime_ns=Int64(mtime_ns))


async def begin_job(box: LocalBox, request: FilesOpen, slots: anyio.Semaphore | None) -> FinishedFileJob | LocalFileJob:
    """Begin an action that streams. If cancelled, nothing is left running.

    Args:
        box: Where.
        request: What.
        slots: Released when it has ended; by the caller if it has not begun.
    """
    number = box._next_request()
    try:
        reply = await box._ask({"op": "file_job", **request_body(request)})
    except anyio.get_cancelled_exc_class():
        box._post({"op": "end_file_job", "job": number})
        raise
    if request.action in _MAY_BE_DONE_AT_ONCE and not reply.fds:
        return FinishedFileJob(reply.payload, slots)
    try:
        job = LocalFileJob(box, number, reply, slots, has_input=request.action is FileAction.UNPACK)
    except ValueError:
        raise box._broken("a file operation without its pipes") from None
    try:
        await job.begun()
    except BaseException:
        await job.end()
        raise
    return job


class FinishedFileJob:
    """A job that the agent did at once: the listing of a small folder, a move, a removed file."""

    input = None

    def __init__(self, output: bytes, slots: anyio.Semaphore | None) -> None:
        self._output = InlineFile(output)
        self._slots = slots

    @property
    def output(self) -> InlineFile:
        """What it gave."""
        return self._output

    async def wait(self) -> None:
        """It has ended well."""
        await anyio.lowlevel.checkpoint_if_cancelled()

    async def aclose(self) -> None:
        """Give its slot back."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.release()


class LocalFileJob:
    """The job that `reply` brought the pipes of.

    Args:
        box: Where it runs.
        number: Of the request that began it; the agent knows it by that.
        reply: The answer, whose descriptors the job owns.
        slots: Released when it has ended.
        has_input: It takes a stream.

    Raises:
        ValueError: These are not its pipes; all are closed.
    """

    def __init__(
        self,
        box: LocalBox,
        number: int,
        reply: protocol.Message,
        slots: anyio.Semaphore | None,
        *,
        has_input: bool,
    ) -> None:
        fds = list(reply.fds)
        if len(fds) != 2 + has_input or not all(stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in fds):
            reply.close_fds()
            raise ValueError("not the pipes of a job")
        self._box = box
        self._number = number
        self._slots = slots
        try:
            ours = adopt_pipes(zip(fds, _ENDS, strict=False))
        finally:
            reply.close_fds()
        self._output, self._status = PipeSource(ours[0]), PipeSource(ours[1])
        self._input = PipeSink(ours[2]) if has_input else None
        self._unread = b""
        self._over = False

    @property
    def input(self) -> PipeSink | None:
        """What an UNPACK takes."""
        return self._input

    @property
    def output(self) -> PipeSource:
        """What it gives."""
        return self._output

    async def begun(self) -> None:
        """Wait until it has begun. Raises as `wait`."""
        await self._read_status("begun")

    async def wait(self) -> None:
        """Wait for its end, when the output was read and the input closed.

        Raises:
            OSError: What the box's kernel said, with the path where it said it.
            BoxGoneError: The box ended, or its agent lies.
        """
        await self._read_status("done")
        self._over = True

    async def _read_status(self, expected: str) -> None:
        while b"\n" not in self._unread:
            try:
                self._unread += await self._status.receive(_STATUS_BYTES)
            except anyio.EndOfStream:
                self._over = True
                # If the whole box is gone, the agent cannot answer, and this says so.
                await self._box._ask({"op": "end_file_job", "job": self._number})
                raise OSError(errno.EIO, "the file operation was killed in the sandbox") from None
            if len(self._unread) > _STATUS_BYTES:
                raise self._box._broken("too long a status")
        line, self._unread = self._unread.split(b"\n", 1)
        try:
            body = json.loads(line)
            if body.get(expected) is True:
                return
            number, message, path = body["errno"], body["message"], body["path"]
        except (ValueError, KeyError, AttributeError, RecursionError):
            raise self._box._broken("a status that is none") from None
        self._over = True
        if type(number) is not int or not isinstance(message, str) or not isinstance(path, str):
            raise self._box._broken("a status that is none")
        raise OSError(number, message, path)

    async def aclose(self) -> None:
        """End it if it runs, and wait a bounded time until it has removed what it had not completed."""
        try:
            await self.end()
        finally:
            slots, self._slots = self._slots, None
            if slots is not None:
                slots.release()

    async def end(self) -> None:
        """`aclose` without giving its slot back."""
        if not self._over:
            self._box._post({"op": "end_file_job", "job": self._number})
        for pipe in (self._input, self._output):
            if pipe is not None:
                pipe.hang_up()
        try:
            with anyio.move_on_after(_END_SECONDS, shield=True):
                while not self._over:  # Its end of the pipe closes with its last breath.
                    await self._status.receive(_STATUS_BYTES)
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            pass
        finally:
            self._status.hang_up()
