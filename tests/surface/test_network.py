"""Ports of a sandbox, reached from outside; what a sandbox can reach."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import time
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest

from cwsandbox import NetworkOptions, Sandbox
from cwsandbox.exceptions import SandboxError
from tests.support.levels import needs_descriptors, needs_own_ipv6

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from cwsandbox.process import Process
    from tests.support.gateway import ServedGateway


PORTS = [{"container_port": 8080, "name": "web", "protocol": "TCP"}]
SECONDS = 20

# Each says "ready" when it listens.
WEB = """
import http.server, sys
class Server(http.server.ThreadingHTTPServer):
    address_family = 10 if ":" in sys.argv[1] else 2
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = b"hello from inside"
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
server = Server((sys.argv[1], 8080), Handler)
server.request_queue_size = 64
server.socket.listen(64)
print("ready", flush=True)
server.serve_forever()
"""
COUNT = """
import hashlib, socket
server = socket.create_server(("127.0.0.1", 8080))
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    with connection:
        digest, size = hashlib.sha256(), 0
        while data := connection.recv(1 << 20):
            digest.update(data); size += len(data)
        connection.sendall(f"{size} {digest.hexdigest()}".encode())
"""
FLOOD = """
import socket
server = socket.create_server(("127.0.0.1", 8080))
print("ready", flush=True)
connection, _ = server.accept()
try:
    while True: connection.sendall(b"x" * (1 << 20))
except ConnectionError:
    print("cut", flush=True)
"""
SILENT = """
import socket
server = socket.create_server(("127.0.0.1", 8080))
print("ready", flush=True)
connections = []
while True:
    connections.append(server.accept())
    print("accepted", flush=True)
