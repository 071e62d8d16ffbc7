"""The one module that names the event loop libraries.

Everything else speaks anyio. Neither library is ever imported from here: a loop of a library that was not imported
cannot be running, so asking ``sys.modules`` is enough.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from anyio import RunFinishedError
from anyio.lowlevel import EventLoopToken, current_token

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

F = TypeVar("F", bound="Callable[..., Awaitable[Any]]")

_not_yet_protected: list[Callable[..., Awaitable[Any]]] = []

# asyncio keeps only weak references to tasks; a host task has nobody else who would hold it.
_host_tasks: set[Any] = set()


def _running_trio_token() -> Any:
    trio = sys.modules.get("trio")
    if trio is None:
        return None
    try:
        return trio.lowlevel.current_trio_token()
    except RuntimeError:
        return None


def _running_asyncio_loop() -> Any:
    asyncio = sys.modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()


def on_event_loop() -> bool:
    """Whether this thread is running an event loop, be it in a task or in a callback.

    sniffio is no answer: it says "asyncio" in worker threads, whose context is inherited, and nothing in callbacks.
    """
    return _running_asyncio_loop() is not None or _running_trio_token() is not None


class LoopHandle:
    """One running event loop, as other threads see it."""

    __slots__ = ("_is_trio", "_native", "_run_sync_soon")

    def __init__(self, token: EventLoopToken) -> None:
        self._native = token.native_token
        self._run_sync_soon = token.backend_class.run_sync_soon
        self._is_trio = type(self._native).__module__.partition(".")[0] == "trio"

    @classmethod
    def current(cls) -> LoopHandle:
        """The loop that runs the calling task.

        Raises:
            anyio.NoEventLoopError: no event loop is running here.
        """
        return cls(current_token())

    def is_current(self) -> bool:
        """Whether the calling thread is running this very loop."""
        return (_running_trio_token() if self._is_trio else _running_asyncio_loop()) is self._native

    def in_task(self) -> bool:
        """Whether a task of this loop is running, from which others can be started.

        In a bare callback of an asyncio loop nothing tells anyio which library it is under.
        """
        if self._is_trio or not self.is_current():
            return self.is_current()
        return sys.modules["asyncio"].current_task() is not None

    def run_soon(self, fn: Callable[..., object], *args: Any) -> bool:
        """Have the loop call ``fn(*args)`` in a copy of the caller's context; never blocks, from any thread, in order.

        ``fn`` must not raise. A call that the loop accepted while it was already ending may never be made.

        Returns:
            False if the loop has ended and nothing will be called.
        """
        try:
            self._run_sync_soon(fn, args, self._native)
        except RunFinishedError:
            return False
        return True


def background(async_fn: F) -> F:
    """Mark the body of a task of ours: Ctrl-C is for the program's own tasks.

    Trio raises KeyboardInterrupt in whatever runs at that moment, child tasks of its system tasks included, if their
    code is not protected: a connection would end by it, and the program would go on as if nothing had been typed.
    """
    _not_yet_protected.append(async_fn)
    if "trio" in sys.modules:
        _protect()
    return async_fn


def _protect() -> None:
    """Have trio's handler of Ctrl-C know the marked functions; it then tells the program's main task."""
    protect = getattr(getattr(sys.modules["trio"], "lowlevel", None), "enable_ki_protection", None)
    while protect is not None and _not_yet_protected:
        with contextlib.suppress(IndexError):  # Another thread took it.
            protect(_not_yet_protected.pop())


def start_host_task(async_fn: Callable[..., Awaitable[None]], *args: Any, name: str) -> None:
    """Run ``async_fn(*args)`` as a task of the running loop itself, a child of nobody.

    It ends by returning or, at the latest, when the loop ends: asyncio cancels what is left over, trio cancels its
    system tasks. ``async_fn`` must not raise: nobody would see it on asyncio, and trio would stop the program.
    """
    if LoopHandle.current()._is_trio:
        _protect()
        trio = sys.modules["trio"]
        trio.lowlevel.spawn_system_task(async_fn, *args, name=name, context=contextvars.copy_context())
        return
    loop = _running_asyncio_loop()
    task = loop.create_task(async_fn(*args), name=name)
    # A loop that is closed without asyncio.run's farewell destroys its tasks; the scope has then ended, with nothing to
    # say.
    task._log_destroy_pending = False
    if not task.done():  # An eager task may be.
        _host_tasks.add(task)
        task.add_done_callback(_host_tasks.discard)
