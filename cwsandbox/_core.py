"""What stands behind a `Sandbox`: its state, its scope, its connection, and the operations on its life."""

from __future__ import annotations

import importlib
import logging
import math
import threading
import uuid
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread

from cwsandbox._client.auth import check_auth
from cwsandbox._exec import ExecStats
from cwsandbox._facts import Facts
from cwsandbox._lifecycle import Lifecycle, Phase
from cwsandbox._limits import tell_of_weak_limits
from cwsandbox._operate import operate
from cwsandbox._runtime.latch import fork_count
from cwsandbox._runtime.portal import portal_scope
from cwsandbox._validate import check_seconds
from cwsandbox.defaults import DEFAULT_BASE_URL
from cwsandbox.exceptions import (
    SandboxError,
    SandboxFailedError,
    SandboxNotFoundError,
    SandboxNotRunningError,
    SandboxTerminatedError,
    SandboxTimeoutError,
)
from cwsandbox.status import SandboxStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from cwsandbox._client.address import Address
    from cwsandbox._client.auth import Account, Auth
    from cwsandbox._client.gateway import GatewayClient
    from cwsandbox._client.http import WaitFor
    from cwsandbox._metrics import Metrics
    from cwsandbox._request import SandboxRequest
    from cwsandbox._runtime.operation import OperationRef
    from cwsandbox._runtime.scope import Scope
    from cwsandbox.defaults import SandboxDefaults
    from cwsandbox.wire.resources import Sandbox as Record

__all__ = ["SandboxCore", "request_timeout"]

T = TypeVar("T")
logger = logging.getLogger("cwsandbox")

on_started: Callable[[SandboxCore], object] | None = None
"""Told of every sandbox that this process starts, on the sandbox's loop, while somebody wants to know: a leak check."""

_POLL_SECONDS = 30.0
"""The longest single long poll: short enough for a proxy in between, long enough to cost nothing."""
_TAKE_BACK_SECONDS = 10.0
"""How long a start that was given up may take to remove what it may have made."""

_client_loaded = False


def _load_client() -> None:
    """Import the client: a tenth of a second of work, at the first use in a process, that no event loop waits for."""
    global _client_loaded
    importlib.import_module("cwsandbox._client.gateway")
    _client_loaded = True


def _check_base_url(base_url: str | None) -> None:
    """A wrong one shows where it was written; whether it counts is known when it is used."""
    if base_url is not None and base_url != "":
        from cwsandbox._client.address import parse_address

        parse_address(base_url)


def request_timeout(defaults: SandboxDefaults, given: float | None) -> float:
    """The limit for requests: what is given, or the default.

    Raises:
        TypeError: Not a number.
        ValueError: NaN or negative.
    """
    timeout = check_seconds(given, "request_timeout_seconds")
    if timeout is None:
        timeout = check_seconds(defaults.request_timeout_seconds, "request_timeout_seconds of the defaults")
    if timeout is None:
        raise TypeError("request_timeout_seconds of the defaults must be a number of seconds, not None")
    return timeout