"""


def until(process: Process, word: str) -> None:
    for line in process.stdout:
        if word in line:
            return
    pytest.fail(f"the program in the sandbox never said {word!r}: {process.result().stderr}")


@contextlib.contextmanager
def serving(sandbox: Sandbox, program: str, *argv: str) -> Iterator[str]:
    """A server in the sandbox, and its address on this side."""
    process = sandbox.exec(["python3", "-I", "-c", program, *argv])
    until(process, "ready")
    try:
        assert sandbox.service_address is not None
        yield sandbox.service_address
    finally:
        process.cancel()


@contextlib.asynccontextmanager
async def aserving(program: str, *argv: str) -> AsyncIterator[tuple[str, int]]:
    async with Sandbox(ports=PORTS) as sandbox:
        process = sandbox.exec(["python3", "-I", "-c", program, *argv])
        async for line in process.stdout:
            assert "ready" in line
            break
        assert sandbox.service_address is not None
        host, _, port = sandbox.service_address.rpartition(":")
        yield host, int(port)
        process.cancel()


@pytest.fixture
def exposed(home_folder: object) -> Iterator[Sandbox]:
    with Sandbox.run(ports=PORTS) as sandbox:
        yield sandbox


def address_of(sandbox: Sandbox) -> tuple[str, int]:
    assert sandbox.service_address is not None
    host, _, port = sandbox.service_address.rpartition(":")
    return host, int(port)


@pytest.mark.parametrize("bound", ["0.0.0.0", "127.0.0.1", pytest.param("::1", marks=needs_own_ipv6), "::"])
def test_a_server_in_the_sandbox_is_reached_from_outside(exposed: Sandbox, bound: str) -> None:
    with serving(exposed, WEB, bound) as address:
        assert httpx.get(f"http://{address}/", trust_env=False).text == "hello from inside"


def test_the_start_tells_where_and_how(home_folder: object) -> None:
    network = NetworkOptions(ingress_mode="public", exposed_ports=(8080, 9090))
    with Sandbox.run(ports=PORTS, network=network) as sandbox:
        assert sandbox.applied_ingress_mode == "public"
        assert sandbox.exposed_ports == ((8080, "web"), (9090, ""))
        assert sandbox.service_urls is not None
        (web, other) = sandbox.service_urls
        assert web[:2] == (8080, "web")
        assert other[:2] == (9090, "")
        assert sandbox.service_address == web[2] != other[2]
        assert sandbox.service_address.startswith("127.0.0.1:")


def test_others_see_the_same(exposed: Sandbox) -> None:
    assert exposed.sandbox_id is not None
    exposed.wait()
    found = Sandbox.from_id(exposed.sandbox_id).result()
    listed = [each for each in Sandbox.list().result() if each.sandbox_id == exposed.sandbox_id]
    for other in (found, *listed):
        assert other.service_urls == exposed.service_urls
        assert other.applied_ingress_mode == "internal"
        assert other.applied_egress_mode == exposed.applied_egress_mode
    assert len(listed) == 1


def test_ports_are_declared_only_where_others_are_exposed(home_folder: object) -> None:
    with Sandbox.run(ports=PORTS, network={"ingress_mode": "internal", "exposed_ports": [9090]}) as sandbox:
        assert sandbox.exposed_ports == ((9090, ""),)


def test_without_ports_nothing_is_exposed(home_folder: object) -> None:
    with Sandbox.run() as sandbox:
        sandbox.wait()
        assert (sandbox.service_address, sandbox.exposed_ports, sandbox.service_urls) == (None, None, None)
        assert sandbox.applied_ingress_mode is None
        assert sandbox.applied_egress_mode == ("isolated" if sandbox.isolation == "namespaces" else "host")


def test_a_port_on_which_nobody_listens_is_cut_at_once(exposed: Sandbox) -> None:
    exposed.wait()
    with (
        pytest.raises(ConnectionResetError),  # On a busy machine before the connect has returned.
        socket.create_connection(address_of(exposed), SECONDS) as connection,
    ):
        connection.settimeout(SECONDS)
        connection.recv(1)


def test_the_listener_is_closed_with_the_sandbox(home_folder: object) -> None:
    with Sandbox.run(ports=PORTS) as sandbox, serving(sandbox, SILENT) as _:
        address = address_of(sandbox)
        connection = socket.create_connection(address, SECONDS)
    with connection:
        connection.settimeout(SECONDS)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, SECONDS)
    assert sandbox.service_address is None


@pytest.mark.parametrize("protocol", ["UDP", "SCTP"])
def test_other_protocols_are_refused_by_name(home_folder: object, protocol: str) -> None:
    with pytest.raises(SandboxError, match=f"{protocol}.*port 53.*TCP"):
        Sandbox.run(ports=[{"container_port": 53, "protocol": protocol}])


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"ingress_mode": "org"}, "'org'.*internal, public"),
        ({"egress_mode": "org"}, "'org'.*isolated"),
        ({"egress_mode": "user"}, "'user'.*isolated"),
    ],
)
def test_unknown_modes_are_refused_with_what_there_is(home_folder: object, network: dict[str, str], words: str) -> None:
    with pytest.raises(SandboxError, match=words):
        Sandbox.run(network=network)


@needs_descriptors(32 * 50)  # A sandbox's connections take a 32nd of them each, so that it cannot starve others.
async def test_fifty_connections_at_once(home_folder: object) -> None:
    async with aserving(WEB, "0.0.0.0") as (host, port):
        texts = []
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(trust_env=False, limits=limits, timeout=SECONDS) as http:

            async def get() -> None:
                texts.append((await http.get(f"http://{host}:{port}/")).text)

            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(get)
        assert texts == ["hello from inside"] * 50


async def test_a_half_closed_connection_still_answers(home_folder: object) -> None:
    async with aserving(COUNT) as (host, port), await anyio.connect_tcp(host, port) as connection:
        await connection.send(b"question")
        await connection.send_eof()
        answer = b""
        with anyio.fail_after(SECONDS), contextlib.suppress(anyio.EndOfStream):
            while True:
                answer += await connection.receive()
        assert answer.decode() == f"8 {hashlib.sha256(b'question').hexdigest()}"


@needs_descriptors(32 * 50)  # A sandbox's connections take a 32nd of them each, so that it cannot starve others.
async def test_fifty_megabytes_go_through_unchanged(home_folder: object) -> None:
    block, digest = os.urandom(1 << 20), hashlib.sha256()
    async with aserving(COUNT) as (host, port), await anyio.connect_tcp(host, port) as connection:
        with anyio.fail_after(SECONDS):
            for _ in range(50):
                digest.update(block)
                await connection.send(block)
            await connection.send_eof()
            answer = b""
            with contextlib.suppress(anyio.EndOfStream):
                while True:
                    answer += await connection.receive()
        assert answer.decode() == f"{50 << 20} {digest.hexdigest()}"


async def test_a_connection_that_is_given_up_is_cut_inside_too(home_folder: object) -> None:
    async with Sandbox(ports=PORTS) as sandbox:
        process = sandbox.exec(["python3", "-I", "-c", FLOOD])
        lines = aiter(process.stdout)
        assert await anext(lines) == "ready\n"
        connection = await anyio.connect_tcp(*address_of(sandbox))
        await connection.receive()
        await connection.aclose()
        with anyio.fail_after(SECONDS):
            assert await anext(lines) == "cut\n"


@pytest.mark.parametrize("how", ["ended", "cut"])
def test_connections_leave_nothing_in_the_gateway(gateway: ServedGateway, how: str) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with (
        Sandbox(base_url=gateway.url, ports=PORTS) as sandbox,
        serving(sandbox, COUNT if how == "ended" else SILENT) as _,
    ):
        before = descriptors()
        connections = [socket.create_connection(address_of(sandbox), SECONDS) for _ in range(30)]
        assert descriptors() > before
        for connection in connections:
            if how == "ended":
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(100):
                    pass
            else:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        deadline = time.monotonic() + SECONDS
        while descriptors() > before:
            assert time.monotonic() < deadline, f"{descriptors()} descriptors, there were {before}"
            time.sleep(0.01)  # The gateway's thread closes them and tells nobody.
