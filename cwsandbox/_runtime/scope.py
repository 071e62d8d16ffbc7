"""The scope: one event loop's task group that owns operations, cleanups and connections."""

from __future__ import annotations

import inspect
import logging
import threading
import weakref
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import anyio
from attrs import define, field

from cwsandbox._runtime._loops import LoopHandle, background, start_host_task
from cwsandbox._runtime.latch import Latch, check_process, fork_count
from cwsandbox._runtime.operation import OperationRef, Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Self

    from anyio.abc import TaskGroup


T = TypeVar("T")
logger = logging.getLogger("cwsandbox")

OPERATIONS_END_SECONDS = 6.0
"""How long cancelled operations may take to end when a scope is left; a little longer than their own shields."""

CONNECTION_CLOSE_SECONDS = 5.0
"""How long connections may take to close when a scope is left."""

# By id. Not a WeakSet: iterating over that fails when another thread adds to it, while `valuerefs` is a single step.
_scopes: weakref.WeakValueDictionary[int, Scope] = weakref.WeakValueDictionary()


def entered_scopes() -> list[Scope]:
    """The scopes of this process that were entered, closed ones that are still referred to included. For any thread."""
    return [scope for ref in _scopes.valuerefs() if (scope := ref()) is not None]


def running_operations() -> set[OperationRef[Any]]:
    """The operations that run in any scope of this process, at this moment. For any thread."""
    running: set[OperationRef[Any]] = set()
    for scope in entered_scopes():
        with scope._lock:
            running |= scope._operations
    return running


class ScopeClosedError(RuntimeError):
    """The scope takes no new work: it was left, its event loop ended, or it failed (then the failure is the cause)."""


class State(Enum):
    """Where in its life a scope is; it only moves down this list."""

    NEW = auto()
    OPEN = auto()
    CLOSING = auto()
    """No new operations. Running ones are being cancelled; cleanups may still be added."""
    CLEANING = auto()
    """Cleanups run. Connections may still be used and opened."""
    DISCONNECTING = auto()
    CLOSED = auto()


def sole_error(error: BaseException, cancelled: type[BaseException]) -> BaseException | None:
    """What a group is about: without cancellations, and without the group where one error remains.

    Returns:
        None if there was nothing but cancellation.
    """
    rest: BaseException | None = error
    if isinstance(error, BaseExceptionGroup):
        rest = error.split((cancelled, GeneratorExit))[1]
    while isinstance(rest, BaseExceptionGroup) and len(rest.exceptions) == 1:
        rest = rest.exceptions[0]
    return None if isinstance(rest, (cancelled, GeneratorExit)) else rest


def _without_first_frame(error: BaseException) -> BaseException:
    """The frame that caught it holds the operation's handle, and the handle will hold the error: no such cycle."""
    trace = error.__traceback__
    return error.with_traceback(trace.tb_next if trace else None)


@define(eq=False)
class Cleanup:
    """An async function that the scope calls when it is left."""

    fn: Callable[[], Awaitable[object]]
    _cleanups: set[Cleanup]

    def remove(self) -> None:
        """Forget it; it is no longer needed. Any thread, any number of times."""
        self._cleanups.discard(self)


@define(eq=False)
class _Connection(Generic[T]):
    opener: Callable[[], AbstractAsyncContextManager[T]]
    opened: OperationRef[T] = field(factory=OperationRef)
    """Settled when the opening has ended. Its task goes on, to hold the connection open."""
    leave: anyio.Event = field(factory=anyio.Event)


