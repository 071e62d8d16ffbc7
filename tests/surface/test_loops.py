"""Threads, loops, fork and exit (S128, S131, S132, behaviour 13)."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
import trio

from cwsandbox import (
    OperationRef,
    Process,
    Sandbox,
    SandboxExecutionError,
    SandboxNotRunningError,
    Session,
    StreamReader,
    _exit,
)
from cwsandbox._exec import ExecOperation
from tests.support.clients import run_client

if TYPE_CHECKING:
    from tests.support.gateway import ServedGateway


@pytest.mark.row("S128")
def test_s128_operations_return_at_once_with_a_slow_backend(gateway: ServedGateway) -> None:
    gateway.making.close()
    sandbox = Sandbox(base_url=gateway.url)
    sandbox.start().result()
    # The doors are shut: what waited for the gateway would not return.
    refs: list[OperationRef[Any]] = [
        sandbox.exec(["echo", "x"]),
        sandbox.read_file("/etc/hostname"),
        sandbox.write_file("/tmp/x", b"x"),
    ]
    gateway.making.open()
    for ref in refs:
        ref.result()
    gateway.ending.close()
    stopping = sandbox.stop()
    gateway.ending.open()
    stopping.result()


@pytest.mark.row("S128")
async def test_s128_operations_return_at_once_with_a_slow_backend_async(gateway: ServedGateway) -> None:
    gateway.accepting.close()
    sandbox = Sandbox(base_url=gateway.url)
    refs: list[OperationRef[Any]] = [
        sandbox.exec(["echo", "x"]),
        sandbox.read_file("/etc/hostname"),
        sandbox.write_file("/tmp/x", b"x"),
    ]
    gateway.accepting.open()
    for ref in refs:
        await ref
    await sandbox.stop()


@pytest.mark.row("S131")
async def test_s131_sync_calls_work_on_a_thread_with_a_running_loop(home_folder: object) -> None:
    sandbox = Sandbox.run()
    sandbox.wait()
    process = sandbox.exec(["python", "-c", "print(1+1)"])
    assert list(process.stdout) == ["2\n"]
    assert process.result().stdout == "2\n"
    assert len(Sandbox.list().result()) >= 1
    sandbox.stop().result()


@pytest.mark.row("S131")
async def test_s131_with_works_on_a_thread_with_a_running_loop(home_folder: object) -> None:
    with Session() as session, session.sandbox() as sandbox:
        assert sandbox.exec(["echo", "cell"]).result().stdout == "cell\n"


@pytest.mark.row("S132")
def test_s132_the_background_loop_is_a_daemon_thread(sb: Sandbox) -> None:
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("cwsandbox")]
    assert ours
    assert all(thread.daemon for thread in ours)


LEAVE = """
from cwsandbox import Sandbox
sandbox = Sandbox.run()
print(sandbox.exec(["echo", "hello"]).result().stdout, end="")
sandbox.stop().result()
"""


@pytest.mark.row("S132")
def test_s132_a_script_exits_promptly_and_quietly(home_folder: object) -> None:
    done = run_client(LEAVE, seconds=25)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")


def test_importing_off_the_main_thread_works(home_folder: object) -> None:
    code = "import threading; t = threading.Thread(target=__import__, args=('cwsandbox',)); t.start(); t.join()"
    done = run_client(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_import_loads_no_transport_and_no_loop() -> None:
    code = (
        "import sys, cwsandbox; print([m for m in ('httpx', 'httpx_ws', 'trio', 'uvicorn', 'starlette', 'click', 'rich',"
        " 'wandb', 'websockets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_session_is_closed_at_exit(home_folder: object) -> None:
    done = run_client("from cwsandbox import Session\ns = Session()\nb = s.sandbox()\nb.wait()\nprint(b.sandbox_id)\n")
    assert done.returncode == 0, done.stderr
    assert Sandbox.from_id(done.stdout.strip()).result().status not in {"running", "pending", "creating"}


FORK = """
import os, sys
from cwsandbox import Sandbox
sandbox = Sandbox.run()
sandbox.exec(["true"]).result()
child = os.fork()
if child == 0:
    with Sandbox.run() as own:
        print(own.exec(["echo", "from the child"]).result(timeout=20).stdout, end="", flush=True)
    try:
        sandbox.exec(["true"]).result(timeout=20)
    except TimeoutError:
        os._exit(3)
    except Exception as error:
        print("clear error:", type(error).__name__, flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
print("child", os.waitstatus_to_exitcode(status))
print(sandbox.exec(["echo", "parent goes on"]).result().stdout, end="")
sandbox.stop().result()
"""


def test_a_forked_child_that_ends_does_not_warn_of_its_parents_sandboxes(home_folder: object) -> None:
    done = run_client(
        "import os, sys, warnings\nfrom cwsandbox import Sandbox\nsandbox = Sandbox.run()\n"
        "warnings.simplefilter('ignore', DeprecationWarning)\n"  # Python 3.12 warns of any fork beside threads.
        "if os.fork() == 0: sys.exit()\nos.wait()\nsandbox.stop().result()"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_works_and_the_parent_goes_on(home_folder: object) -> None:
    done = run_client(FORK)
    lines = done.stdout.splitlines()
    assert "from the child" in lines, done.stdout + done.stderr
    assert "child 0" in lines
    assert lines[-1] == "parent goes on"


def test_one_sandbox_serves_many_threads_and_loops(sb: Sandbox) -> None:
    outcomes: list[str] = []

    def blocking() -> None:
        outcomes.append(sb.exec(["echo", "thread"]).result().stdout)

    async def awaiting() -> None:
        outcomes.append((await sb.exec(["echo", "loop"])).stdout)

    threads = [threading.Thread(target=blocking) for _ in range(4)]
    threads += [threading.Thread(target=lambda: asyncio.run(awaiting())) for _ in range(4)]
    threads += [threading.Thread(target=lambda: anyio.run(awaiting, backend="trio")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["loop\n"] * 8 + ["thread\n"] * 4


@pytest.mark.usefixtures("never_stopped")
def test_a_scope_whose_loop_ended_says_so(home_folder: object) -> None:
    async def leave_open() -> Sandbox:
        session = Session()
        await session.__aenter__()
        sandbox = session.sandbox()
        await sandbox
        return sandbox

    sandbox = asyncio.run(leave_open())
    assert sandbox.sandbox_id is not None
    advice = re.escape(f"attach to the sandbox anew with Sandbox.from_id({sandbox.sandbox_id!r})")
    with pytest.raises(SandboxNotRunningError, match=f"its event loop has ended; {advice}"):
        sandbox.exec(["true"]).result(timeout=20)
    with pytest.raises(SandboxNotRunningError, match=advice):
        sandbox.stop().result(timeout=20)
    Sandbox.delete(sandbox.sandbox_id, missing_ok=True).result()
    assert sandbox._core in _exit._held
    _exit.release(sandbox._core)  # Its own handle cannot stop it any more: the end of the program would.


@pytest.mark.usefixtures("never_stopped")
def test_streams_whose_loop_ended_say_that_they_were_cut_off(home_folder: object) -> None:
    async def leave_open() -> tuple[Sandbox, Process, StreamReader[str]]:
        sandbox = await Sandbox(command="sh", args=["-c", "echo one; exec sleep 60"]).__aenter__()
        process = sandbox.exec(["cat"], stdin=True)
        log = sandbox.stream_logs(follow=True)
        assert await anext(log) == "one\n"
        return sandbox, process, log

    sandbox, process, log = asyncio.run(leave_open())
    with pytest.raises(SandboxNotRunningError, match="cut off"):
        next(log)
    assert list(log) == []
    assert list(process.stdout) == []
    with pytest.raises(CancelledError):
        process.result()
    assert process.stdin is not None
    with pytest.raises(SandboxExecutionError, match=r"it was cancelled$") as caught:
        process.stdin.write(b"x")
    assert caught.value.__cause__ is None
    Sandbox.delete(str(sandbox.sandbox_id)).result()
    _exit.release(sandbox._core)


async def test_nothing_is_left_on_the_loop_after_leaving(home_folder: object) -> None:
    counts = []
    for _ in range(4):
        async with Sandbox() as sandbox:
            await sandbox.exec(["true"])
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[-1] <= counts[0]  # Fewer if something of an earlier test was collected meanwhile.


@pytest.mark.parametrize("anyio_backend", ["trio"])  # asyncio's runner always cancels the main task.
async def test_ctrl_c_does_not_hit_what_serves_the_program(
    home_folder: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    protected: list[bool] = []
    data = ExecOperation.data

    def look(self: ExecOperation, code: int, received: bytes) -> None:
        protected.append(trio.lowlevel.currently_ki_protected())
        data(self, code, received)

    monkeypatch.setattr(ExecOperation, "data", look)
    async with Sandbox() as sandbox:
        assert not trio.lowlevel.currently_ki_protected()
        assert (await sandbox.exec(["echo", "x"])).stdout == "x\n"
    assert protected
    assert all(protected)
