"""uvicorn around the application: whom it lets in, when it ends, and how.

The server runs on sockets that are bound already, as a part of an asyncio program of ours; uvicorn's signal handling,
access log and ticking are not used.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING, Any, Final

import anyio
import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

from cwsandbox.gateway.auth import Peer
from cwsandbox.gateway.pulse import Pulse
from cwsandbox.wire.frames import MAX_MESSAGE_BYTES

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as HttpProtocol
except ImportError:  # httptools is for CPython.
    from uvicorn.protocols.http.h11_impl import H11Protocol as HttpProtocol  # type: ignore[assignment]

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from starlette.types import ASGIApp

# What a connection may take after the boxes are gone: one with a reader that never reads is cut.
_SHUTDOWN_SECONDS: Final = 2
# Clients reuse idle HTTP connections; a server that is quicker to close them loses races.
_KEEP_ALIVE_SECONDS: Final = 60
_BACKLOG: Final = 1024
_PEER: Final = struct.Struct("3i")


def peer_of(connection: socket.socket) -> Peer | None:
    """Return who is at the other end of a Unix socket; None for any other socket."""
    if connection.family != socket.AF_UNIX:
        return None
    pid, uid, _gid = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return Peer(uid=uid, pid=pid)


class Connections:
    """The open connections of a server.

    Attributes:
        changed: Notified when one comes or goes.
        count: How many there are.
    """

    def __init__(self) -> None:
        self.changed: Pulse = Pulse()
        self.count: int = 0

    def add(self, number: int) -> None:
        """Count connections that came, or went with -1."""
        self.count += number
        self.changed.notify()


def _http_protocol(connections: Connections) -> type[asyncio.Protocol]:
    """Make the class for connections: it lets only our user and root in on a Unix socket, and counts."""
    allowed = {os.geteuid(), 0}

    class GatewayHttpProtocol(HttpProtocol):
        _counted = False

        def connection_made(self, transport: Any) -> None:
            peer = peer_of(transport.get_extra_info("socket"))
            super().connection_made(transport)
            if peer is not None and peer.uid not in allowed:
                transport.abort()
                return
            # Every request's scope has a copy of this as its "state".
            self.app_state = {**self.app_state, "peer": peer}
            self._counted = True
            connections.add(1)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._counted:
                connections.add(-1)

        def handle_websocket_upgrade(self) -> None:
            # The transport goes to the WebSocket protocol, which counts it from now on.
            self._counted = False
            connections.add(-1)
            super().handle_websocket_upgrade()

    return GatewayHttpProtocol


def _websocket_protocol(connections: Connections) -> type[asyncio.Protocol]:
    class GatewayWebSocketProtocol(WebSocketsSansIOProtocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.app_state = {**self.app_state, "peer": peer_of(transport.get_extra_info("socket"))}
            connections.add(1)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            connections.add(-1)

        def shutdown(self) -> None:
            # A client's closing frame may just have been answered: its connection waits to be written out, and uvicorn
            # would send a closing frame of its own, which is an error there and would keep it from telling the others.
            with contextlib.suppress(InvalidState):
                super().shutdown()

    return GatewayWebSocketProtocol


class GatewayServer(uvicorn.Server):
    """uvicorn's server, ended by `stop` instead of by signals and ticks."""

    def __init__(self, app: ASGIApp, connections: Connections, **options: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_http_protocol(connections),
                ws=_websocket_protocol(connections),
                loop="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                # Frames are small or incompressible, and a compressor per connection is 300 KiB.
                ws_per_message_deflate=False,
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_ping_interval=None,
                ws_ping_timeout=None,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
                **options,
            )
        )
        self._stopped = anyio.Event()
        self.listening: anyio.Event = anyio.Event()

    def stop(self) -> None:
        """Ask `serve` to end."""
        self.should_exit = True
        self._stopped.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        """Wait for `stop`."""
        await self._stopped.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the program's business."""
        yield


def bind_unix(path: str) -> socket.socket:
    """Bind and listen on a Unix socket, in place of a stale one, in one step.

    Raises:
        OSError: The path is too long, or the folder cannot be made.
        PermissionError: The folder is not ours alone.
    """
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    status = os.stat(folder, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} must be a folder of this user with mode 0700")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        temporary = f"{path}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        listener.bind(temporary)
        os.chmod(temporary, 0o600)
        listener.listen(_BACKLOG)
        # Whoever finds the path can connect: there is no moment with a socket that nobody listens on.
        os.rename(temporary, path)
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def bind_port(host: str, port: int) -> socket.socket:
    """Bind and listen on a TCP port; 0 chooses one.

    Raises:
        OSError: The address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    listener.setblocking(False)
    return listener
