"""The portal: one per process, and what it does at fork, exit and Ctrl-C."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from cwsandbox._runtime.portal import portal_scope, run_blocking
from cwsandbox._runtime.scope import Scope

if TYPE_CHECKING:
    from typing import Any


async def echo(value: int) -> int:
    await anyio.lowlevel.checkpoint()
    return value


def test_there_is_one_portal_in_a_daemon_thread() -> None:
    scopes = []
    threads = [threading.Thread(target=lambda: scopes.append(portal_scope())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, scopes))) == 1
    portal_threads = [thread for thread in threading.enumerate() if thread.name == "cwsandbox-portal"]
    assert len(portal_threads) == 1
    assert portal_threads[0].daemon


def test_run_blocking() -> None:
    assert run_blocking(echo, 3) == 3


async def test_run_blocking_on_another_loop_works() -> None:
    assert run_blocking(echo, 3) == 3


async def test_run_blocking_on_the_portals_own_loop_is_refused() -> None:
    async def nested() -> None:
        run_blocking(echo, 3)

    with pytest.raises(RuntimeError, match="await"):
        await portal_scope().start(nested)


async def test_a_scope_entered_through_the_portal() -> None:
    scope = Scope("session")
    await portal_scope().start(scope.enter)
    assert scope.start(echo, 4).result(5) == 4
    assert await portal_scope().start(scope.aclose) == []


def run_script(script: str, *options: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *options, "-c", PRELUDE + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=30,
        **kwargs,
    )


PRELUDE = textwrap.dedent("""
    import os, signal, sys, threading, time
    import anyio, anyio.lowlevel
    from cwsandbox._runtime.operation import OperationRef
    from cwsandbox._runtime.portal import portal_scope, run_blocking
    from cwsandbox._runtime.scope import Scope, ScopeClosedError
    from cwsandbox._runtime.spool import Spool

    async def echo(value):
        await anyio.lowlevel.checkpoint()
        return value

    def say(*words):
        print(*words, flush=True)

    started = threading.Event()

    async def blocked():
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            say("operation ended")
""")


def check(done: subprocess.CompletedProcess[str], code: int, *lines: str) -> None:
    assert done.stderr == ""
    assert done.stdout.splitlines() == list(lines)
    assert done.returncode == code


def test_importing_and_exiting_starts_no_thread_and_no_loop() -> None:
    done = run_script("""
        say(threading.active_count(), "asyncio" in sys.modules, "trio" in sys.modules)
    """)
    check(done, 0, "1 False False")


def test_exit_ends_operations_scopes_cleanups_and_keeps_the_exit_code() -> None:
    done = run_script("""
        async def enter():
            return await Scope("session").enter()

        async def cleanup(whose):
            say(whose, "cleanup ran")

        scope = portal_scope()
        ref = scope.start(blocked)
        session = scope.start(enter).result()
        session.add_cleanup(lambda: cleanup("session"))
        scope.add_cleanup(lambda: cleanup("portal"))
        started.wait()
        sys.exit(3)
    """)
    check(done, 3, "session cleanup ran", "operation ended", "portal cleanup ran")


def test_exit_is_bounded() -> None:
    done = run_script("""
        import cwsandbox._runtime.portal as portal
        portal.EXIT_SECONDS = 0.5

        async def stubborn():
            with anyio.CancelScope(shield=True):
                started.set()
                await anyio.sleep_forever()

        portal_scope().start(stubborn)
        started.wait()
        say("leaving")
    """)
    check(done, 0, "leaving")


def test_threads_of_the_program_may_work_until_they_end() -> None:
    done = run_script("""
        def work():
            threading.main_thread().join()
            say(run_blocking(echo, 5))

        portal_scope()
        threading.Thread(target=work).start()
    """)
    check(done, 0, "5")


def test_after_exit_began_new_operations_are_refused() -> None:
    done = run_script("""
        import atexit

        def late():
            try:
                portal_scope()
            except ScopeClosedError as error:
                say(error)
            try:
                scope.start(echo, 1)
            except ScopeClosedError as error:
                say(error)

        atexit.register(late)
        scope = portal_scope()
    """)
    check(done, 0, "the interpreter is exiting: no new operations", "scope 'portal' is closed")


FORK = """
    def in_child(work):
        pid = os.fork()
        if pid == 0:
            {exit}
        _, status = os.waitpid(pid, 0)
        say("child", os.waitstatus_to_exitcode(status))

    def attempt(what):
        try:
            say(what())
        except RuntimeError as error:
            say(type(error).__name__, "fork" in str(error))

    scope = portal_scope()
    running = scope.start(blocked)
    started.wait()
    finished = scope.start(echo, 1)
    finished.result()
    spool = Spool(loop=scope.loop)
    scope.start(spool.feed, b"line\\n").result()

    def work():
        attempt(lambda: finished.result())
        attempt(lambda: running.result())
        attempt(lambda: scope.start(echo, 1))
        attempt(lambda: next(spool.lines()))
        attempt(lambda: anyio.run(wait_for, running))
        attempt(lambda: run_blocking(echo, 2))
        attempt(lambda: portal_scope() is not scope)

    async def wait_for(ref):
        await ref

    in_child(work)
    say(scope.start(echo, 3).result())
