"""What a client does to a command beside its streams: signals and terminal sizes, on their way into the box."""

from __future__ import annotations

import logging
import signal
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from cwsandbox.runners.errors import RunnerError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from cwsandbox.runners.base import Command
    from cwsandbox.runners.specs import TerminalSize

_log = logging.getLogger(__name__)

_WAITING: Final = 64


class Controls:
    """Signals and sizes, passed on one after the other. A task runs only while there is one.

    Of sizes only the last one counts. A client that sends more signals than are passed on loses the rest.

    Args:
        start_soon: Starts that task.
    """

    def __init__(self, start_soon: Callable[[Callable[[], Coroutine[Any, Any, None]]], object]) -> None:
        self._start_soon = start_soon
        self._signals: deque[int] = deque()
        self._size: TerminalSize | None = None
        self._command: Command | None = None
        self._busy = False

    def signal(self, number: int) -> None:
        """Pass on a signal; before `begin` it waits."""
        if len(self._signals) < _WAITING:
            self._signals.append(number)
            self._go_on()

    def resize(self, size: TerminalSize) -> None:
        """Pass on a size; before `begin` it waits."""
        self._size = size
        self._go_on()

    def begin(self, command: Command) -> None:
        """The command runs and takes them."""
        self._command = command
        self._go_on()

    def _go_on(self) -> None:
        if self._command is not None and (self._size or self._signals) and not self._busy:
            self._busy = True
            self._start_soon(self._pass_on)

    async def _pass_on(self) -> None:
        assert self._command is not None
        try:
            while self._size or self._signals:
                await self._pass_one_on(self._command)
        finally:
            self._busy = False

    async def _pass_one_on(self, command: Command) -> None:
        try:
            if self._size is not None:
                size, self._size = self._size, None
                await command.resize(size)
                return
            number = self._signals.popleft()
            if number == signal.SIGKILL:
                await command.kill()  # The first process could pass no signal on: nobody wants what it leaves.
            else:
                await command.signal(number)
        except (RunnerError, OSError) as problem:
            _log.info("command %s: %s", command.exec_id, problem)
