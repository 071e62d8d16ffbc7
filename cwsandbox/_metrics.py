"""What a session counts: sandboxes, how long their starts took, and how commands ended. Thread-safe, without I/O."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Metrics"]

PREFIX = "cwsandbox/"
OUTCOMES = ("exec_completed_ok", "exec_completed_nonzero", "exec_failures")


@define
class _Counts:
    """What happened between two reports.

    Attributes:
        created: Sandboxes that were asked for, started or not.
        outcomes: How many commands ended in each of `OUTCOMES`.
        starts: How many starts were timed; the next three are in seconds and mean nothing without one.
        per_sandbox: How many commands ended in each sandbox.
    """

    created: int = 0
    outcomes: dict[str, int] = field(factory=lambda: dict.fromkeys(OUTCOMES, 0))
    starts: int = 0
    total_start: float = 0.0
    shortest_start: float = 0.0
    longest_start: float = 0.0
    per_sandbox: dict[Hashable, int] = field(factory=dict)

    @property
    def any(self) -> bool:
        return bool(self.created or self.starts or self.per_sandbox)

    def add_starts(self, number: int, total: float, shortest: float, longest: float) -> None:
        if not number:
            return
        self.shortest_start = min(self.shortest_start, shortest) if self.starts else shortest
        self.longest_start = max(self.longest_start, longest)
        self.starts += number
        self.total_start += total

    def add(self, other: _Counts) -> None:
        self.created += other.created
        for outcome, number in other.outcomes.items():
            self.outcomes[outcome] += number
        self.add_starts(other.starts, other.total_start, other.shortest_start, other.longest_start)
        for sandbox, number in other.per_sandbox.items():
            self.per_sandbox[sandbox] = self.per_sandbox.get(sandbox, 0) + number

    def values(self) -> dict[str, Any]:
        executions = sum(self.outcomes.values())
        values: dict[str, Any] = {"sandboxes_created": self.created, "executions": executions, **self.outcomes}
        if executions:
            values["exec_completion_rate"] = self.outcomes["exec_completed_ok"] / executions
            values["exec_failure_rate"] = self.outcomes["exec_failures"] / executions
        if self.starts:
            values["startup_count"] = self.starts
            values["avg_startup_seconds"] = self.total_start / self.starts
            values["min_startup_seconds"] = self.shortest_start
            values["max_startup_seconds"] = self.longest_start
        if self.per_sandbox:
            numbers = self.per_sandbox.values()
            values["avg_execs_per_sandbox"] = sum(numbers) / len(numbers)
            values["min_execs_per_sandbox"] = min(numbers)
            values["max_execs_per_sandbox"] = max(numbers)
        return {PREFIX + name: value for name, value in values.items()}


class Metrics:
    """The counters of one session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = _Counts()

    def sandbox_created(self) -> None:
        """A sandbox was asked for; it may never be started."""
        with self._lock:
            self._counts.created += 1

    def sandbox_started(self, seconds: float) -> None:
        """A sandbox was seen to run, so long after it was asked to start."""
        with self._lock:
            self._counts.add_starts(1, seconds, seconds, seconds)

    def exec_ended(self, sandbox: Hashable, outcome: str) -> None:
        """A command or shell ended.

        Args:
            sandbox: Which one it ran in; anything that tells sandboxes apart.
            outcome: One of `OUTCOMES`.
        """
        with self._lock:
            self._counts.outcomes[outcome] += 1
            self._counts.per_sandbox[sandbox] = self._counts.per_sandbox.get(sandbox, 0) + 1

    def values(self) -> dict[str, Any]:
        """All names and values now. Names that have no meaning yet, such as a rate of nothing, are left out."""
        with self._lock:
            return self._counts.values()

    def report(self, send: Callable[[dict[str, Any]], bool], *, reset: bool) -> bool:
        """Have `send` report the values.

        Nothing is lost or counted twice by what happens in the meantime: with `reset`, counting begins anew before the
        values are sent, and what could not be sent is added again.

        Args:
            send: Says whether it worked; called without a lock held.
            reset: Begin to count anew, if it worked.

        Returns:
            Whether something was reported; False, too, if nothing had happened.
        """
        with self._lock:
            counts = self._counts
            if not counts.any:
                return False
            values = counts.values()
            if reset:
                self._counts = _Counts()
        sent = False
        try:
            sent = send(values)
        finally:
            if reset and not sent:
                with self._lock:
                    self._counts.add(counts)
        return sent
