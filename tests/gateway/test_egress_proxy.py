"""The proxy over real sockets: a client on one side, a scripted server on the other."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cwsandbox.gateway.egress import dialing, http
from cwsandbox.gateway.egress.dialing import Dialer, DialError, Failure
from cwsandbox.gateway.egress.policy import Allowed, Policy
from cwsandbox.gateway.egress.proxy import _serve
from cwsandbox.gateway.egress.target import Target
from cwsandbox.gateway.relay import take_connections
from cwsandbox.runners.errors import BoxGoneError
from cwsandbox.runners.sockets import SocketStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from cwsandbox.runners.base import Connection

    Script = Callable[[SocketStream], Coroutine[Any, Any, None]]

SECONDS = 10
LOOPBACK = Policy((Allowed(ipaddress.ip_network("127.0.0.1")),), is_own=lambda _: False)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def resolve(host: str, port: int) -> list[tuple[Any, ...]]:
    """far.example is this machine; near.example has a private address, and both.example one of each."""
    known = {
        "far.example": ["127.0.0.1"],
        "near.example": ["10.0.0.1"],
        "both.example": ["10.0.0.1", "127.0.0.1"],
        "none.example": [],
    }
    if host not in known:
        try:
            known[host] = [str(ipaddress.ip_address(host))]
        except ValueError:
            raise socket.gaierror(socket.EAI_NONAME, "unknown") from None
    return [(2, 1, 6, "", (address, port)) for address in known[host]]


async def until_end(stream: SocketStream) -> bytes:
    data = b""
    with contextlib.suppress(anyio.EndOfStream):
        while True:
            data += await stream.receive()
    return data


async def until(stream: SocketStream, wanted: bytes) -> bytes:
    data = b""
    while wanted not in data:
        data += await stream.receive()
    return data


class World:
    """A proxy and a server that runs `script` for each connection; `heard` is what the server was told."""

    def __init__(self, script: Script | None) -> None:
        self.heard: list[bytes] = []
        self.script = script or self.answer
        self.port = 0
        self.proxy = 0

    async def answer(self, stream: SocketStream) -> None:
        self.heard.append(await until(stream, b"\r\n\r\n"))
        await stream.send(OK)

    async def run(self, stream: Connection) -> None:
        assert isinstance(stream, SocketStream)
        with contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream):
            await self.script(stream)
        stream.close()

    async def client(self) -> SocketStream:
        return await SocketStream.connect("127.0.0.1", self.proxy)

    async def exchange(self, data: bytes) -> bytes:
        client = await self.client()
        try:
            await client.send(data)
            return await until_end(client)
        finally:
            client.close()


def accepting(listener: socket.socket) -> Callable[[], Awaitable[Connection]]:
    async def accept() -> Connection:
        await anyio.wait_readable(listener)
        return SocketStream(listener.accept()[0])

    return accept


@contextlib.asynccontextmanager
async def world(script: Script | None = None, dialer: Dialer | None = None) -> AsyncIterator[World]:
    made = World(script)
    dialer = dialer or Dialer(LOOPBACK, resolve)

    async def serve(client: Connection) -> None:
        await _serve(dialer, client)

    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as proxy:
        made.port, made.proxy = server.getsockname()[1], proxy.getsockname()[1]
        with anyio.fail_after(SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take_connections, accepting(server), made.run, anyio.Semaphore(20))
                tasks.start_soon(take_connections, accepting(proxy), serve, anyio.Semaphore(20))
                yield made
                tasks.cancel_scope.cancel()


def get(port: int, host: str = "far.example", fields: str = "") -> bytes:
    return f"GET http://{host}:{port}/p?q HTTP/1.1\r\nHost: other\r\n{fields}\r\n".encode()


async def test_a_request_is_written_anew_for_the_server() -> None:
    fields = (
        "Proxy-Authorization: Basic c2VjcmV0\r\nProxy-Connection: keep-alive\r\nConnection: X-Mine, close\r\n"
        "X-Mine: 1\r\nTE: trailers\r\nUpgrade: h2c\r\nAuthorization: Bearer theirs\r\nX-Kept: yes\r\n"
    )
    async with world() as far:
        answer = await far.exchange(get(far.port, fields=fields))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"ok")
        assert b"via: 1.1 cwsandbox" in answer.lower()
    line, *told = far.heard[0].decode().lower().split("\r\n")
    assert line == "get /p?q http/1.1"
    assert sorted(filter(None, told)) == [
        "authorization: bearer theirs",
        "connection: close",
        f"host: far.example:{far.port}",
        "via: 1.1 cwsandbox",
        "x-kept: yes",
    ]


async def test_every_request_of_a_connection_is_judged() -> None:
    async with world() as far:
        client = await far.client()
        await client.send(get(far.port))
        assert (await until(client, b"ok")).startswith(b"HTTP/1.1 200")
        await client.send(get(far.port, "near.example"))
        answer = await until_end(client)
        client.close()
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"cwsandbox: egress to near.example:" in answer
    assert b"private address" in answer
    assert b"10.0.0.1" not in answer
    assert len(far.heard) == 1


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET https://far.example/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT far.example HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT far.example:80 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET http://far.example/ HTTP/1.1\r\n\r\n", 400),
        (b"POST http://far.example/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET http://far.example/ HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 300_000 + b"\r\n\r\n", 431),
        (b"GET http://unknown.example/ HTTP/1.1\r\nHost: x\r\n\r\n", 502),
        (b"GET http://none.example/ HTTP/1.1\r\nHost: x\r\n\r\n", 403),
        (b"GET http://127.0.0.1:1/ HTTP/1.1\r\nHost: x\r\n\r\n", 502),
        (b"GET http://169.254.169.254/latest HTTP/1.1\r\nHost: x\r\n\r\n", 403),
        (b"CONNECT [::1]:80 HTTP/1.1\r\nHost: x\r\n\r\n", 403),
    ],
)
async def test_what_cannot_be_done_is_answered_with_a_reason(head: bytes, status: int) -> None:
    async with world() as far:
        answer = await far.exchange(head)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"\r\n\r\ncwsandbox: " in answer
    assert far.heard == []


async def test_a_refused_head_is_answered_without_a_body(caplog: pytest.LogCaptureFixture) -> None:
    async with world() as far:
        answer = await far.exchange(b"HEAD http://near.example/ HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403")
    assert answer.endswith(b"\r\n\r\n")
    assert not caplog.records


async def test_of_a_names_addresses_only_those_allowed_are_used() -> None:
    async with world() as far:
        assert (await far.exchange(get(far.port, "both.example", "Connection: close\r\n"))).endswith(b"ok")


async def test_a_name_that_changes_its_mind_gains_nothing() -> None:
    """The address that was judged is the one that is connected to: there is no second look-up."""
    answers = iter(["127.0.0.1", "10.0.0.1"])

    async def rebinding(host: str, port: int) -> list[tuple[Any, ...]]:
        return [(2, 1, 6, "", (next(answers), port))]

    async with world(dialer=Dialer(LOOPBACK, rebinding)) as far:
        assert (await far.exchange(get(far.port, "turn.example", "Connection: close\r\n"))).endswith(b"ok")
        assert (await far.exchange(get(far.port, "turn.example"))).startswith(b"HTTP/1.1 403")
    assert len(far.heard) == 1


async def test_a_tunnel_carries_early_bytes_and_half_closes() -> None:
    async def echo(stream: SocketStream) -> None:
        await stream.send(await until_end(stream))

    async with world(echo) as far:
        client = await far.client()
        await client.send(f"CONNECT far.example:{far.port} HTTP/1.1\r\nHost: x\r\n\r\nearly ".encode())
        assert b"200" in await until(client, b"\r\n\r\n")
        await client.send(b"and late")
        await client.send_eof()
        assert await until_end(client) == b"early and late"
        client.close()


async def test_socks_carries_early_bytes() -> None:
    async def echo(stream: SocketStream) -> None:
        await stream.send(await until_end(stream))

    async with world(echo) as far:
        client = await far.client()
        await client.send(b"\5\1\0\5\1\0\3\x0bfar.example" + far.port.to_bytes(2, "big") + b"early")
        await client.send_eof()
        assert await until_end(client) == b"\5\0\5\0\0\1\0\0\0\0\0\0early"
        client.close()


@pytest.mark.parametrize(
    ("host", "code"), [(b"near.example", 2), (b"unknown.example", 4), (b"127.0.0.1", 5), (b"bad host", 1)]
)
async def test_socks_says_what_is_wrong(host: bytes, code: int) -> None:
    async with world() as far:
        answer = await far.exchange(b"\5\1\0\5\1\0\3" + bytes([len(host)]) + host + b"\0\1")
    assert answer[:4] == b"\5\0\5" + bytes([code])


async def test_a_chunked_body_arrives_and_ambiguous_lengths_do_not() -> None:
    async def count(stream: SocketStream) -> None:
        far.heard.append(await until(stream, b"0\r\n\r\n"))
        await stream.send(OK)

    body = b"5\r\nhello\r\n0\r\n\r\n"
    async with world(count) as far:
        head = f"POST http://far.example:{far.port}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        fields = "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n"
        answer = await far.exchange((head + fields).encode() + body)
        assert answer.endswith(b"ok")
    told, _, rest = far.heard[0].lower().partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in told
    assert b"content-length" not in told
    assert b"hello" in rest


async def test_the_proxy_itself_asks_for_a_body_that_is_held_back() -> None:
    async def take(stream: SocketStream) -> None:
        far.heard.append(await until(stream, b"body"))
        await stream.send(OK)

    async with world(take) as far:
        client = await far.client()
        head = f"POST http://far.example:{far.port}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
        await client.send(f"{head}Expect: 100-continue\r\nConnection: close\r\n\r\n".encode())
        assert (await until(client, b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        await client.send(b"body")
        assert (await until_end(client)).endswith(b"ok")
        client.close()
    assert b"expect" not in far.heard[0].lower()


async def test_an_answer_without_a_length_reaches_its_end() -> None:
    async def stream_out(stream: SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        await stream.send(b"HTTP/1.1 200 OK\r\n\r\npart one, ")
        await stream.send(b"part two")

    async with world(stream_out) as far:
        answer = await far.exchange(get(far.port, fields="Connection: close\r\n"))
    assert b"transfer-encoding: chunked" in answer.lower()
    assert b"part one, " in answer
    assert answer.endswith(b"part two\r\n0\r\n\r\n")


async def test_an_answer_that_was_cut_off_does_not_look_complete() -> None:
    async def cut(stream: SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    async with world(cut) as far:
        client = await far.client()
        await client.send(get(far.port))
        with pytest.raises(anyio.BrokenResourceError):
            await until_end(client)
        client.close()


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 101 Switching\r\n\r\n", b"SSH-2.0-x\r\n"])
async def test_a_server_that_does_not_speak_http_is_told_of(answer: bytes) -> None:
    async def speak(stream: SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        await stream.send(answer)

    async with world(speak) as far:
        assert (await far.exchange(get(far.port))).startswith(b"HTTP/1.1 502")


async def test_a_server_that_fails_while_a_body_is_awaited_is_told_of() -> None:
    async def speak(stream: SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        await stream.send(b"nonsense\r\n\r\n")

    async with world(speak) as far:
        client = await far.client()
        await client.send(get(far.port, fields="Content-Length: 5\r\n"))
        assert (await until(client, b"with HTTP")).startswith(b"HTTP/1.1 502")
        client.close()


async def test_a_client_that_stops_in_its_body_is_cut_off() -> None:
    async def wait(stream: SocketStream) -> None:
        await until_end(stream)

    async with world(wait) as far:
        client = await far.client()
        await client.send(get(far.port, fields="Content-Length: 5\r\n") + b"abc")
        await client.send_eof()
        with contextlib.suppress(anyio.BrokenResourceError):
            assert not (await until_end(client)).startswith(b"HTTP/1.1 2")
        client.close()


async def test_a_server_may_answer_before_it_has_read_everything() -> None:
    async def early(stream: SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        await stream.send(b"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n")

    async with world(early) as far:
        client = await far.client()
        head = f"POST http://far.example:{far.port}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n"
        await client.send(head.encode() + b"x" * 1000)
        assert b"413" in await until(client, b"\r\n\r\n")
        client.close()


async def test_the_body_of_head_does_not_confuse_what_follows() -> None:
    async def head(stream: SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")

    async with world(head) as far:
        client = await far.client()
        for _ in range(2):
            await client.send(get(far.port).replace(b"GET", b"HEAD"))
            assert b"content-length: 1000" in (await until(client, b"\r\n\r\n")).lower()
        client.close()


async def test_slow_ones_are_timed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(host: str, port: int) -> list[tuple[Any, ...]]:
        await anyio.sleep_forever()
        return []

    monkeypatch.setattr(dialing, "_RESOLVE_SECONDS", 0.05)
    with pytest.raises(DialError) as caught:
        await Dialer(LOOPBACK, never).dial(Target("slow.example", 80))
    assert caught.value.failure is Failure.TIMED_OUT

    monkeypatch.setattr(http, "_HEAD_SECONDS", 0.05)
    async with world() as far:
        assert (await far.exchange(b"GET http://far")).startswith(b"HTTP/1.1 408")


async def test_a_cancelled_dial_leaves_no_socket() -> None:
    started = anyio.Event()

    async def slow(host: str, port: int) -> list[tuple[Any, ...]]:
        started.set()
        await anyio.sleep_forever()
        return []

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Dialer(LOOPBACK, slow).dial, Target("slow.example", 80))
        await started.wait()
        tasks.cancel_scope.cancel()


async def test_an_end_of_the_box_is_the_end_of_taking_connections() -> None:
    async def gone() -> SocketStream:
        raise BoxGoneError("gone")

    async def handle(connection: Any) -> None:
        raise AssertionError

    with anyio.fail_after(SECONDS):
        await take_connections(gone, handle, anyio.Semaphore(1))


async def test_a_lack_of_descriptors_is_waited_out(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    async def accept() -> SocketStream:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(24, "Too many open files")
        raise BoxGoneError("gone")

    async def handle(connection: Any) -> None:
        raise AssertionError

    with anyio.fail_after(SECONDS):
        await take_connections(accept, handle, anyio.Semaphore(1))
    assert calls == 2
    assert "has to wait" in caplog.text


PIECES = st.sampled_from(
    [
        b"GET http://far.example/ HTTP/1.1\r\n",
        b"CONNECT far.example:1 HTTP/1.1\r\n",
        b"POST http://127.0.0.1:1/ HTTP/1.1\r\n",
        b"Host: x\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\n",
        b"Expect: 100-continue\r\n",
        b"\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"\5\1\0",
        b"\5\1\0\1\x7f\0\0\1\0\1",
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(pieces=st.lists(PIECES | st.binary(min_size=1, max_size=60), min_size=1, max_size=12))
async def test_nothing_that_a_client_says_breaks_the_proxy(
    pieces: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async with world() as far:
        client = await far.client()
        with contextlib.suppress(anyio.BrokenResourceError):
            for piece in pieces:
                await client.send(piece)
            await client.send_eof()
            await until_end(client)
        client.close()
        assert b"ok" in await far.exchange(get(far.port, fields="Connection: close\r\n"))
    assert caplog.text == ""
