"""What a gateway offers of ports and modes; its listeners over its own restarts, and their limits."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest

from cwsandbox.gateway.errors import StatusError
from cwsandbox.gateway.ingress import open_doors, serve_doors
from cwsandbox.gateway.network import Network
from cwsandbox.runners.sockets import SocketStream
from cwsandbox.runners.specs import BoxNetwork, Capabilities, IsolationLevel, Port
from cwsandbox.wire import channel as wire
from cwsandbox.wire.errors import Code
from cwsandbox.wire.resources import Container, NetworkOptions, SandboxSpec, Service, ServiceProtocol
from tests.gateway.gatewayprocess import GatewayProcess, SyncChannel
from tests.support.levels import needs_namespaces
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cwsandbox.runners.base import Box

SECONDS = 20
LIMIT = 64 << 20
SERVER = """
import http.server
http.server.ThreadingHTTPServer(("127.0.0.1", PORT), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def capabilities(**changes: Any) -> Capabilities:
    values: dict[str, Any] = {
        "isolation": IsolationLevel.NAMESPACES,
        "cpu_millicores": 1000,
        "memory_bytes": 1 << 30,
        "architecture": "amd64",
        "egress_modes": ("isolated", "internet"),
        "ingress_modes": ("internal", "public"),
    }
    return Capabilities(**values | changes)


WEAK = capabilities(
    isolation=IsolationLevel.PROCESS,
    egress_modes=("host", "isolated"),
    modes_without_loopback=frozenset({"isolated"}),
)


def spec(*services: Service, **network: Any) -> SandboxSpec:
    return SandboxSpec(
        containers=(Container(command="true"),),
        services=services,
        network=NetworkOptions(**network) if network else None,
    )


WEB, DATABASE = Service(port=80, name="web"), Service(port=5432)


@pytest.mark.parametrize(
    ("asked", "has", "plan"),
    [
        (spec(), capabilities(), BoxNetwork(egress_mode="isolated")),
        (spec(), WEAK, BoxNetwork(egress_mode="host")),
        (spec(egress_mode="internet"), capabilities(), BoxNetwork(egress_mode="internet", listen=(3128,))),
        (spec(egress_mode="isolated"), WEAK, BoxNetwork(egress_mode="isolated")),
        (
            spec(WEB, DATABASE),
            capabilities(),
            BoxNetwork(egress_mode="isolated", ingress_mode="internal", exposed=(Port(80, "web"), Port(5432))),
        ),
        (
            spec(WEB, DATABASE, ingress_mode="public", exposed_ports=(5432, 9, 9)),
            capabilities(),
            BoxNetwork(egress_mode="isolated", ingress_mode="public", exposed=(Port(5432), Port(9))),
        ),
        (spec(ingress_mode="public"), capabilities(), BoxNetwork(egress_mode="isolated", ingress_mode="public")),
    ],
)
def test_a_specification_becomes_a_plan(asked: SandboxSpec, has: Capabilities, plan: BoxNetwork) -> None:
    assert Network().plan(asked, has) == plan


@pytest.mark.parametrize(
    ("asked", "has", "network", "code", "words"),
    [
        (spec(egress_mode="org"), capabilities(), Network(), Code.UNIMPLEMENTED, "'org'; it has isolated, internet"),
        (spec(egress_mode="internet"), WEAK, Network(), Code.UNIMPLEMENTED, "'internet'; it has host, isolated"),
        (spec(WEB, egress_mode="isolated"), WEAK, Network(), Code.UNIMPLEMENTED, "no sockets here"),
        (spec(ingress_mode="org"), capabilities(), Network(), Code.UNIMPLEMENTED, "'org'; it has internal, public"),
        (
            spec(WEB, ingress_mode="public"),
            capabilities(),
            Network(public_host=""),
            Code.UNIMPLEMENTED,
            "'public'; it has internal",
        ),
        (spec(WEB), capabilities(ingress_modes=()), Network(), Code.UNIMPLEMENTED, "exposing ports"),
        (spec(WEB, WEB), capabilities(), Network(), Code.INVALID_ARGUMENT, "twice"),
        (
            spec(Service(port=53, protocol=ServiceProtocol.UDP)),
            capabilities(),
            Network(),
            Code.UNIMPLEMENTED,
            "UDP (port 53); it has TCP",
        ),
        (spec(exposed_ports=(0,)), capabilities(), Network(), Code.INVALID_ARGUMENT, "from 1 to 65535"),
        (spec(exposed_ports=tuple(range(1, 50))), capabilities(), Network(), Code.INVALID_ARGUMENT, "32 ports"),
        (
            spec(exposed_ports=(3128,), egress_mode="internet"),
            capabilities(),
            Network(),
            Code.INVALID_ARGUMENT,
            "proxy",
        ),
    ],
)
def test_what_is_not_offered_is_refused_with_what_is(
    asked: SandboxSpec, has: Capabilities, network: Network, code: Code, words: str
) -> None:
    with pytest.raises(StatusError) as caught:
        network.plan(asked, has)
    assert caught.value.status.code is code
    assert words in caught.value.status.message


async def test_clients_are_told_a_name_where_the_address_is_none() -> None:
    with pytest.raises(ValueError, match=r"0\.0\.0\.0"):
        Network(public_host="0.0.0.0")
    network = Network(public_host="0.0.0.0", public_name="sandboxes.example")
    with contextlib.closing(network.connect(BoxNetwork(ingress_mode="public", exposed=(Port(80),)))) as connected:
        assert connected.endpoints[0].address.startswith("sandboxes.example:")
    with contextlib.closing(network.connect(BoxNetwork(ingress_mode="internal", exposed=(Port(80),)))) as connected:
        assert connected.endpoints[0].address.startswith("127.0.0.1:")


async def test_a_known_port_is_taken_again_unless_somebody_has_it() -> None:
    plan = BoxNetwork(ingress_mode="internal", exposed=(Port(80, "web"),))
    with contextlib.closing(Network().connect(plan)) as first:
        known = first.endpoints
        with contextlib.closing(Network().reconnect("internal", "isolated", known)) as other:
            assert other.endpoints != known
    with contextlib.closing(Network().reconnect("internal", "isolated", known)) as again:
        assert again.endpoints == known


class Inside:
    """A box whose port 80 is a server of this process; other ports refuse."""

    sandbox_id = "sb-1"

    def __init__(self, listener: socket.socket) -> None:
        self.port = listener.getsockname()[1]

    async def connect(self, port: int) -> SocketStream:
        if port != 80:
            raise ConnectionRefusedError
        return await SocketStream.connect("127.0.0.1", self.port)


async def test_a_reader_that_never_reads_stops_the_sender_and_nothing_is_left() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        doors = open_doors((Port(80),), "127.0.0.1", {})
        users = 0

        @contextlib.contextmanager
        def in_use() -> Iterator[None]:
            nonlocal users
            users += 1
            try:
                yield
            finally:
                users -= 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve_doors, doors, cast("Box", Inside(listener)), in_use)
            client = await SocketStream.connect("127.0.0.1", doors[0].number)
            await anyio.wait_readable(listener)
            sender, sent = SocketStream(listener.accept()[0]), 0
            # The buffers of four sockets and one chunk fill up, then nothing moves any more.
            with pytest.raises(TimeoutError):
                while sent < LIMIT:
                    with anyio.fail_after(1):
                        await sender.send(bytes(1 << 20))
                    sent += 1 << 20
            assert users == 1
            client.close()
            sender.close()
            tasks.cancel_scope.cancel()
        for door in doors:
            door.close()
        assert users == 0
    assert len(os.listdir("/proc/self/fd")) <= before  # Fewer if something of an earlier test was collected.


