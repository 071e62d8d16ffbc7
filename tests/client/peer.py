"""A gateway's front for tests: HTTP and the exec channel on a Unix socket, on the test's own loop, with a script instead of boxes.

What a stream does is its argv: `echo TEXT`, `cat`, `flood N`, `exit N`, `signal NAME`, `refuse CODE`, `hang`, `vanish` (no result).
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import httpcore
import wsproto
import wsproto.utilities
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, RejectConnection, RejectData, Request

from cwsandbox._client.unixsocket import UnixSocketStream
from cwsandbox.wire import channel as wire
from cwsandbox.wire.errors import Code, Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from anyio.abc import SocketStream, TaskGroup

    Handler = Callable[[str, str, dict[str, str], bytes], Awaitable[tuple[int, Any]]]

BLOCK = bytes(range(256)) * 256  # 64 KiB


def flood_bytes(size: int) -> bytes:
    return (BLOCK * (size // len(BLOCK) + 1))[:size]


class Task:
    """What a stream runs; survives the connection, as in the real gateway."""

    def __init__(self, stream: wire.Stream, argv: list[str]) -> None:
        self.stream = stream
        self.argv = argv
        self.left = int(argv[1]) if argv[0] == "flood" else 0
        self.sent = 0
        self.size = self.left

    def start(self) -> None:
        stream = self.stream
        match self.argv:
            case ["refuse", code]:
                stream.fail(Status.make(Code[code], "refused", reason="CWSANDBOX_X"))
                return
            case ["never"]:
                return
        stream.confirm({"pid": 7})
        match self.argv:
            case ["echo", text]:
                stream.send(text.encode() + b"\n")
                self._exit(0)
            case ["exit", status]:
                self._exit(int(status))
            case ["signal", name]:
                stream.exit_signal(name)
                stream.close()
            case ["vanish"]:
                stream.close()
            case ["flood", _]:
                self.pump()

    def pump(self) -> None:
        while self.left and (room := self.stream.room()):
            piece = min(room, self.left, 256 * 1024)
            begin = self.sent % len(BLOCK)
            self.stream.send(flood_bytes(begin + piece)[begin:])
            self.sent += piece
            self.left -= piece
        if self.argv[0] == "flood" and not self.left:
            self._exit(0)

    def data(self, data: bytes) -> None:
        self.stream.consumed(len(data))
        if self.argv == ["cat"]:
            self.stream.send(data)

    def eof(self) -> None:
        if self.argv == ["cat"]:
            self._exit(0)

    def _exit(self, status: int) -> None:
        self.stream.send_eof(0)
        self.stream.send_eof(1)
        self.stream.exit_status(status)
        self.stream.close()


class Wire:
    """An accepted connection, read and written as the client does it: anyio's streams do not always survive cancellation."""

    def __init__(self, accepted: SocketStream) -> None:
        self._accepted = accepted
        self._stream = UnixSocketStream(accepted.extra(anyio.abc.SocketAttribute.raw_socket))

    async def receive(self) -> bytes:
        if data := await self._stream.read(65536):
            return data
        raise anyio.EndOfStream

    async def send(self, data: bytes) -> None:
        await self._stream.write(data)

    async def close(self) -> None:
        await self._stream.aclose()


