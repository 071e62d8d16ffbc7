"""One remote call: a sandbox, the payload in, the result out, the sandbox stopped."""

from __future__ import annotations

import sys
import uuid
from typing import TYPE_CHECKING, Any, NoReturn

import anyio
import anyio.to_thread
from attrs import frozen

from cwsandbox._function.payload import BadResultError, Failure, read_result
from cwsandbox._text import short_repr
from cwsandbox.exceptions import (
    FunctionSerializationError,
    SandboxCommandTimeoutError,
    SandboxExecutionError,
    SandboxFileError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cwsandbox._function.payload import Snapshot
    from cwsandbox._function.standby import Standby
    from cwsandbox.process import ProcessResult

__all__ = ["Call"]

_THREAD_BYTES = 1024 * 1024
"""Larger results are decoded in a thread: it would hold up the event loop."""
_NO_SUCH_COMMAND = 127


@frozen
class Call:
    """What one call needs.

    Attributes:
        name: The function, for messages.
        snapshot: The function at the time of the call.
        arguments: Its arguments, encoded.
        folder: Where the result file goes.
        use_pickle: How the result travels.
        options: Of the sandbox.
        standby: Where the sandbox comes from.
        slots: Shared by calls of which only some may run at a time.
    """

    name: str
    snapshot: Snapshot
    arguments: bytes
    folder: str
    use_pickle: bool
    options: Mapping[str, Any]
    standby: Standby
    slots: Slots | None = None

    async def __call__(self) -> Any:
        """Make the call. Cancelled or failed, the sandbox is stopped before this returns.

        Raises:
            SandboxExecutionError: The function raised, ended the interpreter, or its result cannot be carried over.
            SandboxCommandTimeoutError: It took too long.
            FunctionSerializationError: Python versions differ, or the result cannot be unpickled here.
            SandboxError: The session is closed, or the sandbox failed.
        """
        if self.slots is None:
            return await self._run()
        async with self.slots.limiter():
            return await self._run()

    async def _run(self) -> Any:
        path = f"{self.folder.rstrip('/')}/sandbox_result_{uuid.uuid4().hex}.bin"
        ended = anyio.Event()
        worker = self.standby.take(self.options, self.snapshot.imports())
        self.standby.replace(self.options, self.snapshot.imports(), ended)
        try:
            done, data = await worker.run(self.snapshot.payload(self.arguments, path), path)
            return await self._value(done, data)
        except SandboxCommandTimeoutError as error:
            limit = error.metadata.get("timeoutSeconds", "")
            text = f"the remote function {self.name} was killed after {limit} s"
            error.args = (f"{text}; request_timeout_seconds and max_timeout_seconds set the limit",)
            raise
        except SandboxFileError as error:
            raise SandboxExecutionError(f"the result of {self.name} cannot be read: {error}") from error
        finally:
            await worker.stop()
            ended.set()

    async def _value(self, done: ProcessResult, data: bytes | None) -> Any:
        if data is None:
            raise SandboxExecutionError(self._no_result(done), exec_result=done)
        try:
            if len(data) > _THREAD_BYTES:
                value = await anyio.to_thread.run_sync(lambda: read_result(data, use_pickle=self.use_pickle))
            else:
                value = read_result(data, use_pickle=self.use_pickle)
        except BadResultError as error:
            raise SandboxExecutionError(f"the result of {self.name} is broken: {error}", exec_result=done) from error
        if isinstance(value, Failure):
            self._fail(value, done)
        return value

    def _fail(self, failure: Failure, done: ProcessResult) -> NoReturn:
        if failure.python is not None:
            here = f"{sys.version_info[0]}.{sys.version_info[1]}"
            raise FunctionSerializationError(
                f"{self.name}, or something it uses, has no source text here and was sent as bytecode of Python "
                f"{here}, but the sandbox has Python {short_repr(failure.python)}: define it in a file or a notebook "
                "cell, or choose a container_image with the same Python"
            )
        kind = failure.type
        text = f"{kind}: {failure.message}" if failure.message else kind
        error = SandboxExecutionError(
            self._what_failed(failure.stage, text),
            exec_result=done,
            exception_type=kind,
            exception_message=failure.message,
        )
        error.add_note(f"In the sandbox:\n{failure.traceback}")
        raise error

    def _what_failed(self, stage: str, error: str) -> str:
        if stage == "load":
            return f"the remote function {self.name} and its arguments cannot be made in the sandbox: {error}"
        if stage == "call":
            return f"the remote function {self.name} raised {error}"
        if self.use_pickle:
            return f"the result of {self.name} cannot be pickled: {error}"
        return (
            f"the result of {self.name} cannot be sent as JSON: {error}; return plain values, or use "
            "serialization=Serialization.PICKLE"
        )

    def _no_result(self, done: ProcessResult) -> str:
        if done.returncode == _NO_SUCH_COMMAND:
            return f"{self.name} cannot run: the image has no `python`; choose a container_image that has one"
        lines = done.stderr.strip().splitlines()
        last = f"; the last line on stderr: {short_repr(lines[-1])}" if lines else ""
        return f"{self.name} ended its interpreter with exit code {done.returncode} and no result{last}"


class Slots:
    """How many calls of one `map` run at a time."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._limiter: anyio.CapacityLimiter | None = None

    def limiter(self) -> anyio.CapacityLimiter:
        """The limiter, made on the loop that the calls run on."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._count)
        return self._limiter