@pytest.mark.parametrize("isolation", [pytest.param("namespaces", marks=needs_namespaces), "process"])
def test_a_killed_gateways_successor_serves_the_same_ports(folder: Path, isolation: str) -> None:
    port = free_port()  # Without namespaces it is this machine's.
    command = ["python3", "-uIc", SERVER.replace("PORT", str(port))]
    body = {
        "spec": {
            "containers": [{"command": command[0], "args": command[1:]}],
            "services": [{"port": port, "name": "web"}],
        }
    }
    with GatewayProcess(folder, "--isolation", isolation) as gateway:
        with gateway.http() as http:
            made = http.post("/v1/sandboxes", json=body).json()
            record = http.get(f"/v1/sandboxes/{made['sandboxId']}", params={"waitFor": "running"}).json()
        assert record["status"]["state"] == "STATE_RUNNING"
        address = made["status"]["serviceAddress"]
        assert record["status"]["serviceAddress"] == address
        answers(address)
        gateway.process.kill()
        gateway.process.wait()
    with GatewayProcess(folder, "--isolation", isolation) as successor:
        with successor.http() as http:
            again = http.get(f"/v1/sandboxes/{made['sandboxId']}").json()
        assert again["status"]["serviceAddress"] == address
        answers(address)
    with pytest.raises(ConnectionRefusedError):
        connect(address)
    assert "Traceback" not in (folder / "log").read_text()


FETCH = """
import urllib.error, urllib.request
try:
    urllib.request.urlopen("http://169.254.169.254/")
except urllib.error.HTTPError as error:
    print(error.code)
"""


@needs_namespaces
def test_a_killed_gateways_successor_serves_the_way_out(folder: Path) -> None:
    body = {"spec": {"containers": [{"command": "sleep", "args": ["1000"]}], "network": {"egressMode": "internet"}}}

    def fetched(gateway: GatewayProcess) -> bytes:
        with SyncChannel(gateway.socket) as channel:
            channel.start(sandbox_id, "python3", "-Ic", FETCH)
            output: bytes = channel.until(wire.Closed)[bytes]
            return output

    with GatewayProcess(folder, "--isolation", "namespaces") as gateway:
        with gateway.http() as http:
            made = http.post("/v1/sandboxes", json=body).json()
            sandbox_id = made["sandboxId"]
            record = http.get(f"/v1/sandboxes/{sandbox_id}", params={"waitFor": "running"}).json()
        assert record["status"]["state"] == "STATE_RUNNING"
        assert fetched(gateway) == b"403\n"
        gateway.process.kill()
        gateway.process.wait()
    with GatewayProcess(folder, "--isolation", "namespaces") as successor:
        assert fetched(successor) == b"403\n"
    assert "Traceback" not in (folder / "log").read_text()


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), SECONDS)


def answers(address: str) -> None:
    """Ask until the server inside listens: until then it is cut off each time."""
    for _ in range(2000):
        with contextlib.suppress(ConnectionResetError), connect(address) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            if connection.recv(4096).startswith(b"HTTP/1.0 200"):
                return
    pytest.fail("it never answered")
