"""cwsandbox.wait and cwsandbox.results (S76 to S84, behaviour 10.1 and 10.2)."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread
import pytest

import cwsandbox
from cwsandbox import Process, Sandbox, SandboxFailedError, SandboxFileError, SandboxStatus, Session
from cwsandbox._runtime.scope import running_operations

if TYPE_CHECKING:
    from tests.support.gateway import ServedGateway


def held(sb: Sandbox) -> Process:
    """A command that ends when its input is closed."""
    return sb.exec(["cat"], stdin=True)


def release(*processes: Process) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.close().result()
        process.result()


@pytest.mark.row("S76", "S77", "S78", "S82")
def test_s076_to_s078_s082_wait_for_two_of_four(sb: Sandbox) -> None:
    slow = [held(sb), held(sb)]
    quick = [sb.exec(["echo", "a"]), sb.exec(["echo", "b"])]
    done, pending = cwsandbox.wait([slow[0], quick[0], slow[1], quick[1]], num_returns=2)
    assert done == quick
    assert pending == slow
    assert [process.result().stdout for process in done if isinstance(process, Process)] == ["a\n", "b\n"]
    release(*slow)
    assert [process.returncode for process in slow] == [0, 0]


@pytest.mark.row("S76", "S77", "S78", "S82")
async def test_s076_to_s078_s082_a_thread_waits_for_two_of_four_of_a_loop(asb: Sandbox) -> None:
    slow = [asb.exec(["cat"], stdin=True) for _ in range(2)]
    quick = [asb.exec(["echo", "a"]), asb.exec(["echo", "b"])]
    mixed = [slow[0], quick[0], slow[1], quick[1]]
    done, pending = await anyio.to_thread.run_sync(partial(cwsandbox.wait, mixed, num_returns=2))
    assert done == quick
    assert pending == slow
    assert [(await process).stdout for process in quick] == ["a\n", "b\n"]
    for process in slow:
        assert process.stdin is not None
        await process.stdin.close()
        assert (await process).returncode == 0


@pytest.mark.row("S76")
async def test_s076_wait_from_a_thread_of_an_async_program(asb: Sandbox) -> None:
    processes = [asb.exec(["echo", str(n)]) for n in range(4)]
    done, pending = await anyio.to_thread.run_sync(lambda: cwsandbox.wait(processes, num_returns=2))
    assert len(done) == 2
    assert len(pending) == 2
    for process in processes:
        await process


def test_wait_gives_no_more_than_asked_for(sb: Sandbox) -> None:
    processes = [sb.exec(["echo", str(n)]) for n in range(5)]
    for process in processes:
        process.result()
    done, pending = cwsandbox.wait(processes, num_returns=2)
    assert done == processes[:2]
    assert pending == processes[2:]


@pytest.mark.row("S79")
def test_s079_wait_returns_by_its_deadline(sb: Sandbox) -> None:
    slow, quick = held(sb), sb.exec(["true"])
    quick.result()
    begin = time.monotonic()
    assert cwsandbox.wait([slow, quick], timeout=0.3) == ([quick], [slow])
    assert time.monotonic() - begin > 0.25
    assert cwsandbox.wait([slow, quick], timeout=0) == ([quick], [slow])
    release(slow)


@pytest.mark.row("S79")
async def test_s079_a_thread_waits_for_what_runs_on_a_loop_by_its_deadline(asb: Sandbox) -> None:
    slow, quick = asb.exec(["cat"], stdin=True), asb.exec(["true"])
    await quick
    waiting = partial(cwsandbox.wait, [slow, quick], timeout=0.1)
    assert await anyio.to_thread.run_sync(waiting) == ([quick], [slow])
    assert slow.cancel()


def test_waiting_again_and_again_leaves_nothing_behind(sb: Sandbox) -> None:
    slow = held(sb)
    for _ in range(3):
        assert cwsandbox.wait([slow, slow], timeout=0) == ([], [slow, slow])
        callbacks = slow._latch._callbacks
        assert callbacks is not None
        assert len(callbacks) == 1  # The command's own.
    release(slow)


@pytest.mark.row("S80")
def test_s080_wait_on_sandboxes_means_running(gateway: ServedGateway) -> None:
    gateway.making.close()
    sandboxes = [Sandbox(base_url=gateway.url) for _ in range(3)]
    assert cwsandbox.wait(sandboxes, timeout=0.2) == ([], sandboxes)
    gateway.making.open()
    assert cwsandbox.wait(sandboxes) == (sandboxes, [])
    assert {sandbox.status for sandbox in sandboxes} == {SandboxStatus.RUNNING}
    for sandbox in sandboxes:
        sandbox.stop().result()


@pytest.mark.row("S80")
async def test_s080_a_thread_waits_for_sandboxes_of_a_loop(gateway: ServedGateway) -> None:
    gateway.making.close()
    async with Session({"base_url": gateway.url}) as session:
        sandboxes = [session.sandbox() for _ in range(3)]
        waiting = partial(cwsandbox.wait, sandboxes, timeout=0.2)
        assert await anyio.to_thread.run_sync(waiting) == ([], sandboxes)
        gateway.making.open()
        assert await anyio.to_thread.run_sync(cwsandbox.wait, sandboxes) == (sandboxes, [])
        assert {sandbox.status for sandbox in sandboxes} == {SandboxStatus.RUNNING}


def test_polling_sees_what_happened_between_two_looks(gateway: ServedGateway) -> None:
    gateway.making.close()
    with Sandbox(base_url=gateway.url) as sandbox, Sandbox(base_url=gateway.url, command="/no/such/program") as broken:
        both = [sandbox, broken]
        before = running_operations()
        for _ in range(3):
            assert cwsandbox.wait(both, timeout=0) == ([], both)
        assert len(running_operations() - before) == 2
        gateway.making.open()
        sandbox.wait()
        with pytest.raises(SandboxFailedError):
            broken.wait()
        assert cwsandbox.wait(both, timeout=0) == (both, [])


@pytest.mark.row("S81", "S82")
def test_s081_s082_wait_takes_a_mix(sb: Sandbox) -> None:
    sb.write_file("/tmp/a", b"a").result()
    mix: list[cwsandbox.Waitable] = [sb, sb.read_file("/tmp/a"), sb.exec(["true"])]
    done, pending = cwsandbox.wait(mix)
    assert all(one is other for one, other in zip(done, mix, strict=True))
    assert pending == []


@pytest.mark.row("S81", "S82")
async def test_s081_s082_a_thread_waits_for_a_mix_of_a_loop(asb: Sandbox) -> None:
    await asb.write_file("/tmp/a", b"a")
    mix: list[cwsandbox.Waitable] = [asb, asb.read_file("/tmp/a"), asb.exec(["true"])]
    done, pending = await anyio.to_thread.run_sync(cwsandbox.wait, mix)
    assert all(one is other for one, other in zip(done, mix, strict=True))
    assert pending == []


def test_a_failure_counts_as_done_and_is_not_raised(sb: Sandbox) -> None:
    failing = sb.read_file("/no/such/file")
    broken = Sandbox(command="/no/such/program")
    both: list[cwsandbox.Waitable] = [failing, broken]
    assert cwsandbox.wait(both) == (both, [])
    with pytest.raises(SandboxFileError):
        failing.result()
    with pytest.raises(SandboxFailedError):
        broken.wait()


def test_wait_of_nothing() -> None:
    assert cwsandbox.wait([]) == ([], [])


@pytest.mark.parametrize("number", [0, -1])
def test_wait_for_less_than_one_is_a_value_error(number: int) -> None:
    with pytest.raises(ValueError, match="num_returns"):
        cwsandbox.wait([], num_returns=number)


def test_wait_for_more_than_there_are_waits_for_all(sb: Sandbox) -> None:
    processes = [sb.exec(["true"]) for _ in range(2)]
    assert cwsandbox.wait(processes, num_returns=10) == (processes, [])


def test_a_duplicate_appears_twice(sb: Sandbox) -> None:
    process = sb.exec(["true"])
    assert cwsandbox.wait([process, process]) == ([process, process], [])


def test_waiting_for_something_else_is_a_type_error(sb: Sandbox) -> None:
    with pytest.raises(TypeError):
        cwsandbox.wait([sb, "process"])  # type: ignore[type-var]


@pytest.mark.row("S83", "S84")
def test_s083_s084_results_of_one_and_of_many(sb: Sandbox) -> None:
    for n in range(3):
        sb.write_file(f"/tmp/{n}", str(n).encode()).result()
    assert cwsandbox.results(sb.read_file("/tmp/0")) == b"0"
    assert cwsandbox.results([sb.read_file(f"/tmp/{n}") for n in range(3)]) == [b"0", b"1", b"2"]
    assert cwsandbox.results(sb.read_file(f"/tmp/{n}") for n in range(3)) == [b"0", b"1", b"2"]
    assert cwsandbox.results(sb.exec(["echo", "p"])).stdout == "p\n"
    assert cwsandbox.results([]) == []


@pytest.mark.row("S83", "S84")
async def test_s083_s084_a_thread_takes_results_of_a_loop(asb: Sandbox) -> None:
    def take() -> tuple[bytes, list[bytes]]:
        return cwsandbox.results(asb.read_file("/tmp/0")), cwsandbox.results(
            [asb.read_file(f"/tmp/{n}") for n in range(3)]
        )

    for n in range(3):
        await asb.write_file(f"/tmp/{n}", str(n).encode())
    assert await anyio.to_thread.run_sync(take) == (b"0", [b"0", b"1", b"2"])


def test_results_raises_the_first_failure(sb: Sandbox) -> None:
    with pytest.raises(SandboxFileError, match="/no/such/file"):
        cwsandbox.results([sb.read_file("/no/such/file"), sb.read_file("/etc/hostname")])
