"""Descriptors that are closed while somebody waits on them."""

from __future__ import annotations

import contextlib
import os

import anyio

from cwsandbox.runners.descriptor import Descriptor


async def _wait(descriptor: Descriptor, woken: list[Descriptor]) -> None:
    with contextlib.suppress(anyio.ClosedResourceError):
        await descriptor.wait_readable()
    woken.append(descriptor)


async def test_the_next_owner_of_a_number_keeps_its_own_wait() -> None:
    """What anyio does by itself on asyncio: the wait below never ends."""
    woken: list[Descriptor] = []
    first_read, first_write = os.pipe()
    first = Descriptor(first_read)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_wait, first, woken)
        await anyio.wait_all_tasks_blocked()
        first.close()
        # Before the one who was woken has had its turn.
        second_read, second_write = os.pipe()
        second = Descriptor(second_read)
        os.write(second_write, b"x")
        with anyio.fail_after(20):
            await second.wait_readable()
    assert woken == [first]
    second.close()
    for descriptor in (first_write, second_write):
        os.close(descriptor)


async def test_it_is_closed_when_the_last_one_that_waits_has_gone() -> None:
    woken: list[Descriptor] = []
    closed = anyio.Event()
    read, write = os.pipe()
    descriptor = Descriptor(read, closed.set)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_wait, descriptor, woken)
        await anyio.wait_all_tasks_blocked()
        descriptor.wake()
        await anyio.wait_all_tasks_blocked()
        assert woken == [descriptor]
        assert not closed.is_set()
        tasks.start_soon(_wait, descriptor, woken)
        await anyio.wait_all_tasks_blocked()
        descriptor.close()
        assert not closed.is_set()
    assert closed.is_set()
    descriptor.close()
    await _wait(descriptor, woken)  # At once.
    for number in (read, write):
        os.close(number)


async def test_one_that_was_closed_before_is_left_alone() -> None:
    descriptor = Descriptor(-1)
    descriptor.close()
    descriptor.wake()
    assert descriptor.closed
