"""Whatever ends a command ends all of it: the command, its children, its daemons (contract 1).

The trees are watched from the host's process list. Every process of a tree ignores TERM, INT and HUP.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

from cwsandbox import Process, Sandbox, SandboxTimeoutError, Session
from tests.support.clients import started_client
from tests.support.leftovers import gateway_processes, shut_down_and_look
from tests.support.processes import PROCESS_TREE, TREE_SIZE, assert_gone, new_marker, processes_with

if TYPE_CHECKING:
    from tests.support.gateway import ServedGateway

TREE = ["python3", "-c", PROCESS_TREE]


@pytest.fixture
def marker() -> str:
    return new_marker()


def grown(sb: Sandbox, marker: str, timeout_seconds: float | None = None) -> Process:
    """A command whose whole tree runs."""
    process = sb.exec([*TREE, marker], timeout_seconds=timeout_seconds)
    assert next(process.stdout) == "ready\n"
    assert len(processes_with(marker)) == TREE_SIZE
    return process


async def grown_async(sb: Sandbox, marker: str, timeout_seconds: float | None = None) -> Process:
    process = sb.exec([*TREE, marker], timeout_seconds=timeout_seconds)
    assert await anext(process.stdout) == "ready\n"
    assert len(processes_with(marker)) == TREE_SIZE
    return process


async def wait_for(process: Process) -> None:
    await process


async def gone(marker: str) -> None:
    await anyio.to_thread.run_sync(assert_gone, marker)


async def test_move_on_after_around_await(asb: Sandbox, marker: str) -> None:
    await asb
    with anyio.move_on_after(0.5) as scope:
        await asb.exec([*TREE, marker])
    assert scope.cancelled_caught
    assert processes_with(marker) == []


async def test_cancelling_the_awaiting_task(asb: Sandbox, marker: str) -> None:
    process = await grown_async(asb, marker)
    async with anyio.create_task_group() as group:
        group.start_soon(wait_for, process)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert processes_with(marker) == []


async def test_cancelling_before_the_command_began_leaves_nothing(asb: Sandbox, marker: str) -> None:
    for delay in (0, 0.001, 0.003, 0.01, 0.03):
        with anyio.move_on_after(delay):
            await asb.exec([*TREE, marker])
        await gone(marker)
    assert (await asb.exec(["echo", "usable"])).stdout == "usable\n"


async def test_cancelling_an_await_on_a_background_sandbox(sb: Sandbox, marker: str) -> None:
    sb.wait()
    process = await grown_async(sb, marker)
    with anyio.move_on_after(0.05) as scope:
        await process
    assert scope.cancelled_caught
    assert processes_with(marker) == []


def test_process_cancel(sb: Sandbox, marker: str) -> None:
    assert grown(sb, marker).cancel()
    assert_gone(marker)


async def test_process_cancel_async(asb: Sandbox, marker: str) -> None:
    process = await grown_async(asb, marker)
    assert process.cancel()
    await gone(marker)


def test_timeout_seconds(sb: Sandbox, marker: str) -> None:
    process = grown(sb, marker, timeout_seconds=3)
    with pytest.raises(SandboxTimeoutError):
        process.result()
    assert_gone(marker)


async def test_timeout_seconds_async(asb: Sandbox, marker: str) -> None:
    process = await grown_async(asb, marker, timeout_seconds=3)
    with pytest.raises(SandboxTimeoutError):
        await process
    await gone(marker)


def test_a_time_limit_fires_though_nobody_waits(sb: Sandbox, marker: str) -> None:
    grown(sb, marker, timeout_seconds=3)
    assert_gone(marker)


def test_stop(home_folder: object, marker: str) -> None:
    sandbox = Sandbox.run()
    grown(sandbox, marker)
    sandbox.stop().result()
    assert processes_with(marker) == []


async def test_stop_async(home_folder: object, marker: str) -> None:
    sandbox = Sandbox()
    await grown_async(sandbox, marker)
    await sandbox.stop()
    assert processes_with(marker) == []


def test_stop_of_a_main_command_that_ignores_term(home_folder: object, marker: str) -> None:
    sandbox = Sandbox(command="python3", args=["-c", PROCESS_TREE, marker])
    assert next(sandbox.stream_logs(follow=True)) == "ready\n"
    assert len(processes_with(marker)) == TREE_SIZE
    sandbox.stop(graceful_shutdown_seconds=0.2).result()
    assert processes_with(marker) == []


def test_delete(home_folder: object, marker: str) -> None:
    sandbox = Sandbox.run()
    grown(sandbox, marker)
    Sandbox.delete(str(sandbox.sandbox_id)).result()
    assert processes_with(marker) == []
    sandbox.stop(missing_ok=True).result()


def test_leaving_with(home_folder: object, marker: str) -> None:
    with Sandbox.run() as sandbox:
        grown(sandbox, marker)
    assert processes_with(marker) == []


async def test_leaving_async_with(home_folder: object, marker: str) -> None:
    async with Sandbox() as sandbox:
        await grown_async(sandbox, marker)
    assert processes_with(marker) == []


async def test_leaving_an_async_session(home_folder: object, marker: str) -> None:
    async with Session() as session:
        await grown_async(session.sandbox(), marker)
    assert processes_with(marker) == []


async def test_an_exception_in_the_body(home_folder: object, marker: str) -> None:
    with pytest.raises(KeyError):
        async with Sandbox() as sandbox:
            await grown_async(sandbox, marker)
            raise KeyError
    assert processes_with(marker) == []


async def test_cancelling_the_body(home_folder: object, marker: str) -> None:
    with anyio.CancelScope() as scope:
        async with Sandbox() as sandbox:
            process = await grown_async(sandbox, marker)
            scope.cancel()
            await process
    assert scope.cancelled_caught
    assert processes_with(marker) == []


async def test_leaving_a_scope_kills_only_what_it_started(sb: Sandbox, marker: str) -> None:
    own, others = new_marker(), marker
    process = grown(sb, others)
    async with Session() as session:
        attached = await session.from_id(str(sb.sandbox_id), adopt=False)
        await grown_async(attached, own)
    await gone(own)
    assert len(processes_with(others)) == TREE_SIZE
    process.cancel()
    await gone(others)


BLOCKED = """
import os, sys
from cwsandbox import Sandbox
with Sandbox.run() as sandbox:
    process = sandbox.exec(["python3", "-c", os.environ["TREE"], os.environ["MARKER"]])
    print(next(process.stdout), end="", flush=True)
    process.result()
