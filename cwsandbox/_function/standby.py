"""Standby sandboxes: made ahead, each with an interpreter that waits, each used for exactly one call."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import anyio

from cwsandbox._function.worker import Worker
from cwsandbox._operate import operate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cwsandbox.session import Session

__all__ = ["Standby"]

_SHORT_CALL_SECONDS = 0.25
"""Starting an interpreter costs as much as a short call; it would slow that down."""


class Standby:
    """The standby sandboxes of one function. Thread-safe.

    They belong to the session, which stops those that are left. One that does not fit any more is stopped: its options
    differ from those of the call (`environment_variables` was changed), its interpreter has ended, or it has used up
    half of its lifetime.

    Args:
        session: Owns the sandboxes.
        size: How many to keep.
        limit: Seconds for a call.
    """

    def __init__(self, session: Session, size: int, limit: float) -> None:
        self._session = session
        self._size = size
        self._limit = limit
        self._lock = threading.Lock()
        self._workers: deque[Worker] = deque()
        lifetime = session._defaults.max_lifetime_seconds
        self._max_age = float("inf") if lifetime is None else lifetime / 2

    def take(self, options: Mapping[str, Any], preload: tuple[str, ...]) -> Worker:
        """A worker for one call: the oldest standby one, else a new one.

        Raises:
            SandboxError: The session is closed.
        """
        with self._lock:
            self._drop_unfit(options)
            worker = self._workers.popleft() if self._workers else None
        return worker or Worker(self._session, options, preload, self._limit)

    def replace(self, options: Mapping[str, Any], preload: tuple[str, ...], call_ended: anyio.Event) -> None:
        """Make a new one for what a call has taken, in the background: after the call, if that is a short one."""
        if self._size:
            operate(
                self._session._operations_scope, self._replace, options, preload, call_ended, name="replace standby"
            )

    async def _replace(self, options: Mapping[str, Any], preload: tuple[str, ...], call_ended: anyio.Event) -> None:
        with anyio.move_on_after(_SHORT_CALL_SECONDS):
            await call_ended.wait()
        self._fill(options, preload)

    async def prepare(self, options: Mapping[str, Any], preload: tuple[str, ...]) -> None:
        """Have all of them run.

        Raises:
            SandboxError: The session is closed, or a sandbox could not be started.
        """
        with self._lock:
            self._drop_unfit(options)
        self._fill(options, preload)
        for worker in list(self._workers):
            await worker.wait_running()

    def _fill(self, options: Mapping[str, Any], preload: tuple[str, ...]) -> None:
        with self._lock:
            while len(self._workers) < self._size:
                self._workers.append(Worker(self._session, options, preload, self._limit, standby=True))

    def _drop_unfit(self, options: Mapping[str, Any]) -> None:
        youngest = time.monotonic() - self._max_age
        fit = deque(w for w in self._workers if w.usable and w.options == options and w.made_at > youngest)
        for worker in self._workers:
            if worker not in fit:
                operate(self._session._operations_scope, worker.stop, name="stop standby sandbox")
        self._workers = fit
