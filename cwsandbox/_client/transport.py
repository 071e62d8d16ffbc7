"""Bytes to and from one gateway: requests (wraps httpx) and WebSockets (wraps httpx-ws). Heavy to import: load it late.

What both libraries do badly is kept in here: no connection pool limit (httpcore's slots leak when requests are
cancelled; the caller bounds what it sends), no proxies or netrc from the environment, no keepalive of httpx-ws (it
closes healthy connections whose reader is busy), no background reader of httpx-ws (it costs two task switches per
message and its failures come in groups), and none of their exceptions gets out.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import ssl
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from attrs import frozen

from cwsandbox._client.address import Address, AddressKind
from cwsandbox._client.errors import TransportError
from cwsandbox._client.unixsocket import UnixSocketBackend
from cwsandbox._version import __version__
from cwsandbox.wire.frames import MAX_MESSAGE_BYTES

if "httpx" not in sys.modules:
    # httpx imports its command line, and with it rich, pygments and click: two thirds of its import time. It copes with
    # their absence, which is what the empty entry looks like to it.
    sys.modules["httpx._main"] = None  # type: ignore[assignment]
    try:
        import httpx
    finally:
        del sys.modules["httpx._main"]
import httpcore
import httpx
import httpx_ws
import wsproto.events
from wsproto.connection import ConnectionState
from wsproto.utilities import ProtocolError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

    from cwsandbox._client.auth import AuthHeaders, Credentials

_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_READ_BYTES = 256 * 1024
_IDLE_CONNECTIONS = 16
_IDLE_SECONDS = 20.0  # The gateway keeps idle connections for longer.
_CLOSE_SECONDS = 1.0
_UNAUTHENTICATED = 401


class UpgradeRefusedError(Exception):
    """The gateway answered the WebSocket handshake with an ordinary reply."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"HTTP {reply.status}")
        self.reply = reply


@frozen
class Reply:
    """One HTTP answer, read to its end."""

    status: int
    content: bytes


class _Body(httpx.AsyncByteStream):
    """A request's body in one piece.

    httpx's own is an async generator, which is left hanging when the connection breaks; trio warns of such.
    """

    def __init__(self, content: bytes) -> None:
        self._pieces = [content] if content else []

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop()


class Transport:
    """Requests and WebSockets to one address. Made by `open_transport`; use it on that event loop only."""

    def __init__(
        self, make_client: Callable[[], httpx.AsyncClient], client: httpx.AsyncClient, credentials: Credentials
    ) -> None:
        self._make_client = make_client
        self._client = client
        self._credentials = credentials

    async def request(
        self, method: str, path: str, *, params: Sequence[tuple[str, str]] = (), content: bytes | None = None
    ) -> Reply:
        """Send one request and read the whole answer, without a time limit. Cancelling closes the connection.

        If the credentials are refused, it is sent once more with newer ones, where there are any.

        Raises:
            TransportError: There was no answer.
            Exception: Looking for newer credentials failed.
        """
        headers = {"content-type": "application/json"} if content is not None else {}

        async def send(auth: AuthHeaders) -> httpx.Response:
            async with _translated():
                return await self._client.request(
                    method, path, params=list(params), content=content, headers={**headers, **auth.headers}
                )

        response = await self._authenticated(send)
        return Reply(response.status_code, response.content)

    @asynccontextmanager
    async def websocket(self, path: str, *, greeting: str) -> AsyncIterator[tuple[Reply, WebSocket]]:
        """Ask for `greeting` and connect a WebSocket over the same connection, so that the answer is about its peer.

        Leaving closes the WebSocket, after at most a second for the closing handshake.

        Raises:
            TransportError: The gateway was not reached, or left in between.
            UpgradeRefusedError: It does not want to.
            Exception: Looking for newer credentials failed.
        """
        async with self._make_client() as client:
            headers = client.headers

            async def greet(auth: AuthHeaders) -> httpx.Response:
                # The handshake of the WebSocket sends them too.
                client.headers = {**headers, **auth.headers}
                async with _translated():
                    return await client.get(greeting)

            greeted = await self._authenticated(greet)
            reply = Reply(greeted.status_code, greeted.content)
            if greeted.status_code != 200:
                raise UpgradeRefusedError(reply)
            opener = httpx_ws.AsyncWebSocketClient(
                client, keepalive_ping_interval_seconds=None, session_class=WebSocket
            )
            try:
                async with _translated(), opener.connect(path) as websocket:
                    websocket.check(greeted)
                    yield reply, websocket
            except httpx_ws.WebSocketUpgradeError as error:
                raise UpgradeRefusedError(Reply(error.response.status_code, error.response.content)) from error

    async def _authenticated(self, send: Callable[[AuthHeaders], Awaitable[httpx.Response]]) -> httpx.Response:
        """Send with the present credentials, and once more with newer ones if these are refused and there are any."""
        auth = self._credentials.headers
        response = await send(auth)
        if response.status_code == _UNAUTHENTICATED and await self._credentials.renew(auth):
            response = await send(self._credentials.headers)
        return response


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    try:
        yield
    except BaseExceptionGroup as group:
        # trio connects in a nursery, out of which a cancellation comes in a group, and no `except` of ours knows that.
        if group.split(anyio.get_cancelled_exc_class())[1] is None:
            await anyio.lowlevel.checkpoint()  # Raises it anew, bare.
        raise
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise TransportError(_text(error), sent=False, absent=_is_absent(error)) from error
    except (httpx.HTTPError, httpx.StreamError, httpcore.NetworkError) as error:
        raise TransportError(_text(error), sent=True) from error


