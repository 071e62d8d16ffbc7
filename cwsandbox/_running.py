"""What a `Process` and a `TerminalSession` have in common: a command that runs, takes input and signals, and ends."""

from __future__ import annotations

import abc
import signal
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from cwsandbox._runtime._loops import LoopHandle
from cwsandbox._runtime.operation import OperationRef
from cwsandbox._stdin import StreamWriter
from cwsandbox._text import short_repr
from cwsandbox.exceptions import SandboxExecutionError
from cwsandbox.wire.signals import signal_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from cwsandbox._client.stream import ClientStream
    from cwsandbox._runtime.spool import Spool

__all__ = ["RunningCommand"]

_INTERRUPT_SECONDS = 5.0
"""How long Ctrl-C in a blocking `result()` waits for the gateway to confirm that the command is dead."""


class _Result(Protocol):
    @property
    def returncode(self) -> int: ...


R = TypeVar("R", bound=_Result)


class RunningCommand(OperationRef[R], abc.ABC):
    """The handle on a command in a sandbox.

    Args:
        command: The caller's argument vector.
        spools: Where its output goes, by substream.
        stdin: Whether it is given input.
    """

    def __init__(self, command: list[str], spools: tuple[Spool, ...], *, stdin: bool) -> None:
        super().__init__()
        self._command = command
        self._spools = spools
        self._stdin = StreamWriter(self._poke) if stdin else None
        self._lock = threading.Lock()
        self._signals: deque[str] = deque()
        self._on_input: Callable[[], object] | None = None

    @property
    def command(self) -> list[str]:
        """The caller's argument vector."""
        return self._command

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
        state = self._state if self.returncode is None else f"returncode={self.returncode}"
        return f"<{type(self).__name__} {short_repr(self._command)} {state}>"

    # For the operation behind it.

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

    def _send_controls(self, stream: ClientStream) -> None:
        """Hand over what is to be told beside the input. On the scope's loop."""
        while self._signals:
            stream.signal(self._signals.popleft())

    def _disconnect(self, error: BaseException | None) -> None:
        """The command is over: streams end, and nothing can be written any more.

        Args:
            error: What it failed with; None if it has a result.
        """
        with self._lock:
            self._on_input = None
        self._end_output(error)
        if self._stdin is not None:
            self._stdin.set_exception(error or SandboxExecutionError("it has exited"))

    @abc.abstractmethod
    def _end_output(self, error: BaseException | None) -> None:
        """No more output comes."""

    def _poke(self) -> None:
        """Input is there for the exec channel: bytes, an end of file, or a signal. Any thread."""
        with self._lock:
            on_input = self._on_input
        if on_input is not None:
            on_input()


def _credit(consumed: Callable[[int, int], None], code: int, count: int) -> None:
    consumed(count, code)
