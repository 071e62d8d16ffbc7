"""All sandboxes of a gateway: creating, finding, waiting, stopping, and the way to their boxes. No HTTP in here.

The service owns one task group. Every sandbox is driven by one task in it, every stream by another; they end with the
service, which is an async context manager (`Service.open`). Callers are principals: who created a sandbox is the only
one who can see it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import secrets
import sqlite3
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.to_thread
from attrs import frozen

from cwsandbox.gateway import records
from cwsandbox.gateway.admission import admit
from cwsandbox.gateway.config import Configuration
from cwsandbox.gateway.errors import StatusError, error, invalid, not_found, not_running
from cwsandbox.gateway.execution import Execution
from cwsandbox.gateway.lifecycle import TERMINAL, Trigger
from cwsandbox.gateway.mainlog import MainLog
from cwsandbox.gateway.network import Network, SandboxNetwork
from cwsandbox.gateway.pulse import Pulse
from cwsandbox.gateway.registry import PeerProcess, StreamRegistry
from cwsandbox.gateway.sandbox import LiveSandbox, Record
from cwsandbox.wire.errors import Code, Reason
from cwsandbox.wire.resources import State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator

    from cwsandbox.gateway.records import ListFilter
    from cwsandbox.gateway.store import Store
    from cwsandbox.runners.base import Box, Runner
    from cwsandbox.wire.resources import SandboxSpec

_log = logging.getLogger(__name__)

_LAST_WORDS_SECONDS = 1.0


@frozen
class Limits:
    """The bounds of one gateway.

    Attributes:
        sandboxes: Sandboxes that have not ended, for all principals together.
        creations: Boxes being made at the same time; further ones are PENDING.
        ended_records: Ended sandboxes that are remembered; the oldest are forgotten first.
        retention_seconds: How long an ended sandbox is remembered.
        idle_seconds: How long a sandbox may be without any operation before it is ended; None is for ever.
        grace_seconds: How long commands of a client that went away wait for it to come back.
        stop_grace_seconds: The longest grace that a stop may ask for.
        shutdown_seconds: How long ending all sandboxes may take when the service ends.
    """

    sandboxes: int = 1000
    creations: int = 16
    ended_records: int = 10_000
    retention_seconds: float = 24 * 3600.0
    idle_seconds: float | None = 1800.0
    grace_seconds: float = 30.0
    stop_grace_seconds: float = 300.0
    shutdown_seconds: float = 15.0


@frozen
class Directories:
    """Where the service keeps files: `logs` is private and exists."""

    logs: str

    def log_path(self, sandbox_id: str) -> str:
        """The file for the output of a sandbox's main command."""
        return os.path.join(self.logs, sandbox_id)


