"""The handle on one running operation."""

from __future__ import annotations

import logging
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar, cast

import anyio
from anyio.lowlevel import checkpoint

from cwsandbox._runtime.latch import Latch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType
    from typing import Self

    from cwsandbox._runtime._loops import LoopHandle

T = TypeVar("T")
logger = logging.getLogger("cwsandbox")

CANCEL_WAIT_SECONDS = 5.0
"""How long a cancelled `await` stays, shielded, for its operation to end."""


class Outcome(Enum):
    """What became of an operation."""

    PENDING = auto()
    VALUE = auto()
    ERROR = auto()
    CANCELLED = auto()


class Task(Protocol):
    """What runs an operation: anyio's task handle, as far as it is needed here."""

    @property
    def coro(self) -> Any: ...
    def cancel(self) -> None: ...


class OperationRef(Generic[T]):
    """A handle on a running operation: block for it with `result`, or ``await`` it; any number of times, in any mix.

    Every reader gets the same value, or an exception of the same type and attributes. An operation that was cancelled
    raises ``concurrent.futures.CancelledError`` from both forms.

    Cancelling the task that awaits a handle cancels the operation, if nobody else waits for it; the cancelled ``await``
    returns when the operation has ended, after 5 seconds at most.

    Subclasses may override `_on_wait_begin`, `_on_wait_end` and `_on_interrupt`.
    """

    # Who writes what: the outcome is written once, by whoever claimed the latch, before the latch is set, and read only
    # after. _task is written by the scope's loop; _cancel_requested by any thread, before it looks for _task, while the
    # loop looks at _cancel_requested after it wrote _task: so a cancellation is never lost between the two. _waiting is
    # under the latch's lock.
    __slots__ = (
        "__weakref__",
        "_cancel_requested",
        "_context",
        "_error",
        "_latch",
        "_loop",
        "_outcome",
        "_task",
        "_traceback",
        "_value",
        "_waiting",
    )

    def __init__(self) -> None:
        self._latch = Latch()
        self._loop: LoopHandle | None = None
        self._task: Task | None = None
        self._cancel_requested = False
        self._waiting = 0
        self._outcome = Outcome.PENDING
        self._value: T | None = None
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None
        self._context: BaseException | None = None

    @classmethod
    def completed(cls, value: T) -> Self:
        """A handle on an operation that already returned ``value``."""
        ref = cls()
        ref._settle_value(value)
        return ref

    @classmethod
    def failed(cls, error: BaseException) -> Self:
        """A handle on an operation that already raised ``error``."""
        ref = cls()
        ref._settle_error(error)
        return ref

    def result(self, timeout: float | None = None) -> T:
        """Block until the operation has ended.

        A time-out only stops the waiting; the operation goes on and may be waited for again.

        Args:
            timeout: seconds to wait, None for no limit.

        Returns:
            What the operation returned.

        Raises:
            TimeoutError: not finished in time.
            TypeError: ``timeout`` is no number.
            concurrent.futures.CancelledError: the operation was cancelled.
            RuntimeError: called on the event loop that has to run the operation, or in a forked child of the process
                that started it.
        """
        try:
            if timeout is not None and not isinstance(timeout, int | float):
                raise TypeError(f"timeout must be a number of seconds, not {type(timeout).__name__}")
            if not self._latch.is_set:
                self._block(timeout)
            return self._collect()
        finally:
            del self  # Or a stored exception would hold its handle: exception, traceback, this frame, self.

    def __await__(self) -> Generator[Any, Any, T]:
        return self._wait().__await__()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} objects stay in their process: pickle or copy the result instead")

    def add_done_callback(self, callback: Callable[[Self], object]) -> None:
        """Call ``callback(self)`` once the operation has ended: on the thread that ends it, or now if it has."""

        def call() -> None:
            try:
                callback(self)
            except Exception:
                logger.exception("a done callback failed")

        if not self._latch.add_callback(call):
            call()

    # What subclasses override.

    def _on_wait_begin(self) -> None:
        """Somebody starts to wait, in any thread; once for each who waits."""

    def _on_wait_end(self) -> None:
        """Somebody who waited does not any more."""

    def _on_interrupt(self) -> None:
        """Ctrl-C hit a blocking `result`, which raises KeyboardInterrupt when this returns."""

    # Waiting.

    @property
    def _finished(self) -> bool:
        return self._latch.is_set

    @property
    def _state(self) -> str:
        """How it is, in a word or two."""
        if not self._finished:
            return "running"
        match self._outcome:
            case Outcome.ERROR:
                return f"raised {type(self._error).__name__}"
            case Outcome.CANCELLED:
                return "cancelled"
            case _:
                return "done"

    def _block(self, timeout: float | None) -> None:
        if self._loop is not None and self._loop.is_current():
            raise RuntimeError(
                "result() would block for ever the event loop that has to run this operation; "
                "use the `await` form on it instead"
            )
        try:
            self._wait_begins()
            finished = self._latch.wait_blocking(timeout)
        except KeyboardInterrupt:
            self._on_interrupt()
            raise
        finally:
            self._wait_ends()
        if not finished:
            raise TimeoutError(f"the operation has not finished within {timeout} seconds; it goes on")

    async def _wait(self) -> T:
        try:
            await self._wait_until_set()
            return self._collect()
        finally:
            del self  # As in result().

    async def _wait_until_set(self) -> None:
        if self._latch.is_set:
            await checkpoint()
            return
        still_awaited = False
        self._wait_begins()
        try:
            try:
                await self._latch.wait()
            finally:
                still_awaited = self._wait_ends()
        except anyio.get_cancelled_exc_class():
            if not still_awaited and self._cancel():
                with anyio.move_on_after(CANCEL_WAIT_SECONDS, shield=True):
                    await self._latch.wait()
            raise

    def _wait_begins(self) -> None:
        with self._latch.lock:
            self._waiting += 1
        self._on_wait_begin()

    def _wait_ends(self) -> bool:
        """One waiter less.

        Returns:
            Whether others still wait.
        """
        self._on_wait_end()
        with self._latch.lock:
            self._waiting -= 1
            return self._waiting > 0

    def _collect(self) -> T:
        if self._outcome is Outcome.VALUE:
            return cast("T", self._value)
        if self._outcome is Outcome.CANCELLED:
            from concurrent.futures import CancelledError

            raise CancelledError
        error = self._error
        assert error is not None
        # As it was when it was stored: each raise would add its own frames and context to the shared object.
        error.__context__ = self._context
        try:
            raise error.with_traceback(self._traceback)
        finally:
            del error, self  # As in result().

    # Ending.

    def _cancel(self) -> bool:
        """Ask the operation to stop, from any thread.

        Returns:
            False if it had ended already. True says nothing about how it will end: what returns a value although
            cancelled has returned a value.
        """
        if self._latch.is_set:
            return False
        self._cancel_requested = True
        if self._loop is None:
            return self._settle_cancelled()
        if self._loop.is_current():
            self._deliver_cancel()
        else:
            # A loop that has gone calls nothing; but then the scope has ended and settles what is left.
            self._loop.run_soon(self._deliver_cancel)
        return True

    def _deliver_cancel(self) -> None:
        if self._task is not None and not self._latch.is_set:
            self._task.cancel()

    def _bind(self, loop: LoopHandle) -> None:
        self._loop = loop

    def _attach(self, task: Task) -> None:
        if not self._latch.is_set:  # An eager task may have ended already.
            self._task = task
            if self._cancel_requested:
                task.cancel()

    def _settle_value(self, value: T) -> bool:
        if not self._latch.claim():
            return False
        self._value, self._outcome = value, Outcome.VALUE
        self._latch.set()
        return True

    def _settle_error(self, error: BaseException) -> bool:
        if not self._latch.claim():
            return False
        self._error, self._outcome = error, Outcome.ERROR
        self._traceback, self._context = error.__traceback__, error.__context__
        self._latch.set()
        return True

    def _settle_cancelled(self) -> bool:
        if not self._latch.claim():
            return False
        self._outcome = Outcome.CANCELLED
        self._latch.set()
        return True


def block_for(begin: Callable[[OperationRef[T]], object]) -> T:
    """Begin an operation and block for it.

    A signal that ends the program cancels the operation, waits 5 seconds at most for its end, and is raised.

    Args:
        begin: Starts the operation with the handle that it is given. The handle is made first, as Ctrl-C may come when
            the operation runs already and beginning it has not returned.
    """
    ref = OperationRef[T]()
    try:
        begin(ref)
        return ref.result()
    except (KeyboardInterrupt, SystemExit):
        if ref._cancel():
            ref._latch.wait_blocking(CANCEL_WAIT_SECONDS)
        raise
