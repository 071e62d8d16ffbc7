"""A gateway as a process of its own, and a client of its channel that needs no event loop."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, unix_connect

from cwsandbox.wire import channel as wire
from cwsandbox.wire.channel import Channel, Role, StreamKind
from cwsandbox.wire.streams import ExecOpen

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 20.0


class GatewayProcess:
    """A gateway, started as the client starts it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.socket = str(folder / "s" / "gateway.sock")
        ready, write = os.pipe()
        where = [] if "--host" in options else ["--embedded", "--socket", self.socket]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-m", "cwsandbox.gateway", *where, "--isolation", "process"),
                *("--state-dir", str(folder / "state"), "--runtime-dir", str(folder / "run")),
                *("--ready-fd", str(write), "--log-file", str(folder / "log"), *options),
            ],
            pass_fds=(write,),
        )
        os.close(write)
        with os.fdopen(ready, "rb") as pipe:
            assert select.select([pipe], [], [], SECONDS)[0], "it is not ready"
            self.ready = json.loads(pipe.readline())

    def http(self) -> httpx.Client:
        return httpx.Client(transport=httpx.HTTPTransport(uds=self.socket), base_url="http://gateway", timeout=SECONDS)

    def sandbox(self, *argv: str) -> str:
        command, *args = argv or ("sleep", "1000")
        with self.http() as http:
            made = http.post("/v1/sandboxes", json={"spec": {"containers": [{"command": command, "args": args}]}})
            sandbox_id = made.json()["sandboxId"]
            record = http.get(f"/v1/sandboxes/{sandbox_id}", params={"waitFor": "running"}).json()
        assert record["status"]["state"] == "STATE_RUNNING", record
        return str(sandbox_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(SECONDS)


class _Connection(ClientConnection):
    """One that reads to the end: a gateway that has ended does not take the answer to its closing frame any more, and
    the library would drop what came with that frame."""

    def send_data(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            super().send_data()


class SyncChannel:
    """A client of the exec channel over a real socket."""

    def __init__(self, socket: str) -> None:
        self._stack = contextlib.ExitStack()
        connecting = unix_connect(
            socket, "ws://gateway/v1/channel", compression=None, max_size=None, create_connection=_Connection
        )
        self.web: ClientConnection = self._stack.enter_context(connecting)
        self.mux = Channel(Role.CLIENT)

    def start(self, sandbox_id: str, *argv: str, **fields: Any) -> wire.Stream:
        params = ExecOpen(sandbox_id=sandbox_id, argv=argv, **fields).to_params()
        stream = self.mux.open(StreamKind.EXEC, params, uuid4().hex)
        self.flush()
        return stream

    def flush(self) -> None:
        while (message := self.mux.message_to_send()) is not None:
            self.web.send(message)

    def until(self, kind: type[wire.StreamEvent]) -> dict[type, Any]:
        """Read until an event of this kind; returns the last event of every kind, and all output as bytes."""
        seen: dict[type, Any] = {bytes: b""}
        while kind not in seen:
            message = self.web.recv(SECONDS)
            assert isinstance(message, bytes)
            for event in self.mux.receive(message, time.monotonic()):
                seen[type(event)] = event
                if isinstance(event, wire.Data):
                    seen[bytes] += event.data
                    event.stream.consumed(len(event.data), event.code)
            with contextlib.suppress(ConnectionClosed):  # There may be nobody left to answer.
                self.flush()
        return seen

    def close(self) -> None:
        """The gateway may have been first, or be stuck."""
        with contextlib.suppress(Exception):
            self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()