class Peer:
    """The front. `path` is its socket.

    Attributes:
        instance: What it calls itself; changing it and `forget` make it a restarted gateway.
        tasks: By exec id: everything that was ever run.
        requests: Method and path of all requests.
        handler: Answers requests.
        status: What the WebSocket handshake is answered with instead of an upgrade.
        silent: Nothing is sent any more, and nothing read.
        rejected: How many upgrades were refused.
        goodbyes: How many clients said goodbye.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.instance = "one"
        self.protocol = wire.PROTOCOL_VERSION
        self.tasks: dict[str, Task] = {}
        self.runs: list[str] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.messages: list[bytes] = []
        self.handler: Handler | None = None
        self.status: Status | None = None
        self.silent = False
        self.rejected = 0
        self.goodbyes = 0
        self._news = anyio.Event()
        self.connections: set[Wire] = set()
        self.hello: dict[str, Any] | None = None

    def forget(self, instance: str) -> None:
        """Become another process."""
        self.instance = instance
        self.tasks.clear()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the messages or refusals so far make a condition true."""
        with anyio.fail_after(20):
            while not condition():
                await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    async def drop_all(self) -> None:
        """Cut all connections."""
        for stream in list(self.connections):
            await stream.close()
        while self.connections:
            await anyio.lowlevel.checkpoint()

    async def serve(self, accepted: SocketStream) -> None:
        stream = Wire(accepted)
        self.connections.add(stream)
        try:
            with contextlib.suppress(httpcore.NetworkError, anyio.EndOfStream):
                await self._requests(stream)
        finally:
            self.connections.discard(stream)
            with anyio.CancelScope(shield=True):
                await stream.close()

    async def _requests(self, stream: Wire) -> None:
        buffer = b""
        while True:
            while b"\r\n\r\n" not in buffer:
                buffer += await stream.receive()
            head, buffer = buffer.split(b"\r\n\r\n", 1)
            line, *fields = head.decode().split("\r\n")
            method, target, _ = line.split(" ")
            headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
            if headers.get("upgrade") == "websocket":
                await self._websocket(stream, head + b"\r\n\r\n" + buffer)
                return
            size = int(headers.get("content-length", 0))
            while len(buffer) < size:
                buffer += await stream.receive()
            body, buffer = buffer[:size], buffer[size:]
            self.requests.append((method, target, headers))
            status, document = await self._answer(method, target, headers, body)
            content = document if isinstance(document, bytes) else json.dumps(document).encode()
            await stream.send(
                b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
                % (status, len(content))
                + content
            )

    async def _answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if target == "/v1/gateway":
            return 200, {
                "version": "0",
                "protocol": self.protocol,
                "instanceId": self.instance,
                "pid": os.getpid(),
                "later": 1,
            }
        if self.handler is None:
            return 404, Status.make(Code.NOT_FOUND, "nothing here").to_json()
        return await self.handler(method, target, headers, body)

    async def _websocket(self, stream: Wire, opening: bytes) -> None:
        connection = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        connection.receive_data(opening)
        output = anyio.Event()
        channel: wire.Channel | None = None

        async def write() -> None:
            nonlocal output
            assert channel is not None
            with contextlib.suppress(httpcore.NetworkError):
                while True:
                    await output.wait()
                    output = anyio.Event()
                    while not self.silent and (message := channel.message_to_send()) is not None:
                        await stream.send(connection.send(BytesMessage(message)))

        async def read(tasks: TaskGroup) -> None:
            nonlocal channel
            parts: list[bytes] = []
            while True:
                for event in connection.events():
                    match event:
                        case Request():
                            if self.status is not None:
                                await self._reject(stream, connection, self.status)
                                self.rejected += 1
                                self._tell()
                                return
                            await stream.send(connection.send(AcceptConnection()))
                            channel = wire.Channel(wire.Role.SERVER, hello=self.hello or {})
                            tasks.start_soon(write)
                            output.set()
                        case BytesMessage():
                            parts.append(bytes(event.data))
                            if event.message_finished and channel is not None:
                                message = b"".join(parts)
                                parts.clear()
                                self.messages.append(message)
                                self._tell()
                                for what in channel.receive(message, anyio.current_time()):
                                    if isinstance(what, wire.Goodbye):
                                        self.goodbyes += 1
                                        await stream.send(connection.send(CloseConnection(1000)))
                                        return
                                    self._dispatch(channel, what)
                                output.set()
                        case Ping():
                            await stream.send(connection.send(event.response()))
                        case CloseConnection():
                            await stream.send(connection.send(event.response()))
                            return
                if self.silent:
                    await anyio.sleep_forever()
                connection.receive_data(await stream.receive())

        try:
            async with anyio.create_task_group() as tasks:
                with contextlib.suppress(
                    httpcore.NetworkError, anyio.EndOfStream, wsproto.utilities.LocalProtocolError
                ):
                    await read(tasks)
                tasks.cancel_scope.cancel()
        finally:
            if channel is not None:
                channel.abandon()

    async def _reject(self, stream: Wire, connection: wsproto.WSConnection, status: Status) -> None:
        body = json.dumps(status.to_json()).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        data = connection.send(RejectConnection(headers=headers, status_code=status.code.http_status, has_body=True))
        await stream.send(data + connection.send(RejectData(data=body)))

    def _dispatch(self, channel: wire.Channel, event: wire.Event) -> None:
        match event:
            case wire.Opened():
                if (task := self.tasks.get(event.stream.exec_id)) is not None:
                    channel.adopt(task.stream, event)
                elif event.stream.attach is not None:
                    event.stream.fail(Status.make(Code.ABORTED, "not known here"))
                else:
                    task = Task(event.stream, list(event.stream.params["argv"]))
                    self.tasks[event.stream.exec_id] = task
                    self.runs.append(event.stream.exec_id)
                    task.start()
            case wire.StreamEvent():
                if (task := self.tasks.get(event.stream.exec_id)) is None:
                    return
                match event:
                    case wire.Data():
                        task.data(event.data)
                    case wire.Eof():
                        task.eof()
                    case wire.Credit():
                        task.pump()
                    case wire.SignalReceived():
                        task.stream.exit_signal(event.name)
                        task.stream.close()
                    case wire.Closed():
                        task.stream.close()


@contextlib.asynccontextmanager
async def serving(path: str | None = None) -> AsyncIterator[Peer]:
    """Serve on a socket; cut everything at the end."""
    with tempfile.TemporaryDirectory(prefix="cwtest-") as folder:
        peer = Peer(path or f"{folder}/gateway.sock")
        async with await anyio.create_unix_listener(peer.path) as listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, peer.serve)
            yield peer
            tasks.cancel_scope.cancel()
