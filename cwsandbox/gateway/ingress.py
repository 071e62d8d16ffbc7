"""Exposed ports: one listener on this machine for each, whose connections go to the sandbox's own loopback.

Listeners are bound before the sandbox is made, so that the answer to its creation can name them; who connects early
waits until it runs.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import socket
from typing import TYPE_CHECKING, Final

import anyio

from cwsandbox.gateway.errors import error
from cwsandbox.gateway.relay import connection_slots, relay, take_connections
from cwsandbox.runners.descriptor import Descriptor
from cwsandbox.runners.errors import RunnerError
from cwsandbox.runners.sockets import SocketStream
from cwsandbox.wire.errors import Code, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from cwsandbox.runners.base import Box, Connection
    from cwsandbox.runners.specs import Port

_log = logging.getLogger(__name__)

_BACKLOG: Final = 128
_CONNECT_SECONDS: Final = 10.0


class Door:
    """The listener of one exposed port.

    Attributes:
        port: Of the sandbox.
        number: The port on this machine.
    """

    def __init__(self, port: Port, listener: socket.socket) -> None:
        self.port = port
        self.number: int = listener.getsockname()[1]
        self._listener = listener
        self._descriptor = Descriptor(listener.fileno(), listener.close)

    async def accept(self) -> SocketStream:
        """Wait for a connection. Cancelling loses none.

        Raises:
            anyio.ClosedResourceError: The door was closed.
            OSError: The connection cannot be taken now.
        """
        while True:
            await self._descriptor.wait_readable()
            with contextlib.suppress(BlockingIOError):
                connection, _ = self._listener.accept()
                return SocketStream(connection)

    def close(self) -> None:
        """Stop listening; who waits there sees a reset."""
        self._descriptor.close()


def open_doors(ports: Sequence[Port], host: str, earlier: Mapping[int, int]) -> tuple[Door, ...]:
    """Listen for every port on `host`.

    Args:
        ports: What is exposed.
        host: A numeric address of this machine.
        earlier: By exposed port, the port on this machine that clients may know already: taken if it is free.

    Raises:
        StatusError: RESOURCE_EXHAUSTED: the machine has no more ports or descriptors.
    """
    doors: list[Door] = []
    try:
        for port in ports:
            doors.append(Door(port, _listen(host, earlier.get(port.number, 0))))  # noqa: PERF401 - kept when one fails
    except OSError as problem:
        close_doors(doors)
        raise error(
            Code.RESOURCE_EXHAUSTED,
            f"the gateway cannot listen for an exposed port on {host}: {problem.strerror}",
            Reason.RUNNER_CAPACITY_EXHAUSTED,
        ) from problem
    return tuple(doors)


def close_doors(doors: Sequence[Door]) -> None:
    """Stop listening; who waits there sees a reset."""
    for door in doors:
        door.close()


def _listen(host: str, number: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, number), family=family, backlog=_BACKLOG)
    except OSError as problem:
        if not number or problem.errno != errno.EADDRINUSE:
            raise
        return _listen(host, 0)
    listener.setblocking(False)
    return listener


async def serve_doors(doors: Sequence[Door], box: Box, in_use: Callable[[], AbstractContextManager[None]]) -> None:
    """Serve all doors of a box until cancelled, or until it has ended.

    Args:
        doors: Its listeners.
        box: Where connections go.
        in_use: Entered while there is a connection, which is why the sandbox is not idle.
    """
    slots = connection_slots()
    async with anyio.create_task_group() as tasks:
        for door in doors:
            handle = functools.partial(_serve, door.port.number, box, in_use)
            tasks.start_soon(take_connections, door.accept, handle, slots)


async def _serve(number: int, box: Box, in_use: Callable[[], AbstractContextManager[None]], outer: Connection) -> None:
    with in_use():
        try:
            with anyio.fail_after(_CONNECT_SECONDS):
                inner = await box.connect(number)
        except (RunnerError, OSError) as problem:
            # Nobody listens inside: a reset is what comes closest to a refusal.
            _log.debug("port %d of sandbox %s: %s", number, box.sandbox_id, problem)
            return
        await relay(outer, inner)
