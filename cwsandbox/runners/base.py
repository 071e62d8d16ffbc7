"""The contract between the gateway and whatever sandboxes run on.

The gateway's state machine (`cwsandbox.gateway.service`) talks to these protocols only. A runner makes *boxes*, one per
sandbox; a box runs commands and moves files. Every runner passes the suite in `tests/runners/contract.py`.

Words: a *box* is the runner's side of one sandbox, a *command* one exec in it, *main* the sandbox's own command.
Streams are byte streams in anyio's sense: `receive` raises `anyio.EndOfStream` at the end, `send` returns when the
bytes are taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from cwsandbox.runners.specs import BoxSpec, Capabilities, ExecSpec, ExitStatus, IsolationLevel, TerminalSize
    from cwsandbox.wire.streams import FileInfo, FilesOpen


class ByteSource(Protocol):
    """Bytes that come out of a box."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Wait for some bytes, at most `max_bytes`.

        Raises:
            anyio.EndOfStream: There will be no more.

        Cancelling loses nothing.
        """
        ...

    async def aclose(self) -> None:
        """Let go of the stream. Never blocks for long."""
        ...


class OutputSource(ByteSource, Protocol):
    """A command's output. What was received and not released is received again by a restarted gateway."""

    @property
    def position(self) -> int:
        """Offset of what `receive` gives next; at first that of the first byte that was not released."""
        ...

    def recall(self) -> bytes:
        """What an earlier gateway received and did not release: received at once, before anything else."""
        ...

    def release(self, offset: int) -> None:
        """What comes before `offset` will not be needed again."""
        ...


class ByteSink(Protocol):
    """Bytes that go into a box."""

    async def send(self, data: bytes) -> None:
        """Write all of `data`. If cancelled, a part of it may have been written.

        Raises:
            anyio.BrokenResourceError: Nobody reads any more (EPIPE).
        """
        ...

    async def aclose(self) -> None:
        """End of input."""
        ...


class InputSink(ByteSink, Protocol):
    """A command's input. If `send` is cancelled, what it took goes before what is sent next, by whichever gateway."""

    @property
    def taken_bytes(self) -> int:
        """Bytes taken so far, by earlier gateways too."""
        ...

    @property
    def sent_bytes(self) -> int:
        """Bytes written so far; the rest of what was taken is pending."""
        ...


class Command(Protocol):
    """A running command. Streams and exit are independent: `wait` does not need the output to be read."""

    @property
    def exec_id(self) -> str:
        """What the command was started as."""
        ...

    @property
    def pid(self) -> int:
        """The process id inside the box."""
        ...

    @property
    def note(self) -> Any:
        """The `ExecSpec`'s; after a restart it comes out of the box, so that it cannot be trusted."""
        ...

    @property
    def stdin(self) -> InputSink | None:
        """Its input, if it was started with one."""
        ...

    @property
    def stdout(self) -> OutputSource:
        """Its output.

        Ends when all writers closed it, or when the first process exited and what it had written was read: a daemon
        that keeps the descriptor does not hold the stream open (its later output is discarded).
        """
        ...

    @property
    def stderr(self) -> OutputSource | None:
        """Its error output; None under a terminal, where it comes with `stdout`."""
        ...

    async def wait(self) -> ExitStatus:
        """Wait for the first process to end. Cancelling stops waiting only.

        Raises:
            BoxGoneError: The box ended before an exit was seen.
        """
        ...

    async def signal(self, signum: int) -> None:
        """Send a signal to the command's first process; nothing happens once it has ended. KILL is `kill`'s."""
        ...

    async def kill(self) -> None:
        """Kill the command and everything it started, daemonised children included; returns when they are gone."""
        ...

    async def resize(self, size: TerminalSize) -> None:
        """Tell the command's terminal its new size."""
        ...

    def forget(self) -> None:
        """Forget the command: descriptors are closed here and in the agent. A running command is not killed."""
        ...


class ReadableFile(ByteSource, Protocol):
    """A regular file opened inside a box."""

    @property
    def size(self) -> int:
        """Bytes at the time of opening."""
        ...


class WritableFile(Protocol):
    """A file being written; invisible until `commit`."""

    async def send(self, data: bytes) -> None:
        """Write all of `data`, after what was sent before."""
        ...

    async def commit(self) -> None:
        """Put the file in place, atomically (rename in the same directory); the mode of a replaced file is kept."""
        ...

    async def aclose(self) -> None:
        """Drop what was written unless it was committed."""
        ...


class Connection(ByteSource, Protocol):
    """A TCP connection with a program in a box. As anyio's byte streams, and `abort`."""

    async def send(self, item: bytes) -> None:
        """Send all of it; raises `anyio.BrokenResourceError` when the connection was cut."""
        ...

    async def send_eof(self) -> None:
        """End this direction; the other one goes on."""
        ...

    def close(self) -> None:
        """Let go of the connection; what was sent still arrives."""
        ...

    def abort(self) -> None:
        """Cut the connection: the program sees a reset, not an end."""
        ...


