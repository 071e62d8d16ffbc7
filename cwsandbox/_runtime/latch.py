"""A flag that is set once, and that any thread and any event loop can wait for."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from cwsandbox._runtime._loops import LoopHandle

if TYPE_CHECKING:
    from collections.abc import Callable

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


def fork_count() -> int:
    """How many forks lie between the first process and this one.

    What was made under another count belongs to a parent process: the threads and loops that served it do not exist
    here, and its locks may be held for ever.
    """
    return _forks


def check_process(made_under: int) -> None:
    """Refuse to touch what a parent process made.

    Raises:
        RuntimeError: the process has forked since.
    """
    if made_under != _forks:
        raise RuntimeError(
            "this object was made before a fork and its event loop lives in the parent process only; "
            "make a new one in the forked child (for a sandbox: Sandbox.from_id)"
        )


class Latch:
    """Set once, then set for ever; waited for from anywhere.

    `claim` and `set` are apart so that the winner of several finishers can store its outcome in between: whoever sees
    the latch set sees the outcome.
    """

    __slots__ = ("_callbacks", "_claimed", "_made_under", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] | None = []  # None: the latch is set.
        self._claimed = False
        self._made_under = _forks

    @property
    def is_set(self) -> bool:
        """Whether it was set."""
        return self._callbacks is None

    def claim(self) -> bool:
        """Ask for the right to set it; True for exactly one caller."""
        with self.lock:
            first, self._claimed = not self._claimed, True
        return first

    def set(self) -> None:
        """Set it and wake everybody, calling the callbacks in this thread. Setting it again does nothing."""
        with self.lock:
            callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            callback()

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Have `set` call ``callback``, which must not raise.

        Returns:
            False, with nothing added, if the latch is set already.
        """
        check_process(self._made_under)
        with self.lock:
            if self._callbacks is None:
                return False
            self._callbacks.append(callback)
        return True

    def discard_callback(self, callback: Callable[[], object]) -> None:
        """Forget a callback that may or may not have been called."""
        with self.lock:
            if self._callbacks is not None and callback in self._callbacks:
                self._callbacks.remove(callback)

    def wait_blocking(self, timeout: float | None = None) -> bool:
        """Block this thread until it is set.

        Args:
            timeout: seconds, or None for no limit.

        Returns:
            Whether it was set in time.
        """
        gate = threading.Lock()  # A bare lock is a third of the price of threading.Event.
        gate.acquire()
        if not self.add_callback(gate.release):
            return True
        limit = -1.0 if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX)
        try:
            gate.acquire(timeout=limit)
        finally:
            self.discard_callback(gate.release)
        return self.is_set

    async def wait(self) -> None:
        """Wait on the running loop until it is set. A checkpoint in any case; cancellation only stops the waiting."""
        event = anyio.Event()
        loop = LoopHandle.current()

        def wake() -> None:
            if loop.is_current():
                event.set()
            else:
                loop.run_soon(event.set)

        if not self.add_callback(wake):
            await checkpoint()
            return
        try:
            await event.wait()
        finally:
            self.discard_callback(wake)
