"""The gateway as a process of its own, with the real local runner."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, unix_connect

from cwsandbox.gateway import embedded
from cwsandbox.gateway.auth import new_key
from cwsandbox.wire import channel as wire
from cwsandbox.wire.channel import Channel, Role, StreamKind
from cwsandbox.wire.errors import Code, Reason, Status
from cwsandbox.wire.streams import ExecOpen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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


class SyncChannel:
    """A client of the exec channel over a real socket."""

    def __init__(self, socket: str) -> None:
        self._stack = contextlib.ExitStack()
        connecting = unix_connect(socket, "ws://gateway/v1/channel", compression=None, max_size=None)
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
            for event in self.mux.receive(self.web.recv(SECONDS), time.monotonic()):
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


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def running(mark: str) -> list[int]:
    """The processes with this word in their command line."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                if mark.encode() in file.read().split(b"\0"):
                    found.append(int(name))
    return found


@pytest.fixture
def mark() -> Iterator[str]:
    """A number of seconds that nobody else sleeps."""
    return f"1000.{uuid4().int % 10**12:012d}"


def test_a_gateway_starts_serves_and_ends(folder: Path, mark: str) -> None:
    with GatewayProcess(folder) as gateway:
        assert gateway.ready["pid"] == gateway.process.pid
        assert gateway.ready["socket"] == gateway.socket
        assert gateway.ready["notice"] == ""
        with gateway.http() as http:
            info = http.get("/v1/gateway").json()
        assert (info["instanceId"], info["protocol"]) == (gateway.ready["instanceId"], gateway.ready["protocol"])
        sandbox_id = gateway.sandbox("sleep", mark)
        with SyncChannel(gateway.socket) as channel:
            channel.start(sandbox_id, "sh", "-c", "echo hello; exit 3")
            seen = channel.until(wire.Closed)
            assert (seen[bytes], seen[wire.ExitStatusReceived].status) == (b"hello\n", 3)
            channel.start(sandbox_id, "sh", "-c", f"sleep {mark} & sleep {mark}", stdin=True)
            channel.until(wire.Confirmed)
            assert running(mark)
            gateway.process.terminate()
            seen = channel.until(wire.Closed)
            assert wire.ExitStatusReceived not in seen
            assert seen[wire.Failed].status.reason == Reason.SANDBOX_NOT_RUNNING
        assert gateway.process.wait(SECONDS) == 0
    assert running(mark) == []
    assert not os.path.exists(gateway.socket)
    assert os.listdir(folder / "run") == []


def test_it_ends_when_it_is_not_used(folder: Path) -> None:
    with GatewayProcess(folder, "--idle-seconds", "0.3") as gateway:
        sandbox_id = gateway.sandbox()
        with pytest.raises(subprocess.TimeoutExpired):
            gateway.process.wait(0.8)  # A sandbox keeps it.
        with gateway.http() as http:
            http.delete(f"/v1/sandboxes/{sandbox_id}")
        assert gateway.process.wait(SECONDS) == 0


def test_it_ends_when_asked_by_request(folder: Path, mark: str) -> None:
    with GatewayProcess(folder) as gateway:
        gateway.sandbox("sleep", mark)
        with gateway.http() as http:
            assert http.post("/v1/gateway:shutdown").status_code == 200
        assert gateway.process.wait(SECONDS) == 0
    assert running(mark) == []


def test_a_killed_gateways_successor_takes_its_sandboxes_back_and_their_commands(folder: Path, mark: str) -> None:
    with GatewayProcess(folder) as gateway:
        sandbox_id = gateway.sandbox()
        channel = SyncChannel(gateway.socket)
        script = f"echo begun; read word; echo got $word; sleep {mark}"
        stream = channel.start(sandbox_id, "sh", "-c", script, stdin=True)
        assert channel.until(wire.Data)[bytes] == b"begun\n"
        gateway.process.kill()
        gateway.process.wait()
        channel.close()
    with GatewayProcess(folder) as successor:
        with successor.http() as http:
            record = http.get(f"/v1/sandboxes/{sandbox_id}").json()
        assert record["status"]["state"] == "STATE_RUNNING"
        again = SyncChannel(successor.socket)
        again.mux = channel.mux.resume()
        stream.send(b"word\n")
        again.flush()
        assert again.until(wire.Data)[bytes] == b"got word\n"
        wait_until(lambda: bool(running(mark)), "the old command does not go on")
        stream.close()
        again.flush()
        again.until(wire.Closed)
        assert not running(mark)
        again.start(sandbox_id, "echo", "still here")
        assert again.until(wire.Closed)[bytes] == b"still here\n"
        again.close()


