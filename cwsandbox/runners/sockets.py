"""Byte streams over sockets that somebody else may hold too, on any of anyio's event loops."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Self

import anyio
import anyio.abc
import anyio.lowlevel

from cwsandbox.runners.descriptor import Descriptor

_DO_NOT_WAIT = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_RESET = struct.pack("ii", 1, 0)
_DEAD_PEER = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 20), (socket.TCP_KEEPCNT, 3))
"""A peer that vanished without a word is noticed after two minutes."""


class SocketStream(anyio.abc.ByteStream):
    """A connected TCP socket, which the stream owns.

    anyio's own streams rely on the descriptor's non-blocking flag, which a process that holds a copy can clear; here
    every call says for itself that it must not wait. And they end with a FIN in any case, while `abort` is needed so
    that a connection that was cut never looks like one that ended.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _DEAD_PEER:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        self._connection = connection
        self._descriptor = Descriptor(connection.fileno(), connection.close)

    @classmethod
    async def connect(cls, address: str, port: int) -> Self:
        """Connect to a numeric address. Nothing is resolved.

        Raises:
            OSError: What the kernel said (ConnectionRefusedError, ...). There is no time-out but the kernel's.
        """
        connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            stream = cls(connection)
            _raise(connection.connect_ex((address, port)))
            await stream.wait_connected()
        except BaseException:
            connection.close()
            raise
        return stream

    async def wait_connected(self) -> None:
        """Wait for the end of a `connect` that was begun. If it fails or is cancelled, the stream is closed.

        Raises:
            OSError: What became of it instead.
        """
        try:
            await self._descriptor.wait_writable()
            _raise(self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        except BaseException:
            self.close()
            raise

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Wait for some bytes. Cancelling loses nothing.

        Raises:
            anyio.EndOfStream: The peer will send no more.
            anyio.BrokenResourceError: The connection was cut.
            anyio.ClosedResourceError: It was closed on this side.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        while True:
            self._must_be_open()
            try:
                data = self._connection.recv(max_bytes, socket.MSG_DONTWAIT)
                break
            except BlockingIOError:
                await self._descriptor.wait_readable()
            except OSError as error:
                raise anyio.BrokenResourceError from error
        if not data:
            raise anyio.EndOfStream
        await anyio.lowlevel.cancel_shielded_checkpoint()
        return data

    async def send(self, item: bytes) -> None:
        """Send all of `item`. If cancelled, a part of it may have been sent.

        Raises:
            anyio.BrokenResourceError: The connection was cut.
            anyio.ClosedResourceError: It was closed on this side.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        view = memoryview(item)
        while view:
            self._must_be_open()
            try:
                view = view[self._connection.send(view, _DO_NOT_WAIT) :]
            except BlockingIOError:
                await self._descriptor.wait_writable()
            except OSError as error:
                raise anyio.BrokenResourceError from error
        await anyio.lowlevel.cancel_shielded_checkpoint()

    async def send_eof(self) -> None:
        """End this direction; the other one goes on.

        Raises:
            anyio.BrokenResourceError: The connection was cut.
        """
        await anyio.lowlevel.checkpoint()
        self._must_be_open()
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise anyio.BrokenResourceError from error

    def close(self) -> None:
        """Let go of the socket; what was sent still arrives."""
        self._descriptor.close()

    def abort(self) -> None:
        """Cut the connection: the peer sees a reset, not an end."""
        if not self._descriptor.closed:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.close()

    async def aclose(self) -> None:
        """As `close`."""
        self.close()
        await anyio.lowlevel.checkpoint()

    def _must_be_open(self) -> None:
        if self._descriptor.closed:
            raise anyio.ClosedResourceError


def _raise(number: int) -> None:
    """Raise what a connect came to, unless it goes well."""
    if number not in {0, errno.EINPROGRESS}:
        raise OSError(number, os.strerror(number))