class Listener(Protocol):
    """A port of a box's loopback that the gateway answers."""

    async def accept(self) -> Connection:
        """Wait for the next connection. If cancelled, one that comes at that moment is closed.

        Raises:
            OSError: The box is out of descriptors; later ones may succeed.
            BoxGoneError: The box ended.
        """
        ...


class FileJob(Protocol):
    """A file operation that streams, and has begun; see `FileAction` for which has input and which output."""

    @property
    def input(self) -> ByteSink | None:
        """What it takes: UNPACK only. `aclose` is the end of the stream."""
        ...

    @property
    def output(self) -> ByteSource:
        """What it gives; ends with the job, well or not."""
        ...

    async def wait(self) -> None:
        """Wait for its end, when the output was read and the input closed.

        Raises:
            OSError: What the box's kernel said, with the path where it said it.
            BoxGoneError: The box ended.
        """
        ...

    async def aclose(self) -> None:
        """End it if it runs, and wait a bounded time until it has removed what it had not completed."""
        ...


class Box(Protocol):
    """One sandbox on a runner."""

    @property
    def sandbox_id(self) -> str:
        """The sandbox it belongs to."""
        ...

    @property
    def isolation(self) -> IsolationLevel:
        """How strongly it is separated from the host."""
        ...

    @property
    def main(self) -> Command:
        """The sandbox's main command; to be forgotten when the box is gone and its output was read."""
        ...

    async def exec(self, spec: ExecSpec) -> Command:
        """Start a command.

        Raises:
            CommandNotStartedError: No such program, not executable, no such cwd.
            CommandTooLargeError: Too many or too long arguments.
            BoxGoneError: The box ended.
            RunnerError: The box is out of processes or descriptors.

        If cancelled, no command is left running.
        """
        ...

    def commands(self) -> Sequence[Command]:
        """Commands that run or were not forgotten yet, main excluded; after a restart those that survived."""
        ...

    async def open_file(self, path: str) -> ReadableFile:
        """Open a regular file. Relative paths start at the box's home.

        Raises:
            OSError: FileNotFoundError, IsADirectoryError, PermissionError, or what the box's kernel said.
            BoxGoneError: The box ended.
        """
        ...

    async def create_file(self, path: str, *, size: int | None = None) -> WritableFile:
        """Open a file for writing; missing parents are made. Raises as `open_file` (ENOSPC, ENOTDIR, ...)."""
        ...

    async def connect(self, port: int) -> Connection:
        """Connect to what listens on a TCP port of the box's own loopback, IPv4 or IPv6.

        Raises:
            ConnectionRefusedError: Nothing does.
            OSError: The box is out of descriptors.
            BoxGoneError: The box ended.
        """
        ...

    async def listen(self, port: int) -> Listener:
        """Take connections from a TCP port of the box's own loopback; those from before the call are there too.

        Raises:
            OSError: A program of the sandbox has the port (EADDRINUSE).
            BoxGoneError: The box ended.
        """
        ...

    async def file_info(self, request: FilesOpen) -> FileInfo:
        """Do a quick action of `FileAction`. Raises as `open_file`."""
        ...

    async def file_job(self, request: FilesOpen) -> FileJob:
        """Begin an action that streams; waits while too many run. Raises as `open_file`.

        If cancelled, nothing is left running.
        """
        ...

    async def stop(self, grace_seconds: float) -> None:
        """TERM to the main command, wait up to `grace_seconds` for it, KILL everything, remove the box's layer.

        Idempotent. If cancelled, the kill has happened or happens in the background.
        """
        ...

    async def wait_gone(self) -> None:
        """Wait until nothing of the box is left. Cancelling stops waiting only."""
        ...


class Runner(Protocol):
    """Makes boxes. An async context manager: leaving it releases the runner but not its boxes (see `recover`)."""

    @property
    def runner_id(self) -> str:
        """Its name among the gateway's runners."""
        ...

    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    def check(self, spec: BoxSpec) -> None:
        """Refuse a box that can never be made here, before anybody waits for it. Quick, without I/O.

        Raises:
            IsolationUnavailableError: The machine cannot isolate as required.
            ImageNotFoundError: The image is not to be had here.
            RunnerError: Anything else that is known beforehand.
        """
        ...

    async def create(self, spec: BoxSpec) -> Box:
        """Make a box and start its main command.

        Raises:
            IsolationUnavailableError: The machine cannot isolate as required.
            ImageNotFoundError: The image is not to be had here.
            CommandNotStartedError: The main command could not be started.
            RunnerError: Anything else.

        If cancelled, no box is left.
        """
        ...

    async def recover(self) -> Sequence[Box]:
        """Boxes that an earlier run of this gateway left and that still live, each with its main command.

        What is left of dead and of half-made ones is removed.
        """
        ...

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None: ...
