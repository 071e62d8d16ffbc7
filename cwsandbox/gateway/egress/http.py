"""The HTTP proxy: CONNECT, and plain HTTP by absolute URLs (RFC 9110, sections 7.6 and 9.3.6). h11 reads and writes.

Messages are parsed and written anew in both directions, never passed on as bytes, so what the two sides take for a
message is the same thing. There is one connection to a server for each request.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import anyio
import h11

from cwsandbox.gateway.egress.dialing import DialError, Failure
from cwsandbox.gateway.egress.target import Target, TargetError, split_http_url
from cwsandbox.gateway.relay import relay

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from cwsandbox.runners.base import Connection

    Dial = Callable[[Target], Awaitable[Connection]]
    Headers = list[tuple[bytes, bytes]]

_HEAD_BYTES: Final = 64 * 1024
_HEAD_SECONDS: Final = 30.0
_CHUNK_BYTES: Final = 64 * 1024
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 1024 * 1024
_VIA: Final = (b"via", b"1.1 cwsandbox")
# Fields that are about one connection (RFC 9110, 7.6.1), and what the proxy does itself.
_HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"expect",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_STATUS: Final = {
    Failure.NOT_ALLOWED: 403,
    Failure.NO_SUCH_HOST: 502,
    Failure.REFUSED: 502,
    Failure.UNREACHABLE: 502,
    Failure.TIMED_OUT: 504,
}


class _Peer:
    """One HTTP/1.1 connection: h11's state, the stream under it, and the method of a client's present request."""

    def __init__(self, role: type[h11.CLIENT | h11.SERVER], stream: Connection) -> None:
        self.method = b""
        self.http = h11.Connection(role, max_incomplete_event_size=_HEAD_BYTES)
        self.stream = stream

    async def receive(self) -> h11.Event | None:
        """The next event; None when there is none before the next request.

        Raises:
            h11.RemoteProtocolError: The peer does not speak HTTP/1.1, or stopped in the middle.
        """
        while True:
            event = self.http.next_event()
            if isinstance(event, h11.Event):
                return event
            if event is h11.PAUSED:
                return None
            if self.http.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            try:
                data = await self.stream.receive(_CHUNK_BYTES)
            except anyio.EndOfStream:
                data = b""
            self.http.receive_data(data)

    async def send(self, event: h11.Event) -> None:
        """Send one event."""
        data = self.http.send(event)
        if data:
            await self.stream.send(data)


async def serve_http(stream: Connection, first: bytes, dial: Dial) -> None:
    """Serve a client of the proxy until it or we have enough of each other.

    Args:
        stream: The connection; whoever calls closes it.
        first: What was read from it already.
        dial: Makes connections; raises `DialError`.

    Raises:
        anyio.BrokenResourceError: The client is gone.
    """
    client = _Peer(h11.SERVER, stream)
    client.http.receive_data(first)
    try:
        while await _serve_request(client, dial):
            client.http.start_next_cycle()
    except h11.RemoteProtocolError as problem:
        await _refuse(client, problem.error_status_hint, f"not a request: {problem}")
    except TimeoutError:
        await _refuse(client, 408, "the request took too long")


async def _serve_request(client: _Peer, dial: Dial) -> bool:
    """Serve one request; False if it was the last."""
    client.method = b""
    with anyio.fail_after(_HEAD_SECONDS):
        request = await client.receive()
    if not isinstance(request, h11.Request):
        return False
    client.method = request.method
    try:
        if request.method == b"CONNECT":
            await _tunnel(client, request, dial)
            return False
        return await _forward(client, request, dial)
    except TargetError as problem:
        await _refuse(client, 400, str(problem))
    except DialError as problem:
        await _refuse(client, _STATUS[problem.failure], str(problem))
    return False


async def _tunnel(client: _Peer, request: h11.Request, dial: Dial) -> None:
    target = Target.from_authority(request.target.decode("ascii"))
    if any(name in {b"content-length", b"transfer-encoding"} for name, _ in request.headers):
        raise TargetError("CONNECT has no body")
    await client.receive()  # The end of the message, which is there.
    server = await dial(target)
    try:
        await client.send(h11.Response(status_code=200, headers=[], reason=b"Connection established"))
        early, _ = client.http.trailing_data
        if early:
            await server.send(early)
        await relay(client.stream, server)
    finally:
        server.abort()


async def _forward(client: _Peer, request: h11.Request, dial: Dial) -> bool:
    target, host, path = split_http_url(request.target.decode("ascii"))
    stream = await dial(target)
    server = _Peer(h11.CLIENT, stream)
    headers = [(b"host", host.encode()), *_end_to_end(request.headers, b"host"), _VIA, (b"connection", b"close")]
    if any(name == b"transfer-encoding" for name, _ in request.headers):
        headers.append((b"transfer-encoding", b"chunked"))
    answered = False
    try:
        with contextlib.suppress(anyio.BrokenResourceError):  # It shows as an answer that does not come.
            await server.send(h11.Request(method=request.method, target=path, headers=headers))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_send_body, client, server, tasks.cancel_scope)
            answered = await _send_response(server, client)
            tasks.cancel_scope.cancel()
    finally:
        stream.abort()
    if not answered:
        # Only now is nobody else reading what the client says.
        await _refuse(client, 502, "the server did not answer with HTTP")
    return client.http.our_state is h11.DONE and client.http.their_state is h11.DONE


async def _send_body(client: _Peer, server: _Peer, both: anyio.CancelScope) -> None:
    """Pass the body on. A server that answers before it has read everything need not read the rest."""
    try:
        while isinstance(event := await client.receive(), h11.Data):
            await server.send(h11.Data(data=bytes(event.data)))
        if isinstance(event, h11.EndOfMessage):
            await server.send(h11.EndOfMessage())
    except h11.RemoteProtocolError:
        both.cancel()
        client.stream.abort()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return


async def _send_response(server: _Peer, client: _Peer) -> bool:
    """Pass the answer on; False if there was none."""
    try:
        response = await server.receive()
        while isinstance(response, h11.InformationalResponse):
            response = await server.receive()
        if not isinstance(response, h11.Response):
            return False
    except (h11.RemoteProtocolError, anyio.BrokenResourceError):
        return False
    try:
        headers = [*_end_to_end(response.headers), _VIA]
        await client.send(h11.Response(status_code=response.status_code, headers=headers, reason=response.reason))
        while isinstance(event := await server.receive(), h11.Data):
            await client.send(h11.Data(data=bytes(event.data)))
        await client.send(h11.EndOfMessage())
    except (h11.ProtocolError, anyio.BrokenResourceError):
        # What was cut off must not look complete.
        client.stream.abort()
    return True


def _end_to_end(headers: Iterable[tuple[bytes, bytes]], *without: bytes) -> Headers:
    """Fields that are for the other end; names are in lower case (h11 does that)."""
    fields = list(headers)
    named = {
        option.strip().lower() for name, value in fields if name == b"connection" for option in value.split(b",")
    } - {b"content-length"}
    dropped = _HOP_BY_HOP | named | set(without)
    if any(name == b"transfer-encoding" for name, _ in fields):
        dropped |= {b"content-length"}  # The other one counts (RFC 9112, 6.3), and only one may be passed on.
    return [(name, value) for name, value in fields if name not in dropped]


async def _refuse(client: _Peer, status: int, why: str) -> None:
    """Answer with a reason, if there is room for an answer, and see that it arrives."""
    if client.http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
        client.stream.abort()
        return
    body = f"cwsandbox: {why}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await client.send(h11.Response(status_code=status, headers=headers))
    if client.method != b"HEAD":
        await client.send(h11.Data(data=body))
    await client.send(h11.EndOfMessage())
    await linger(client.stream)


async def linger(stream: Connection) -> None:
    """End our side and read on for a moment: closing with unread bytes would cut the answer off."""
    with anyio.move_on_after(_LINGER_SECONDS):
        try:
            await stream.send_eof()
            left = _LINGER_BYTES
            while left > 0:
                left -= len(await stream.receive(_CHUNK_BYTES))
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
    stream.close()
