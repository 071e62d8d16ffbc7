"""Stream tasks by the name that a client finds them by again, and the grace of clients that went away."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cwsandbox.gateway.streamtask import StreamTask


class PeerProcess:
    """The process of a client on this machine; tells its death from a lost connection.

    A descriptor names it, so that a recycled process id cannot be mistaken for it.
    """

    def __init__(self, pid: int) -> None:
        self._descriptor = -1
        # Not knowable: the peer is in another pid namespace (0), gone already, or there are no descriptors left.
        with contextlib.suppress(OSError):
            if pid > 0:
                self._descriptor = os.pidfd_open(pid)

    async def wait_dead(self) -> None:
        """Wait for its death; for ever if that cannot be known."""
        if self._descriptor < 0:
            await anyio.sleep_forever()
        await anyio.wait_readable(self._descriptor)

    def close(self) -> None:
        """Let go of the process. Again is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class StreamRegistry:
    """All stream tasks of a service."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[str, str], StreamTask] = {}

    def find(self, principal: str, exec_id: str) -> StreamTask | None:
        """Return the stream task that a client of this principal calls `exec_id`."""
        return self._tasks.get((principal, exec_id))

    def add(self, task: StreamTask) -> None:
        """Remember a task until `settle` finds that nobody can ask for it any more."""
        self._tasks[task.principal, task.stream.exec_id] = task

    def settle(self, task: StreamTask) -> None:
        """Forget the task if it ended and nobody will ask for it."""
        if not (task.ended and task.abandoned):
            return
        if task.owner is not None:
            task.owner.release(task)
        key = task.principal, task.stream.exec_id
        if self._tasks.get(key) is task:
            del self._tasks[key]
            task.forget()

    async def wait_all_ended(self) -> None:
        """Wait until every task there is now has ended: their clients have been told how."""
        for task in list(self._tasks.values()):
            await task.wait_ended()

    async def expire(self, tasks: Iterable[StreamTask], peer: PeerProcess, grace_seconds: float) -> None:
        """Wait until the client of these tasks is dead or the grace is over; end those that it did not take back."""
        absences = {task: task.absences for task in tasks}
        try:
            with anyio.move_on_after(grace_seconds):
                await peer.wait_dead()
        finally:
            peer.close()
        for task, absence in absences.items():
            if task.owner is None and task.absences == absence:
                task.abort()
                self.settle(task)