class WebSocket(httpx_ws.AsyncWebSocketSession):
    """httpx-ws's session with a reader of our own: whole binary messages, in the caller's task.

    One task may receive while another sends; no two may send.
    """

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[WebSocket, None]:
        self._pieces: list[bytes | bytearray] = []
        self._pieces_bytes = 0
        self._reply = b""  # The pong to the latest ping; RFC 6455 (5.5.3) wants no older ones.
        self._broken = False
        self._mid_write = False
        try:
            yield self
        finally:
            with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
                await self._handshake_close()
            with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
                await self.stream.aclose()

    def check(self, greeted: httpx.Response) -> None:
        """Make sure that the peer speaks WebSocket and means us (httpx-ws does not), on the connection of `greeted`.

        Raises:
            TransportError: It does not.
        """
        assert self.response is not None
        key = self.response.request.headers["sec-websocket-key"].encode()
        expected = base64.b64encode(hashlib.sha1(key + _ACCEPT_GUID, usedforsecurity=False).digest()).decode()
        if self.response.headers.get("sec-websocket-accept") != expected:
            raise self._over("the peer answered the WebSocket handshake wrongly")
        before = greeted.extensions["network_stream"].get_extra_info("socket")
        if self.stream.get_extra_info("socket") is not before:
            raise self._over("the connection was closed during the handshake")

    @property
    def has_reply(self) -> bool:
        """Whether the next `send_message` has something to send even without a message."""
        return bool(self._reply)

    async def receive_message(self) -> bytes:
        """Receive the next whole message, or nothing (`b""`) when only a reply to a ping has to be sent.

        Cancelling loses no data.

        Raises:
            TransportError: The connection is over.
        """
        while True:
            message = self._next_message()
            if message is not None:
                return message
            if self._reply:
                return b""
            try:
                data = await self.stream.read(_READ_BYTES)
            except httpcore.NetworkError as error:
                raise self._over(_text(error)) from error
            if not data:
                raise self._over("the connection was closed")
            self.connection.receive_data(data)

    async def send_message(self, message: bytes | None) -> None:
        """Send the reply to a ping, if one is due, and a message. Cancelling may cut it: the connection is dead then.

        Raises:
            TransportError: The connection is over.
        """
        data, self._reply = self._reply, b""
        try:
            if message is not None:
                data += self.connection.send(wsproto.events.BytesMessage(message))
            self._mid_write = True
            await self.stream.write(data)
            self._mid_write = False
        except (httpcore.NetworkError, ProtocolError) as error:
            raise self._over(_text(error)) from error

    def _next_message(self) -> bytes | None:
        for event in self.connection.events():
            match event:
                case wsproto.events.BytesMessage():
                    self._pieces_bytes += len(event.data)
                    if self._pieces_bytes > MAX_MESSAGE_BYTES:
                        raise self._over("the gateway sent a message that is too large")
                    self._pieces.append(event.data)
                    if event.message_finished:
                        return self._take_pieces()
                case wsproto.events.Ping():
                    self._reply = self.connection.send(event.response())
                case wsproto.events.CloseConnection():
                    raise self._over(f"the gateway closed the connection ({event.code}{_and(event.reason)})")
                case wsproto.events.TextMessage():
                    raise self._over("the gateway sent a text message")
                case _:
                    pass  # Pongs to pings that we did not send.
        return None

    def _take_pieces(self) -> bytes:
        message = b"".join(self._pieces)
        self._pieces.clear()
        self._pieces_bytes = 0
        return message

    def _over(self, message: str) -> TransportError:
        self._broken = True
        return TransportError(message, sent=True)

    async def _handshake_close(self) -> None:
        """Send a close and wait for the peer's: closing at once could throw away what it has not read yet."""
        if self._broken or self._mid_write or self.connection.state is not ConnectionState.OPEN:
            return
        try:
            await self.stream.write(self.connection.send(wsproto.events.CloseConnection(code=1000)))
            while data := await self.stream.read(_READ_BYTES):
                self.connection.receive_data(data)
                if any(isinstance(event, wsproto.events.CloseConnection) for event in self.connection.events()):
                    return
        except (httpcore.NetworkError, ProtocolError):
            return


