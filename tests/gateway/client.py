"""A client of the exec channel over the ASGI application, without sockets: it can vanish, stall, and count."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc

from cwsandbox.wire import channel as wire
from cwsandbox.wire.channel import Channel, Role, Stream, StreamKind

if TYPE_CHECKING:
    from cwsandbox.wire.errors import Status


class AsgiSocket:
    """One WebSocket into an ASGI application. The application's sends wait until they are received, as with TCP."""

    def __init__(self, app: Any, state: dict[str, Any] | None = None, headers: list[tuple[bytes, bytes]] | None = None):
        self._app = app
        self._scope = {
            "type": "websocket",
            "path": "/v1/channel",
            "raw_path": b"/v1/channel",
            "query_string": b"",
            "headers": headers or [],
            "subprotocols": [],
            "root_path": "",
            "scheme": "ws",
            "state": state or {},
            "extensions": {"websocket.http.response": {}},
        }
        self._to_app, self._app_in = anyio.create_memory_object_stream[dict[str, Any]](1000)
        self._app_out, self._from_app = anyio.create_memory_object_stream[dict[str, Any]](4)
        self.closed = anyio.Event()
        self.ended = anyio.Event()

    async def run(self) -> None:
        await self._to_app.send({"type": "websocket.connect"})
        try:
            await self._app(self._scope, self._app_in.receive, self._send)
        finally:
            self.ended.set()
            self._app_out.close()
            self._app_in.close()

    async def _send(self, message: dict[str, Any]) -> None:
        if self.closed.is_set():
            raise OSError("the client is gone")
        await self._app_out.send(message)

    async def receive(self) -> dict[str, Any]:
        return await self._from_app.receive()

    async def send(self, message: bytes) -> None:
        await self._to_app.send({"type": "websocket.receive", "bytes": message})

    def drop(self) -> None:
        """The connection breaks."""
        if not self.closed.is_set():
            self.closed.set()
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # It may have ended.
                self._to_app.send_nowait({"type": "websocket.disconnect", "code": 1006})

    def close(self) -> None:
        self.drop()
        for stream in (self._to_app, self._from_app):
            stream.close()


class Result:
    """What a stream brought."""

    def __init__(self, stream: Stream, paced: bool) -> None:
        self.stream = stream
        self.paced = paced
        self.output = {0: bytearray(), 1: bytearray()}
        self.confirmed: dict[str, Any] | None = None
        self.sandbox: dict[str, Any] | None = None  # What the confirmation said of it.
        self.confirmed_event = anyio.Event()
        self.eof: set[int] = set()
        self.status: int | None = None
        self.signal: str | None = None
        self.failure: Status | None = None
        self.ended = anyio.Event()
        self.news = anyio.Event()

    @property
    def stdout(self) -> bytes:
        return bytes(self.output[0])

    @property
    def stderr(self) -> bytes:
        return bytes(self.output[1])

    async def wait(self) -> Result:
        with anyio.fail_after(20):
            await self.ended.wait()
        return self

    async def wait_output(self, size: int) -> None:
        with anyio.fail_after(20):
            while len(self.output[0]) < size:
                await self.news.wait()


class ChannelClient:
    """A client. `connect` and `reconnect` run the application's side in `tasks`."""

    def __init__(self, app: Any, tasks: anyio.abc.TaskGroup, state: dict[str, Any] | None = None) -> None:
        self._app = app
        self._tasks = tasks
        self._state = state
        self.mux = Channel(Role.CLIENT)
        self.results: dict[str, Result] = {}
        self.messages = 0
        self.socket = AsgiSocket(app, state)
        self.stalled: anyio.Event | None = None
        self._wake = anyio.Event()
        self._names = 0

    async def connect(self) -> None:
        socket = self.socket
        self._tasks.start_soon(socket.run)
        assert (await socket.receive())["type"] == "websocket.accept"
        self._tasks.start_soon(self._read, socket, self.mux)
        self._tasks.start_soon(self._write, socket, self.mux)

    async def reconnect(self) -> None:
        self.socket.close()
        self.mux = self.mux.resume()
        self.socket = AsgiSocket(self._app, self._state)
        await self.connect()

    def open(self, kind: StreamKind, params: Any, exec_id: str = "", paced: bool = True) -> Result:
        self._names += 1
        stream = self.mux.open(kind, params.to_params(), exec_id or f"x{id(self)}-{self._names}")
        result = self.results[stream.exec_id] = Result(stream, paced)
        self.wake()
        return result

    def wake(self) -> None:
        self._wake.set()

    async def _read(self, socket: AsgiSocket, mux: Channel) -> None:
        try:
            while True:
                if self.stalled is not None:
                    await self.stalled.wait()
                message = await socket.receive()
                if message["type"] != "websocket.send":
                    socket.drop()
                    return
                self.messages += 1
                for event in mux.receive(message["bytes"], anyio.current_time()):
                    self._dispatch(event)
                self.wake()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            return

    async def _write(self, socket: AsgiSocket, mux: Channel) -> None:
        try:
            while not socket.closed.is_set():
                while (message := mux.message_to_send()) is not None:
                    await socket.send(message)
                self._wake = anyio.Event()
                await self._wake.wait()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return

    def _dispatch(self, event: wire.Event) -> None:
        if not isinstance(event, wire.StreamEvent):
            return
        result = self.results[event.stream.exec_id]
        match event:
            case wire.Data(code=code, data=data):
                result.output[code] += data
                if result.paced:
                    event.stream.consumed(len(data), code)
            case wire.Confirmed(info=info):
                result.confirmed = dict(info)
                result.sandbox = result.confirmed.pop("sandbox", None)
                result.confirmed_event.set()
            case wire.Eof(code=code):
                result.eof.add(code)
            case wire.ExitStatusReceived(status=status):
                result.status = status
            case wire.ExitSignalReceived(name=name):
                result.signal = name
            case wire.Failed(status=failure):
                result.failure = failure
            case wire.Closed():
                result.ended.set()
        result.news.set()
        result.news = anyio.Event()
