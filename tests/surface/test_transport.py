"""When the wire or the gateway fails (FIX-P, FIX-Q, contract 2, 3 and 6; behaviour 12.2)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import anyio
import pytest

from cwsandbox import (
    CWSandboxAuthenticationError,
    CWSandboxError,
    Sandbox,
    SandboxError,
    SandboxNotFoundError,
    SandboxNotRunningError,
    SandboxRequestTimeoutError,
)
from tests.support.gateway import served_gateway
from tests.support.processes import assert_gone, new_marker
from tests.support.relay import Relay, relay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.gateway import ServedGateway


@pytest.fixture
def wire(gateway: ServedGateway) -> Iterator[Relay]:
    with relay(gateway.url) as wire:
        yield wire


NUMBERS = "".join(f"{n}\n" for n in range(1, 400_001))


@pytest.mark.parametrize("received", [1, 5_000, 300_000, 1_200_000])
def test_output_survives_a_cut_wire_exactly_once(wire: Relay, received: int) -> None:
    with Sandbox(base_url=wire.url) as sandbox:
        sandbox.wait()
        before = wire.connections
        wire.cut_after(received)
        result = sandbox.exec(["seq", "400000"]).result(timeout=50)
        assert result.stdout == NUMBERS
        assert result.returncode == 0
        assert wire.connections > before


async def test_output_survives_a_cut_wire_exactly_once_async(wire: Relay) -> None:
    async with Sandbox(base_url=wire.url) as sandbox:
        await sandbox
        wire.cut_after(700_000)
        process = sandbox.exec(["seq", "400000"])
        assert "".join([line async for line in process.stdout]) == NUMBERS
        assert (await process).returncode == 0


def test_input_survives_cut_wires_exactly_once(wire: Relay) -> None:
    block = NUMBERS.encode()
    with Sandbox(base_url=wire.url) as sandbox:
        process = sandbox.exec(["sha256sum"], stdin=True)
        assert process.stdin is not None
        digest = hashlib.sha256()
        for turn in range(6):
            process.stdin.write(block).result(timeout=50)
            digest.update(block)
            if turn % 2:
                wire.cut()
        process.stdin.close().result(timeout=50)
        assert process.result(timeout=50).stdout.split()[0] == digest.hexdigest()


def test_a_command_lives_through_a_cut_wire(wire: Relay) -> None:
    with Sandbox(base_url=wire.url) as sandbox:
        process = sandbox.exec(["sh", "-c", "echo one; read x; echo $x; exit 4"], stdin=True)
        assert process.stdin is not None
        assert next(process.stdout) == "one\n"
        wire.cut()
        process.stdin.writeline("two").result(timeout=50)
        assert next(process.stdout) == "two\n"
        assert process.result(timeout=50).returncode == 4


def test_an_exit_during_the_cut_is_reported_afterwards(wire: Relay) -> None:
    with Sandbox(base_url=wire.url) as sandbox:
        watcher = Sandbox.from_id(str(sandbox.wait().sandbox_id), base_url=wire.url).result()
        process = sandbox.exec(["sh", "-c", "echo up; until [ -e /tmp/go ]; do sleep 0.01; done; echo out; exit 5"])
        assert next(process.stdout) == "up\n"
        wire.cut()
        watcher.write_file("/tmp/go", b"").result(timeout=50)
        result = process.result(timeout=50)
        assert (result.returncode, result.stdout) == (5, "up\nout\n")


def test_a_command_waits_for_its_gateway_no_longer_than_the_request_timeout(
    wire: Relay, gateway: ServedGateway
) -> None:
    with Sandbox(base_url=gateway.url) as owner:
        owner.wait()
        sandbox = Sandbox.from_id(str(owner.sandbox_id), base_url=wire.url, timeout_seconds=1).result()
        wire.refuse()
        wire.cut()
        with pytest.raises(SandboxRequestTimeoutError, match="within 1 s"):
            sandbox.exec(["true"]).result(timeout=20)


def test_a_write_after_a_cut_does_not_wait_for_a_ping(wire: Relay) -> None:
    with Sandbox(base_url=wire.url) as sandbox:
        sandbox.wait()
        sandbox.write_file("/tmp/file", b"one").result()
        for content in (b"two", b"", b"three"):
            wire.cut()
            sandbox.write_file("/tmp/file", content).result(timeout=10)
            assert sandbox.read_file("/tmp/file").result(timeout=10) == content


def test_a_create_that_was_retried_made_one_sandbox(wire: Relay, gateway: ServedGateway) -> None:
    gateway.accepting.close()
    sandbox = Sandbox(base_url=wire.url)
    starting = sandbox.start()
    gateway.accepting.wait_for_arrivals(1)
    wire.cut()
    gateway.accepting.wait_for_arrivals(2)
    gateway.accepting.open()
    starting.result(timeout=50)
    found = Sandbox.list(base_url=gateway.url).result()
    assert [other.sandbox_id for other in found] == [sandbox.sandbox_id]
    sandbox.stop().result()


@pytest.mark.usefixtures("never_stopped")
@pytest.mark.timeout(120)
def test_a_command_whose_client_stays_away_is_killed_and_never_a_success(wire: Relay, gateway: ServedGateway) -> None:
    marker = new_marker()
    sandbox = Sandbox(base_url=wire.url).wait()
    process = sandbox.exec(["sh", "-c", f"echo up; exec sleep {marker}"])
    assert next(process.stdout) == "up\n"
    wire.refuse()
    wire.cut()
    assert_gone(marker, within=gateway.grace_seconds + 10)
    wire.refuse(False)
    with pytest.raises(SandboxError):
        process.result(timeout=60)
    assert process.returncode is None
    assert list(process.stdout) == []
    Sandbox.delete(str(sandbox.sandbox_id), base_url=gateway.url).result()


@pytest.mark.usefixtures("never_stopped")
@pytest.mark.row("FIX-Q", "FIX-P")
@pytest.mark.timeout(120)
def test_fix_q_a_gateway_that_ends_ends_its_commands_with_an_error(runner_state: Path) -> None:
    with served_gateway(runner_state) as gateway:
        sandbox = Sandbox(base_url=gateway.url, request_timeout_seconds=2).wait()
        process = sandbox.exec(["sh", "-c", "echo up; exec sleep 60"])
        assert next(process.stdout) == "up\n"
    with pytest.raises(SandboxNotRunningError):
        process.result(timeout=60)
    assert process.returncode is None
    assert list(process.stdout) == []
    with pytest.raises(SandboxError):
        sandbox.exec(["true"]).result(timeout=60)


@pytest.mark.usefixtures("never_stopped")
@pytest.mark.row("FIX-Q", "FIX-P")
@pytest.mark.timeout(120)
async def test_fix_q_a_gateway_that_ends_ends_its_commands_with_an_error_async(runner_state: Path) -> None:
    with served_gateway(runner_state) as gateway:
        sandbox = Sandbox(base_url=gateway.url, request_timeout_seconds=2)
        await sandbox
        process = sandbox.exec(["sh", "-c", "echo up; exec sleep 60"])
        assert await anext(process.stdout) == "up\n"
    with anyio.fail_after(60), pytest.raises(SandboxNotRunningError):
        await process


@pytest.mark.row("FIX-P")
def test_fix_p_exec_on_a_deleted_sandbox(gateway: ServedGateway) -> None:
    with Sandbox(base_url=gateway.url) as sandbox:
        attached = Sandbox.from_id(str(sandbox.wait().sandbox_id), base_url=gateway.url).result()
        Sandbox.delete(str(sandbox.sandbox_id), base_url=gateway.url).result()
        with pytest.raises((SandboxNotFoundError, SandboxNotRunningError)):
            attached.exec(["true"]).result(timeout=30)
        sandbox.stop(missing_ok=True).result()


@pytest.mark.row("FIX-P")
@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("UNAUTHENTICATED", CWSandboxAuthenticationError),
        ("PERMISSION_DENIED", CWSandboxAuthenticationError),
        ("NOT_FOUND", SandboxNotFoundError),
        ("INTERNAL", SandboxError),
        ("RESOURCE_EXHAUSTED", SandboxError),
        ("INVALID_ARGUMENT", SandboxError),
    ],
)
def test_fix_p_answers_become_exceptions_of_the_package(
    gateway: ServedGateway, status: str, error: type[CWSandboxError]
) -> None:
    sandbox = Sandbox(base_url=gateway.url, request_timeout_seconds=20)
    gateway.refuse("create", times=50, status=status)
    with pytest.raises(error):
        sandbox.exec(["true"]).result(timeout=30)
    gateway.refuse("create", times=0)
    assert sandbox.exec(["echo", "after all"]).result(timeout=30).stdout == "after all\n"
    sandbox.stop().result()


@pytest.mark.row("FIX-P")
def test_fix_p_no_exception_group_and_no_transport_error_leaves(wire: Relay) -> None:
    sandbox = Sandbox(base_url=wire.url, request_timeout_seconds=1).wait()
    wire.refuse()
    wire.cut()
    for operation in (
        lambda: sandbox.exec(["true"]).result(timeout=60),
        lambda: sandbox.read_file("/etc/hostname").result(timeout=60),
        lambda: sandbox.write_file("/tmp/x", b"").result(timeout=60),
        sandbox.get_status,
        lambda: Sandbox.list(base_url=wire.url, timeout_seconds=1).result(timeout=60),
    ):
        with pytest.raises(SandboxError):
            operation()
    wire.refuse(False)
    assert sandbox.exec(["echo", "back"]).result(timeout=30).stdout == "back\n"
    sandbox.stop().result()