@asynccontextmanager
async def open_transport(
    address: Address, *, socket_path: str | None, credentials: Credentials
) -> AsyncIterator[Transport]:
    """Make the client for one address. Does no I/O; leaving closes its connections.

    Args:
        address: Where the gateway is.
        socket_path: The Unix socket, for all but `http(s)` addresses.
        credentials: Sent with every request.
    """
    tls = await _tls_context(address)
    headers = {"user-agent": f"cwsandbox/{__version__}", "accept": "application/json"}

    def make_client() -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=address.url,
            headers=headers,
            transport=_http_transport(tls, socket_path),
            timeout=None,  # noqa: S113 - the caller's one deadline covers everything; httpx's own are per read.
            trust_env=False,
            follow_redirects=False,  # Credentials are for one host.
            event_hooks={"request": [_simplify_body], "response": [_read_refusal]},
        )

    async with make_client() as client:
        yield Transport(make_client, client, credentials)


def _http_transport(tls: ssl.SSLContext, socket_path: str | None) -> httpx.AsyncHTTPTransport:
    limits = httpx.Limits(
        max_connections=None, max_keepalive_connections=_IDLE_CONNECTIONS, keepalive_expiry=_IDLE_SECONDS
    )
    transport = httpx.AsyncHTTPTransport(verify=tls, trust_env=False, limits=limits)
    if socket_path is not None:
        # httpcore's pool takes a network backend, but httpx has no way to pass one on.
        transport._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            uds=socket_path,
            network_backend=UnixSocketBackend(),
        )
    return transport


async def _tls_context(address: Address) -> ssl.SSLContext:
    if address.kind is AddressKind.HTTP and address.url.startswith("https:"):
        return await anyio.to_thread.run_sync(ssl.create_default_context)  # Reads the system's root certificates.
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # Never used; httpx would load the root certificates instead.


async def _simplify_body(request: httpx.Request) -> None:
    request.stream = _Body(await request.aread())


async def _read_refusal(response: httpx.Response) -> None:
    """httpx-ws drops the body of a refused handshake unread, and it says why."""
    if response.status_code != 101:
        await response.aread()


def _is_absent(error: BaseException) -> bool:
    """Whether nobody listens there, rather than that we cannot get through."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return isinstance(cause, OSError) and cause.errno in {errno.ENOENT, errno.ECONNREFUSED}


def _text(error: BaseException) -> str:
    """The message; those of httpcore are often empty, and what they wrap says more."""
    cause: BaseException | None = error
    while cause is not None and not str(cause):
        cause = cause.__cause__ or cause.__context__
    return str(cause) if cause is not None else type(error).__name__


def _and(reason: str | None) -> str:
    return f": {reason}" if reason else ""
