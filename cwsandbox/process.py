"""`Process`: a command running in a sandbox, and `ProcessResult`, what it leaves."""

from __future__ import annotations

import signal
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from cwsandbox._runtime._loops import LoopHandle
from cwsandbox._runtime.operation import OperationRef
from cwsandbox._runtime.readers import LineReader, StreamReader
from cwsandbox._runtime.spool import Spool
from cwsandbox._stdin import StreamWriter
from cwsandbox._text import short_repr
from cwsandbox.wire.signals import signal_name

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Process", "ProcessResult", "StreamReader", "StreamWriter"]


class ProcessResult:  # noqa: PLW1641 - mutable, so not hashable
    """What a finished command printed and returned.

    Output is decoded, and what lies on disk (beyond 8 MiB a stream) is read back, when an attribute is first looked at;
    from then on it is kept. Text is UTF-8; what is not becomes U+FFFD.

    Attributes:
        returncode: The exit code: 126 not executable, 127 not found, 128 + N for signal N.
        command: The caller's argument vector.
    """

    def __init__(  # noqa: PLR0917 - the published order of fields
        self,
        stdout: str | None = None,
        stderr: str | None = None,
        returncode: int = 0,
        stdout_bytes: bytes = b"",
        stderr_bytes: bytes = b"",
        command: list[str] | None = None,
    ) -> None:
        self.returncode = returncode
        self.command: list[str] = command if command is not None else []
        self._text: list[str | None] = [stdout or "", stderr or ""]
        self._bytes: list[bytes | None] = [stdout_bytes, stderr_bytes]
        self._spools: tuple[Spool, Spool] | None = None

    @classmethod
    def _from_spools(cls, stdout: Spool, stderr: Spool, returncode: int, command: list[str]) -> ProcessResult:
        result = cls(returncode=returncode, command=command)
        result._text, result._bytes, result._spools = [None, None], [None, None], (stdout, stderr)
        return result

    @property
    def stdout(self) -> str:
        """Standard output as text. Reads the disk where the output was large."""
        return self._decoded(0)

    @stdout.setter
    def stdout(self, value: str) -> None:
        self._text[0] = value

    @property
    def stderr(self) -> str:
        """Standard error as text. Reads the disk where the output was large."""
        return self._decoded(1)

    @stderr.setter
    def stderr(self, value: str) -> None:
        self._text[1] = value

    @property
    def stdout_bytes(self) -> bytes:
        """Standard output as it came."""
        return self._raw(0)

    @stdout_bytes.setter
    def stdout_bytes(self, value: bytes) -> None:
        self._bytes[0] = value

    @property
    def stderr_bytes(self) -> bytes:
        """Standard error as it came."""
        return self._raw(1)

    @stderr_bytes.setter
    def stderr_bytes(self, value: bytes) -> None:
        self._bytes[1] = value

    @property
    def stdout_dropped_bytes(self) -> int:
        """Bytes of standard output beyond what one stream keeps (2 GiB); they were counted and dropped."""
        return self._spools[0].dropped_bytes if self._spools else 0

    @property
    def stderr_dropped_bytes(self) -> int:
        """As `stdout_dropped_bytes`, for standard error."""
        return self._spools[1].dropped_bytes if self._spools else 0

    @property
    def stdout_truncated(self) -> bool:
        """True if standard output is not complete."""
        return self.stdout_dropped_bytes > 0

    @property
    def stderr_truncated(self) -> bool:
        """True if standard error is not complete."""
        return self.stderr_dropped_bytes > 0

    def _raw(self, index: int) -> bytes:
        value = self._bytes[index]
        if value is None:
            assert self._spools is not None
            value = self._bytes[index] = self._spools[index].getvalue()
        return value

    def _decoded(self, index: int) -> str:
        value = self._text[index]
        if value is None:
            value = self._text[index] = self._raw(index).decode("utf-8", "replace")
        return value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ProcessResult):
            return NotImplemented
        return self._fields() == other._fields()

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={short_repr(getattr(self, name))}" for name in ("stdout", "stderr"))
        return f"ProcessResult(returncode={self.returncode}, {shown}, command={short_repr(self.command)})"

    def __getstate__(self) -> dict[str, Any]:
        names = ("stdout", "stderr", "returncode", "stdout_bytes", "stderr_bytes", "command")
        return dict(zip(names, self._fields(), strict=True))

    def __setstate__(self, state: dict[str, Any]) -> None:
        ProcessResult.__init__(self, **state)

    def _fields(self) -> tuple[Any, ...]:
        return (self.stdout, self.stderr, self.returncode, self.stdout_bytes, self.stderr_bytes, self.command)


_INTERRUPT_SECONDS = 5.0
"""How long Ctrl-C in a blocking `result()` waits for the gateway to confirm that the command is dead."""