class SandboxCore:
    """One sandbox, or (without a request) what looks for others.

    It belongs to the first scope that it is used in and never moves. Coroutines run on that scope's loop; the rest is
    for any thread.

    Args:
        request: What to start; None for a sandbox that was found.
        defaults: Of the caller.
        base_url: The caller's choice of a gateway.
        timeout_seconds: Limit for requests and waits; None is that of the defaults.
        auth: The caller's choice of an account; None is that of the defaults.
    """

    def __init__(
        self,
        request: SandboxRequest | None,
        defaults: SandboxDefaults,
        base_url: str | None,
        timeout_seconds: float | None,
        auth: Auth | None = None,
    ) -> None:
        self.defaults = defaults
        self.base_url = base_url
        _check_base_url(base_url)
        if defaults.base_url is not DEFAULT_BASE_URL:
            _check_base_url(defaults.base_url)
        self.auth: Auth | None = check_auth(defaults.auth if auth is None else auth)
        self.timeout: float = request_timeout(defaults, timeout_seconds)
        self.life: Lifecycle = Lifecycle()
        self.facts: Facts = Facts(self.life, request)
        self.stats: ExecStats = ExecStats()
        self.started_here: bool = False
        self.starting: anyio.Lock | None = None
        """Held while a start request is on the way; on the scope's loop."""
        self._request = request
        self._request_id = uuid.uuid4().hex
        self._made_under = fork_count()
        self._lock = threading.Lock()
        self._scope: Scope | None = None
        self._scope_of: Callable[[], Scope] = portal_scope
        self._target: tuple[Address, Account] | None = None
        """Its gateway and who it is there, from the first use on, whatever the environment says later."""
        self._gateway: GatewayClient | None = None

    def sibling(self) -> SandboxCore:
        """Another one for the same gateway and account, bound to nothing yet."""
        other = SandboxCore(None, self.defaults, self.base_url, self.timeout, self.auth)
        other._target = self._target
        return other

    def count_for(self, metrics: Metrics | None) -> None:
        """Have its start and its commands counted for a session from now on, or (None) for none."""
        self.stats.metrics = self.life.metrics = metrics

    # Where it runs.

    @property
    def bound(self) -> bool:
        """True once it belongs to a scope, or to something that has one."""
        return self._scope is not None or self._scope_of is not portal_scope

    def belong_to(self, scope_of: Callable[[], Scope]) -> bool:
        """Run in this scope, unless it is bound already; returns whether it will."""
        with self._lock:
            if self.bound:
                return False
            self._scope_of = scope_of
            return True

    def belongs_to(self, scope_of: Callable[[], Scope]) -> bool:
        """Whether it was made to run in this scope."""
        return self._scope_of is scope_of

    def scope(self) -> Scope:
        """The scope that it runs in; asking binds it.

        One that has ended with its scope may still be asked for its log and how it ended: from then on in the portal.
        """
        with self._lock:
            if self._scope is not None and self._scope.ended and self.life.ended:
                self._scope, self._scope_of = None, portal_scope
                self._gateway = self.starting = None
            if self._scope is None:
                self._scope = self._scope_of()
            return self._scope

    def operate(
        self, operation: Callable[..., Awaitable[T]], *args: Any, name: str, ref: OperationRef[T] | None = None
    ) -> OperationRef[T]:
        """Run an operation; returns at once."""
        return operate(self.scope, operation, *args, name=name, ref=ref, advice=self._advice)

    def _advice(self) -> str:
        if self.sandbox_id is None:
            return "make a new sandbox"
        return f"attach to the sandbox anew with Sandbox.from_id({self.sandbox_id!r})"

    async def client(self) -> GatewayClient:
        """The scope's connection to the gateway; opened on first use."""
        if self._gateway is None:
            if not _client_loaded:
                await anyio.to_thread.run_sync(_load_client)
            from cwsandbox._client.address import resolve_address
            from cwsandbox._client.gateway import connect, find_account

            if self._target is None:
                chosen = self.defaults.base_url
                address = resolve_address(
                    self.base_url,
                    defaults_url=None if chosen is DEFAULT_BASE_URL else chosen,
                    has_auth=self.auth is not None,
                )
                self._target = address, await find_account(address, self.auth)
            self._gateway = await connect(self.scope(), *self._target, user=self)
        return self._gateway

    @property
    def wait_seconds(self) -> float | None:
        """How long an operation lets the gateway wait for RUNNING; None as long as it takes."""
        return self.timeout if math.isfinite(self.timeout) else None

    def limit(self, timeout_seconds: float | None) -> float | None:
        """An operation's own limit for the wire: the request timeout unless given; None has no limit."""
        limit = check_seconds(timeout_seconds, "timeout_seconds", positive=True)
        limit = self.timeout if limit is None else limit
        return limit if math.isfinite(limit) else None

    # What it is.

    @property
    def sandbox_id(self) -> str | None:
        """The id, from the accepted start on."""
        return self.life.sandbox_id

    def __repr__(self) -> str:
        return f"<Sandbox id={self.sandbox_id} status={self.life.status or 'not_started'}>"

    def __del__(self) -> None:
        # What is held is stopped with the program; the rest, once nobody and no operation has it, can be stopped by
        # nobody any more. An object whose construction failed has no life.
        # In a forked child it is the parent's.
        life = getattr(self, "life", None)
        if life is not None and self.started_here and life.wants_stop and self._made_under == fork_count():
            warnings.warn(
                f"{self!r} was never stopped: use `with`, `async with`, or stop()",
                ResourceWarning,
                source=self,
                stacklevel=1,
            )

    def ended_message(self) -> str:
        """Why nothing can be done with it any more."""
        if self.life.phase is Phase.CANCELLED:
            return "the sandbox was stopped before it was started; make a new one"
        why = self.facts.text("state_reason")
        return f"sandbox {self.sandbox_id} is {self.life.status}" + (f": {why}" if why else "")

    # Its life.

    async def start(self) -> None:
        """Have the gateway accept it, once, however many ask. Cancelled, what may have been made is removed."""
        if self.starting is None:
            self.starting = anyio.Lock()
        async with self.starting:
            if self.sandbox_id is not None:
                return
            self.life.request_begins()
            try:
                record = await self._create()
            except BaseException:
                self.life.request_failed()
                raise
            self.started_here = True
            self.life.accepted(record)
            tell_of_weak_limits(record)
            if on_started is not None:
                on_started(self)

    async def ensure_started(self) -> str:
        """Start if needed; the id of a sandbox that can take an operation.

        Raises:
            SandboxNotRunningError: It is stopping, ended, or was cancelled.
        """
        await self._start_if_new()
        if not self.life.usable:
            raise SandboxNotRunningError(self.ended_message())
        assert self.sandbox_id is not None
        return self.sandbox_id

    async def wait_running(self, timeout: float | None) -> None:
        """Wait until it runs; raises and counts as `Sandbox.wait`."""
        from cwsandbox._client.http import WaitFor

        await self._start_if_new()
        with self._deadline(timeout, "running"):
            while not self._reached_running():
                await self._poll(WaitFor.RUNNING)

    async def wait_complete(self, timeout: float | None, *, raise_on_termination: bool) -> None:
        """Wait until it has ended; raises and counts as `Sandbox.wait_until_complete`."""
        await self._start_if_new()
        with self._deadline(timeout, "complete"):
            await self.poll_until_ended()
        self._raise_if_ended_badly(raise_on_termination=raise_on_termination)

    async def poll_until_ended(self) -> None:
        """Long-poll until it is terminal."""
        from cwsandbox._client.http import WaitFor

        while self.life.phase is not Phase.TERMINAL:
            await self._poll(WaitFor.TERMINAL)

    async def refresh(self) -> None:
        """Observe the present state; a sandbox that is not known any more is gone."""
        assert self.sandbox_id is not None
        try:
            self.life.observe(await self.get(self.sandbox_id))
        except SandboxNotFoundError:
            self.life.gone()

    async def get(self, sandbox_id: str) -> Record:
        """The gateway's record of a sandbox."""
        client = await self.client()
        return await client.api.get(sandbox_id, timeout=self.timeout)

    async def _start_if_new(self) -> None:
        if self.life.phase in {Phase.NOT_STARTED, Phase.CANCELLED}:
            await self.start()

    async def _create(self) -> Record:
        assert self._request is not None
        client = await self.client()
        resource = self._request.to_resource()
        try:
            return await client.api.create(resource, request_id=self._request_id, timeout=self.timeout)
        except anyio.get_cancelled_exc_class():
            await self.take_back(client)
            raise
        except SandboxError as error:
            from cwsandbox._client.errors import may_have_happened

            if may_have_happened(error):
                # Whoever hears of the failure need not wait for this.
                self.operate(self.take_back, client, name="take a start back")
            raise

    async def take_back(self, client: GatewayClient) -> None:
        """The start was given up, or failed, before it was answered: whatever was made must not stay.

        The same request id names what was made, whether the first request arrived or not.
        """
        assert self._request is not None
        resource = self._request.to_resource()
        request_id, self._request_id = self._request_id, uuid.uuid4().hex
        with anyio.move_on_after(_TAKE_BACK_SECONDS, shield=True):
            try:
                record = await client.api.create(resource, request_id=request_id, timeout=_TAKE_BACK_SECONDS)
                await client.api.delete(record.sandbox_id, allow_missing=True, timeout=_TAKE_BACK_SECONDS)
            except SandboxNotFoundError:
                pass  # It was deleted before.
            except Exception as error:
                logger.warning("a start was given up, and what it may have made could not be removed: %s", error)

    async def _poll(self, goal: WaitFor) -> None:
        """One long poll: answers when the goal is reached, or after a while."""
        assert self.sandbox_id is not None
        client = await self.client()
        record = await client.api.get(self.sandbox_id, wait_for=goal, wait_seconds=_POLL_SECONDS, timeout=self.timeout)
        self.life.observe(record)

    @contextmanager
    def _deadline(self, timeout: float | None, goal: str) -> Iterator[None]:
        limit = self.timeout if timeout is None else timeout
        try:
            with anyio.fail_after(limit):
                yield
        except TimeoutError as error:
            raise SandboxTimeoutError(f"{self!r} is not {goal} after {limit:g} s") from error

    def _reached_running(self) -> bool:
        life = self.life
        if life.phase is Phase.STOPPING and life.stop_owned:
            raise SandboxNotRunningError(f"{self!r} was stopped while it was waited for")
        if life.phase is Phase.TERMINAL:
            self._raise_if_ended_badly(raise_on_termination=True)
        return life.phase in {Phase.RUNNING, Phase.STOPPING, Phase.TERMINAL}

    def _raise_if_ended_badly(self, *, raise_on_termination: bool) -> None:
        if self.life.status is SandboxStatus.FAILED:
            raise SandboxFailedError(self.ended_message())
        terminated = self.life.status is SandboxStatus.TERMINATED or self.life.stop_owned
        if terminated and raise_on_termination:
            raise SandboxTerminatedError(self.ended_message())