def test_a_killed_client_leaves_no_command(folder: Path, mark: str) -> None:
    script = (
        "import sys, time\n"
        "from tests.gateway.test_process import SyncChannel, wire\n"
        "channel = SyncChannel(sys.argv[1])\n"
        "channel.start(sys.argv[2], 'sleep', sys.argv[3], stdin=True)\n"
        "channel.until(wire.Confirmed)\n"
        "print('up', flush=True)\n"
        "time.sleep(1000)\n"
    )
    with GatewayProcess(folder, "--grace-seconds", "1000") as gateway:
        sandbox_id = gateway.sandbox()
        with subprocess.Popen(
            [sys.executable, "-c", script, gateway.socket, sandbox_id, mark], stdout=subprocess.PIPE
        ) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == b"up\n"
            assert running(mark)
            client.kill()
        wait_until(lambda: not running(mark), "the command outlived its client")


def test_a_port_wants_keys(folder: Path) -> None:
    key, line = new_key("ann")
    (folder / "keys").write_text(line + "\n")
    with GatewayProcess(folder, "--host", "127.0.0.1", "--api-key-file", str(folder / "keys")) as gateway:
        with httpx.Client(base_url=f"http://{gateway.ready['socket']}") as http:
            assert http.get("/v1/gateway").status_code == 401
            headers = {"authorization": f"Bearer {key}"}
            assert http.get("/v1/gateway", headers=headers).status_code == 200
            answer = http.post("/v1/gateway:shutdown", headers=headers)
            assert Status.from_json(answer.json()).code is Code.PERMISSION_DENIED


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_other_users_are_not_let_in(folder: Path) -> None:
    script = (
        "import os, socket, sys\n"
        "os.setresgid(65534, 65534, 65534)\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "peer = socket.socket(socket.AF_UNIX)\n"
        "peer.connect(sys.argv[1])\n"
        "try:\n"
        "    peer.sendall(b'GET /v1/gateway HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n"
        "    sys.exit(1 if peer.recv(1) else 0)\n"
        "except OSError:\n"
        "    sys.exit(0)\n"
    )
    with GatewayProcess(folder) as gateway:
        # What the folder and the socket would have kept out already.
        os.chmod(folder, 0o755)
        os.chmod(folder / "s", 0o755)
        os.chmod(gateway.socket, 0o666)
        assert subprocess.run([sys.executable, "-I", "-c", script, gateway.socket], timeout=SECONDS).returncode == 0


def test_a_folder_that_others_can_enter_is_refused(folder: Path) -> None:
    (folder / "s").mkdir()
    (folder / "s").chmod(0o755)
    with GatewayProcess(folder) as gateway:
        assert "0700" in gateway.ready["error"]
        assert gateway.process.wait(SECONDS) == 1


def test_a_state_directory_belongs_to_one_gateway(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_LOCK_SECONDS", 0.1)
    with open(folder / "lock", "w", encoding="ascii") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="another gateway"), embedded._lock(str(folder)):
            pass
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    with embedded._lock(str(folder)):
        pass


def test_a_stalled_client_does_not_hold_up_the_end(folder: Path) -> None:
    with GatewayProcess(folder) as gateway:
        sandbox_id = gateway.sandbox()
        channel = SyncChannel(gateway.socket)
        for _ in range(20):
            channel.start(sandbox_id, "cat", "/dev/zero")
        channel.until(wire.Data)  # And nothing more is read.
        began = time.monotonic()
        gateway.process.terminate()
        assert gateway.process.wait(SECONDS) == 0
        assert time.monotonic() - began < 10
        channel.close()


def test_wrong_arguments(folder: Path) -> None:
    command = [
        sys.executable,
        "-I",
        "-m",
        "cwsandbox.gateway",
        "--state-dir",
        str(folder),
        "--runtime-dir",
        str(folder),
    ]
    for wrong in ([], ["--embedded"], ["--host", "127.0.0.1"], ["--embedded", "--host", "x", "--socket", "y"]):
        done = subprocess.run([*command, *wrong], capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 2
        assert "error:" in done.stderr
