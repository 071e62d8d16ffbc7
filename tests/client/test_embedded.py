"""The embedded gateway as a process: found, started once, started again, and nothing left of it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

import cwsandbox
from cwsandbox import exceptions as e
from cwsandbox._client import embedded, gateway
from cwsandbox._client.address import EMBEDDED
from cwsandbox._client.folders import Folders, prepare_folders
from cwsandbox._client.gateway import open_gateway
from cwsandbox._client.stream import Exited
from cwsandbox.wire.channel import StreamKind
from cwsandbox.wire.resources import Container, Sandbox, SandboxSpec
from cwsandbox.wire.streams import ExecOpen
from tests.client.sink import Sink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cwsandbox._client.gateway import GatewayClient

FIND = """
import anyio, sys
from cwsandbox._client.address import EMBEDDED
from cwsandbox._client.gateway import open_gateway

async def find(found):
    async with open_gateway(EMBEDDED) as client:
        info = await client.api.gateway_info(timeout=30)
        found.append(f"{info.pid} {info.instance_id} {info.version}")

async def main():
    found = []
    async with anyio.create_task_group() as tasks:
        for _ in range(int(sys.argv[1])):
            tasks.start_soon(find, found)
    print("\\n".join(found))

anyio.run(main, backend=sys.argv[2])
"""


def wait_gone(pid: int) -> None:
    """Wait until a process that is nobody's child of ours has ended."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            assert select.select([descriptor], [], [], 20)[0], f"process {pid} is still there"
        finally:
            os.close(descriptor)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Folders]:
    """Private folders; the gateway that was started in them is shut down, and gone, at the end."""
    base = tempfile.mkdtemp(prefix="cwe-")
    monkeypatch.setenv("CWSANDBOX_RUNTIME_DIR", f"{base}/run")
    monkeypatch.setenv("CWSANDBOX_STATE_DIR", f"{base}/state")
    monkeypatch.delenv("CWSANDBOX_ISOLATION", raising=False)
    monkeypatch.delenv("CWSANDBOX_BASE_URL", raising=False)
    folders = prepare_folders()
    try:
        yield folders
    finally:
        for name in os.listdir(folders.runtime):
            if name.endswith(".sock"):
                shut_down(f"{folders.runtime}/{name}")
        shutil.rmtree(base)


