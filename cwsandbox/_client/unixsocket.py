"""Unix sockets for httpcore, on any event loop.

Instead of anyio's own stream, which on asyncio reports an `InvalidStateError` to the loop's exception handler when a
reader is cancelled in the moment in which data arrives (anyio 4.16), and instead of httpcore's wrapper around it, which
takes a timer and two context managers for each read and write.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpcore

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

_BUSY_SECONDS = 10


class UnixSocketBackend(httpcore.AsyncNetworkBackend):
    """Connects to Unix sockets, for `httpcore.AsyncConnectionPool`. Time limits are the caller's cancel scopes."""

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> UnixSocketStream:
        """Connect.

        Raises:
            httpcore.ConnectError: With the `OSError` as its cause.
        """
        await anyio.lowlevel.checkpoint()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            try:
                connection.connect(path)
            except BlockingIOError:
                # Too many wait to be accepted. There is no event for "fewer": only a blocking connect waits for that.
                await anyio.to_thread.run_sync(_connect_blocking, connection, path)
        except OSError as error:
            connection.close()
            raise httpcore.ConnectError(str(error)) from error
        except BaseException:
            connection.close()
            raise
        return UnixSocketStream(connection)


def _connect_blocking(connection: socket.socket, path: str) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _BUSY_SECONDS, 0))
    connection.setblocking(True)
    connection.connect(path)
    connection.setblocking(False)


class UnixSocketStream(httpcore.AsyncNetworkStream):
    """A connected socket. One task may read while another writes."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what is there, or wait; `b""` is the end. Cancelling loses nothing.

        Raises:
            httpcore.ReadError: The connection broke.
        """
        try:
            await anyio.lowlevel.checkpoint()
            while True:
                try:
                    return self._socket.recv(max_bytes)
                except BlockingIOError:
                    await anyio.wait_readable(self._socket)
        except (OSError, anyio.ClosedResourceError) as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all of it. Cancelling may write a part.

        Raises:
            httpcore.WriteError: The connection broke.
        """
        try:
            await anyio.lowlevel.checkpoint_if_cancelled()
            sent = self._try_send(buffer)
            if sent == len(buffer):
                return
            rest = memoryview(buffer)[sent:]
            while rest:
                await anyio.wait_writable(self._socket)
                rest = rest[self._try_send(rest) :]
        except (OSError, anyio.ClosedResourceError) as error:
            raise httpcore.WriteError(str(error)) from error

    def _try_send(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    async def aclose(self) -> None:
        """Close; whoever still reads or writes gets an error."""
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
            self._socket.close()
        await anyio.lowlevel.checkpoint()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Not on a Unix socket.

        Raises:
            httpcore.UnsupportedProtocol: Always.
        """
        raise httpcore.UnsupportedProtocol("no TLS on a Unix socket")

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks for: the socket, and whether an idle connection has been closed by its peer."""
        if info == "socket":
            return self._socket
        if info == "is_readable":
            return self._is_readable()
        return None

    def _is_readable(self) -> bool:
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True
