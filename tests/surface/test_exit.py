"""What a program leaves behind when it ends, in every way that it can (behaviour 13; contract 1).

Each test runs a program, ends it, and looks at the gateway and at the host's processes afterwards.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cwsandbox import Sandbox, SandboxStatus, Session
from tests.support.clients import started_client
from tests.support.leftovers import shut_down_and_look
from tests.support.processes import assert_gone, new_marker, processes_with

if TYPE_CHECKING:
    from collections.abc import Iterator

OVER = {SandboxStatus.COMPLETED, SandboxStatus.FAILED, SandboxStatus.TERMINATED}

SYNC = """
import os, signal, sys, threading, time
from cwsandbox import Sandbox, Session

def up(sandbox):
    process = sandbox.exec(["sh", "-c", "echo up; exec sleep " + os.environ["MARKER"]])
    assert next(process.stdout) == "up\\n"
    print(sandbox.sandbox_id, flush=True)

def end():
    {END}
"""

ASYNC = """
import os, signal, sys, anyio
from cwsandbox import Sandbox, Session

async def up(sandbox):
    process = sandbox.exec(["sh", "-c", "echo up; exec sleep " + os.environ["MARKER"]])
    assert await anext(process.stdout) == "up\\n"
    print(sandbox.sandbox_id, flush=True)

async def end():
    {END}

async def main():
    {BODY}

