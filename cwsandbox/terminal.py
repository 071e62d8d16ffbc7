"""`TerminalSession`: a command on a terminal in a sandbox, and `TerminalResult`, what it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cwsandbox._running import RunningCommand
from cwsandbox._runtime.spool import Spool
from cwsandbox._validate import check_terminal_side
from cwsandbox.exceptions import SandboxExecutionError

if TYPE_CHECKING:
    from cwsandbox._client.stream import ClientStream
    from cwsandbox._runtime.readers import ChunkReader
    from cwsandbox._stdin import StreamWriter

__all__ = ["TerminalResult", "TerminalSession"]


@dataclass(frozen=True)
class TerminalResult:
    """How a terminal session ended. Its output is not kept; read it from `TerminalSession.output` while it comes.

    Attributes:
        returncode: The exit code: 126 not executable, 127 not found, 128 + N for signal N.
        command: The caller's argument vector.
    """

    returncode: int
    command: list[str] = field(default_factory=list)


class TerminalSession(RunningCommand[TerminalResult]):
    r"""A command with a terminal of its own: it has job control, line editing, colours and a size.

    Read `output` and write `stdin` like the two sides of a terminal: what is typed is echoed, `b"\x03"` is Ctrl-C for
    what runs in the foreground, `b"\x04"` is the end of input at the start of a line. There is no client time-out.

    Wait for the end with `result()` or `wait()` from any thread, or `await` it from any event loop. When the command
    has ended, everything it left running is killed. Cancelling the last task that awaits a session, `cancel()`, and
    closing `output` hang the terminal up: the command gets SIGHUP and a second to end, then it and everything it
    started is killed; the cancelled `await` comes back when the gateway has confirmed it, after 5 s at the most.
    """

    def __init__(self, command: list[str]) -> None:
        spool = Spool(keep=False)
        super().__init__(command, (spool,), stdin=True)
        self._output = spool.chunks(on_close=self._cancel)
        self._size: tuple[int, int] | None = None

    @property
    def output(self) -> ChunkReader:
        """What the terminal shows: raw bytes, not decoded, output and error together.

        It is not kept and has to be read: the command waits when about a mebibyte lies unread. Only where nobody ever
        looked at `output`, waiting for the result lets the command run on, and what it prints is dropped. A failure of
        the session is raised here too, after the last byte. `close()` ends the session.
        """
        self._spools[0].expect_reader()
        return self._output

    @property
    def stdin(self) -> StreamWriter:
        """What is typed. `close()` types the end-of-file character; the terminal stays."""
        assert self._stdin is not None
        return self._stdin

    def resize(self, width: int, height: int) -> None:
        """Give the terminal another size; programs in its foreground get SIGWINCH. Returns at once.

        Args:
            width: Columns, 1 to 65535.
            height: Rows, 1 to 65535.

        Raises:
            SandboxExecutionError: The session has ended.
            TypeError: Not an int.
            ValueError: Out of range.
        """
        size = check_terminal_side(width, "width"), check_terminal_side(height, "height")
        if self._finished:
            raise SandboxExecutionError("the terminal session has ended: there is nothing to resize")
        with self._lock:
            self._size = size
        self._poke()

    def _send_controls(self, stream: ClientStream) -> None:
        with self._lock:
            size, self._size = self._size, None
        if size is not None:
            stream.window_change(*size)
        super()._send_controls(stream)

    def _end_output(self, error: BaseException | None) -> None:
        (spool,) = self._spools
        if error is None and spool.dropped_bytes:
            error = SandboxExecutionError(
                f"{spool.dropped_bytes} bytes of output were dropped: the result was waited for, and nobody read"
            )
        spool.close(error if isinstance(error, Exception) else None)
