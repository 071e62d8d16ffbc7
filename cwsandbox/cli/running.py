"""How a command does its work: on an event loop of its own, in a session, until it is done or a signal ends it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable  # noqa: TC003 - a module attribute has it
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    import anyio
    from anyio.abc import TaskGroup, TaskStatus

    from cwsandbox.session import Session

T = TypeVar("T")

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
before_hard_exit: list[Callable[[], object]] = []
"""What has to be undone even where nothing else is cleaned up: the terminal's mode."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal ended the command; what it had started is gone."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status: int = 128 + number


def run_in_session(operation: Callable[[Session], Awaitable[T]]) -> T:
    """Run `operation` with a session on an event loop of its own.

    SIGINT, SIGTERM and SIGHUP cancel it, which kills the remote command and stops the session's sandboxes. The same
    again ends the program at once.

    Raises:
        Interrupted: A signal came.
    """
    return run_attended(lambda: _with_session(operation))


def run_attended(operation: Callable[[], Awaitable[T]]) -> T:
    """Run `operation` on an event loop of its own; as `run_in_session`, without a session."""
    import anyio

    return anyio.run(_attend, operation, backend="asyncio")


@asynccontextmanager
async def helped() -> AsyncIterator[TaskGroup]:
    """A task group for what helps the body: it is cancelled when the body ends, and the body when a helper fails.

    Raises:
        Exception: What the body or, if that did not fail, a helper raised; never a group.
    """
    import anyio

    failure: Exception | None = None
    try:
        async with anyio.create_task_group() as tasks:
            try:
                yield tasks
            except Exception as error:
                failure = error
            tasks.cancel_scope.cancel()
    except ExceptionGroup as group:
        failure = failure or group
    if failure is not None:
        raise _first(failure)


def _first(error: Exception) -> Exception:
    return _first(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error


async def _with_session(operation: Callable[[Session], Awaitable[T]]) -> T:
    from cwsandbox.session import Session

    async with Session() as session:
        return await operation(session)


async def _attend(operation: Callable[[], Awaitable[T]]) -> T:
    import anyio

    received: list[int] = []
    async with helped() as tasks:
        work = anyio.CancelScope()
        await tasks.start(_watch_signals, work, received)
        with work:
            return await operation()
    raise Interrupted(received[0])


def hard_exit(status: int) -> NoReturn:
    """End the program at once, whatever its threads do."""
    for undo in before_hard_exit:
        undo()
    os._exit(status)


async def _watch_signals(work: anyio.CancelScope, received: list[int], *, task_status: TaskStatus[None]) -> None:
    import anyio

    # Under nohup a hang-up is nothing to react to.
    wanted = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    with anyio.open_signal_receiver(*wanted) as signals:
        task_status.started()
        async for number in signals:
            if received:
                # Cleaning up takes seconds where a gateway is out of reach; who asks twice does not want to wait.
                hard_exit(128 + number)
            received.append(number)
            work.cancel()