class Process(OperationRef[ProcessResult]):
    """A command running in a sandbox.

    Wait for it with `result()` or `wait()` from any thread, or `await` it from any event loop. Iterate `stdout` and
    `stderr` (with `for` or `async for`) for lines as they arrive; `result()` is complete all the same, before or after.
    Nobody has to read for the command to go on; while somebody iterates, that reader sets the pace.

    Cancelling the last task that awaits a process kills the command, children included; the cancelled `await` comes
    back when the gateway has confirmed it, after 5 s at the most.
    """

    def __init__(self, command: list[str], *, stdin: bool) -> None:
        super().__init__()
        self._command = command
        self._spools = (Spool(), Spool())
        self._readers = (self._spools[0].lines(), self._spools[1].lines())
        self._stdin = StreamWriter(self._poke) if stdin else None
        self._lock = threading.Lock()
        self._signals: deque[str] = deque()
        self._on_input: Callable[[], object] | None = None

    @property
    def command(self) -> list[str]:
        """The caller's argument vector."""
        return self._command

    @property
    def stdout(self) -> LineReader:
        """Standard output, line by line. It ends with the command, however that ends; a failure shows in `result()`."""
        return self._readers[0]

    @property
    def stderr(self) -> LineReader:
        """Standard error, line by line."""
        return self._readers[1]

    @property
    def stdin(self) -> StreamWriter | None:
        """Standard input, if the command was started with `stdin=True`; else None and the command's input is empty."""
        return self._stdin

    @property
    def returncode(self) -> int | None:
        """The exit code once the command has finished with a result; None before, and if it failed."""
        return self.poll()

    def poll(self) -> int | None:
        """The exit code if the command has finished with a result, else None. Never blocks, never raises."""
        result = self._value  # written once, before the ref counts as finished
        return result.returncode if result is not None and self._finished else None

    def wait(self, timeout: float | None = None) -> int:
        """Block until the command has finished.

        Args:
            timeout: Seconds to wait; None waits as long as it takes. The command goes on when it expires.

        Returns:
            The exit code.

        Raises:
            TimeoutError: Not finished within `timeout`.
            CWSandboxError: As `result()`.
        """
        return self.result(timeout).returncode

    def cancel(self) -> bool:
        """Give the command up: it and everything it started is killed.

        Returns:
            True if it took effect, False if the command had already finished. After it `result()` raises
            `concurrent.futures.CancelledError`.
        """
        return self._cancel()

    def send_signal(self, signum: int | signal.Signals) -> None:
        """Send a signal to the command's first process; does nothing once it has ended. Returns at once.

        SIGKILL goes to everything that the command started: it could not pass the signal on.

        Raises:
            ValueError: No such signal.
        """
        name = signal_name(signal.Signals(signum))
        with self._lock:
            self._signals.append(name)
        self._poke()

    def terminate(self) -> None:
        """Send SIGTERM to the command's first process."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the command and everything it started; unlike after `cancel` there is a result, with returncode 137."""
        self.send_signal(signal.SIGKILL)

    def __repr__(self) -> str:
        state = "running" if not self._finished else f"returncode={self.returncode}"
        return f"<Process {short_repr(self._command)} {state}>"

    def _bind(self, loop: LoopHandle) -> None:
        super()._bind(loop)
        for spool in self._spools:
            spool.bind(loop)

    def _on_interrupt(self) -> None:
        """Ctrl-C in `result()`: the command must not outlive the program's interest in it."""
        if self._cancel():
            self._latch.wait_blocking(_INTERRUPT_SECONDS)

    def _on_wait_begin(self) -> None:
        for spool in self._spools:
            spool.run_on()

    def _on_wait_end(self) -> None:
        for spool in self._spools:
            spool.stop_running_on()

    def _connect(self, consumed: Callable[[int, int], None], send_input: Callable[[], object]) -> None:
        """The command's stream is open: output gives credit, input is sent. On the scope's loop."""
        for code, spool in enumerate(self._spools):
            spool.on_credit = partial(_credit, consumed, code)
        loop = LoopHandle.current()
        with self._lock:
            self._on_input = partial(loop.run_soon, send_input)
        send_input()

    def _disconnect(self, error: BaseException) -> None:
        """The command is over: streams end, and nothing can be written any more."""
        with self._lock:
            self._on_input = None
        for spool in self._spools:
            spool.close()
        if self._stdin is not None:
            self._stdin.set_exception(error)

    def _poke(self) -> None:
        """Input is there for the exec channel: bytes, an end of file, or a signal. Any thread."""
        with self._lock:
            on_input = self._on_input
        if on_input is not None:
            on_input()


def _credit(consumed: Callable[[int, int], None], code: int, count: int) -> None:
    consumed(count, code)
