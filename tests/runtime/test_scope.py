"""Scopes: entering and leaving, cleanups, connections, the end of the loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import logging
import sys
import threading
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio

from cwsandbox._runtime.operation import OperationRef
from cwsandbox._runtime.portal import portal_scope
from cwsandbox._runtime.scope import Scope, ScopeClosedError, running_operations

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator


class Failure(Exception):
    pass


async def echo(value: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return value


async def forever() -> None:
    await anyio.sleep_forever()


class Log(list[str]):
    """What happened, in order."""

    def operation(self, name: str = "operation") -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            self.append(f"{name} began")
            try:
                await anyio.sleep_forever()
            finally:
                self.append(f"{name} ended")

        return run

    def cleanup(self, name: str = "cleanup") -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            await anyio.lowlevel.checkpoint()
            self.append(f"{name} ran")

        return run

    def connection(self, name: str = "connection") -> Callable[[], AbstractAsyncContextManager[str]]:
        @asynccontextmanager
        async def opener() -> AsyncIterator[str]:
            await anyio.lowlevel.checkpoint()
            self.append(f"{name} opened")
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                try:
                    yield name
                finally:
                    group.cancel_scope.cancel()
                    with anyio.CancelScope(shield=True):
                        await anyio.lowlevel.checkpoint()
                    self.append(f"{name} closed")

        return opener


async def test_leaving_ends_operations_then_cleanups_then_connections() -> None:
    log = Log()
    async with Scope("test") as scope:
        await scope.start(scope.connection, "key", log.connection())
        scope.add_cleanup(log.cleanup())
        ref = scope.start(log.operation())
        await anyio.wait_all_tasks_blocked()
    assert log == ["connection opened", "operation began", "operation ended", "cleanup ran", "connection closed"]
    with pytest.raises(concurrent.futures.CancelledError):
        ref.result()


async def test_a_closed_scope_refuses() -> None:
    async with Scope("test") as scope:
        pass
    assert scope.closed
    with pytest.raises(ScopeClosedError, match="'test' is closed"):
        scope.start(echo, 1)
    with pytest.raises(ScopeClosedError):
        scope.add_cleanup(forever)
    with pytest.raises(ScopeClosedError):
        await scope.connection("key", Log().connection())


async def test_a_scope_that_was_not_entered_refuses_and_closes() -> None:
    scope = Scope("test")
    with pytest.raises(ScopeClosedError):
        scope.start(echo, 1)
    assert await scope.aclose() == []
    with pytest.raises(RuntimeError, match="only once"):
        await scope.enter()


async def test_a_scope_is_entered_only_once() -> None:
    async with Scope("test") as scope:
        with pytest.raises(RuntimeError, match="only once"):
            await scope.enter()


async def test_entered_in_one_task_and_left_in_another() -> None:
    scope = Scope("test")
    blocked: list[OperationRef[None]] = []

    async def enter() -> None:
        with anyio.CancelScope():
            await scope.enter()
            blocked.append(scope.start(forever))

    async def leave() -> None:
        with anyio.move_on_after(5):
            assert await scope.aclose() == []

    for step in (enter, leave):
        async with anyio.create_task_group() as group:
            group.start_soon(step)
    assert blocked[0]._finished


async def test_two_scopes_left_in_any_order() -> None:
    first, second = await Scope("first").enter(), await Scope("second").enter()
    await first.aclose()
    assert await second.start(echo, 1) == 1
    await second.aclose()


async def test_a_yield_inside_corrupts_nothing() -> None:
    async def generator() -> AsyncGenerator[int]:
        async with Scope("test") as scope:
            while True:
                yield await scope.start(echo, 1)

    with anyio.move_on_after(5) as limit:
        items = generator()
        async for item in items:
            assert item == 1
            break
        await items.aclose()
    assert not limit.cancelled_caught
    await anyio.lowlevel.checkpoint()


async def test_a_body_that_fails_raises_its_own_error_bare() -> None:
    with pytest.raises(Failure):
        async with Scope("test") as scope:
            scope.start(forever)
            raise Failure


async def test_a_cancelled_body_leaves_properly() -> None:
    log = Log()
    with anyio.move_on_after(0.01) as limit:
        async with Scope("test") as scope:
            scope.add_cleanup(log.cleanup())
            await anyio.sleep_forever()
    assert limit.cancelled_caught
    assert log == ["cleanup ran"]


async def test_closing_is_joinable() -> None:
    gate = anyio.Event()
    log = Log()

    async def slow_cleanup() -> None:
        await gate.wait()
        log.append("cleanup ran")
        raise Failure

    scope = await Scope("test").enter()
    scope.add_cleanup(slow_cleanup)
    errors: list[list[BaseException]] = []

    async def close() -> None:
        errors.append(await scope.aclose())

    async with anyio.create_task_group() as group:
        group.start_soon(close)
        group.start_soon(close)
        await anyio.wait_all_tasks_blocked()
        assert errors == []
        assert scope.closed
        gate.set()
    assert [[type(e) for e in es] for es in errors] == [[Failure], [Failure]]
    assert log == ["cleanup ran"]


async def test_closed_from_another_loop() -> None:
    blocked = threading.Event()

    async def enter() -> Scope:
        return await Scope("on the portal").enter()

    scope = await portal_scope().start(enter)
    ref = scope.start(forever)
    assert await scope.aclose() == []
    assert ref._finished
    assert not blocked.is_set()


async def test_starting_from_threads_while_closing_loses_nothing() -> None:
    scope = await Scope("test").enter()
    go = threading.Barrier(3)

    def start_many() -> list[OperationRef[None]]:
        refs: list[OperationRef[None]] = []
        go.wait()
        with contextlib.suppress(ScopeClosedError):
            while len(refs) < 2000:
                refs.append(scope.start(forever))
        return refs

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(start_many) for _ in range(2)]
        await anyio.to_thread.run_sync(go.wait)
        assert await scope.aclose() == []
        for future in futures:
            assert all(ref._finished for ref in await anyio.to_thread.run_sync(future.result))


def test_scopes_are_listed_while_others_are_entered(eager_switches: None) -> None:
    over = threading.Event()

    async def come_and_go() -> None:
        while not over.is_set():
            for scope in [await Scope("other").enter() for _ in range(20)]:
                await scope.aclose()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        others = pool.submit(anyio.run, come_and_go)
        try:
            for _ in range(30_000):
                running_operations()
        finally:
            over.set()
        others.result(30)


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


async def test_starting_in_a_bare_callback_of_the_loop() -> None:
    async with Scope("test") as scope:
        refs: list[OperationRef[int]] = []
        called = anyio.Event()

        def callback() -> None:
            refs.append(scope.start(echo, 6))
            called.set()

        await anyio.to_thread.run_sync(scope.loop.run_soon, callback)
        await called.wait()
        assert await refs[0] == 6


@pytest.mark.parametrize("backend", ["asyncio", "asyncio debug", "trio"])
def test_loops_that_anyio_did_not_start(
    backend: str, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    async def main() -> list[int]:
        async with Scope("test") as scope:
            refs: list[OperationRef[int]] = []
            called = anyio.Event()

            def callback() -> None:
                refs.append(scope.start(echo, 3))
                called.set()

            if backend == "trio":
                trio.lowlevel.current_trio_token().run_sync_soon(callback)
            else:
                asyncio.get_running_loop().call_soon(callback)
            await called.wait()
            from_thread = await anyio.to_thread.run_sync(lambda: scope.start(echo, 4).result())
            return [await scope.start(echo, 1), await portal_scope().start(echo, 2), await refs[0], from_thread]

    got = trio.run(main) if backend == "trio" else asyncio.run(main(), debug=backend == "asyncio debug")
    assert got == [1, 2, 3, 4]
    assert not caplog.records
    assert not recwarn.list


async def test_an_operation_may_end_the_hard_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwsandbox._runtime.scope.OPERATIONS_END_SECONDS", 0.05)
    log = Log()

    cleaned_up = anyio.Event()

    async def slow() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.move_on_after(5, shield=True):
                await cleaned_up.wait()
            log.append("operation ended")

    async def clean_up() -> None:
        await anyio.lowlevel.checkpoint()
        log.append("cleanup ran")
        cleaned_up.set()

    async with Scope("test") as scope:
        scope.start(slow)
        scope.add_cleanup(clean_up)
        await anyio.wait_all_tasks_blocked()
    assert log == ["cleanup ran", "operation ended"]


# Cleanups.


async def test_cleanups_run_concurrently_and_their_errors_are_collected() -> None:
    met = anyio.Event()
    log = Log()

    async def first() -> None:
        await met.wait()
        raise Failure("first")

    async def second() -> None:
        met.set()
        log.append("second ran")

    async def third() -> None:
        raise SystemExit(3)

    scope = await Scope("test").enter()
    for cleanup in (first, second, third):
        scope.add_cleanup(cleanup)
    errors = await scope.aclose()
    assert {type(error) for error in errors} == {Failure, SystemExit}
    assert log == ["second ran"]


async def test_leaving_by_async_with_raises_what_cleanups_raised() -> None:
    async def broken() -> None:
        raise Failure("cleanup")

    with pytest.raises(Failure, match="cleanup"):
        async with Scope("test") as scope:
            scope.add_cleanup(broken)


async def test_a_removed_cleanup_does_not_run() -> None:
    log = Log()
    async with Scope("test") as scope:
        cleanup = scope.add_cleanup(log.cleanup())
        cleanup.remove()
        cleanup.remove()
    assert log == []


async def test_a_cleanup_out_of_time_is_reported() -> None:
    scope = await Scope("test", cleanup_seconds=0.3).enter()
    log = Log()
    scope.add_cleanup(forever)
    scope.add_cleanup(log.cleanup())
    errors = await scope.aclose()
    assert [type(error) for error in errors] == [TimeoutError]
    assert "forever" in str(errors[0])
    assert log == ["cleanup ran"]


async def test_a_cleanup_can_be_added_by_an_operation_that_is_being_cancelled() -> None:
    log = Log()

    async def create() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            scope.add_cleanup(log.cleanup())

    async with Scope("test") as scope:
        scope.start(create)
        await anyio.wait_all_tasks_blocked()
    assert log == ["cleanup ran"]


async def test_a_cleanup_can_open_a_connection() -> None:
    log = Log()

    async def cleanup() -> None:
        log.append(f"cleanup has {await scope.connection('key', log.connection())}")

    async with Scope("test") as scope:
        scope.add_cleanup(cleanup)
    assert log == ["connection opened", "cleanup has connection", "connection closed"]


# Connections.


async def test_concurrent_first_uses_share_one_opening() -> None:
    log = Log()
    async with Scope("test") as scope:
        refs = [scope.start(scope.connection, "key", log.connection()) for _ in range(5)]
        other = scope.start(scope.connection, "other", log.connection("other"))
        assert [await ref for ref in refs] == ["connection"] * 5
        assert await other == "other"
        assert sorted(log) == ["connection opened", "other opened"]


async def test_a_failed_opening_is_not_kept_and_reaches_everybody() -> None:
    attempts: list[int] = []
    go = anyio.Event()

    @asynccontextmanager
    async def opener() -> AsyncIterator[str]:
        attempts.append(1)
        await go.wait()
        if len(attempts) == 1:
            raise Failure("refused")
        yield "connection"

    async with Scope("test") as scope:
        refs = [scope.start(scope.connection, "key", opener) for _ in range(3)]
        await anyio.wait_all_tasks_blocked()
        go.set()
        for ref in refs:
            with pytest.raises(Failure, match="refused"):
                await ref
        assert await scope.start(scope.connection, "key", opener) == "connection"
    assert len(attempts) == 2


async def test_a_connection_that_breaks_is_opened_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "cwsandbox")
    broken = anyio.Event()
    opened: list[int] = []

    @asynccontextmanager
    async def opener() -> AsyncIterator[int]:
        async def fail() -> None:
            await broken.wait()
            raise Failure("lost")

        opened.append(1)
        async with anyio.create_task_group() as group:
            if len(opened) == 1:
                group.start_soon(fail)
            yield len(opened)

    async with Scope("test") as scope:
        assert await scope.start(scope.connection, "key", opener) == 1
        broken.set()
        with anyio.fail_after(5):
            while scope._connections:
                await anyio.lowlevel.checkpoint()
        assert await scope.start(scope.connection, "key", opener) == 2
        assert await scope.start(echo, 1) == 1
    assert "lost" in caplog.text


async def test_an_opening_whose_users_are_all_cancelled_is_cancelled() -> None:
    log = Log()

    @asynccontextmanager
    async def opener() -> AsyncIterator[None]:
        log.append("opening")
        try:
            await anyio.sleep_forever()
        finally:
            log.append("given up")
        yield

    async with Scope("test") as scope:
        refs = [scope.start(scope.connection, "key", opener) for _ in range(2)]
        await anyio.wait_all_tasks_blocked()
        refs[0]._cancel()
        await anyio.wait_all_tasks_blocked()
        assert log == ["opening"]
        refs[1]._cancel()
        await anyio.wait_all_tasks_blocked()
        assert log == ["opening", "given up"]
        assert await scope.start(scope.connection, "key", log.connection()) == "connection"


async def test_a_user_who_comes_while_an_opening_is_given_up_opens_anew() -> None:
    log = Log()
    gate = anyio.Event()

    @asynccontextmanager
    async def reluctant() -> AsyncIterator[None]:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await gate.wait()
        yield

    async with Scope("test") as scope:
        first = scope.start(scope.connection, "key", reluctant)
        await anyio.wait_all_tasks_blocked()
        first._cancel()
        await anyio.wait_all_tasks_blocked()
        second = scope.start(scope.connection, "key", log.connection())
        await anyio.wait_all_tasks_blocked()
        gate.set()
        assert await second == "connection"


async def test_errors_of_closing_a_connection_are_reported() -> None:
    @asynccontextmanager
    async def opener() -> AsyncIterator[None]:
        yield
        raise Failure("while closing")

    scope = await Scope("test").enter()
    await scope.start(scope.connection, "key", opener)
    errors = await scope.aclose()
    assert [str(error) for error in errors] == ["while closing"]


async def test_a_connection_that_does_not_close_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwsandbox._runtime.scope.CONNECTION_CLOSE_SECONDS", 0.05)

    @asynccontextmanager
    async def opener() -> AsyncIterator[None]:
        yield
        await anyio.sleep_forever()

    scope = await Scope("test").enter()
    await scope.start(scope.connection, "key", opener)
    errors = await scope.aclose()
    assert [type(error) for error in errors] == [TimeoutError]


async def test_a_connection_is_refused_off_the_loop() -> None:
    async with Scope("test"):
        with pytest.raises(RuntimeError, match="own event loop"):
            await portal_scope().connection("key", Log().connection())


# Cancellation at every checkpoint.


@pytest.mark.parametrize("steps", range(12))
@pytest.mark.parametrize("what", ["enter", "start", "connection", "aclose"])
async def test_cancelled_at_any_checkpoint(what: str, steps: int) -> None:
    """Cancel after n rounds of the loop: whatever was reached, leaving works and everything that was opened is closed."""
    log = Log()
    scope = Scope("test")
    if what != "enter":
        await scope.enter()
    if what == "aclose":
        await scope.start(scope.connection, "key", log.connection())
        scope.start(log.operation())
        scope.add_cleanup(log.cleanup())

    async def act() -> None:
        if what == "enter":
            await scope.enter()
        elif what == "start":
            await scope.start(echo, 1)
        elif what == "connection":
            await scope.start(scope.connection, "key", log.connection())
        else:
            await scope.aclose()

    async with anyio.create_task_group() as group:
        group.start_soon(act)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    with anyio.fail_after(5):
        assert await scope.aclose() == []
    assert scope.closed
    assert not scope._operations
    assert not scope._connections
    assert log.count("connection opened") == log.count("connection closed")
    assert log.count("operation began") == log.count("operation ended")
    if what == "aclose":
        assert log.count("cleanup ran") == 1


# The end of the loop.


BACKENDS = ["asyncio", "trio"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scope_that_is_never_left_ends_with_its_loop(
    backend: str, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    refs: list[OperationRef[Any]] = []
    log = Log()

    async def main() -> Scope:
        scope = await Scope("test").enter()
        await scope.start(scope.connection, "key", log.connection())
        refs.append(scope.start(log.operation()))
        await anyio.wait_all_tasks_blocked()
        refs.append(scope.start(forever))  # Never gets to its first step.
        return scope

    scope = anyio.run(main, backend=backend)
    gc.collect()
    assert scope.closed
    for ref in refs:
        with pytest.raises(concurrent.futures.CancelledError):
            ref.result(0)
    assert log == ["connection opened", "operation began", "operation ended", "connection closed"] or log == [
        "connection opened",
        "operation began",
        "connection closed",
        "operation ended",
    ]
    with pytest.raises(ScopeClosedError):
        scope.start(echo, 1)
    assert not caplog.records
    assert not recwarn.list


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_thread_that_waits_is_woken_when_the_loop_ends(backend: str) -> None:
    waiting = threading.Event()

    class Announcing(OperationRef[None]):
        def _on_wait_begin(self) -> None:
            waiting.set()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:

        async def main() -> concurrent.futures.Future[None]:
            scope = await Scope("test").enter()
            future = pool.submit(scope.start(forever, ref=Announcing()).result)
            await anyio.to_thread.run_sync(waiting.wait)
            return future

        with pytest.raises(concurrent.futures.CancelledError):
            anyio.run(main, backend=backend).result(5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_loop_that_waits_is_woken_when_the_loop_ends(backend: str) -> None:
    waiting = threading.Event()

    class Announcing(OperationRef[None]):
        def _on_wait_begin(self) -> None:
            waiting.set()

    async def wait(ref: OperationRef[None]) -> None:
        await ref

    async def main() -> OperationRef[None]:
        scope = await Scope("test").enter()
        outer = portal_scope().start(wait, scope.start(forever, ref=Announcing()))
        await anyio.to_thread.run_sync(waiting.wait)
        return outer

    with pytest.raises(concurrent.futures.CancelledError):
        anyio.run(main, backend=backend).result(5)


def test_a_loop_closed_without_a_farewell_leaves_a_closed_scope(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    loop = asyncio.new_event_loop()
    scope = loop.run_until_complete(Scope("test").enter())
    loop.close()
    ref = OperationRef[int]()
    with pytest.raises(ScopeClosedError):
        scope.start(echo, 1, ref=ref)
    assert not ref._finished
    assert scope.closed

    assert anyio.run(scope.aclose) == []
    del scope
    gc.collect()
    assert not caplog.records
    assert not recwarn.list


async def test_a_failure_of_the_scope_itself_is_stored_and_raised_by_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(self: Scope) -> None:
        raise Failure("bug")

    monkeypatch.setattr(Scope, "_wind_up", broken)
    scope = await Scope("test").enter()
    assert [str(error) for error in await scope.aclose()] == ["bug"]
    with pytest.raises(ScopeClosedError) as caught:
        scope.start(echo, 1)
    assert isinstance(caught.value.__cause__, Failure)


EAGER = getattr(asyncio, "eager_task_factory", None)


@pytest.mark.skipif(EAGER is None, reason="eager tasks came with Python 3.12")
def test_eager_tasks() -> None:
    async def at_once() -> int:
        return 1

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(EAGER)
        log = Log()
        async with Scope("eager") as scope:
            assert await scope.start(at_once) == 1
            assert await scope.start(echo, 2) == 2
            assert await scope.start(scope.connection, "key", log.connection()) == "connection"
            ref = scope.start(forever)
            with anyio.move_on_after(0.01):
                await ref
            assert ref._finished
        assert log == ["connection opened", "connection closed"]

    anyio.run(main)
