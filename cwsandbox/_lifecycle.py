"""The client's view of one sandbox: what it asked for, and what the gateway last said.

Not started, or cancelled before the start, then starting, running, stopping, terminal. Observations arrive from any
thread and in any order; these rules keep the view from going backwards:

- terminal and cancelled are absorbing;
- while stopping only a terminal observation counts (a late "running" is stale);
- the first id is kept.
"""

from __future__ import annotations

import enum
import threading
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING

import attrs

from cwsandbox.exceptions import SandboxNotRunningError
from cwsandbox.status import SandboxStatus

if TYPE_CHECKING:
    from cwsandbox._metrics import Metrics
    from cwsandbox.wire.resources import Sandbox as Record
    from cwsandbox.wire.streams import SandboxInfo

__all__ = ["Lifecycle", "Phase", "status_of"]


class Phase(enum.Enum):
    """Where the sandbox stands, seen from here."""

    NOT_STARTED = enum.auto()
    CANCELLED = enum.auto()
    STARTING = enum.auto()
    RUNNING = enum.auto()
    STOPPING = enum.auto()
    TERMINAL = enum.auto()


_PHASES = {
    SandboxStatus.RUNNING: Phase.RUNNING,
    SandboxStatus.PAUSED: Phase.RUNNING,
    SandboxStatus.TERMINATING: Phase.STOPPING,
    SandboxStatus.COMPLETED: Phase.TERMINAL,
    SandboxStatus.FAILED: Phase.TERMINAL,
    SandboxStatus.TERMINATED: Phase.TERMINAL,
}


def status_of(record: Record) -> SandboxStatus:
    """The status that a record tells; a state this version does not know is UNSPECIFIED."""
    name = record.status.state.name.lower() if record.status else ""
    try:
        return SandboxStatus(name)
    except ValueError:
        return SandboxStatus.UNSPECIFIED


class Lifecycle:
    """The state behind a `Sandbox`. Thread-safe; every method is a single step without I/O.

    Attributes:
        phase: See `Phase`.
        record: The gateway's last accepted word; None before the start.
        status: The last status; None before the start.
        status_updated_at: When `status` was last confirmed (aware, UTC).
        stop_owned: True once this object's own stop was accepted: a sandbox that then completes was terminated by us.
        metrics: Of the session that wants to know how long the start takes, if one does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.phase: Phase = Phase.NOT_STARTED
        self.record: Record | None = None
        self.status: SandboxStatus | None = None
        self.status_updated_at: datetime | None = None
        self.stop_owned: bool = False
        self.metrics: Metrics | None = None
        self._requested = False
        self._requested_at: float | None = None
        """On the monotonic clock; None once the start was measured, and for what was not started here."""
        self._sandbox_id: str | None = None

    @property
    def sandbox_id(self) -> str | None:
        """The id, from the accepted start on."""
        return self._sandbox_id

    @property
    def requested(self) -> bool:
        """True from a start request on, unless it came to nothing."""
        return self._requested

    @property
    def usable(self) -> bool:
        """False once nothing can be run in the sandbox any more."""
        return self.phase not in {Phase.CANCELLED, Phase.STOPPING, Phase.TERMINAL}

    @property
    def ended(self) -> bool:
        """True once the sandbox is terminal, or was cancelled before its start."""
        return self.phase in {Phase.CANCELLED, Phase.TERMINAL}

    @property
    def wants_stop(self) -> bool:
        """True for what was asked for at the gateway, unless it has ended or its stop by us was accepted."""
        if self.ended or (self.phase is Phase.STOPPING and self.stop_owned):
            return False
        return self._sandbox_id is not None or self._requested

    @property
    def exit_code(self) -> int | None:
        """The main command's exit code, if the sandbox completed by itself and the gateway saw it."""
        if self.status is SandboxStatus.COMPLETED and self.record is not None and self.record.status is not None:
            return self.record.status.exit_code
        return None

    def cancel(self) -> bool:
        """Give up a sandbox that was never started; False if it was, or if its start is on the way."""
        with self._lock:
            if self.phase is Phase.NOT_STARTED and not self._requested:
                self.phase = Phase.CANCELLED
            return self.phase is Phase.CANCELLED

    def request_begins(self) -> None:
        """A start request is about to be sent: from here on only its outcome decides.

        Raises:
            SandboxNotRunningError: The sandbox was cancelled.
        """
        with self._lock:
            if self.phase is Phase.CANCELLED:
                raise SandboxNotRunningError("the sandbox was stopped before it was started; make a new one")
            self._requested = True
            self._requested_at = monotonic()

    def request_failed(self) -> None:
        """The start request came to nothing; another may be sent."""
        with self._lock:
            self._requested = False

    def accepted(self, record: Record) -> None:
        """The gateway took the start request: PENDING, whatever the answer says, until it is observed again."""
        with self._lock:
            if self.phase is Phase.NOT_STARTED:
                self._take(record, SandboxStatus.PENDING, Phase.STARTING)

    def observe(self, record: Record) -> None:
        """The gateway told the present state."""
        status = status_of(record)
        phase = _PHASES.get(status, Phase.STARTING)
        with self._lock:
            if self.phase in {Phase.CANCELLED, Phase.TERMINAL}:
                return
            if self.phase is Phase.STOPPING and phase is not Phase.TERMINAL:
                return
            self._take(record, status, phase)

    def confirm(self) -> None:
        """A cached terminal state was asked for again."""
        with self._lock:
            self.status_updated_at = datetime.now(UTC)

    def running(self, told: SandboxInfo) -> None:
        """A command was seen to start, so the sandbox runs."""
        with self._lock:
            if self.phase is Phase.STARTING and self.record is not None and self.record.status is not None:
                status = attrs.evolve(self.record.status, start_time=told.start_time, isolation=told.isolation)
                self._take(attrs.evolve(self.record, status=status), SandboxStatus.RUNNING, Phase.RUNNING)

    def stopping(self) -> None:
        """Our stop was accepted."""
        with self._lock:
            if self.phase in {Phase.STARTING, Phase.RUNNING}:
                self.phase, self.status = Phase.STOPPING, SandboxStatus.TERMINATING
                self.status_updated_at = datetime.now(UTC)
            self.stop_owned = True

    def gone(self) -> None:
        """The gateway does not know the sandbox any more."""
        with self._lock:
            if self.phase is not Phase.TERMINAL:
                self.phase, self.status = Phase.TERMINAL, SandboxStatus.TERMINATED
                self.status_updated_at = datetime.now(UTC)

    def _take(self, record: Record, status: SandboxStatus, phase: Phase) -> None:
        self.record, self.status, self.phase = record, status, phase
        self.status_updated_at = datetime.now(UTC)
        if self._sandbox_id is None:
            self._sandbox_id = record.sandbox_id
        if phase is Phase.RUNNING:
            self._measure_start()

    def _measure_start(self) -> None:
        """It was seen to run: the first time ends the start, whether a session counts it or not."""
        began, self._requested_at = self._requested_at, None
        if began is not None and self.metrics is not None:
            self.metrics.sandbox_started(monotonic() - began)
