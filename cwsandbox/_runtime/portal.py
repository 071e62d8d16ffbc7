"""The portal: the one scope of the process for code that runs no event loop of its own."""

from __future__ import annotations

import atexit
import contextvars
import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from cwsandbox._runtime._loops import LoopHandle
from cwsandbox._runtime.operation import block_for
from cwsandbox._runtime.scope import Scope, ScopeClosedError, entered_scopes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

EXIT_SECONDS = 5.0
"""How long the end of the program may wait for commands to be killed and connections to close."""


class _Portal:
    """A daemon thread with an event loop and a scope on it."""

    def __init__(self) -> None:
        self.scope: Scope | None = None
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        # In an empty context: one inherited from a task of another event loop would make anyio believe that it runs
        # here.
        self._thread = threading.Thread(
            target=contextvars.Context().run, args=(self._run,), name="cwsandbox-portal", daemon=True
        )

    def start(self) -> Scope:
        self._thread.start()
        self._ready.wait()
        if self.scope is None:
            raise RuntimeError("the portal thread could not start its event loop") from self._failure
        return self.scope

    def close(self, timeout: float) -> None:
        if self._loop.run_soon(self._leave.set):
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            anyio.run(self._main, backend="asyncio")
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop = LoopHandle.current()
        self._leave = anyio.Event()
        self.scope = await Scope("portal").enter()
        self._ready.set()
        await self._leave.wait()
        await self._leave_scopes()

    async def _leave_scopes(self) -> None:
        """Leave the scopes that sync sessions hold on this loop, then our own, in the time an exiting program has."""
        assert self.scope is not None
        deadline = anyio.current_time() + EXIT_SECONDS - 1
        async with anyio.create_task_group() as group:
            for scope in entered_scopes():
                if scope is not self.scope and not scope.closed and scope.loop.is_current():
                    group.start_soon(_close_within, scope, EXIT_SECONDS - 2)
        await _close_within(self.scope, max(deadline - anyio.current_time(), 1.0))


async def _close_within(scope: Scope, seconds: float) -> None:
    await scope.aclose(cleanup_seconds=seconds)


_lock = threading.Lock()
_portal: _Portal | None = None
_exit_registered = False
_exiting = False


def portal_scope() -> Scope:
    """The portal's scope, started on first use: one per process, in a daemon thread.

    Raises:
        ScopeClosedError: the interpreter is exiting.
    """
    portal = _portal
    if portal is not None and portal.scope is not None and not portal.scope.closed:
        return portal.scope
    return _start_portal()


def _start_portal() -> Scope:
    global _portal, _exit_registered
    with _lock:
        if _exiting:
            raise ScopeClosedError("the interpreter is exiting: no new operations")
        if _portal is None or _portal.scope is None or _portal.scope.closed:
            portal = _Portal()
            portal.start()
            _portal = portal
        if not _exit_registered:
            # atexit, not threading's own hook: non-daemon threads of the program, which may use sandboxes, end first.
            atexit.register(_close_at_exit)
            _exit_registered = True
        assert _portal.scope is not None
        return _portal.scope


def exiting() -> bool:
    """Whether the program is ending: no portal is started any more, and what a gateway is asked now is to clean up."""
    return _exiting


def begin_end() -> None:
    """The program is ending; also for a signal handler, which may have interrupted whoever holds the lock."""
    global _exiting
    _exiting = True


def _close_at_exit() -> None:
    global _portal
    with _lock:
        begin_end()
        portal, _portal = _portal, None
    if portal is not None:
        portal.close(EXIT_SECONDS)


def _forget_after_fork() -> None:
    global _lock, _portal
    # The thread is not here, and the lock may have been held by one that is not here either.
    _lock = threading.Lock()
    _portal = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def run_blocking(async_fn: Callable[..., Awaitable[T]], *args: Any, name: str | None = None) -> T:
    """Run ``await async_fn(*args)`` in the portal's scope and block for it.

    Ctrl-C cancels it, waits 5 seconds at most until it has ended, and is raised.

    Raises:
        RuntimeError: called on the portal's own event loop.
    """
    scope = portal_scope()
    if scope.loop.is_current():
        raise RuntimeError("a blocking call on the event loop that has to run it; use the `await` form instead")
    return block_for(lambda ref: scope.start(async_fn, *args, ref=ref, name=name))
