"""What ingress and egress share: taking connections, within a bound, and carrying bytes between two of them."""

from __future__ import annotations

import errno
import logging
import resource
from typing import TYPE_CHECKING, Final

import anyio

from cwsandbox.runners.errors import BoxGoneError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cwsandbox.runners.base import Connection

_log = logging.getLogger(__name__)

_CHUNK_BYTES: Final = 256 * 1024
_CONNECTIONS: Final = 256
_FEW_CONNECTIONS: Final = 16
_OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# How long to leave a listener alone when there are no descriptors: nobody tells when there are some again.
_BREATHER_SECONDS: Final = 0.2


def connection_slots() -> anyio.Semaphore:
    """Make the bound of one sandbox's connections, in or out: each has two descriptors, of which none may take most."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return anyio.Semaphore(_CONNECTIONS)
    return anyio.Semaphore(min(_CONNECTIONS, max(_FEW_CONNECTIONS, descriptors // 32)))


async def take_connections(
    accept: Callable[[], Awaitable[Connection]], handle: Callable[[Connection], Awaitable[None]], slots: anyio.Semaphore
) -> None:
    """Handle every connection in a task of its own, as many at a time as there are slots; further ones wait unaccepted.

    Runs until cancelled, or until the listener is closed or the box has ended. A connection whose handling fails is
    cut, and only it.
    """
    async with anyio.create_task_group() as tasks:
        while True:
            await slots.acquire()
            try:
                connection = await accept()
            except (BoxGoneError, anyio.ClosedResourceError):
                break
            except OSError as problem:
                slots.release()
                if problem.errno in _OUT_OF_DESCRIPTORS:
                    _log.warning("a connection has to wait: %s", problem.strerror)
                    await anyio.sleep(_BREATHER_SECONDS)
                continue
            tasks.start_soon(_handle, handle, connection, slots)


async def _handle(
    handle: Callable[[Connection], Awaitable[None]], connection: Connection, slots: anyio.Semaphore
) -> None:
    try:
        await handle(connection)
    except Exception:
        _log.exception("a connection of a sandbox is cut")
    finally:
        connection.abort()
        slots.release()


async def relay(left: Connection, right: Connection) -> None:
    """Carry bytes both ways until both sides have ended, and close them; if one is cut, so is the other.

    A side that ended may still receive. One chunk is held for each direction: who does not read stops who sends.
    Cancelling cuts both.
    """
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_carry, left, right, tasks.cancel_scope)
            tasks.start_soon(_carry, right, left, tasks.cancel_scope)
        if not tasks.cancel_scope.cancel_called:
            left.close()
            right.close()
    finally:
        left.abort()
        right.abort()


async def _carry(source: Connection, sink: Connection, both: anyio.CancelScope) -> None:
    try:
        while True:
            try:
                data = await source.receive(_CHUNK_BYTES)
            except anyio.EndOfStream:
                await sink.send_eof()
                return
            await sink.send(data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        both.cancel()
