"""The server around the application, over real sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from cwsandbox.gateway.server import Connections, GatewayServer, bind_unix

if TYPE_CHECKING:
    from pathlib import Path

    from anyio.abc import SocketStream

_HANDSHAKE = (
    b"GET /%s HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
_CLOSE = b"\x88\x80\x00\x00\x00\x00"  # RFC 6455, 5.5.1, without a code, masked with zeros.
_SERVICE_RESTART = b"\x88\x02\x03\xf4"  # The same with 1012, from a server.


async def _open(path: str, socket: str) -> SocketStream:
    stream = await anyio.connect_unix(socket)
    await stream.send(_HANDSHAKE % path.encode())
    assert (await stream.receive()).startswith(b"HTTP/1.1 101 ")
    return stream


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_it_ends_in_order_while_a_client_that_does_not_read_is_closing(folder: Path, anyio_backend: str) -> None:
    disconnected = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        async with anyio.create_task_group() as tasks:
            if scope["path"] == "/flood":
                # More than the socket holds: what is written after it, waits.
                tasks.start_soon(send, {"type": "websocket.send", "bytes": bytes(4 << 20)})
            assert (await receive())["type"] == "websocket.disconnect"
            disconnected.set()

    socket = str(folder / "s" / "server.sock")
    server = GatewayServer(app, Connections())
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [bind_unix(socket)])
            await server.listening.wait()
            others = [await _open("", socket) for _ in range(8)]
            flooded = await _open("flood", socket)
            await flooded.send(_CLOSE)
            await disconnected.wait()
            server.stop()
            for other in others:
                assert await other.receive() == _SERVICE_RESTART
                await other.aclose()
        await flooded.aclose()
