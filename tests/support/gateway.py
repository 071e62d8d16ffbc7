"""A gateway served inside the test's process: the real application, service and local runner, with doors that can be shut.

`ServedGateway.url` is an address for `base_url=`; its requests are counted at the door, and made to wait or to fail there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import anyio
import anyio.from_thread
import anyio.to_thread

from cwsandbox.gateway.app import Gateway, make_app
from cwsandbox.gateway.auth import PeerAuthenticator
from cwsandbox.gateway.reaper import reap
from cwsandbox.gateway.server import Connections, GatewayServer, bind_unix
from cwsandbox.gateway.service import Directories, Limits, Service
from cwsandbox.gateway.store import Store
from cwsandbox.runners.local.runner import LocalRunner
from cwsandbox.wire.errors import Code, Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from types import TracebackType

    from starlette.types import ASGIApp, Receive, Scope, Send

    from cwsandbox.gateway.network import Network
    from cwsandbox.runners.base import Box, Runner
    from cwsandbox.runners.specs import BoxSpec, Capabilities

Isolation = Literal["auto", "namespaces", "process"]
ARRIVAL_SECONDS = 30.0


class Door:
    """Lets everybody through while it is open; whoever comes while it is closed waits until it opens."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._arrivals = 0
        self._changed = threading.Condition()

    def close(self) -> None:
        """Stop letting anybody through, and count arrivals from zero."""
        with self._changed:
            self._arrivals = 0
        self._open.clear()

    def open(self) -> None:
        """Let everybody through."""
        self._open.set()

    def wait_for_arrivals(self, count: int) -> None:
        """Wait until `count` have come since the door was closed."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._arrivals >= count, ARRIVAL_SECONDS), "nobody came"

    async def go_through(self) -> None:
        """Wait until the door is open."""
        with self._changed:
            self._arrivals += 1
            self._changed.notify_all()
        if not self._open.is_set():
            await anyio.to_thread.run_sync(self._open.wait, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))


class HeldBox:
    """A real box whose stop waits at a door."""

    def __init__(self, box: Box, ending: Door) -> None:
        self._box = box
        self._ending = ending

    def __getattr__(self, name: str) -> Any:
        return getattr(self._box, name)

    async def stop(self, grace_seconds: float) -> None:
        await self._ending.go_through()
        await self._box.stop(grace_seconds)


class HeldRunner:
    """A real runner whose boxes are made and ended behind doors."""

    def __init__(self, runner: Runner, making: Door, ending: Door) -> None:
        self._runner = runner
        self._making = making
        self._ending = ending

    @property
    def runner_id(self) -> str:
        return self._runner.runner_id

    def capabilities(self) -> Capabilities:
        return self._runner.capabilities()

    def check(self, spec: BoxSpec) -> None:
        self._runner.check(spec)

    async def create(self, spec: BoxSpec) -> Any:
        await self._making.go_through()
        return HeldBox(await self._runner.create(spec), self._ending)

    async def recover(self) -> Sequence[Box]:
        return await self._runner.recover()

    async def __aenter__(self) -> Self:
        await self._runner.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        return await self._runner.__aexit__(exc_type, exc, tb)


class ServedGateway:
    """One gateway in a thread of its own.

    Attributes:
        url: Its address.
        accepting: The door that creation requests wait at before the gateway sees them: "not yet accepted".
        making: The door before boxes are made: accepted, but PENDING or CREATING.
        ending: The door before boxes end: TERMINATING.
        requests: What was asked for, in order: create, get, list, stop, delete, channel, ...
        grace_seconds: How long commands of a client that is gone are kept.
    """

    def __init__(
        self,
        folder: Path,
        runner_state: Path,
        grace_seconds: float = 2.0,
        network: Network | None = None,
        isolation: Isolation = "auto",
    ) -> None:
        self._isolation: Isolation = isolation
        self.accepting, self.making, self.ending = Door(), Door(), Door()
        self.requests: list[str] = []
        self.grace_seconds = grace_seconds
        self._network = network
        self._folder = folder
        self._runner_state = runner_state
        self._refusals: dict[str, tuple[int, str]] = {}
        self.url = f"unix://{folder / 'gateway.sock'}"

    def count(self, operation: str) -> int:
        """How often it was asked for."""
        return self.requests.count(operation)

    def refuse(self, operation: str, times: int, status: str = "INTERNAL") -> None:
        """Answer the next `times` requests for it with an error, before the gateway sees them."""
        self._refusals[operation] = (times, status)

    def open_doors(self) -> None:
        """Let everybody through."""
        for door in (self.accepting, self.making, self.ending):
            door.open()

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Listen; leaving ends all sandboxes and the server."""
        state, runtime = self._folder / "state", self._folder / "run"
        for folder in (state, runtime, state / "logs"):
            folder.mkdir(mode=0o700)
        limits = Limits(grace_seconds=self.grace_seconds)
        async with (
            LocalRunner(self._runner_state, runtime, isolation=self._isolation) as local,
            Store.open(str(state / "store")) as store,
        ):
            runner = HeldRunner(local, self.making, self.ending)
            directories = Directories(logs=str(state / "logs"))
            async with Service.open(runner, store, directories, limits, self._network) as service:
                app = make_app(Gateway(service, PeerAuthenticator(os.geteuid())))
                server = GatewayServer(self._at_the_door(app), Connections())
                listener = bind_unix(str(self._folder / "gateway.sock"))
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(server.serve, [listener])
                    tasks.start_soon(reap, service)
                    await server.listening.wait()
                    yield
                    self.open_doors()
                    await service.end_all()
                    server.stop()
                    tasks.cancel_scope.cancel()

    def _at_the_door(self, app: ASGIApp) -> ASGIApp:
        async def door(scope: Scope, receive: Receive, send: Send) -> None:
            operation = _operation(scope)
            self.requests.append(operation)
            times, status = self._refusals.get(operation, (0, ""))
            if times > 0:
                self._refusals[operation] = (times - 1, status)
                await _refuse(send, Status.make(Code[status], "refused by the test"))
                return
            if operation == "create":
                await self.accepting.go_through()
            await app(scope, receive, send)

        return door


def _operation(scope: Scope) -> str:
    if scope["type"] == "websocket":
        return "channel"
    method, path = scope["method"], scope["path"]
    if method == "POST":
        return "create" if path == "/v1/sandboxes" else path.rpartition(":")[2]
    if method == "DELETE":
        return "delete"
    return {"/v1/sandboxes": "list", "/v1/gateway": "info"}.get(path, "get")


async def _refuse(send: Send, status: Status) -> None:
    head = {"status": status.code.http_status, "headers": [(b"content-type", b"application/json")]}
    await send({"type": "http.response.start", **head})
    await send({"type": "http.response.body", "body": json.dumps(status.to_json()).encode()})


@contextlib.contextmanager
def served_gateway(
    runner_state: Path, network: Network | None = None, isolation: Isolation = "auto"
) -> Iterator[ServedGateway]:
    """Serve one in a thread.

    Args:
        runner_state: Where the runner keeps layers and images; gateways that come one after the other may share it.
        network: How it connects its sandboxes; default as an embedded gateway.
        isolation: What the runner is to give.
    """
    folder = Path(tempfile.mkdtemp(prefix="cws", dir="/tmp"))
    gateway = ServedGateway(folder, runner_state, network=network, isolation=isolation)
    try:
        with (
            anyio.from_thread.start_blocking_portal("asyncio", name="served-gateway") as portal,
            portal.wrap_async_context_manager(gateway.serve()),
        ):
            yield gateway
    finally:
        gateway.open_doors()
        shutil.rmtree(folder)
