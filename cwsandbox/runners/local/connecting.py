"""Connections into a box and out of it, on the gateway's side: its agent makes the sockets, this side uses them."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from cwsandbox.runners.sockets import SocketStream

if TYPE_CHECKING:
    from cwsandbox.runners.local.box import LocalBox
    from cwsandbox.runners.local.protocol import Message

_LOOPBACK = ("127.0.0.1", "::1")
_NOBODY_THERE = (errno.ECONNREFUSED, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


async def connect(box: LocalBox, port: int) -> SocketStream:
    """Connect to whatever listens on a port of the box's loopback: IPv4, then IPv6.

    Raises:
        ConnectionRefusedError: Nothing does.
        OSError: The box is out of descriptors.
        BoxGoneError: The box ended.
    """
    for address in _LOOPBACK:
        try:
            reply = await box._ask({"op": "connect", "address": address, "port": port})
            stream = _adopt(box, reply)
            await stream.wait_connected()
        except OSError as error:
            if error.errno not in _NOBODY_THERE:
                raise
        else:
            return stream
    raise ConnectionRefusedError(errno.ECONNREFUSED, f"nothing listens on port {port} in the sandbox")


class BoxListener:
    """A port of the box's loopback, as `runners.base.Listener` says."""

    def __init__(self, box: LocalBox, port: int) -> None:
        self._box = box
        self._port = port

    async def accept(self) -> SocketStream:
        """Wait for the next connection. If cancelled, one that comes at that moment is closed.

        Raises:
            OSError: The box is out of descriptors.
            BoxGoneError: The box ended.
        """
        return _adopt(self._box, await self._box._ask({"op": "accept", "port": self._port}))


def _adopt(box: LocalBox, reply: Message) -> SocketStream:
    """Own the socket that came with a reply, if it is what it should be."""
    if len(reply.fds) == 1:
        connection = _tcp_socket(reply.fds[0])
        if connection is not None:
            return SocketStream(connection)
    reply.close_fds()
    raise box._broken("a connection that is none")


def _tcp_socket(fd: int) -> socket.socket | None:
    try:
        connection = socket.socket(fileno=fd)
    except OSError:
        return None
    tcp = connection.type == socket.SOCK_STREAM and connection.proto == socket.IPPROTO_TCP
    if tcp and connection.family in {socket.AF_INET, socket.AF_INET6}:
        return connection
    connection.detach()
    return None
