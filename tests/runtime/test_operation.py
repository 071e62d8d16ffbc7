"""Operation handles: blocking, awaiting, cancelling, failing."""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import gc
import threading
import traceback
import weakref
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from cwsandbox._runtime.operation import OperationRef
from cwsandbox._runtime.portal import portal_scope
from cwsandbox._runtime.scope import Scope


class Custom(BaseException):
    """Not an Exception."""


class Failure(Exception):
    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


async def echo(value: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return value


async def fail(error: BaseException) -> None:
    await anyio.lowlevel.checkpoint()
    raise error


class Blocked:
    """An operation that runs until cancelled or released; says what happened to it."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.cancelled = threading.Event()
        self.release = False
        self.cleanup_seconds = 0.0
        self.stays = False

    async def run(self) -> str:
        self.event = anyio.Event()
        self.started.set()
        try:
            await self.event.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(self.cleanup_seconds)
                if self.stays:
                    await self.event.wait()
            self.cancelled.set()
            raise
        return "released"


async def started(blocked: Blocked) -> None:
    assert await anyio.to_thread.run_sync(blocked.started.wait, 5)


def test_result_returns_the_value_every_time() -> None:
    ref = portal_scope().start(echo, 42)
    assert [ref.result(), ref.result(timeout=0)] == [42, 42]


async def test_await_returns_the_value_every_time() -> None:
    async with Scope("test") as scope:
        ref = scope.start(echo, 42)
        assert [await ref, await ref] == [42, 42]


async def test_a_portal_operation_can_be_awaited_on_any_loop() -> None:
    assert await portal_scope().start(echo, 42) == 42


async def test_a_native_operation_can_be_waited_for_in_a_thread() -> None:
    async with Scope("test") as scope:
        ref = scope.start(echo, 42)
        assert await anyio.to_thread.run_sync(ref.result) == 42


async def test_exceptions_are_identical_both_ways() -> None:
    error = Failure("broken", 7)
    ref = portal_scope().start(fail, error)
    with pytest.raises(Failure, match="broken") as awaited:
        await ref
    with pytest.raises(Failure, match="broken") as blocked:
        ref.result()
    assert type(awaited.value) is type(blocked.value)
    assert (awaited.value.code, blocked.value.code) == (7, 7)


def test_raising_again_does_not_grow_the_traceback_or_the_context() -> None:
    ref = portal_scope().start(fail, Failure("broken", 7))
    lengths, contexts = [], []
    for _ in range(3):
        try:
            try:
                raise ValueError("another")
            except ValueError:
                ref.result()
        except Failure as error:
            lengths.append(len(traceback.extract_tb(error.__traceback__)))
            contexts.append(type(error.__context__))
    assert len(set(lengths)) == 1
    assert set(contexts) == {ValueError}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), Custom("odd")], ids=lambda e: type(e).__name__)
async def test_a_base_exception_of_an_operation_reaches_its_reader_and_harms_nobody_else(error: BaseException) -> None:
    async with Scope("test") as scope:
        for owner in (scope, portal_scope()):
            other = Blocked()
            other_ref = owner.start(other.run)
            await started(other)
            with pytest.raises(type(error)):
                await owner.start(fail, error)
            assert await owner.start(echo, 1) == 1
            assert not other_ref._finished
            other_ref._cancel()


async def test_a_failed_operation_that_nobody_reads_makes_no_noise(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    async with Scope("test") as scope:
        ref = scope.start(fail, Failure("unread", 1))
        with anyio.fail_after(5):
            await ref._latch.wait()
        del ref
    assert not caplog.records
    assert not recwarn.list


async def test_a_lone_error_leaves_its_exception_group() -> None:
    async def grouped() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            group.start_soon(fail, Failure("inner", 1))

    async with Scope("test") as scope:
        with pytest.raises(Failure, match="inner"):
            await scope.start(grouped)


def test_result_timeout_only_stops_waiting() -> None:
    blocked = Blocked()
    ref = portal_scope().start(blocked.run)
    assert blocked.started.wait(5)
    for timeout in (0, -1, 0.01):
        with pytest.raises(TimeoutError):
            ref.result(timeout=timeout)
    portal_scope().loop.run_soon(blocked.event.set)
    assert ref.result(timeout=5) == "released"


def test_a_huge_timeout_is_no_limit() -> None:
    assert portal_scope().start(echo, 1).result(timeout=1e30) == 1


async def test_result_on_the_loop_that_runs_the_operation_names_the_await_form() -> None:
    async with Scope("test") as scope:
        blocked = Blocked()
        ref = scope.start(blocked.run)
        with pytest.raises(RuntimeError, match="await"):
            ref.result()
        await anyio.to_thread.run_sync(blocked.started.wait)
        with pytest.raises(RuntimeError, match="await"):
            ref.result(timeout=1)
        ref._cancel()


async def test_result_on_another_loops_thread_works() -> None:
    assert portal_scope().start(echo, 5).result(timeout=5) == 5


async def test_result_of_a_finished_operation_works_on_its_own_loop() -> None:
    async with Scope("test") as scope:
        ref = scope.start(echo, 5)
        await ref
        assert ref.result() == 5


async def test_completed_and_failed_handles() -> None:
    assert await OperationRef.completed(3) == 3
    ref: OperationRef[None] = OperationRef.failed(Failure("x", 2))
    with pytest.raises(Failure):
        ref.result()
    with pytest.raises(Failure):
        await ref


async def test_awaiting_a_finished_handle_is_a_checkpoint() -> None:
    ref = OperationRef.completed(3)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await ref
        pytest.fail("no checkpoint")
    assert scope.cancelled_caught


# Cancelling.


@pytest.mark.parametrize("native", [True, False], ids=["own loop", "portal"])
async def test_cancelling_the_awaiting_task_cancels_the_operation_and_waits_for_its_end(native: bool) -> None:
    async with Scope("test") as scope:
        blocked = Blocked()
        blocked.cleanup_seconds = 0.05
        ref = (scope if native else portal_scope()).start(blocked.run)
        await started(blocked)
        with anyio.move_on_after(0) as limit:
            await ref
        assert limit.cancelled_caught
        assert blocked.cancelled.is_set()
        with pytest.raises(concurrent.futures.CancelledError):
            ref.result()


async def test_the_cancelled_await_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwsandbox._runtime.operation.CANCEL_WAIT_SECONDS", 0.05)
    blocked = Blocked()
    blocked.stays = True
    ref = portal_scope().start(blocked.run)
    await started(blocked)
    with anyio.move_on_after(0):
        await ref
    assert not blocked.cancelled.is_set()
    portal_scope().loop.run_soon(blocked.event.set)
    with pytest.raises(concurrent.futures.CancelledError):
        await ref
    assert blocked.cancelled.is_set()


@pytest.mark.parametrize("native", [True, False], ids=["own loop", "portal"])
async def test_only_the_last_cancelled_awaiter_cancels(native: bool) -> None:
    async def wait_cancellably(scope: anyio.CancelScope) -> None:
        with scope:
            await ref

    async with Scope("test") as scope:
        blocked = Blocked()
        ref = (scope if native else portal_scope()).start(blocked.run)
        await started(blocked)
        scopes = [anyio.CancelScope(), anyio.CancelScope()]
        async with anyio.create_task_group() as group:
            for cancel_scope in scopes:
                group.start_soon(wait_cancellably, cancel_scope)
            await anyio.wait_all_tasks_blocked()
            scopes[0].cancel()
            await anyio.wait_all_tasks_blocked()
            assert not ref._cancel_requested
            scopes[1].cancel()
        assert blocked.cancelled.is_set()


async def test_two_awaiters_cancelled_together_cancel() -> None:
    async with Scope("test") as scope:
        blocked = Blocked()
        ref = scope.start(blocked.run)

        async def wait() -> None:
            await ref

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert blocked.cancelled.is_set()


async def test_a_thread_that_blocks_in_result_keeps_the_operation_alive() -> None:
    class Announcing(OperationRef[str]):
        waiting = threading.Event()

        def _on_wait_begin(self) -> None:
            self.waiting.set()

    blocked = Blocked()
    ref = portal_scope().start(blocked.run, ref=Announcing())
    await started(blocked)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(ref.result, 5)
        assert await anyio.to_thread.run_sync(Announcing.waiting.wait, 5)
        with anyio.move_on_after(0):
            await ref
        assert not ref._cancel_requested
        portal_scope().loop.run_soon(blocked.event.set)
        assert await anyio.to_thread.run_sync(future.result) == "released"


async def test_cancel_from_any_thread_and_its_answer() -> None:
    async with Scope("test") as scope:
        blocked = Blocked()
        ref = scope.start(blocked.run)
        await started(blocked)
        assert await anyio.to_thread.run_sync(ref._cancel) is True
        with pytest.raises(concurrent.futures.CancelledError):
            await ref
        assert ref._cancel() is False


async def test_an_operation_cancelled_before_it_began_never_begins() -> None:
    ran = []

    async def never() -> None:
        ran.append(1)

    async with Scope("test") as scope:
        ref = scope.start(never)
        ref._cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            await ref
    assert not ran


def test_a_cancelled_operation_that_returns_a_value_has_returned_a_value() -> None:
    entered = threading.Event()

    async def stubborn() -> str:
        try:
            entered.set()
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            return "finished anyway"
        raise AssertionError

    ref = portal_scope().start(stubborn)
    assert entered.wait(5)
    assert ref._cancel()
    assert ref.result(5) == "finished anyway"


async def test_a_cancelled_error_out_of_nowhere_ends_its_operation_only(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("only asyncio lets anybody raise it")
    import asyncio

    async def stray() -> None:
        raise asyncio.CancelledError

    async with Scope("test") as scope:
        other = Blocked()
        other_ref = scope.start(other.run)
        await started(other)
        with pytest.raises(concurrent.futures.CancelledError):
            await scope.start(stray)
        assert not other_ref._finished
        assert await scope.start(echo, 1) == 1


async def test_asyncio_wait_for_cancels_the_operation(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("asyncio's own function")
    import asyncio

    blocked = Blocked()
    ref = portal_scope().start(blocked.run)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ref, 0.05)
    assert blocked.cancelled.wait(5)


# Context, callbacks, hooks.


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def read_variable() -> str:
    await anyio.lowlevel.checkpoint()
    return variable.get()


@pytest.mark.parametrize("native", [True, False], ids=["own loop", "portal"])
async def test_the_operation_sees_the_callers_context(native: bool) -> None:
    async with Scope("test") as scope:
        variable.set("mine")
        assert await (scope if native else portal_scope()).start(read_variable) == "mine"


async def test_done_callbacks_are_called_once_also_when_late(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def broken(ref: OperationRef[Any]) -> None:
        raise Failure("in the callback", 1)

    async with Scope("test") as scope:
        ref = scope.start(echo, 9)
        ref.add_done_callback(broken)
        ref.add_done_callback(lambda done: calls.append(done.result()))
        await ref
        ref.add_done_callback(lambda done: calls.append(done.result() + 1))
    assert calls == [9, 10]
    assert "in the callback" in caplog.text


class Watched(OperationRef[str]):
    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def _on_wait_begin(self) -> None:
        self.log.append("begin")

    def _on_wait_end(self) -> None:
        self.log.append("end")

    def _on_interrupt(self) -> None:
        self.log.append("interrupt")


async def test_hooks_surround_every_wait() -> None:
    async with Scope("test") as scope:
        blocked = Blocked()
        ref = Watched()
        scope.start(blocked.run, ref=ref)
        await started(blocked)
        with pytest.raises(TimeoutError):
            await anyio.to_thread.run_sync(ref.result, 0.01)
        assert ref.log == ["begin", "end"]
        blocked.event.set()
        assert await ref == "released"
        assert ref.log == ["begin", "end"] * 2


def test_many_threads_share_many_handles() -> None:
    refs = [portal_scope().start(echo, n) for n in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda _: sum(ref.result(10) for ref in refs), range(8)))
    assert sums == [sum(range(200))] * 8


def test_many_threads_start_many_operations() -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: portal_scope().start(echo, n).result(10), range(500)))
    assert results == list(range(500))


async def test_many_tasks_await_one_handle() -> None:
    blocked = Blocked()
    ref = portal_scope().start(blocked.run)
    await started(blocked)
    got: list[str] = []

    async def wait() -> None:
        got.append(await ref)

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        portal_scope().loop.run_soon(blocked.event.set)
    assert got == ["released"] * 50


def test_a_waiting_loop_may_vanish() -> None:
    blocked = Blocked()
    ref = portal_scope().start(blocked.run)
    assert blocked.started.wait(5)

    async def leave_without_waiting() -> None:
        # Neither cancelled nor finished when the loop ends: the waker must bear that.
        handle_wait = ref._latch.wait()
        handle_wait.send(None)
        handle_wait.close()

    anyio.run(leave_without_waiting)
    portal_scope().loop.run_soon(blocked.event.set)
    assert ref.result(5) == "released"


@pytest.mark.parametrize("native", [True, False], ids=["own loop", "portal"])
@pytest.mark.parametrize("outcome", ["value", "error", "cancelled"])
async def test_handles_are_freed_without_the_garbage_collector(native: bool, outcome: str) -> None:
    alive: weakref.WeakSet[OperationRef[Any]] = weakref.WeakSet()

    async def one(owner: Scope) -> None:
        box = [owner.start({"value": echo, "error": raise_anew, "cancelled": anyio.sleep}[outcome], 10)]
        alive.add(box[0])
        if outcome == "cancelled":
            box[0]._cancel()
        with contextlib.suppress(Failure, concurrent.futures.CancelledError):
            await box[0]
        box.clear()  # The error's traceback holds this frame.

    gc.disable()
    try:
        async with Scope("test") as scope:
            owner = scope if native else portal_scope()
            for _ in range(20):
                await one(owner)
            await owner.start(echo, 1)
            assert len(alive) <= 1
    finally:
        gc.enable()


async def raise_anew(code: int) -> None:
    await anyio.lowlevel.checkpoint()
    raise Failure("new", code)