"""

BLOCKED_ASYNC = """
import os, sys, anyio
from cwsandbox import Sandbox

async def main():
    async with Sandbox() as sandbox:
        process = sandbox.exec(["python3", "-c", os.environ["TREE"], os.environ["MARKER"]])
        print(await anext(process.stdout), end="", flush=True)
        await process

anyio.run(main, backend=os.environ["BACKEND"])
"""


@pytest.mark.parametrize("form", ["sync", "asyncio", "trio"])
def test_ctrl_c(home_folder: object, marker: str, form: str) -> None:
    code = BLOCKED if form == "sync" else BLOCKED_ASYNC
    with started_client(code, TREE=PROCESS_TREE, MARKER=marker, BACKEND=form) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        assert len(processes_with(marker)) == TREE_SIZE
        client.send_signal(signal.SIGINT)
        _, err = client.communicate(timeout=30)
        assert client.returncode in {-signal.SIGINT, 130}
        assert "KeyboardInterrupt" in err or client.returncode == 130
        assert processes_with(marker) == []


@pytest.mark.parametrize("form", ["sync", "asyncio", "trio"])
def test_sigterm_of_the_client(home_folder: object, marker: str, form: str) -> None:
    code = BLOCKED if form == "sync" else BLOCKED_ASYNC
    with started_client(code, TREE=PROCESS_TREE, MARKER=marker, BACKEND=form) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        client.terminate()
        client.communicate(timeout=30)
    assert_gone(marker, within=45)


def test_sigkill_of_the_client_kills_its_commands_after_the_grace(gateway: ServedGateway, marker: str) -> None:
    with started_client(BLOCKED, TREE=PROCESS_TREE, MARKER=marker, CWSANDBOX_BASE_URL=gateway.url) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        assert len(processes_with(marker)) == TREE_SIZE
        os.kill(client.pid, signal.SIGKILL)
        client.wait(30)
    assert_gone(marker, within=gateway.grace_seconds + 10)
    for sandbox in Sandbox.list(base_url=gateway.url).result():
        sandbox.stop().result()


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_sigkill_of_the_client_of_the_embedded_gateway(home_folder: object, marker: str) -> None:
    with started_client(BLOCKED, TREE=PROCESS_TREE, MARKER=marker) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        os.kill(client.pid, signal.SIGKILL)
        client.wait(30)
    assert_gone(marker, within=60)


SURVIVE = """
import os
from cwsandbox import Sandbox
sandbox = Sandbox.run()
process = sandbox.exec(["python3", "-c", os.environ["TREE"], os.environ["MARKER"]])
print(next(process.stdout), end="", flush=True)
input()
try:
    process.cancel()
    process.result(timeout=40)
except BaseException as error:
    print("ended with", type(error).__name__)
try:
    sandbox.stop().result(timeout=40)
except Exception as error:
    print("stop", type(error).__name__, error)
"""


def test_sigkill_of_the_gateway_never_orphans(marker: str) -> None:
    """A client whose gateway was killed gets an error or its command back; in the end nothing is left over."""
    base = Path(tempfile.mkdtemp(prefix="cws", dir="/tmp"))
    folders = {f"CWSANDBOX_{name}_DIR": str(base / name.lower()) for name in ("RUNTIME", "STATE")}
    try:
        with started_client(SURVIVE, TREE=PROCESS_TREE, MARKER=marker, **folders) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n"
            gateways = gateway_processes(base / "runtime")
            assert gateways
            for pid in gateways:
                os.kill(pid, signal.SIGKILL)
            out, err = client.communicate("\n", timeout=50)
        assert "TimeoutError" not in out, out + err
        assert_gone(marker, within=45)
        assert shut_down_and_look(base) == []
    finally:
        shutil.rmtree(base, ignore_errors=True)
