"""The gateway as a process of its own, with the real local runner."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from cwsandbox.gateway import embedded
from cwsandbox.gateway.auth import new_key
from cwsandbox.wire import channel as wire
from cwsandbox.wire.errors import Code, Reason, Status
from tests.gateway.gatewayprocess import SECONDS, GatewayProcess, SyncChannel
from tests.support.processes import assert_gone, new_marker, processes_with

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def mark() -> str:
    """A number of seconds that nobody else sleeps."""
    return new_marker()


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
            assert processes_with(mark)
            gateway.process.terminate()
            seen = channel.until(wire.Closed)
            assert wire.ExitStatusReceived not in seen
            assert seen[wire.Failed].status.reason == Reason.SANDBOX_NOT_RUNNING
        assert gateway.process.wait(SECONDS) == 0
    assert processes_with(mark) == []
    assert not os.path.exists(gateway.socket)
    assert os.listdir(folder / "run") == []


def test_it_ends_when_it_is_not_used(folder: Path) -> None:
    with GatewayProcess(folder, "--idle-seconds", "1") as gateway:
        sandbox_id = gateway.sandbox()
        with pytest.raises(subprocess.TimeoutExpired):
            gateway.process.wait(1.5)  # A sandbox keeps it.
        with gateway.http() as http:
            http.delete(f"/v1/sandboxes/{sandbox_id}")
        assert gateway.process.wait(SECONDS) == 0


def test_it_ends_when_asked_by_request(folder: Path, mark: str) -> None:
    with GatewayProcess(folder) as gateway:
        gateway.sandbox("sleep", mark)
        with gateway.http() as http:
            assert http.post("/v1/gateway:shutdown").status_code == 200
        assert gateway.process.wait(SECONDS) == 0
    assert processes_with(mark) == []


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
        assert processes_with(mark)
        stream.close()
        again.flush()
        again.until(wire.Closed)
        assert processes_with(mark) == []
        again.start(sandbox_id, "echo", "still here")
        assert again.until(wire.Closed)[bytes] == b"still here\n"
        again.close()


def test_a_killed_client_leaves_no_command(folder: Path, mark: str) -> None:
    script = (
        "import sys, time\n"
        "from cwsandbox.wire.channel import Confirmed\nfrom tests.gateway.gatewayprocess import SyncChannel\n"
        "channel = SyncChannel(sys.argv[1])\n"
        "channel.start(sys.argv[2], 'sleep', sys.argv[3], stdin=True)\n"
        "channel.until(Confirmed)\n"
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
            assert set(processes_with(mark)) - {client.pid}
            client.kill()
        assert_gone(mark)


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
        gateway.process.terminate()
        assert gateway.process.wait(SECONDS) == 0
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
