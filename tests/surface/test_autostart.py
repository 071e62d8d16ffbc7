"""Who starts a sandbox and who does not (S6 to S13). Requests are counted at the gateway's door."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cwsandbox import Sandbox, SandboxNotRunningError, SandboxStatus, Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.gateway import ServedGateway


def unstarted(gateway: ServedGateway) -> Sandbox:
    return Sandbox(base_url=gateway.url)


@pytest.mark.row("S6")
def test_s006_session_sandbox_is_unstarted(gateway: ServedGateway) -> None:
    with Session({"base_url": gateway.url}) as session:
        sandbox = session.sandbox()
        assert sandbox.sandbox_id is None
        assert sandbox.status is None
        assert "not_started" in repr(sandbox)
    assert gateway.requests == []


@pytest.mark.row("S6")
async def test_s006_session_sandbox_is_unstarted_async(gateway: ServedGateway) -> None:
    async with Session({"base_url": gateway.url}) as session:
        assert session.sandbox().sandbox_id is None
    assert gateway.requests == []


@pytest.mark.row("S7")
def test_s007_exec_starts_the_sandbox_once(gateway: ServedGateway) -> None:
    sandbox = unstarted(gateway)
    assert sandbox.exec(["echo", "hello"]).result().stdout == "hello\n"
    assert gateway.count("create") == 1
    sandbox.stop().result()


@pytest.mark.row("S7")
async def test_s007_exec_starts_the_sandbox_once_async(gateway: ServedGateway) -> None:
    sandbox = unstarted(gateway)
    assert (await sandbox.exec(["echo", "hello"])).stdout == "hello\n"
    assert gateway.count("create") == 1
    await sandbox.stop()


def use_read_file(sandbox: Sandbox) -> None:
    assert sandbox.read_file("/etc/hostname").result()


def use_write_file(sandbox: Sandbox) -> None:
    sandbox.write_file("/tmp/a", b"a").result()


def use_wait(sandbox: Sandbox) -> None:
    assert sandbox.wait() is sandbox


@pytest.mark.row("S8", "S9", "S10")
@pytest.mark.parametrize("use", [use_read_file, use_write_file, use_wait])
def test_s008_to_s010_file_operations_and_wait_start_the_sandbox_once(
    gateway: ServedGateway, use: Callable[[Sandbox], None]
) -> None:
    sandbox = unstarted(gateway)
    use(sandbox)
    assert gateway.count("create") == 1
    assert sandbox.sandbox_id
    sandbox.stop().result()


@pytest.mark.row("S8", "S9", "S10")
async def test_s008_to_s010_file_operations_and_await_start_the_sandbox_once(gateway: ServedGateway) -> None:
    reading, writing, waiting = (unstarted(gateway) for _ in range(3))
    assert await reading.read_file("/etc/hostname")
    await writing.write_file("/tmp/a", b"a")
    assert await waiting is waiting
    assert gateway.count("create") == 3
    for sandbox in (reading, writing, waiting):
        await sandbox.stop()


@pytest.mark.row("S11")
def test_s011_wait_until_complete_starts_the_sandbox_once(gateway: ServedGateway) -> None:
    sandbox = Sandbox(command="true", base_url=gateway.url)
    assert sandbox.wait_until_complete().result() is sandbox
    assert gateway.count("create") == 1


@pytest.mark.row("S11")
async def test_s011_wait_until_complete_starts_the_sandbox_once_async(gateway: ServedGateway) -> None:
    sandbox = Sandbox(command="true", base_url=gateway.url)
    assert await sandbox.wait_until_complete() is sandbox
    assert gateway.count("create") == 1


@pytest.mark.row("S12")
def test_s012_get_status_does_not_start(gateway: ServedGateway) -> None:
    sandbox = unstarted(gateway)
    with pytest.raises(SandboxNotRunningError):
        sandbox.get_status()
    assert gateway.requests == []


@pytest.mark.row("S12")
async def test_s012_get_status_does_not_start_async(gateway: ServedGateway) -> None:
    sandbox = unstarted(gateway)
    with pytest.raises(SandboxNotRunningError):
        sandbox.get_status()
    assert gateway.requests == []


@pytest.mark.row("S13")
def test_s013_stop_of_an_unstarted_sandbox_does_nothing_and_cancels_it(gateway: ServedGateway) -> None:
    sandbox = unstarted(gateway)
    sandbox.stop().result()
    assert gateway.requests == []
    assert sandbox.status is None
    for operation in (
        lambda: sandbox.start().result(),
        lambda: sandbox.exec(["true"]).result(),
        lambda: sandbox.read_file("/etc/hostname").result(),
        lambda: sandbox.write_file("/tmp/a", b"a").result(),
        sandbox.wait,
        lambda: sandbox.wait_until_complete().result(),
        sandbox.get_status,
    ):
        with pytest.raises(SandboxNotRunningError):
            operation()
    assert gateway.requests == []


@pytest.mark.row("S13")
async def test_s013_stop_of_an_unstarted_sandbox_does_nothing_and_cancels_it_async(gateway: ServedGateway) -> None:
    sandbox = unstarted(gateway)
    await sandbox.stop()
    for start in (sandbox.start, lambda: sandbox.exec(["true"]), lambda: sandbox.read_file("/etc/hostname")):
        with pytest.raises(SandboxNotRunningError):
            await start()
    with pytest.raises(SandboxNotRunningError):
        await sandbox
    assert gateway.requests == []


async def test_concurrent_first_operations_send_one_start_request(gateway: ServedGateway) -> None:
    sandbox = unstarted(gateway)
    processes = [sandbox.exec(["true"]) for _ in range(8)]
    refs = [sandbox.start() for _ in range(3)]
    for ref in refs:
        await ref
    assert [(await process).returncode for process in processes] == [0] * 8
    assert gateway.count("create") == 1
    await sandbox.stop()


def test_start_of_a_started_sandbox_sends_nothing(gateway: ServedGateway) -> None:
    sandbox = unstarted(gateway)
    sandbox.start().result()
    sandbox.start().result()
    sandbox.stop().result()
    sandbox.start().result()
    assert gateway.count("create") == 1
    assert sandbox.status is not None
    assert sandbox.status in {SandboxStatus.COMPLETED, SandboxStatus.FAILED, SandboxStatus.TERMINATED}