def shut_down(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
        except ConnectionRefusedError:
            return
        pid = peer_pid(connection)
        connection.sendall(
            b"POST /v1/gateway:shutdown HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )
        assert b" 200 " in connection.recv(4096)
    wait_gone(pid)


def peer_pid(connection: socket.socket) -> int:
    return int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)


def find(count: int = 1, backend: str = "asyncio", **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", FIND, str(count), backend],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
        cwd="/",  # Else the checkout that the tests run in would be imported before anything that a test wants.
    )


def answers(finder: subprocess.Popen[str]) -> list[str]:
    output, errors = finder.communicate(timeout=60)
    assert finder.returncode == 0, errors
    return output.splitlines()


async def box(client: GatewayClient) -> str:
    container = Container(name="main", command="sleep", args=("1000",))
    record = await client.api.create(
        Sandbox(spec=SandboxSpec(containers=(container,))), request_id=uuid.uuid4().hex, timeout=20
    )
    return record.sandbox_id


def execute(client: GatewayClient, sandbox_id: str, *argv: str) -> Sink:
    sink = Sink()
    # With stdin the gateway confirms the start at once instead of with the first output.
    params = ExecOpen(sandbox_id=sandbox_id, argv=argv, wait_seconds=20, stdin=True).to_params()
    sink.stream = client.channel.open(StreamKind.EXEC, params, uuid.uuid4().hex, sink)
    return sink


def test_a_hundred_finders_at_once_get_one_gateway(home: Folders) -> None:
    finders = [find(10, ("asyncio", "trio")[n % 2]) for n in range(10)]
    found = [line for finder in finders for line in answers(finder)]
    assert len(found) == 100
    assert len(set(found)) == 1


async def test_it_is_started_once_and_found_again(home: Folders) -> None:
    async with open_gateway(EMBEDDED) as client:
        first = await client.api.gateway_info(timeout=10)
    async with open_gateway(EMBEDDED) as client:
        second = await client.api.gateway_info(timeout=10)
    assert first.instance_id == second.instance_id
    assert first.version == cwsandbox.__version__
    assert first.pid != os.getpid()


async def test_it_is_a_process_of_its_own_that_knows_no_secrets(home: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWSANDBOX_API_KEY", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter3")
    async with open_gateway(EMBEDDED) as client:
        pid = (await client.api.gateway_info(timeout=10)).pid
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"hunter" not in environment
    assert b"CWSANDBOX_STATE_DIR=" in environment
    assert os.getsid(pid) != os.getsid(0)
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    assert os.stat(home.log).st_mode & 0o777 == 0o600


async def test_a_stale_socket_is_replaced(home: Folders) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(home.socket)
    async with open_gateway(EMBEDDED) as client:
        assert (await client.api.gateway_info(timeout=10)).pid


async def test_commands_run(home: Folders) -> None:
    async with open_gateway(EMBEDDED) as client:
        sandbox_id = await box(client)
        sink = execute(client, sandbox_id, "echo", "hello")
        assert await sink.result() == Exited(0)
        assert bytes(sink.received) == b"hello\n"
        assert [record.sandbox_id for record in await client.api.list(timeout=10)] == [sandbox_id]
        await client.api.delete(sandbox_id, timeout=20)
        with pytest.raises(e.SandboxNotFoundError) as caught:
            await client.api.get(sandbox_id, timeout=10)
        assert caught.value.sandbox_id == sandbox_id
        assert await client.api.delete(sandbox_id, allow_missing=True, timeout=10) is None


async def test_when_a_gateway_is_killed_another_is_started_and_goes_on(home: Folders) -> None:
    async with open_gateway(EMBEDDED) as client:
        sandbox_id = await box(client)
        sink = execute(client, sandbox_id, "sh", "-c", "read word; echo $word; exit 3")
        await sink.running.wait()
        before = await client.api.gateway_info(timeout=10)
        os.kill(before.pid, signal.SIGKILL)
        sink.stream.send(b"word\n")
        assert await sink.result() == Exited(3)
        assert sink.received == b"word\n"
        after = await client.api.gateway_info(timeout=30)
        assert after.instance_id != before.instance_id
        for record in await client.api.list(timeout=10):
            await client.api.delete(record.sandbox_id, timeout=20)


async def test_a_gateway_that_was_shut_down_is_not_missed(home: Folders) -> None:
    async with open_gateway(EMBEDDED) as client:
        pid = (await client.api.gateway_info(timeout=10)).pid
        await client.api.shutdown(timeout=10)
        await anyio.to_thread.run_sync(wait_gone, pid)
        sandbox_id = await box(client)
        assert await execute(client, sandbox_id, "true").result() == Exited(0)
        await client.api.delete(sandbox_id, timeout=20)


async def test_a_start_that_fails_shows_the_end_of_the_log(home: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = "import os, sys\nif os.fork():\n    os._exit(0)\nsys.exit('nonsense')"
    with monkeypatch.context() as patch, pytest.raises(e.SandboxUnavailableError, match="nonsense") as caught:
        patch.setattr(embedded, "_BOOTSTRAP", fails)
        async with open_gateway(EMBEDDED):
            pass
    assert home.log in str(caught.value)
    async with open_gateway(EMBEDDED) as client:
        assert (await client.api.gateway_info(timeout=10)).pid


async def test_a_gateway_that_cannot_run_says_why(home: Folders) -> None:
    Path(home.gateway_state).write_text("in the way")
    with pytest.raises(e.SandboxUnavailableError) as caught:
        async with open_gateway(EMBEDDED):
            pass
    assert home.gateway_state in str(caught.value)


async def test_a_start_that_takes_too_long_is_an_error(home: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_START_SECONDS", 0.3)
    monkeypatch.setattr(embedded, "_BOOTSTRAP", "import os, sys, time\nif os.fork(): os._exit(0)\ntime.sleep(1)\n")
    with pytest.raises(e.SandboxUnavailableError, match="not ready"):
        async with open_gateway(EMBEDDED):
            pass


async def test_a_gateway_whose_starter_gave_up_is_waited_for(home: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one would wait for the first one's state, and then fail."""
    scope = anyio.CancelScope()

    async def give_up(descriptor: int) -> bytes:
        scope.cancel()
        await anyio.sleep_forever()
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_read_line", give_up)
        with scope:
            async with open_gateway(EMBEDDED):
                pass
    assert scope.cancelled_caught
    async with open_gateway(EMBEDDED) as client:
        pid = (await client.api.gateway_info(timeout=10)).pid
    started = [line for line in Path(home.log).read_text().splitlines() if " serves " in line or "cannot run" in line]
    assert len(started) == 1
    assert f"pid {pid})" in started[0]


@pytest.fixture
def held_lock(home: Folders) -> Iterator[int]:
    descriptor = os.open(home.lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield descriptor
    os.close(descriptor)


async def test_waiting_for_another_starter_is_bounded(
    home: Folders, held_lock: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_LOCK_SECONDS", 0.2)
    with pytest.raises(e.SandboxUnavailableError, match="another process"):
        async with open_gateway(EMBEDDED):
            pass


async def test_a_starter_that_gave_up_waiting_does_not_keep_the_lock(home: Folders, held_lock: int) -> None:
    with anyio.move_on_after(0.2) as scope:
        async with embedded.start_lock(home):
            raise AssertionError
    assert scope.cancelled_caught
    fcntl.flock(held_lock, fcntl.LOCK_UN)
    with anyio.fail_after(10):
        async with embedded.start_lock(home):
            pass


async def test_waiting_for_the_lock_blocks_no_loop(home: Folders, held_lock: int) -> None:
    async def let_go() -> None:
        await anyio.wait_all_tasks_blocked()  # The starter waits.
        fcntl.flock(held_lock, fcntl.LOCK_UN)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(let_go)
            async with embedded.start_lock(home):
                pass


def test_a_plain_checkout_starts_its_own_code(home: Folders, tmp_path: Path) -> None:
    """Python's isolated mode ignores PYTHONPATH, and a file beside the package must not shadow the standard library."""
    package = Path(cwsandbox.__file__).parent
    shutil.copytree(package, tmp_path / "cwsandbox", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "cwsandbox" / "_version.py").write_text('__version__ = "9.9.9"\n')
    (tmp_path / "sqlite3.py").write_text("raise ImportError('shadowed')\n")
    (line,) = answers(find(PYTHONPATH=str(tmp_path)))
    assert line.endswith(" 9.9.9")


def test_the_notice_is_one_plain_line_and_comes_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "_told", set())
    for notice in ("weaker than usual", "weaker than usual", "", None, 3):
        gateway.tell_once(notice)
    assert capsys.readouterr().err == "cwsandbox: weaker than usual\n"


def test_a_notice_without_a_stderr_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "_told", set())
    monkeypatch.setattr(sys, "stderr", None)
    gateway.tell_once("nobody reads this")


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, json\n"
        "import cwsandbox._client.gateway, cwsandbox._client.channel, cwsandbox._client.http\n"
        "print(json.dumps(sorted({'httpx', 'httpcore', 'httpx_ws', 'trio', 'uvicorn', 'starlette'} & set(sys.modules))))\n"
        "import cwsandbox._client.transport\n"
        "print(json.dumps(sorted({'rich', 'click', 'pygments'} & set(sys.modules))))\n"
        "import httpx\n"
        "assert callable(httpx.main)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[], []]
