"""The gateway's side of a connection to the zygote or to an agent: requests, replies, events.

One task reads; requests and notices are written by whoever has one, at once if the socket has room. What arrives is
bounded and checked: an agent that breaks the protocol loses its connection, and its box, but nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

import anyio

from cwsandbox.runners.descriptor import Descriptor
from cwsandbox.runners.local import protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import TaskGroup

_READS_PER_WAKE_UP = 64


class LinkClosedError(Exception):
    """The other side is gone, or broke the protocol."""


class _Waiter:
    __slots__ = ("descriptors_lost", "event", "reply")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.reply: protocol.Message | None = None
        self.descriptors_lost = False


class Link:
    """One connection.

    Args:
        connection: A connected SOCK_SEQPACKET socket; the link owns it.
        tasks: Where late writes run.
        on_event: Called with every message that is not a reply; it owns the message's descriptors. Raising
            `protocol.ProtocolError` ends the link.
        unread_bytes: How much the other side may leave unread beyond its socket's buffer before it counts as broken,
            which ends the link; None for a side that is trusted to read.
    """

    def __init__(
        self,
        connection: socket.socket,
        tasks: TaskGroup,
        on_event: Callable[[protocol.Message], None],
        *,
        unread_bytes: int | None = None,
    ) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._descriptor = Descriptor(connection.fileno(), connection.close)
        self._tasks = tasks
        self._on_event = on_event
        self._waiters: dict[int, _Waiter] = {}
        self._last_request = 0
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._unread_bytes = unread_bytes
        self.closed: bool = False

    async def run(self) -> None:
        """Read until the connection ends; then every request has failed. Cancelling closes the link."""
        try:
            while await self._receive_some():
                pass
        finally:
            self.close()

    async def _receive_some(self) -> bool:
        try:
            await self._descriptor.wait_readable()
            for _ in range(_READS_PER_WAKE_UP):
                message = protocol.receive(self._connection, large=False)
                if message is None:
                    return False
                self._dispatch(message)
        except protocol.DescriptorsLostError as lost:
            return self._lose(lost.body)
        except BlockingIOError:
            return True
        except (OSError, anyio.ClosedResourceError, protocol.ProtocolError):
            return False
        return True

    def _dispatch(self, message: protocol.Message) -> None:
        request = message.body.get("id")
        if request is None:
            self._on_event(message)
            return
        waiter = self._waiters.pop(request, None) if isinstance(request, int) else None
        if waiter is None:
            message.close_fds()  # Nobody waits any more.
            return
        waiter.reply = message
        waiter.event.set()

    def _lose(self, body: dict[str, Any]) -> bool:
        """A reply came without its descriptors: only its request fails.

        Returns:
            False if it was not a reply to anybody: then what it told is lost.
        """
        request = body.get("id")
        waiter = self._waiters.pop(request, None) if isinstance(request, int) else None
        if waiter is None:
            return request is not None
        waiter.descriptors_lost = True
        waiter.event.set()
        return True

    def post(self, body: dict[str, Any], payload: bytes = b"") -> None:
        """Send a message that has no reply. Never blocks; without a connection nothing happens."""
        if self.closed:
            return
        data = protocol.encode(body, payload)
        if not self._unsent:
            try:
                protocol.send(self._connection, data)
            except BlockingIOError:
                self._tasks.start_soon(self._send_rest)
            except OSError:
                return  # The reader sees the end.
            else:
                return
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._unread_bytes is not None and self._unsent_bytes > self._unread_bytes:
            self.close()

    async def _send_rest(self) -> None:
        while self._unsent and not self.closed:
            try:
                protocol.send(self._connection, self._unsent[0])
                self._unsent_bytes -= len(self._unsent.popleft())
            except BlockingIOError:
                with contextlib.suppress(anyio.ClosedResourceError):
                    await self._descriptor.wait_writable()
            except OSError:
                self._unsent.clear()

    def next_request(self) -> int:
        """The number that the next `request` will have."""
        return self._last_request + 1

    async def request(self, body: dict[str, Any], payload: bytes = b"") -> protocol.Message:
        """Send a request and wait for its reply, whose descriptors the caller owns.

        If cancelled, the request was sent, and its reply is dropped when it comes.

        Raises:
            LinkClosedError: The connection ended before the reply.
            OSError: EMFILE, this process is out of descriptors: those of the reply are lost.
        """
        if self.closed:
            raise LinkClosedError
        self._last_request += 1
        number = self._last_request
        waiter = self._waiters[number] = _Waiter()
        self.post({"id": number, **body}, payload)
        try:
            await waiter.event.wait()
        except BaseException:
            self._waiters.pop(number, None)
            if waiter.reply is not None:
                waiter.reply.close_fds()
            raise
        if waiter.descriptors_lost:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if waiter.reply is None:
            raise LinkClosedError
        return waiter.reply

    def close(self) -> None:
        """End the connection; waiting requests fail."""
        if self.closed:
            return
        self.closed = True
        self._descriptor.close()
        for waiter in self._waiters.values():
            waiter.event.set()
        self._waiters.clear()


def connect(path: str) -> socket.socket:
    """Connect to an agent's socket, however long the path of its folder is.

    Raises:
        OSError: Nobody listens there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.setblocking(False)
        connection.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(folder)
    return connection