"""

FORK_LINES = [
    "1",
    "RuntimeError True",
    "RuntimeError True",
    "RuntimeError True",
    "RuntimeError True",
    "2",
    "True",
    "child 7",
    "3",
    "operation ended",
]


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
@pytest.mark.parametrize("how", ["work(); sys.exit(7)", "work(); os._exit(7)"], ids=["sys.exit", "os._exit"])
def test_a_forked_child_has_a_portal_of_its_own_and_says_so_of_the_parents_operations(how: str) -> None:
    script = textwrap.dedent(FORK).replace("{exit}", how)
    # 3.12 warns that forking with threads may deadlock; that it does not is what is tested.
    done = run_script(script, "-W", "ignore:This process:DeprecationWarning")
    check(done, 0, *FORK_LINES)


def test_ctrl_c_in_result_calls_the_hook_and_is_raised() -> None:
    done = run_script("""
        class Ref(OperationRef):
            def _on_wait_begin(self):
                threading.Thread(target=os.kill, args=[os.getpid(), signal.SIGINT]).start()

            def _on_interrupt(self):
                say("interrupted")
                self._cancel()
                self._latch.wait_blocking(5)

        ref = portal_scope().start(blocked, ref=Ref())
        started.wait()
        try:
            ref.result()
        except KeyboardInterrupt:
            say("raised")
        say(run_blocking(echo, 1))
    """)
    check(done, 0, "interrupted", "operation ended", "raised", "1")


def test_ctrl_c_in_run_blocking_cancels_waits_and_is_raised() -> None:
    done = run_script("""
        def interrupt():
            started.wait()
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        try:
            run_blocking(blocked)
        except KeyboardInterrupt:
            say("raised")
    """)
    check(done, 0, "operation ended", "raised")


def test_ctrl_c_while_a_task_of_ours_runs_is_for_the_programs_main_task() -> None:
    # Trio raises it in the task that runs at that moment, unless that is protected.
    done = run_script("""
        async def interrupted():
            signal.raise_signal(signal.SIGINT)
            return "unharmed"

        async def main():
            async with Scope("one") as scope:
                ref = scope.start(interrupted)
                try:
                    await anyio.sleep_forever()
                except KeyboardInterrupt:
                    say("main")
                say(await ref)

        anyio.run(main, backend="trio")
    """)
    check(done, 0, "main", "unharmed")


def test_ctrl_c_while_run_blocking_hands_the_operation_over() -> None:
    done = run_script("""
        start = Scope.start

        def start_and_interrupt(*args, **kwargs):
            ref = start(*args, **kwargs)
            started.wait()
            signal.raise_signal(signal.SIGINT)
            return ref

        portal_scope()
        Scope.start = start_and_interrupt
        try:
            run_blocking(blocked)
        except KeyboardInterrupt:
            say("raised")
    """)
    check(done, 0, "operation ended", "raised")
