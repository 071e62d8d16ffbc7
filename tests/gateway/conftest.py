"""A service over host processes, and clients of its application."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import httpx
import pytest
from attrs import Factory, define

from cwsandbox.gateway.app import Gateway, make_app
from cwsandbox.gateway.auth import Peer, PeerAuthenticator
from cwsandbox.gateway.service import Directories, Limits, Service
from cwsandbox.gateway.store import Store
from cwsandbox.wire.channel import StreamKind
from cwsandbox.wire.resources import Container, SandboxSpec
from cwsandbox.wire.streams import ExecOpen
from tests.gateway.client import ChannelClient, Result
from tests.gateway.hostrunner import HostRunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from cwsandbox.gateway.config import Configuration
    from cwsandbox.gateway.sandbox import LiveSandbox

ME = "uid:1000"
SLEEP = ("sleep", "1000")


def spec_of(*argv: str, **fields: Any) -> SandboxSpec:
    command, *args = argv or SLEEP
    container = Container(command=command, args=tuple(args), **fields.pop("container", {}))
    return SandboxSpec(containers=(container,), **fields)


@define
class World:
    """What a test acts on."""

    runner: HostRunner
    service: Service
    app: Any
    tasks: anyio.abc.TaskGroup
    folder: Path
    store: Store
    clients: list[ChannelClient] = Factory(list)

    async def sandbox(self, *argv: str, **fields: Any) -> LiveSandbox:
        sandbox = await self.service.create(ME, spec_of(*argv, **fields))
        await self.service.wait_for(ME, sandbox.record.sandbox_id, "running", 10)
        return sandbox

    async def client(self, pid: int = 0) -> ChannelClient:
        client = ChannelClient(self.app, self.tasks, {"peer": Peer(uid=1000, pid=pid)})
        self.clients.append(client)
        await client.connect()
        return client

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://gateway")


def execute(
    client: ChannelClient, sandbox: LiveSandbox, *argv: str, exec_id: str = "", paced: bool = True, **fields: Any
) -> Result:
    return client.open(
        StreamKind.EXEC, ExecOpen(sandbox_id=sandbox.record.sandbox_id, argv=argv, **fields), exec_id, paced
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cwsandbox-gateway-") as name:
        Path(name, "logs").mkdir()
        yield Path(name)


@contextlib.asynccontextmanager
async def open_world(
    folder: Path,
    runner: HostRunner | None = None,
    limits: Limits | None = None,
    configuration: Configuration | None = None,
) -> AsyncIterator[World]:
    async with (
        Store.open(str(folder / "sandboxes.sqlite")) as store,
        runner or HostRunner() as host,
        anyio.create_task_group() as tasks,
        Service.open(host, store, Directories(str(folder / "logs")), limits, configuration=configuration) as service,
    ):
        app = make_app(Gateway(service, PeerAuthenticator(1000)))
        world = World(host, service, app, tasks, folder, store)
        try:
            yield world
        finally:
            for client in world.clients:
                client.socket.close()
            await service.end_all()
            tasks.cancel_scope.cancel()


@pytest.fixture
async def world(folder: Path) -> AsyncIterator[World]:
    async with open_world(folder) as world:
        yield world