class Scope:
    """Owns what runs on one event loop.

    The task group lives in a host task of the scope's own on that loop, so a scope may be entered in one task and left
    in another. ``async with Scope(name)`` or `enter` and `aclose`. If the loop ends first, the scope ends with it:
    operations end as cancelled, cleanups are not run.

    Args:
        name: what to call it in messages.
        cleanup_seconds: how long cleanups may take, together, when the scope is left.
    """

    # _lock guards _state, _operations and _cleanups, which any thread may touch; everything else belongs to the loop.
    def __init__(self, name: str, *, cleanup_seconds: float = 30.0) -> None:
        self.name = name
        self._cleanup_seconds = cleanup_seconds
        self._made_under = fork_count()
        self._lock = threading.Lock()
        self._state = State.NEW
        self._operations: set[OperationRef[Any]] = set()
        self._cleanups: set[Cleanup] = set()
        self._connections: dict[Hashable, _Connection[Any]] = {}
        self._held = 0  # Connections whose task has not ended, replaced ones included.
        self._errors: list[BaseException] = []
        self._failure: BaseException | None = None
        self._ended = Latch()
        self._loop: LoopHandle | None = None
        self._tasks: TaskGroup | None = None

    @classmethod
    def open(cls, name: str, *, cleanup_seconds: float = 30.0) -> Self:
        """A scope to be entered with ``async with``."""
        return cls(name, cleanup_seconds=cleanup_seconds)

    def __repr__(self) -> str:
        return f"<Scope {self.name!r} {self._state.name.lower()}, {len(self._operations)} operations>"

    @property
    def loop(self) -> LoopHandle:
        """The loop that it lives on; only once entered."""
        assert self._loop is not None, "the scope was not entered"
        return self._loop

    @property
    def closed(self) -> bool:
        """Whether it takes no new work any more."""
        return self._state not in {State.NEW, State.OPEN}

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self._ended.is_set

    # Entering and leaving.

    async def enter(self) -> Self:
        """Start the host task on the running loop and wait until it is ready.

        Cancellation takes it back.

        Raises:
            RuntimeError: it was entered before.
        """
        with self._lock:
            if self._loop is not None or self._state is not State.NEW:
                raise RuntimeError(f"scope {self.name!r} can be entered only once")
            self._loop = LoopHandle.current()
        self._cancelled: type[BaseException] = anyio.get_cancelled_exc_class()
        self._leave = anyio.Event()
        self._progress = anyio.Event()
        ready = anyio.Event()
        start_host_task(self._host, ready, name=f"cwsandbox scope {self.name}")
        try:
            await ready.wait()
        except self._cancelled:
            await self.aclose()
            raise
        if self._failure is not None:
            self._refuse()
        return self

    async def aclose(self, *, cleanup_seconds: float | None = None) -> list[BaseException]:
        """Leave: refuse new work, cancel what runs, run the cleanups, close the connections. From any loop.

        Closing again waits for the first closing. Never call it in an operation of the same scope, which would wait for
        itself. Shielded from cancellation, and bounded.

        Args:
            cleanup_seconds: replaces the limit of the constructor.

        Returns:
            What went wrong: a failure of the scope itself first, then errors of cleanups and of closing connections.
        """
        if cleanup_seconds is not None:
            self._cleanup_seconds = cleanup_seconds
        self._begin_close()
        limit = OPERATIONS_END_SECONDS + self._cleanup_seconds + CONNECTION_CLOSE_SECONDS + 1
        with anyio.move_on_after(limit, shield=True):
            await self._ended.wait()
        if not self._ended.is_set:
            return [*self._errors, TimeoutError(f"scope {self.name!r} has not ended in time")]
        return list(self._errors)

    async def __aenter__(self) -> Self:
        return await self.enter()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        errors = await self.aclose()
        if errors and exc is None:
            for other in errors[1:]:
                errors[0].add_note(f"also: {other!r}")
            raise errors[0]

    def _begin_close(self) -> None:
        check_process(self._made_under)
        with self._lock:
            if self._loop is None:
                self._state = State.CLOSED
            elif self._state in {State.NEW, State.OPEN}:
                self._state = State.CLOSING
        if self._loop is None:
            self._ended.set()
        elif self._loop.is_current():
            self._leave.set()
        elif not self._loop.run_soon(self._leave.set):
            self._end()

    # Operations.

    def start(
        self,
        fn: Callable[..., Awaitable[T]],
        *args: Any,
        ref: OperationRef[T] | None = None,
        name: str | None = None,
    ) -> OperationRef[T]:
        """Run ``await fn(*args)`` as an operation of the scope. From any thread and any loop; returns at once.

        The operation runs in a copy of the caller's context. Whatever it raises is stored in its handle.

        Args:
            fn: an async function.
            *args: its arguments.
            ref: the handle to use, for subclasses; a new one by default.
            name: the task's name.

        Raises:
            ScopeClosedError: the scope takes no new work.
            RuntimeError: in a forked child of the process that entered the scope.
        """
        check_process(self._made_under)
        if ref is None:
            ref = OperationRef()
        with self._lock:
            loop = self._loop if self._state is State.OPEN else None
            if loop is not None:
                ref._bind(loop)
                self._operations.add(ref)
        if loop is None:
            self._refuse()
        if loop.in_task():
            self._spawn(ref, fn, args, name)
        elif not loop.run_soon(self._spawn, ref, fn, args, name):
            with self._lock:
                self._operations.discard(ref)  # The caller is told; the handle stays as it was.
            self._end()
            self._refuse()
        return ref

    def _refuse(self) -> NoReturn:
        raise ScopeClosedError(f"scope {self.name!r} is {self._state.name.lower()}") from self._failure

    def _spawn(
        self, ref: OperationRef[T], fn: Callable[..., Awaitable[T]], args: tuple[Any, ...], name: str | None
    ) -> None:
        if ref._cancel_requested or self._state is State.CLOSED:
            ref._settle_cancelled()
            self._forget(ref)
            return
        assert self._tasks is not None
        ref._attach(self._tasks.start_soon(self._run, ref, fn, args, name=name or getattr(fn, "__qualname__", None)))

    @background
    async def _run(self, ref: OperationRef[T], fn: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> None:
        # Everything ends here, cancellation too: the task ends with this function, so there is nothing left to unwind,
        # while a cancellation that came out of nowhere (an asyncio future that somebody cancelled) would cancel the
        # whole task group.
        try:
            if ref._cancel_requested:
                ref._settle_cancelled()
            else:
                ref._settle_value(await fn(*args))
        except BaseException as error:
            sole = sole_error(error, self._cancelled)
            if sole is None:
                ref._settle_cancelled()
            else:
                ref._settle_error(_without_first_frame(sole) if sole is error else sole)
        finally:
            self._forget(ref)
            del ref  # The operation's own frames, which its error holds, may remember this one.

    def _forget(self, ref: OperationRef[Any]) -> None:
        with self._lock:
            self._operations.discard(ref)
        ref._task = None
        if self._state is State.CLOSING:
            self._progress.set()

    # Cleanups.

    def add_cleanup(self, fn: Callable[[], Awaitable[object]]) -> Cleanup:
        """Have ``fn()`` awaited when the scope is left: after operations ended, while connections are open.

        From any thread.

        Raises:
            ScopeClosedError: too late, cleanups have run or are running.
        """
        check_process(self._made_under)
        cleanup = Cleanup(fn, self._cleanups)
        with self._lock:
            too_late = self._state not in {State.NEW, State.OPEN, State.CLOSING}
            if not too_late:
                self._cleanups.add(cleanup)
        if too_late:
            self._refuse()
        return cleanup

    # Connections.

    async def connection(self, key: Hashable, opener: Callable[[], AbstractAsyncContextManager[T]]) -> T:
        """What ``async with opener()`` gives, opened once per key and held open until the end of the scope.

        Users who come at the same time share one opening. A failed opening is not kept: the next use tries again; so
        does the first use after a connection ended by an error of its own. Cancelling all users of an opening cancels
        it. Only on the scope's own loop: in operations and cleanups.

        Raises:
            ScopeClosedError: connections are being closed.
            Exception: whatever opening raised.
        """
        while True:
            entry: _Connection[T] = self._connections.get(key) or self._open_connection(key, opener)
            try:
                return await entry.opened
            except Exception:
                if entry.opened._outcome is not Outcome.CANCELLED:
                    raise
                # Its first users were cancelled, we were not: open it for ourselves.

    def close_spare_connections(self, is_spare: Callable[[Any], bool], keep: int) -> None:
        """Let the oldest go of the open connections that nobody needs; the next use of such a key opens it anew.

        Only on the scope's own loop. Returns at once; what is let go of closes in the background.

        Args:
            is_spare: Says of a connection whether nobody needs it.
            keep: How many may stay, spare as they are.
        """
        spare = [
            (key, entry)
            for key, entry in self._connections.items()
            if entry.opened._outcome is Outcome.VALUE and is_spare(entry.opened._value)
        ]
        for key, entry in spare[: max(len(spare) - keep, 0)]:
            del self._connections[key]
            entry.leave.set()

    def _open_connection(self, key: Hashable, opener: Callable[[], AbstractAsyncContextManager[T]]) -> _Connection[T]:
        if not self.loop.is_current():
            raise RuntimeError("connections are opened and used on the scope's own event loop")
        if self._state not in {State.OPEN, State.CLOSING, State.CLEANING}:
            self._refuse()
        assert self._tasks is not None
        entry = self._connections[key] = _Connection(opener)
        entry.opened._bind(self.loop)
        self._held += 1
        entry.opened._attach(self._tasks.start_soon(self._hold_connection, key, entry, name=f"connection {key}"))
        return entry

    @background
    async def _hold_connection(self, key: Hashable, entry: _Connection[Any]) -> None:
        error: BaseException | None = None
        try:
            async with entry.opener() as connection:
                # If the last user was cancelled just as it opened, the wait below is cancelled and nobody may have got
                # it.
                if not entry.opened._cancel_requested:
                    entry.opened._settle_value(connection)
                await entry.leave.wait()
        except BaseException as exc:  # As in _run.
            error = sole_error(exc, self._cancelled)
        self._held -= 1
        if self._connections.get(key) is entry:
            del self._connections[key]
        if entry.opened._finished:
            self._note_lost_connection(key, error)
        elif error is None:
            entry.opened._settle_cancelled()
        else:
            entry.opened._settle_error(error)
        self._progress.set()

    def _note_lost_connection(self, key: Hashable, error: BaseException | None) -> None:
        if error is None:
            return
        if self._state is State.DISCONNECTING:
            self._errors.append(error)
        else:  # Its users got errors of their own, and the next one opens a new connection.
            logger.debug("connection %s of scope %s ended", key, self.name, exc_info=error)

    # The host task.

    async def _host(self, ready: anyio.Event) -> None:
        # Nothing leaves this function: its parent is the event loop. Cancellation is the end of the loop, and of this
        # task.
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                self._open()
                ready.set()
                await self._leave.wait()
                await self._wind_up()
                tasks.cancel_scope.cancel()
        except BaseException as error:
            self._failure = sole_error(error, self._cancelled)
            if self._failure is not None:
                self._errors.insert(0, self._failure)
        finally:
            self._end()
            ready.set()

    def _open(self) -> None:
        with self._lock:
            if self._state is State.NEW:
                self._state = State.OPEN
        _scopes[id(self)] = self

    async def _wind_up(self) -> None:
        with anyio.move_on_after(OPERATIONS_END_SECONDS, shield=True):
            await self._end_operations()
        with self._lock:
            self._state = State.CLEANING
        with anyio.move_on_after(self._cleanup_seconds, shield=True):
            await self._run_cleanups()
        with self._lock:
            self._state = State.DISCONNECTING
        for cleanup in list(self._cleanups):
            self._errors.append(
                TimeoutError(f"cleanup {cleanup.fn!r} has not ended within {self._cleanup_seconds} seconds")
            )
        for entry in self._connections.values():
            entry.leave.set()
        with anyio.move_on_after(CONNECTION_CLOSE_SECONDS, shield=True) as limit:
            while self._held:
                await self._next_progress()
        if limit.cancelled_caught:
            self._errors.append(TimeoutError(f"{self._held} connections have not closed in time"))

    async def _end_operations(self) -> None:
        with self._lock:
            running = list(self._operations)
        for ref in running:
            ref._cancel()
        while self._operations:
            await self._next_progress()

    async def _run_cleanups(self) -> None:
        async with anyio.create_task_group() as group:
            for cleanup in list(self._cleanups):
                group.start_soon(self._run_cleanup, cleanup)

    @background
    async def _run_cleanup(self, cleanup: Cleanup) -> None:
        try:
            await cleanup.fn()
        except self._cancelled:
            raise  # Out of time: it stays in the set and is reported from there.
        except BaseException as error:
            sole = sole_error(error, self._cancelled)
            if sole is not None:
                self._errors.append(sole)
        cleanup.remove()

    async def _next_progress(self) -> None:
        self._progress = anyio.Event()
        await self._progress.wait()

    def _end(self) -> None:
        """The last word, said by the host, or by whoever finds that the loop has gone."""
        with self._lock:
            self._state = State.CLOSED
            left, self._operations = self._operations, set()
        for ref in [*left, *(entry.opened for entry in list(self._connections.values()))]:
            ref._settle_cancelled()
            # A task that was cancelled before its first step leaves a coroutine that nobody awaited.
            if ref._task is not None and inspect.getcoroutinestate(ref._task.coro) == inspect.CORO_CREATED:
                ref._task.coro.close()
        self._ended.set()