anyio.run(main, backend=os.environ["LOOP"])
"""

SYNC_BODIES = {
    "with a sandbox": "with Sandbox.run() as sandbox: up(sandbox); end()",
    "with a session": "with Session() as session: up(session.sandbox()); end()",
    "a session alone": "session = Session(); up(session.sandbox()); end()",
    "an adopted sandbox": (
        "started = Sandbox.run()\nwith Session() as session: up(session.from_id(started.sandbox_id).result()); end()"
    ),
    "in a daemon thread": (
        "ready = threading.Event()\n"
        "def work():\n"
        "    with Sandbox.run() as sandbox: up(sandbox); ready.set(); time.sleep(60)\n"
        "threading.Thread(target=work, daemon=True).start(); ready.wait(); end()"
    ),
    "in a daemon thread that waits": (
        "ready = threading.Event()\n"
        "def work():\n"
        "    with Sandbox.run() as sandbox: up(sandbox); ready.set(); sandbox.exec(['sleep', '60']).result()\n"
        "threading.Thread(target=work, daemon=True).start(); ready.wait(); end()"
    ),
}
ASYNC_BODIES = {
    "with a sandbox": "async with Sandbox() as sandbox: await up(sandbox); await end()",
    "with a session": "async with Session() as session: await up(session.sandbox()); await end()",
    "a session alone": "session = Session(); await up(session.sandbox()); await end()",
}
ENDS = {"return": "return", "an exception": "raise LookupError('by design')", "sys.exit": "sys.exit(3)"}
STATUS = {"return": 0, "an exception": 1, "sys.exit": 3}
ASYNC_CASES = [(loop, body) for loop in ("asyncio", "trio") for body in ASYNC_BODIES]


@pytest.fixture
def marker() -> Iterator[str]:
    marker = new_marker()
    yield marker
    for pid in processes_with(marker):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def assert_over(sandbox_id: str, marker: str) -> None:
    sandbox = Sandbox.from_id(sandbox_id).result()
    sandbox.wait_until_complete(timeout=20, raise_on_termination=False).result()
    assert sandbox.status in OVER
    assert_gone(marker)


def sync_program(body: str, end: str) -> str:
    return SYNC.replace("{END}", end) + SYNC_BODIES[body]


def async_program(body: str, end: str) -> str:
    return ASYNC.replace("{END}", end).replace("{BODY}", ASYNC_BODIES[body])


def run_to_its_end(code: str, marker: str, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, "MARKER": marker, **env},
        check=False,
    )
    assert done.stdout, done.stderr
    assert_over(done.stdout.strip(), marker)
    return done.returncode, done.stderr


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("body", SYNC_BODIES)
def test_a_sync_program_that_ends(home_folder: Path, marker: str, body: str, end: str) -> None:
    status, errors = run_to_its_end(sync_program(body, ENDS[end]), marker)
    assert status == STATUS[end], errors
    assert ("by design" in errors) == (end == "an exception")


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("loop", "body"), ASYNC_CASES)
def test_an_async_program_that_ends(home_folder: Path, marker: str, loop: str, body: str, end: str) -> None:
    status, errors = run_to_its_end(async_program(body, ENDS[end]), marker, LOOP=loop)
    assert status == STATUS[end], errors
    assert ("by design" in errors) == (end == "an exception")


def signalled(code: str, marker: str, *numbers: int, **env: str) -> int:
    """Run a program until it has a sandbox, send it signals, and return its status."""
    with started_client(code, MARKER=marker, **env) as client:
        assert client.stdout is not None
        sandbox_id = client.stdout.readline().strip()
        assert sandbox_id, client.communicate()[1]
        for number in numbers:
            client.send_signal(number)
        client.communicate(timeout=40)
    assert_over(sandbox_id, marker)
    return client.returncode


SIGNALS = [(signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "status"), SIGNALS)
@pytest.mark.parametrize("body", [body for body in SYNC_BODIES if "thread" not in body])
def test_a_sync_program_that_is_terminated(home_folder: Path, marker: str, body: str, number: int, status: int) -> None:
    assert signalled(sync_program(body, "time.sleep(60)"), marker, number) == status


@pytest.mark.parametrize(("loop", "body"), ASYNC_CASES)
def test_an_async_program_that_is_terminated(home_folder: Path, marker: str, loop: str, body: str) -> None:
    code = async_program(body, "await anyio.sleep(60)")
    assert signalled(code, marker, signal.SIGTERM, LOOP=loop) == 143


def test_a_program_that_blocks_in_result_is_terminated(home_folder: Path, marker: str) -> None:
    code = sync_program("with a sandbox", "sandbox.exec(['sleep', '60']).result()")
    assert signalled(code, marker, signal.SIGTERM) == 143


@pytest.mark.parametrize("body", SYNC_BODIES)
def test_control_c_in_a_sync_program(home_folder: Path, marker: str, body: str) -> None:
    assert signalled(sync_program(body, "time.sleep(60)"), marker, signal.SIGINT) in {-signal.SIGINT, 130}


@pytest.mark.parametrize(("loop", "body"), ASYNC_CASES)
def test_control_c_in_an_async_program(home_folder: Path, marker: str, loop: str, body: str) -> None:
    code = async_program(body, "await anyio.sleep(60)")
    assert signalled(code, marker, signal.SIGINT, LOOP=loop) in {-signal.SIGINT, 130}


STUBBORN = """
import os, signal, sys, time
from cwsandbox import Sandbox
script = "trap 'echo told' TERM; sleep $MARKER & echo up; while :; do sleep 0.1; done"
with Sandbox(command="sh", args=["-c", script], environment_variables={"MARKER": os.environ["MARKER"]}) as sandbox:
    sandbox.wait()
    assert next(sandbox.stream_logs(follow=True)) == "up\\n"
    print(sandbox.sandbox_id, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        (signal.SIGTERM, signal.SIGTERM, 143),
        (signal.SIGTERM, signal.SIGINT, 130),
        (signal.SIGINT, signal.SIGINT, -signal.SIGINT),
    ],
)
def test_a_second_signal_ends_a_program_that_waits_for_a_stop(
    home_folder: Path, marker: str, first: int, second: int, status: int
) -> None:
    """The main command ignores TERM, so its stop takes the whole grace; the gateway goes on with it alone."""
    with started_client(STUBBORN, MARKER=marker) as client:
        assert client.stdout is not None
        sandbox_id = client.stdout.readline().strip()
        watcher = Sandbox.from_id(sandbox_id).result()
        log = watcher.stream_logs(follow=True)
        assert next(log) == "up\n"
        client.send_signal(first)
        assert next(log) == "told\n"
        client.send_signal(second)
        client.communicate(timeout=40)
        assert watcher.get_status() is SandboxStatus.TERMINATING
    assert client.returncode == status
    assert_over(sandbox_id, marker)


def test_a_program_that_ends_waits_for_a_stop_within_a_bound(home_folder: Path, marker: str) -> None:
    with started_client(STUBBORN, MARKER=marker) as client:
        assert client.stdout is not None
        sandbox_id = client.stdout.readline().strip()
        client.terminate()
        client.communicate(timeout=40)
    assert client.returncode == 143
    assert_over(sandbox_id, marker)


@pytest.mark.usefixtures("never_stopped")
def test_a_bare_sandbox_outlives_the_program(home_folder: Path) -> None:
    with started_client("from cwsandbox import Sandbox; print(Sandbox.run().wait().sandbox_id)") as client:
        out, err = client.communicate(timeout=40)
    assert client.returncode == 0, err
    sandbox = Sandbox.from_id(out.strip()).result()
    assert sandbox.get_status() is SandboxStatus.RUNNING
    sandbox.stop().result()


HELD = {
    "a session": "session = Session(); session.sandbox().start().result()",
    "a context": "sandbox = Sandbox.run().__enter__()",
    "a loop that nobody runs": "loop = asyncio.new_event_loop(); loop.run_until_complete(Sandbox().__aenter__())",
}