class Service:
    """The sandboxes of one gateway. Open it with `Service.open`."""

    def __init__(
        self,
        runner: Runner,
        store: Store,
        directories: Directories,
        limits: Limits,
        network: Network,
        *,
        configuration: Configuration,
    ) -> None:
        self.runner = runner
        self.limits = limits
        self.network = network
        self.configuration = configuration
        self.opened_at: datetime = datetime.now(UTC)
        self._store = store
        self._directories = directories
        self._sandboxes: dict[str, LiveSandbox] = {}
        self._requests: dict[tuple[str, str], LiveSandbox] = {}
        # The ids of deleted sandboxes by their requests, oldest first.
        self._deleted: dict[tuple[str, str], str] = {}
        self._sequence = 0
        self._active = 0
        self._creations = anyio.Semaphore(limits.creations)
        self.closing: bool = False
        self.population: Pulse = Pulse()
        self.streams: StreamRegistry = StreamRegistry()
        self._tasks = anyio.create_task_group()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        runner: Runner,
        store: Store,
        directories: Directories,
        limits: Limits | None = None,
        network: Network | None = None,
        *,
        configuration: Configuration | None = None,
    ) -> AsyncIterator[Self]:
        """Take back what an earlier gateway left, then serve.

        Leaving ends all sandboxes, within `Limits.shutdown_seconds`; what is not gone by then is left to the runner's
        `recover`.
        """
        service = cls(
            runner,
            store,
            directories,
            limits or Limits(),
            network or Network(),
            configuration=configuration or Configuration(),
        )
        async with service._tasks:
            await service._recover()
            try:
                yield service
            finally:
                if not service.closing:
                    await service.end_all()
                service._tasks.cancel_scope.cancel()

    @property
    def active(self) -> int:
        """Sandboxes that have not ended."""
        return self._active

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, object]], *args: object, name: str) -> None:
        """Run something in the service's task group; it must handle its own failures."""
        self._tasks.start_soon(function, *args, name=name)

    # ---------------------------------------------------------------------------------------------- create and find

    async def create(self, principal: str, spec: SandboxSpec, request_id: str = "") -> LiveSandbox:
        """Make a sandbox and answer as soon as its record is on disk; it is PENDING or CREATING then.

        The same `request_id` of the same principal with the same specification gives the same sandbox.

        Raises:
            StatusError: INVALID_ARGUMENT, UNIMPLEMENTED (what the runner cannot do), ALREADY_EXISTS (the request id was
                used for something else), NOT_FOUND (its sandbox was deleted), RESOURCE_EXHAUSTED, UNAVAILABLE (the
                gateway ends).
        """
        fingerprint = records.fingerprint(spec)
        request = (principal, request_id)
        sandbox = self._requests.get(request) if request_id else None
        if request_id and request in self._deleted:
            # Whoever gives a start up deletes what it made; a copy of it may have been held up on the way, in a proxy.
            sandbox_id = self._deleted[request]
            raise error(
                Code.NOT_FOUND,
                f"sandbox {sandbox_id}, which this request made, was deleted",
                Reason.SANDBOX_NOT_FOUND,
                {"sandboxId": sandbox_id},
            )
        if sandbox is None:
            sandbox = self._create(principal, spec, request_id, fingerprint)
        elif sandbox.record.fingerprint != fingerprint:
            raise error(
                Code.ALREADY_EXISTS,
                f"request id {request_id!r} was used for another specification (sandbox {sandbox.record.sandbox_id})",
                Reason.INVALID_REQUEST,
            )
        await self._store.flush()
        return sandbox

    def _create(self, principal: str, spec: SandboxSpec, request_id: str, fingerprint: str) -> LiveSandbox:
        if self.closing:
            raise error(Code.UNAVAILABLE, "the gateway is shutting down", Reason.BACKEND_UNAVAILABLE)
        if self._active >= self.limits.sandboxes:
            raise error(
                Code.RESOURCE_EXHAUSTED,
                f"this gateway runs {self._active} sandboxes, which is its limit; stop some first",
                Reason.RUNNER_CAPACITY_EXHAUSTED,
            )
        sandbox_id = new_sandbox_id()
        admission = admit(sandbox_id, spec, self.runner, self.network, self.configuration)
        network = self.network.connect(admission.box.network)
        self._sequence += 1
        record = Record(
            sandbox_id=sandbox_id,
            sequence=self._sequence,
            principal=principal,
            request_id=request_id,
            fingerprint=fingerprint,
            spec=records.without_secrets(admission.spec),
            runner_id=self.runner.runner_id,
            runner_group_id=self.configuration.runner.group_id,
            profile_id=admission.profile_id,
            limit_holds=admission.limit_holds,
            create_time=datetime.now(UTC),
            ingress_mode=admission.box.network.ingress_mode,
            egress_mode=admission.box.network.egress_mode,
            endpoints=network.endpoints,
        )
        log = MainLog(self._directories.log_path(sandbox_id))
        sandbox = LiveSandbox(record, log, network, self._on_change, self._store.flush)
        self._register(sandbox)
        self._save(sandbox)
        self._begin(sandbox, functools.partial(sandbox.run, self.runner, admission.box, self._creations))
        return sandbox

    def get(self, principal: str, sandbox_id: str) -> LiveSandbox:
        """Return a sandbox, ended ones included.

        Raises:
            StatusError: NOT_FOUND.
        """
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.forgotten or sandbox.record.principal != principal:
            raise not_found(sandbox_id)
        return sandbox

    def list(self, principal: str, wanted: ListFilter) -> tuple[list[LiveSandbox], str]:
        """Return a page of the principal's sandboxes, oldest first, and the token of the next page ("" at the end)."""
        mine = (s for s in self._sandboxes.values() if s.record.principal == principal and not s.forgotten)
        return records.page(mine, wanted)

    def has_reached(self, sandbox: LiveSandbox, target: str) -> bool:
        """Return whether `wait_for` would answer at once."""
        return _target(target)(sandbox.record.state)

    async def wait_for(self, principal: str, sandbox_id: str, target: str, timeout_seconds: float) -> LiveSandbox:
        """Wait until the sandbox is "running" (or past that) or "terminal", or the time is up.

        Cancelling stops waiting only.

        Raises:
            StatusError: NOT_FOUND; INVALID_ARGUMENT for another target.
        """
        sandbox = self.get(principal, sandbox_id)
        reached = _target(target)
        with sandbox.in_use(), anyio.move_on_after(timeout_seconds):
            await sandbox.wait_for(reached)
        return sandbox

    # ---------------------------------------------------------------------------------------------- stop and delete

    def stop(self, principal: str, sandbox_id: str, grace_seconds: float) -> LiveSandbox:
        """Ask a sandbox to end; it is TERMINATING afterwards, or ended already.

        Raises:
            StatusError: NOT_FOUND; INVALID_ARGUMENT for a negative grace.
        """
        if not 0 <= grace_seconds < math.inf:
            raise invalid("gracePeriodSeconds must not be negative")
        sandbox = self.get(principal, sandbox_id)
        sandbox.stop("stopped by request", min(grace_seconds, self.limits.stop_grace_seconds))
        return sandbox

    async def end_all(self) -> None:
        """Refuse new sandboxes, end all there are, and let their streams say so. Cannot be cancelled.

        Takes `Limits.shutdown_seconds` and a second at most.
        """
        self.closing = True
        with anyio.move_on_after(self.limits.shutdown_seconds, shield=True):
            for sandbox in self.sandboxes():
                sandbox.stop("the gateway was shut down", 0)
            while self._active:
                await self.population.wait()
        # Readers that are stalled cannot be told.
        with anyio.move_on_after(_LAST_WORDS_SECONDS, shield=True):
            await self.streams.wait_all_ended()

    async def delete(self, principal: str, sandbox_id: str) -> LiveSandbox:
        """Kill a sandbox, forget its record, and answer when it is gone. Cancelling stops waiting only.

        Raises:
            StatusError: NOT_FOUND.
        """
        sandbox = self.get(principal, sandbox_id)
        sandbox.forgotten = True
        if sandbox.terminal:
            self.forget(sandbox)
        else:
            sandbox.stop("deleted by request", 0)
            await sandbox.wait_for(TERMINAL.__contains__)
        return sandbox

    async def kept(self) -> None:
        """Wait until what was changed so far is on disk: if we are killed then, a successor goes on with it.

        A disk that cannot be written keeps no sandbox from ending, and the log says so. Cancelling stops waiting only.
        """
        with contextlib.suppress(sqlite3.Error):
            await self._store.flush()

    # ---------------------------------------------------------------------------------------------- operations in boxes

    async def box(self, sandbox: LiveSandbox, wait_seconds: float | None) -> Box:
        """Return the box of a running sandbox, waiting up to `wait_seconds` (None: for ever) for it to run.

        Raises:
            StatusError: FAILED_PRECONDITION when it has ended or ends; DEADLINE_EXCEEDED when it does not run in time.
        """
        if sandbox.record.state not in _USABLE_OR_OVER:
            with anyio.move_on_after(wait_seconds):
                await sandbox.wait_for(_USABLE_OR_OVER.__contains__)
        if sandbox.record.state is State.RUNNING and sandbox.box is not None:
            return sandbox.box
        if sandbox.record.state in _USABLE_OR_OVER:
            raise not_running(sandbox.record)
        raise error(
            Code.DEADLINE_EXCEEDED,
            f"sandbox {sandbox.record.sandbox_id} is not running after {wait_seconds:g} s "
            f"(state {sandbox.record.state.name.lower()})",
            metadata={"sandboxId": sandbox.record.sandbox_id, "state": sandbox.record.state.value},
        )

    # ---------------------------------------------------------------------------------------------- housekeeping

    def sandboxes(self) -> tuple[LiveSandbox, ...]:
        """All sandboxes of all principals, ended ones included, oldest first."""
        return tuple(self._sandboxes.values())

    def forget(self, sandbox: LiveSandbox) -> None:
        """Drop the record and the log of an ended sandbox."""
        record = sandbox.record
        self._sandboxes.pop(record.sandbox_id, None)
        request = (record.principal, record.request_id)
        if self._requests.get(request) is sandbox:
            del self._requests[request]
            if sandbox.forgotten:
                self._deleted[request] = record.sandbox_id
                if len(self._deleted) > self.limits.ended_records:
                    del self._deleted[next(iter(self._deleted))]
        self._store.delete(record.sandbox_id)
        self._tasks.start_soon(sandbox.log.remove, name=f"forget {record.sandbox_id}")

    def _register(self, sandbox: LiveSandbox) -> None:
        record = sandbox.record
        self._sandboxes[record.sandbox_id] = sandbox
        if record.request_id:
            self._requests[record.principal, record.request_id] = sandbox
        self._sequence = max(self._sequence, record.sequence)

    def _begin(self, sandbox: LiveSandbox, drive: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._active += 1
        self.population.notify()
        self._tasks.start_soon(drive, name=f"sandbox {sandbox.record.sandbox_id}")

    def _on_change(self, sandbox: LiveSandbox) -> None:
        if not sandbox.terminal:
            self._save(sandbox)
            return
        self._active -= 1
        if sandbox.forgotten:
            self.forget(sandbox)
        else:
            self._save(sandbox)
        self.population.notify()

    def _save(self, sandbox: LiveSandbox) -> None:
        self._store.put(sandbox.record.sandbox_id, records.to_json(sandbox.record))

    async def _recover(self) -> None:
        """Join what the disk remembers with the boxes that still live."""
        stored = await self._store.load()
        boxes = {box.sandbox_id: box for box in await self.runner.recover()}
        for record in sorted(_readable(stored), key=lambda record: record.sequence):
            path = self._directories.log_path(record.sandbox_id)
            survivor = record.sandbox_id in boxes
            log = await anyio.to_thread.run_sync(MainLog.reopen, path) if survivor else MainLog(path)
            box = boxes.pop(record.sandbox_id, None)
            network = self._reconnect(record) if box is not None else SandboxNetwork()
            sandbox = LiveSandbox(record, log, network, self._on_change, self._store.flush)
            self._register(sandbox)
            if box is not None and not sandbox.terminal:
                self._take_back(sandbox, box)
            elif not sandbox.terminal:
                self._active += 1
                if record.exit_code is not None:
                    sandbox.main_exited()
                sandbox.advance(Trigger.BOX_LOST, "the sandbox did not survive a restart of the gateway")
            if sandbox.terminal:
                log.close()
        for box in boxes.values():
            _log.warning("sandbox %s has no record and is removed", box.sandbox_id)
            await box.stop(0)
            box.main.forget()
            for command in box.commands():
                command.forget()

    def _reconnect(self, record: Record) -> SandboxNetwork:
        """Open the ports of a surviving sandbox again; without them it lives on."""
        try:
            network = self.network.reconnect(record.ingress_mode, record.egress_mode, record.endpoints)
        except StatusError as problem:
            _log.error("the ports of sandbox %s: %s", record.sandbox_id, problem)
            network = SandboxNetwork()
        record.endpoints = network.endpoints
        return network

    def _take_back(self, sandbox: LiveSandbox, box: Box) -> None:
        sandbox.box = box
        self._save(sandbox)  # Its ports may be found elsewhere now.
        if sandbox.record.state is State.TERMINATING:
            sandbox.stop(sandbox.record.state_reason, 0)
        self._begin(sandbox, functools.partial(sandbox.run_in, box))
        executions = [Execution.resume(self, sandbox, command) for command in box.commands()]
        for execution in executions:
            self.streams.add(execution)
            self.start_soon(execution.run, name=f"resumed {execution.stream.exec_id}")
        if executions:
            nobody = PeerProcess(0)
            self.start_soon(self.streams.expire, executions, nobody, self.limits.grace_seconds, name="restart grace")


def _readable(bodies: Iterable[str]) -> Iterator[Record]:
    """Skip what another version wrote in a form that this one cannot read."""
    for body in bodies:
        try:
            yield records.from_json(body)
        except ValueError as problem:
            _log.warning("a stored sandbox record is skipped: %s", problem)


def new_sandbox_id() -> str:
    """Return a fresh, unguessable sandbox id."""
    return f"sb-{secrets.token_hex(10)}"


# What ends a wait. TERMINATING counts as "has been running": the waiter sees the state in the record.
_OVER = TERMINAL | {State.TERMINATING}
_USABLE_OR_OVER = _OVER | {State.RUNNING, State.PAUSED}
_TARGETS: dict[str, Callable[[State], bool]] = {
    "running": _USABLE_OR_OVER.__contains__,
    "terminal": TERMINAL.__contains__,
}


def _target(name: str) -> Callable[[State], bool]:
    try:
        return _TARGETS[name]
    except KeyError:
        raise invalid(f"waitFor must be running or terminal, not {name!r}") from None
