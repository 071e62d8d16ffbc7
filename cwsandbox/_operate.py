"""How the public objects run their operations: in a scope, and shared by several callers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from cwsandbox._runtime.operation import OperationRef
from cwsandbox._runtime.portal import exiting
from cwsandbox._runtime.scope import ScopeClosedError
from cwsandbox.exceptions import SandboxError, SandboxNotRunningError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cwsandbox._runtime.scope import Scope

__all__ = ["SharedOperation", "operate"]

T = TypeVar("T")


def operate(
    scope: Callable[[], Scope],
    operation: Callable[..., Awaitable[T]],
    *args: Any,
    name: str,
    ref: OperationRef[T] | None = None,
    advice: Callable[[], str] = lambda: "make a new session",
) -> OperationRef[T]:
    """Run an operation in a scope; returns at once. A scope that takes no more work fails the ref, not the caller.

    Args:
        scope: Where it runs.
        operation: An async function.
        *args: Its arguments.
        name: What it is called in errors.
        ref: The handle to use; a new one by default.
        advice: Says what a caller can do whose scope takes no more work.
    """
    ref = OperationRef() if ref is None else ref
    try:
        return scope().start(operation, *args, ref=ref, name=name)
    except ScopeClosedError as closed:
        error = SandboxNotRunningError(
            f"{name}: the program is ending: begin no new operations then"
            if exiting()
            else f"{name}: the context it belongs to was left, or its event loop has ended; {advice()}"
        )
        error.__cause__ = closed
        ref._settle_error(error)
        return ref


class SharedOperation:
    """An operation that several callers join: it runs once, in a task of its own, whoever of them is cancelled.

    Args:
        scope: Where it runs.
        operation: What runs.
        name: The task's name.
    """

    def __init__(self, scope: Callable[[], Scope], operation: Callable[[], Awaitable[None]], name: str) -> None:
        self._scope = scope
        self._operation = operation
        self._name = name
        self.over = False
        """True once it has ended, well or not."""
        self._done: anyio.Event | None = None  # made by the first joiner, on the scope's loop
        self._error: Exception | None = None

    async def begin(self) -> None:
        """Start it, unless it was started; for an operation of its own, that no impatient joiner can cancel."""
        if self._done is None:
            self._done = anyio.Event()
            self._scope().start(self._run, name=self._name)

    async def join(self) -> None:
        """Wait for it. Cancelling stops this wait only.

        Raises:
            Exception: What it raised; every joiner gets the same.
        """
        await self.begin()
        assert self._done is not None
        await self._done.wait()
        if self._error is not None:
            raise self._error.with_traceback(None)

    def outcome(self) -> OperationRef[None]:
        """How it ended, once it is over; needs no scope, which may have been left since."""
        return OperationRef.completed(None) if self._error is None else OperationRef.failed(self._error)

    async def _run(self) -> None:
        try:
            await self._operation()
        except Exception as error:
            self._error = error
        except BaseException:
            self._error = SandboxError(f"{self._name}: the context it belongs to was left before it had finished")
            raise
        finally:
            assert self._done is not None
            self.over = True
            self._done.set()