@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), signal.SIGTERM)"])
@pytest.mark.parametrize("held", HELD)
def test_a_program_that_ends_starts_no_gateway(held: str, end: str) -> None:
    """Its gateway has ended meanwhile, and the sandboxes with it: nothing is left to be stopped."""
    program = [
        "import asyncio, os, signal, subprocess, sys",
        "from cwsandbox import Sandbox, Session",
        HELD[held],
        "subprocess.run([sys.executable, '-m', 'cwsandbox', 'gateway', 'stop', '-fq'], check=True)",
        end,
    ]
    base = Path(tempfile.mkdtemp(prefix="cws", dir="/tmp"))
    folders = {"CWSANDBOX_RUNTIME_DIR": base / "run", "CWSANDBOX_STATE_DIR": base / "state"}
    for folder in folders.values():
        folder.mkdir(mode=0o700)
    with started_client("\n".join(program), **{name: str(folder) for name, folder in folders.items()}) as client:
        _, err = client.communicate(timeout=50)
    sockets = list(base.rglob("*.sock"))
    left = shut_down_and_look(base)
    shutil.rmtree(base)
    assert client.returncode == (0 if end == "pass" else 143), err
    assert (sockets, left) == ([], [])


# Signal handlers.


def handlers() -> dict[int, object]:
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}


def test_handlers_are_there_only_while_something_is_held(home_folder: Path) -> None:
    before = handlers()
    with Sandbox.run() as sandbox:
        assert signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
        with Session() as session:
            session.sandbox().wait()
        assert signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]
        sandbox.exec(["true"]).wait()
    assert handlers() == before


async def test_handlers_are_there_only_while_something_is_held_async(home_folder: Path) -> None:
    before = handlers()
    async with Session() as session:
        assert handlers() == before
        await session.sandbox()
        assert signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
    assert handlers() == before


def remote_function() -> int:
    return 1


def test_a_remote_function_is_held_from_its_call_until_the_session_is_left(home_folder: Path) -> None:
    """Its sandbox is made on the background thread, where no handler can be installed."""
    before = handlers()
    with Session() as session:
        ref = session.function()(remote_function).remote()
        assert signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]
        assert ref.result() == 1
        assert signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]
    assert handlers() == before


def test_importing_and_constructing_touches_no_signal(home_folder: Path) -> None:
    code = (
        "import signal; before = [signal.getsignal(n) for n in (1, 2, 15)]\n"
        "from cwsandbox import *; Sandbox(); Session(); sandbox = Sandbox.run()\n"
        "print(before == [signal.getsignal(n) for n in (1, 2, 15)]); sandbox.stop().result()"
    )
    with started_client(code) as client:
        assert client.communicate(timeout=40) == ("True\n", "")


OFF_MAIN = """
import signal, threading
from cwsandbox import Sandbox, Session
before = signal.getsignal(signal.SIGTERM)
def work():
    with Sandbox.run() as sandbox, Session() as session:
        session.sandbox().wait()
        assert signal.getsignal(signal.SIGTERM) is before
        print(sandbox.exec(["echo", "fine"]).result().stdout, end="")
thread = threading.Thread(target=work); thread.start(); thread.join()
"""


def test_off_the_main_thread_no_handler_is_installed(home_folder: Path) -> None:
    with started_client(OFF_MAIN) as client:
        assert client.communicate(timeout=40) == ("fine\n", "")


def test_a_signal_that_is_ignored_stays_ignored(home_folder: Path, marker: str) -> None:
    code = sync_program("with a sandbox", "print(sys.stdin.readline(), end=''); sys.exit(7)").replace(
        "def up(", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ndef up("
    )
    with started_client(code, MARKER=marker) as client:
        assert client.stdout is not None
        sandbox_id = client.stdout.readline().strip()
        client.terminate()
        assert client.communicate("still here\n", timeout=40)[0] == "still here\n"
    assert client.returncode == 7
    assert_over(sandbox_id, marker)


def test_a_handler_of_the_program_is_called_and_its_contexts_are_left(home_folder: Path, marker: str) -> None:
    code = sync_program("with a sandbox", "time.sleep(60)").replace(
        "def up(", "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\ndef up("
    )
    assert signalled(code, marker, signal.SIGTERM) == 9


FORKED = """
import os, signal, time, warnings
warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # Of Python 3.12: it has threads.
from cwsandbox import Sandbox
with Sandbox.run() as sandbox:
    sandbox.wait()
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sandbox.exec(["echo", "alive"]).result().stdout, end="")
"""


def test_a_forked_child_ends_nothing_of_its_parent(home_folder: Path) -> None:
    with started_client(FORKED) as client:
        assert client.communicate(timeout=40) == ("-15 alive\n", "")
