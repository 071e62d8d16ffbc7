"""The proxy of one sandbox, on a port of the sandbox's own loopback: HTTP and SOCKS 5, told apart by the first byte."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

import anyio

from cwsandbox.gateway.egress import socks
from cwsandbox.gateway.egress.dialing import DialError, Failure
from cwsandbox.gateway.egress.http import linger, serve_http
from cwsandbox.gateway.relay import connection_slots, relay, take_connections

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cwsandbox.gateway.egress.dialing import Dialer
    from cwsandbox.gateway.egress.target import Target
    from cwsandbox.runners.base import Box, Connection

PORT: Final = 3128
"""Squid's, so that it is known for what it is."""
_HANDSHAKE_SECONDS: Final = 30.0
_URL: Final = f"http://127.0.0.1:{PORT}"
_VARIABLES: Final = {
    "HTTP_PROXY": _URL,
    "HTTPS_PROXY": _URL,
    # Not a socks5 URL: clients without SOCKS support, httpx among them, refuse to start with one.
    "ALL_PROXY": _URL,
    "NO_PROXY": "localhost,127.0.0.1,::1",
}
_REPLIES: Final = {
    Failure.NOT_ALLOWED: socks.Reply.NOT_ALLOWED,
    Failure.NO_SUCH_HOST: socks.Reply.HOST_UNREACHABLE,
    Failure.REFUSED: socks.Reply.CONNECTION_REFUSED,
    Failure.UNREACHABLE: socks.Reply.NETWORK_UNREACHABLE,
    Failure.TIMED_OUT: socks.Reply.TTL_EXPIRED,
}


def proxy_environment(own: Mapping[str, str]) -> dict[str, str]:
    """The variables that tell programs of the proxy, in both cases, without those that the user set in either."""
    taken = {name.upper() for name in own}
    return {
        spelling: value for name, value in _VARIABLES.items() if name not in taken for spelling in (name, name.lower())
    }


async def serve_egress(box: Box, dialer: Dialer) -> None:
    """Serve the proxy until cancelled, or until the box has ended.

    Raises:
        OSError: A program of the sandbox has the port.
        BoxGoneError: The box has ended.
    """
    listener = await box.listen(PORT)
    await take_connections(listener.accept, functools.partial(_serve, dialer), connection_slots())


async def _serve(dialer: Dialer, client: Connection) -> None:
    try:
        with anyio.fail_after(_HANDSHAKE_SECONDS):
            first = await client.receive()
        if first[0] == socks.VERSION:
            await _serve_socks(client, first, dialer)
        else:
            await serve_http(client, first, dialer.dial)
            client.close()
    except (TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        return  # The client is gone, or is none.


async def _serve_socks(client: Connection, first: bytes, dialer: Dialer) -> None:
    try:
        with anyio.fail_after(_HANDSHAKE_SECONDS):
            target, early = await _shake_hands(client, first)
        server = await dialer.dial(target)
    except socks.SocksError as problem:
        await client.send(problem.answer)
        await linger(client)
        return
    except DialError as problem:
        await client.send(socks.reply(_REPLIES[problem.failure]))
        await linger(client)
        return
    try:
        await client.send(socks.reply(socks.Reply.SUCCEEDED))
        await server.send(early)
        await relay(client, server)
    finally:
        server.abort()


async def _shake_hands(client: Connection, data: bytes) -> tuple[Target, bytes]:
    handshake = socks.Handshake()
    while True:
        await client.send(handshake.feed(data))
        if handshake.target is not None:
            return handshake.target, handshake.rest
        data = await client.receive()
