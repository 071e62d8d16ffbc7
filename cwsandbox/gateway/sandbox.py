"""One sandbox: its record, and the task that takes it from its creation to its end."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import sqlite3
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING

import anyio
from attrs import define, field

from cwsandbox.gateway.lifecycle import TERMINAL, Trigger, next_state
from cwsandbox.gateway.pulse import Pulse
from cwsandbox.runners.errors import BoxGoneError, RunnerError
from cwsandbox.wire.resources import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

    from cwsandbox.gateway.mainlog import MainLog
    from cwsandbox.gateway.network import SandboxNetwork
    from cwsandbox.runners.base import Box, Runner
    from cwsandbox.runners.specs import BoxSpec, ExitStatus
    from cwsandbox.wire.resources import ExposedPort, LimitHold, SandboxSpec

_log = logging.getLogger(__name__)

# How long what ends with a box (its main command's exit and output) may take after the box is gone.
_SETTLE_SECONDS = 2.0
# How long removing a box may take beyond the grace of the main command.
_REMOVE_SECONDS = 30.0


@define(eq=False)
class Record:
    """What is known about a sandbox; what the store keeps.

    Attributes:
        sequence: Grows with every sandbox of this gateway; the order of lists.
        principal: Who created it and alone may see it.
        fingerprint: A hash of the specification as it was sent, to recognise a repeated create.
        spec: The specification as it took effect, without environment values and file contents.
        ingress_mode: Who can reach the exposed ports; "" where there are none.
        egress_mode: What the sandbox can reach.
        endpoints: Where the exposed ports are to be found.
        limit_holds: How each of its limits is held.
    """

    sandbox_id: str
    sequence: int
    principal: str
    request_id: str
    fingerprint: str
    spec: SandboxSpec
    runner_id: str
    create_time: datetime
    state: State = State.PENDING
    state_reason: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    exit_code: int | None = None
    isolation: str = ""
    ingress_mode: str = ""
    egress_mode: str = ""
    endpoints: tuple[ExposedPort, ...] = ()
    runner_group_id: str = ""
    profile_id: str = ""
    limit_holds: Mapping[str, LimitHold] = field(factory=dict)


@define(eq=False)
class Stop:
    """A stop that was asked for."""

    reason: str
    grace_seconds: float


class Use:
    """An operation in a sandbox, as a context manager."""

    __slots__ = ("_sandbox",)

    def __init__(self, sandbox: LiveSandbox) -> None:
        self._sandbox = sandbox

    def __enter__(self) -> None:
        self._sandbox._operations += 1

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._sandbox._operations -= 1
        self._sandbox.touch()


class LiveSandbox:
    """A sandbox in this gateway's memory, ended ones included.

    Only `advance` changes the state, only `run` drives it, and `run` is one task. `on_change` is called after every
    change of the record, and `on_disk` waits until it is written.
    """

    def __init__(
        self,
        record: Record,
        log: MainLog,
        network: SandboxNetwork,
        on_change: Callable[[LiveSandbox], None],
        on_disk: Callable[[], Awaitable[None]],
    ) -> None:
        self.record = record
        self.log = log
        self.network = network
        self.box: Box | None = None
        self.forgotten = False
        # Whether a client was told that it runs, by the confirmation of what was begun in it.
        self.announced = False
        self._on_change = on_change
        self._on_disk = on_disk
        self._changed = Pulse()
        # Set when `run` has something to do: the main command ended, or a stop was asked for.
        self._attention = anyio.Event()
        self._stop: Stop | None = None
        self._stop_scope = anyio.CancelScope()
        self._main_exit: ExitStatus | None = None
        self._logged = anyio.Event()
        self._operations = 0
        self._last_used = monotonic()

    @property
    def terminal(self) -> bool:
        """It ended; the state will not change again."""
        return self.record.state in TERMINAL

    @property
    def idle_since(self) -> float | None:
        """When the last operation ended, on the monotonic clock; None while one runs."""
        return None if self._operations else self._last_used

    @property
    def ending(self) -> bool:
        """The main command ended or a stop was asked for: what runs in the box is killed or will be."""
        return self._attention.is_set()

    def limit(self, seconds: float | None) -> float:
        """Return how long an operation may take that asks for `seconds`; what the sandbox was made with bounds it."""
        return min(math.inf if seconds is None else seconds, self.record.spec.max_timeout_seconds or math.inf)

    def in_use(self) -> Use:
        """Count an operation, for the reaper of idle sandboxes."""
        return Use(self)

    def touch(self) -> None:
        """Count an operation that is over already."""
        self._last_used = monotonic()

    def advance(self, trigger: Trigger, reason: str = "") -> None:
        """Move to the state that follows `trigger`; the first reason that is given stays."""
        record = self.record
        state = next_state(record.state, trigger)
        if state is record.state:
            return
        record.state = state
        record.state_reason = record.state_reason or reason
        now = datetime.now(UTC)
        if state is State.RUNNING:
            record.start_time = now
        elif state in TERMINAL:
            record.end_time = now
        self._on_change(self)
        self._changed.notify()

    async def wait_for(self, reached: Callable[[State], bool]) -> None:
        """Wait until the state satisfies `reached`. Cancelling stops waiting only."""
        while not reached(self.record.state):
            await self._changed.wait()

    def stop(self, reason: str, grace_seconds: float) -> None:
        """Ask for the end. The first reason stays; a shorter grace cuts a longer one short."""
        if self.terminal:
            return
        if self._stop is None:
            self._stop = Stop(reason, grace_seconds)
            self._attention.set()
        elif grace_seconds <= 0 < self._stop.grace_seconds:
            self._stop.grace_seconds = 0
            self._stop_scope.cancel()
        self.advance(Trigger.STOP_REQUESTED, reason)

    async def run(self, runner: Runner, spec: BoxSpec, slots: anyio.Semaphore) -> None:
        """Create the box and live in it until the end. Never raises.

        Cancelling (the gateway goes down hard) leaves the box to `Runner.recover` of the next gateway.
        """
        with contextlib.closing(self.network):
            async with slots:
                box = await self._create(runner, spec)
            del spec  # File contents and environment values are for the box only.
            if box is not None:
                await self.run_in(box)
        self.log.close()

    async def run_in(self, box: Box) -> None:
        """Live in `box` until the end: one that was just made, or one that a gateway before this one left."""
        self.box = box
        self.record.isolation = str(box.isolation)
        self.advance(Trigger.BOX_READY)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_log, box)
            tasks.start_soon(self._guard, self._watch_main, box)
            tasks.start_soon(self._guard, self._connect, box)
            await self._attention.wait()
            # Two ways to get here: the main command (or the box) ended, or a stop was asked for. A stop may still come
            # during the end.
            if self._main_exit is not None and self._stop is None:
                await self._keep_exit(self._main_exit)
            removed = await self._remove(box)
            self.network.close()
            tasks.cancel_scope.deadline = anyio.current_time() + _SETTLE_SECONDS
        box.main.forget()
        self.box = None
        self._finish(removed)
        self.log.close()

    async def _create(self, runner: Runner, spec: BoxSpec) -> Box | None:
        if self._stop is not None:
            self.advance(Trigger.STOPPED)
            return None
        self.advance(Trigger.CREATE_STARTED)
        try:
            return await runner.create(spec)
        except (RunnerError, OSError) as error:
            self.advance(Trigger.CREATE_FAILED, str(error) or type(error).__name__)
        except Exception:
            _log.exception("sandbox %s could not be created", self.record.sandbox_id)
            self.advance(Trigger.CREATE_FAILED, "the gateway failed to create the sandbox; its log says more")
        return None

    async def _keep_log(self, box: Box) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._guard, self.log.pump, box.main.stdout, 0)
            if box.main.stderr is not None:
                tasks.start_soon(self._guard, self.log.pump, box.main.stderr, 1)
        self._logged.set()

    async def _keep_exit(self, status: ExitStatus) -> None:
        """The box goes next, and what only it knows with it: a gateway that dies now must have the end on disk."""
        with anyio.move_on_after(_SETTLE_SECONDS):
            await self._logged.wait()
        self.record.exit_code = status.returncode
        try:
            self._on_change(self)
            await self._on_disk()
        except sqlite3.Error:
            _log.exception("the end of sandbox %s could not be written yet", self.record.sandbox_id)

    async def _watch_main(self, box: Box) -> None:
        try:
            self._main_exit = await box.main.wait()
        finally:
            self._attention.set()

    async def _connect(self, box: Box) -> None:
        with contextlib.closing(self.network):
            await self.network.serve(box, self.in_use)

    async def _remove(self, box: Box) -> bool:
        """Stop the box and wait until nothing is left of it."""
        sandbox_id = self.record.sandbox_id
        grace = self._stop.grace_seconds if self._stop is not None else 0.0
        try:
            with anyio.move_on_after(max(0.0, grace) + _REMOVE_SECONDS), self._stop_scope:
                await box.stop(grace)
            # A grace cut short cancelled the first call; the box dies already, this one makes sure.
            with anyio.move_on_after(_REMOVE_SECONDS):
                await box.stop(0)
                await box.wait_gone()
                return True
            _log.error("sandbox %s was not gone after %g s", sandbox_id, _REMOVE_SECONDS)
        except Exception:
            _log.exception("sandbox %s could not be removed", sandbox_id)
        return False

    def _finish(self, removed: bool) -> None:
        status = self._main_exit
        stopped = self._stop is not None
        # KILL after a stop is ours, not an exit of the command's own.
        if status is not None and not (stopped and status.signal == signal.SIGKILL):
            self.record.exit_code = status.returncode
        if not removed:
            self.record.state_reason = "the sandbox could not be removed; the gateway's log says more"
            self.advance(Trigger.BOX_LOST)
        elif stopped:
            self.advance(Trigger.STOPPED)
        elif status is not None:
            self.main_exited()
        else:
            self.advance(Trigger.BOX_LOST, "the sandbox was lost: its agent or the whole sandbox was killed")

    def main_exited(self) -> None:
        """The main command ended by itself, with the exit code that the record has."""
        self.advance(Trigger.MAIN_EXITED, f"the main command ended with exit status {self.record.exit_code}")

    async def _guard(self, function: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run a helper of `run_in`; a failure of its own must not end the sandbox's task."""
        try:
            await function(*args)
        except (BoxGoneError, anyio.ClosedResourceError, anyio.BrokenResourceError):
            pass  # The box ended under it.
        except Exception:
            _log.exception("sandbox %s: %s failed", self.record.sandbox_id, function.__name__)
