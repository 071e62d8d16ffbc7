"""The bytes of a remote command from and to our own standard streams, exactly as they are."""

from __future__ import annotations

import errno
import os
import select
import stat
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from cwsandbox.cli.running import helped
from cwsandbox.exceptions import CWSandboxError, SandboxExecutionError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from cwsandbox._running import RunningCommand
    from cwsandbox._runtime.readers import ChunkReader
    from cwsandbox.process import ProcessResult, StreamWriter
    from cwsandbox.terminal import TerminalResult

_READ_BYTES: Final = 64 * 1024
STDIN, STDOUT, STDERR = 0, 1, 2


class Output:
    """Writes to one of our descriptors from a thread: whoever reads there may take their time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def write(self, data: bytes) -> None:
        """Write all of it. Cancelling leaves the thread to it.

        Raises:
            BrokenPipeError: Nobody reads any more.
            CWSandboxError: Nothing can be written, such as on a full disk.
        """
        try:
            await anyio.to_thread.run_sync(_write_all, self._descriptor, data, abandon_on_cancel=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CWSandboxError(f"the output cannot be written: {error.strerror}") from error


async def read_input(descriptor: int = STDIN) -> AsyncIterator[bytes]:
    """What comes in on a descriptor of ours, until its end; no thread is left reading if that is given up.

    Raises:
        CWSandboxError: It cannot be read.
    """
    waitable = not stat.S_ISREG(os.fstat(descriptor).st_mode)
    while True:
        if waitable:
            try:
                await anyio.wait_readable(descriptor)
            except PermissionError:
                waitable = False  # Files and /dev/null: they are always ready, which epoll refuses to say.
        try:
            # A file has to come from its disk.
            data = (
                os.read(descriptor, _READ_BYTES)
                if waitable
                else await anyio.to_thread.run_sync(os.read, descriptor, _READ_BYTES)
            )
        except BlockingIOError:
            continue  # Somebody else who has the descriptor was first.
        except OSError as error:
            if error.errno == errno.EIO:
                return  # A terminal that has gone.
            raise CWSandboxError(f"the input cannot be read: {error.strerror}") from error
        if not data:
            return
        yield data


async def follow(
    process: RunningCommand[ProcessResult] | RunningCommand[TerminalResult], outputs: Sequence[ChunkReader]
) -> int:
    """Pass the command's output on as it comes, and our input to it; until it has ended and all was written.

    Args:
        process: One that does not keep its output, so that our readers set the pace and nothing piles up.
        outputs: What goes to our standard output and, if there is a second one, to our standard error.

    Returns:
        Its exit code; 0 if nobody reads our output any more: the command was killed then.

    Raises:
        CWSandboxError: As `process.result()`, after the output that there was; or our output cannot be written, or our
            input not be read.
    """
    result: ProcessResult | TerminalResult | None = None
    failure: CWSandboxError | None = None
    try:
        # A failure in here cancels the wait for the command, which kills it.
        async with helped() as tasks:
            if process._stdin is not None:
                tasks.start_soon(feed, process._stdin)
            async with anyio.create_task_group() as pumps:
                for reader, descriptor in zip(outputs, (STDOUT, STDERR), strict=False):
                    pumps.start_soon(_pump, reader, Output(descriptor))
                try:
                    result = await process
                except CWSandboxError as error:
                    failure = error
    except BrokenPipeError:
        return 0
    if failure is not None:
        raise failure
    assert result is not None
    return result.returncode


async def _pump(reader: ChunkReader, output: Output) -> None:
    async for data in reader:
        await output.write(data)


async def feed(stdin: StreamWriter) -> None:
    """Our input to the command's, at its pace. A command that ends, or closes its input, needs no more."""
    try:
        async for data in read_input():
            await stdin.write(data)
        stdin.close()
    except SandboxExecutionError:
        pass


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            # Another program on the same terminal or pipe made it non-blocking for all.
            select.select((), (descriptor,), ())
