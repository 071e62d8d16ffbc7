"""What a sandbox with the egress mode "internet" can reach, seen from inside; the far side is a server on this machine."""

from __future__ import annotations

import http.server
import ipaddress
import os
import socket
import threading
from typing import TYPE_CHECKING

import anyio
import pytest

from cwsandbox import Sandbox
from cwsandbox.gateway.egress.policy import Allowed, Policy
from cwsandbox.gateway.network import Network
from tests.support.gateway import served_gateway
from tests.support.levels import NAMESPACES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.gateway import ServedGateway

# Not 127.0.0.1, which NO_PROXY keeps from the proxy.
FAR = "127.0.0.2"
SECONDS = 30
INTERNET = {"egress_mode": "internet"}


class Far(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(f"GET {self.path} host={self.headers['Host']}".encode())

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, body: bytes) -> None:
        self.server.seen.append(dict(self.headers))  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def far() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer((FAR, 0), Far)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def open_gateway(runner_state: Path, far: http.server.ThreadingHTTPServer) -> Iterator[ServedGateway]:
    """A gateway whose operator allows the far server, and nothing else of this machine."""
    if not NAMESPACES:
        pytest.skip("the egress mode `internet` needs a network namespace")
    policy = Policy((Allowed(ipaddress.ip_network(FAR), far.server_port),))
    with served_gateway(runner_state, Network(policy=policy)) as gateway:
        yield gateway


@pytest.fixture
def out(open_gateway: ServedGateway) -> Iterator[Sandbox]:
    with make(open_gateway) as sandbox:
        yield sandbox


def make(gateway: ServedGateway, **options: object) -> Sandbox:
    sandbox = Sandbox(base_url=gateway.url, network=INTERNET, **options)  # type: ignore[arg-type]
    return sandbox.wait()


def python(sandbox: Sandbox, program: str, *argv: str) -> str:
    result = sandbox.exec(["python3", "-I", "-c", program, *argv], timeout_seconds=SECONDS).result()
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


FETCH = """
import sys, urllib.request, urllib.error
try:
    print(urllib.request.urlopen(sys.argv[1], data=sys.stdin.buffer.read() if len(sys.argv) > 2 else None).read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""
TUNNEL = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", 3128)
connection.set_tunnel(sys.argv[1], int(sys.argv[2]))
connection.request("GET", "/through")
print(connection.getresponse().read().decode())
"""
SOCKS = """
import socket, struct, sys
host, port = sys.argv[1].encode(), int(sys.argv[2])
s = socket.create_connection(("127.0.0.1", 3128))
def take(n):
    data = b""
    while len(data) < n:
        data += s.recv(n - len(data)) or exit("closed")
    return data
s.sendall(b"\\5\\1\\0"); assert take(2) == b"\\5\\0"
s.sendall(b"\\5\\1\\0\\3" + bytes([len(host)]) + host + struct.pack("!H", port))
reply = take(10)
print("reply", reply[1])
if reply[1] == 0:
    s.sendall(b"GET /socks HTTP/1.0\\r\\nHost: far\\r\\n\\r\\n")
    data = b""
    while part := s.recv(65536): data += part
    print(data.partition(b"\\r\\n\\r\\n")[2].decode())
"""


def test_plain_http_goes_through_the_proxy(out: Sandbox, far: http.server.ThreadingHTTPServer) -> None:
    assert out.applied_egress_mode == "internet"
    url = f"http://{FAR}:{far.server_port}/some/path?query"
    assert python(out, FETCH, url) == f"GET /some/path?query host={FAR}:{far.server_port}"
    seen = {name.lower() for name in far.seen[-1]}  # type: ignore[attr-defined]
    assert "via" in seen
    assert "proxy-connection" not in seen


def test_tunnels_go_through_the_proxy(out: Sandbox, far: http.server.ThreadingHTTPServer) -> None:
    assert python(out, TUNNEL, FAR, str(far.server_port)).startswith("GET /through")


def test_socks_goes_through_the_proxy(out: Sandbox, far: http.server.ThreadingHTTPServer) -> None:
    assert python(out, SOCKS, FAR, str(far.server_port)) == "reply 0\nGET /socks host=far"


def test_a_large_body_goes_through_unchanged(out: Sandbox, far: http.server.ThreadingHTTPServer) -> None:
    program = (
        "import sys, urllib.request; body = b'0123456789abcdef' * 65536 * 8\n"
        "answer = urllib.request.urlopen(sys.argv[1], data=body).read()\n"
        "print(answer == body)"
    )
    assert python(out, program, f"http://{FAR}:{far.server_port}/") == "True"


