"""Sockets on the box's own loopback, on the agent's side: made in here, used by the gateway.

The gateway asks for every connection that it takes from a listener, so what nobody takes waits in the kernel's bounded
queue, and a gateway that comes back finds its listeners as it left them.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_BACKLOG = 128
_SOON_AGAIN = (errno.EAGAIN, errno.ECONNABORTED)


def begin_connect(address: str, port: int) -> socket.socket:
    """A socket that connects to a numeric address; whoever gets it sees what becomes of it.

    Raises:
        OSError: It cannot even begin.
    """
    connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    connection.setblocking(False)
    problem = connection.connect_ex((address, port))
    if problem not in {0, errno.EINPROGRESS}:
        connection.close()
        raise OSError(problem, os.strerror(problem))
    return connection


class Listeners:
    """Listening sockets, by port; at most one request waits for a connection at each."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._sockets: dict[int, socket.socket] = {}
        self._waiting: dict[int, Callable[[socket.socket | OSError], None]] = {}

    def listen(self, port: int) -> None:
        """Listen on 127.0.0.1; nothing happens if we do already.

        Raises:
            OSError: EADDRINUSE: a program of the sandbox has the port.
        """
        if port not in self._sockets:
            listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
            listener.setblocking(False)
            self._sockets[port] = listener

    def accept(self, port: int, deliver: Callable[[socket.socket | OSError], None]) -> None:
        """Call `deliver` once with the next connection, or with what went wrong; an earlier request is forgotten.

        Raises:
            OSError: ENOENT: nothing listens there.
        """
        if port not in self._sockets:
            raise FileNotFoundError(errno.ENOENT, f"nothing listens on port {port}")
        waits = port in self._waiting
        self._waiting[port] = deliver
        if not waits:
            self._selector.register(self._sockets[port], selectors.EVENT_READ, lambda _: self._take(port))

    def forget_requests(self) -> None:
        """Who asked is gone: connections wait for the next one."""
        for port in list(self._waiting):
            self._pop(port)

    def _take(self, port: int) -> None:
        taken: socket.socket | OSError
        try:
            taken, _ = self._sockets[port].accept()
        except OSError as error:
            if error.errno in _SOON_AGAIN:
                return
            taken = error
        self._pop(port)(taken)

    def _pop(self, port: int) -> Callable[[socket.socket | OSError], None]:
        self._selector.unregister(self._sockets[port])
        return self._waiting.pop(port)
