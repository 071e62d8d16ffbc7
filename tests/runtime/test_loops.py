"""Which loop runs here, and how others reach it."""

from __future__ import annotations

import threading

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from cwsandbox._runtime._loops import LoopHandle, on_event_loop, start_host_task
from cwsandbox._runtime.portal import portal_scope


def test_a_plain_thread_is_on_no_loop() -> None:
    assert not on_event_loop()
    with pytest.raises(anyio.NoEventLoopError):
        LoopHandle.current()


async def test_a_task_is_on_its_loop() -> None:
    assert on_event_loop()
    assert LoopHandle.current().is_current()
    assert not portal_scope().loop.is_current()


async def test_a_worker_thread_is_on_no_loop_although_its_context_says_so() -> None:
    handle = LoopHandle.current()

    def probe() -> tuple[bool, bool]:
        return on_event_loop(), handle.is_current()

    assert await anyio.to_thread.run_sync(probe) == (False, False)


async def test_a_callback_is_on_its_loop() -> None:
    handle = LoopHandle.current()
    seen: list[tuple[bool, bool]] = []
    done = anyio.Event()

    def callback() -> None:
        seen.append((on_event_loop(), handle.is_current()))
        done.set()

    await anyio.to_thread.run_sync(handle.run_soon, callback)
    await done.wait()
    assert seen == [(True, True)]


async def test_calls_from_a_thread_come_in_order() -> None:
    handle = LoopHandle.current()
    seen: list[int] = []
    done = anyio.Event()

    def call_many() -> None:
        for n in range(100):
            handle.run_soon(seen.append, n)
        handle.run_soon(done.set)

    threading.Thread(target=call_many).start()
    await done.wait()
    assert seen == list(range(100))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_loop_that_has_gone_takes_no_calls(backend: str) -> None:
    async def current() -> LoopHandle:
        return LoopHandle.current()

    handle = anyio.run(current, backend=backend)
    called: list[int] = []
    assert handle.run_soon(called.append, 1) is False
    assert not handle.is_current()
    assert not called


async def test_a_host_task_outlives_the_task_that_started_it() -> None:
    ready, leave, left = anyio.Event(), anyio.Event(), anyio.Event()

    async def host() -> None:
        ready.set()
        await leave.wait()
        left.set()

    async def starter() -> None:
        start_host_task(host, name="test host")
        await ready.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(starter)
    assert not left.is_set()
    leave.set()
    with anyio.fail_after(5):
        await left.wait()