def test_what_is_not_allowed_is_refused_with_a_reason(out: Sandbox, far: http.server.ThreadingHTTPServer) -> None:
    for host, reason in (
        ("127.0.0.3", "a loopback address"),
        ("169.254.169.254", "metadata service"),
        ("[::ffff:10.0.0.1]", "a private address"),
        ("0x7f000001", "a loopback address"),
    ):
        answer = python(out, FETCH, f"http://{host}/")
        assert answer.startswith("403 cwsandbox: egress to "), answer
        assert reason in answer
    assert "refused" in python(out, FETCH, f"http://{FAR}:1/")
    assert python(out, SOCKS, "10.0.0.1", "80") == "reply 2"


def test_the_machines_own_addresses_are_refused(out: Sandbox) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address beside its loopback")
        own = probe.getsockname()[0]
    assert python(out, FETCH, f"http://{own}/").startswith("403")


def test_there_is_no_other_way_out(out: Sandbox, far: http.server.ThreadingHTTPServer) -> None:
    program = (
        "import socket, sys\n"
        "for address in ((sys.argv[1], int(sys.argv[2])), ('1.1.1.1', 53), ('169.254.169.254', 80)):\n"
        "    try: socket.create_connection(address, 5)\n"
        "    except OSError as error: print(error.strerror)\n"
    )
    lines = python(out, program, FAR, str(far.server_port)).splitlines()
    assert lines == ["Connection refused", "Network is unreachable", "Network is unreachable"]


def test_every_command_is_told_of_the_proxy(open_gateway: ServedGateway) -> None:
    told = "env | grep -i proxy | sort"
    with make(open_gateway, environment_variables={"https_proxy": "http://mine:1"}) as sandbox:
        lines = sandbox.exec(["sh", "-c", told]).result().stdout.split()
    ours = "http://127.0.0.1:3128"
    assert sorted(lines) == sorted(
        [
            *(f"{name}={ours}" for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")),
            *(f"{name}=localhost,127.0.0.1,::1" for name in ("NO_PROXY", "no_proxy")),
            "https_proxy=http://mine:1",
        ]
    )


def test_the_main_command_can_use_the_proxy_at_once(
    open_gateway: ServedGateway, far: http.server.ThreadingHTTPServer
) -> None:
    program = FETCH + "import time; time.sleep(600)"
    with make(open_gateway, command="python3", args=["-uIc", program, f"http://{FAR}:{far.server_port}/"]) as sandbox:
        for line in sandbox.stream_logs(follow=True):
            assert "GET /" in line
            break


async def test_many_connections_at_once(open_gateway: ServedGateway, far: http.server.ThreadingHTTPServer) -> None:
    async with Sandbox(base_url=open_gateway.url, network=INTERNET) as sandbox:
        await sandbox
        if sandbox.isolation != "namespaces":
            pytest.skip("the egress mode `internet` needs a network namespace")
        program = (
            "import sys, urllib.request, concurrent.futures\n"
            "with concurrent.futures.ThreadPoolExecutor(50) as pool:\n"
            "    print(sum(1 for _ in pool.map(lambda _: urllib.request.urlopen(sys.argv[1]).read(), range(200))))"
        )
        with anyio.fail_after(SECONDS):
            url = f"http://{FAR}:{far.server_port}/"
            result = await sandbox.exec(["python3", "-I", "-c", program, url])
        assert result.stdout.strip() == "200", result.stderr


FLOOD = """
import socket, time
connections = []
for _ in range(600):
    connections.append(socket.socket())
    connections[-1].setblocking(False)
    connections[-1].connect_ex(("127.0.0.1", 3128))
print("flooding", flush=True)
time.sleep(600)
"""


def test_a_sandbox_that_floods_its_proxy_harms_no_other(
    out: Sandbox, open_gateway: ServedGateway, far: http.server.ThreadingHTTPServer
) -> None:
    with make(open_gateway) as flooding:
        before = len(os.listdir("/proc/self/fd"))
        process = flooding.exec(["python3", "-I", "-c", FLOOD])
        assert next(iter(process.stdout)) == "flooding\n"
        for _ in range(3):
            assert python(out, FETCH, f"http://{FAR}:{far.server_port}/").startswith("GET /")
        assert len(os.listdir("/proc/self/fd")) < before + 300


def test_an_isolated_sandbox_has_no_proxy(home_folder: object) -> None:
    with Sandbox.run() as sandbox:
        assert sandbox.exec(["sh", "-c", "env | grep -ic proxy"]).result().stdout == "0\n"
