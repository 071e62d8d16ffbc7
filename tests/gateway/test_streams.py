"""What holds for streams: flow control, lost connections, ends."""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from cwsandbox.gateway.service import Limits
from cwsandbox.wire.channel import WINDOW_BYTES, StreamKind
from cwsandbox.wire.codec import PosixPath
from cwsandbox.wire.errors import Code, Reason
from cwsandbox.wire.streams import ReadOpen
from tests.gateway.conftest import ME, World, execute, open_world, spec_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.gateway.hostrunner import HostCommand

MIB = 1024 * 1024


def command_of(world: World, index: int = -1) -> HostCommand:
    (box,) = world.runner.boxes.values()
    return box._commands[index]


async def dead(command: HostCommand) -> None:
    with anyio.fail_after(10):
        await command.killed.wait()
    assert command.process.returncode == -signal.SIGKILL


class TestFlow:
    async def test_64_mib_arrive_exactly(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        result = await execute(client, sandbox, "head", "-c", str(64 * MIB), "/dev/zero").wait()
        assert result.status == 0
        assert len(result.output[0]) == 64 * MIB

    async def test_bytes_through_cat_come_back_in_order(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        sent = os.urandom(8 * MIB)
        result = execute(client, sandbox, "cat", stdin=True)
        at = 0
        with anyio.fail_after(30):
            while at < len(sent):
                room = min(result.stream.room(), len(sent) - at)
                if not room:
                    await result.news.wait()
                    continue
                result.stream.send(sent[at : at + room])
                at += room
                client.wake()
        result.stream.send_eof()
        client.wake()
        await result.wait()
        assert result.stdout == sent

    async def test_a_reader_that_stalls_holds_a_window_and_nobody_else(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        stalled = execute(client, sandbox, "head", "-c", str(64 * MIB), "/dev/zero", paced=False)
        await stalled.wait_output(WINDOW_BYTES)
        other = await execute(client, sandbox, "echo", "quick").wait()
        assert (other.stdout, other.status) == (b"quick\n", 0)
        assert len(stalled.output[0]) == WINDOW_BYTES
        assert command_of(world, 0).process.returncode is None
        stalled.paced = True
        stalled.stream.consumed(WINDOW_BYTES)
        client.wake()
        await stalled.wait()
        assert len(stalled.output[0]) == 64 * MIB

    async def test_a_reader_that_took_its_window_while_it_was_away_gets_the_rest(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        stalled = execute(client, sandbox, "head", "-c", str(8 * MIB), "/dev/zero", paced=False)
        await stalled.wait_output(WINDOW_BYTES)
        client.socket.drop()
        stalled.paced = True
        stalled.stream.consumed(WINDOW_BYTES)
        await client.reconnect()
        await stalled.wait()
        assert len(stalled.output[0]) == 8 * MIB

    async def test_a_client_that_reads_nothing_at_all_bounds_the_gateway(self, world: World) -> None:
        sandbox = await world.sandbox()
        stuck, client = await world.client(), await world.client()
        stuck.stalled = anyio.Event()
        floods = [execute(stuck, sandbox, "head", "-c", str(8 * MIB), "/dev/zero") for _ in range(4)]
        await anyio.sleep(0.3)  # Time enough to read all of it, if anything would.
        result = await execute(client, sandbox, "echo", "alive").wait()
        assert result.stdout == b"alive\n"
        assert len(world.runner.executed) == 5
        assert [command_of(world, index).process.returncode for index in range(4)] == [None] * 4
        stuck.stalled.set()
        for flood in floods:
            assert len((await flood.wait()).output[0]) == 8 * MIB

    async def test_stdin_that_nobody_reads_stops_at_its_window(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        result = execute(client, sandbox, "sleep", "1000", stdin=True)
        result.stream.send(bytes(result.stream.room()))
        client.wake()
        with anyio.fail_after(5):
            await result.confirmed_event.wait()
        (await execute(client, sandbox, "true").wait())
        assert result.stream.room() < WINDOW_BYTES // 2

    async def test_stdin_of_a_command_that_closed_it_is_taken_and_dropped(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        result = execute(
            client, sandbox, "sh", "-c", "exec <&-; read -r _ < /dev/null; sleep 0.2; echo done", stdin=True
        )
        sent = 0
        with anyio.fail_after(10):
            while sent < 3 * MIB and not result.ended.is_set():
                room = result.stream.room()
                if room:
                    result.stream.send(bytes(room))
                    sent += room
                    client.wake()
                else:
                    await result.news.wait()
        await result.wait()
        assert (result.stdout, result.status) == (b"done\n", 0)


class TestEnds:
    async def test_closing_the_stream_kills_before_it_is_answered(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        result = execute(client, sandbox, "sleep", "1000", stdin=True)
        await result.confirmed_event.wait()
        command = command_of(world)
        result.stream.close()
        client.wake()
        await result.wait()
        assert command.killed.is_set()
        assert world.service.streams.find(ME, result.stream.exec_id) is None

    async def test_closing_before_the_start_starts_nothing(self, world: World) -> None:
        world.runner.gate = anyio.Event()
        sandbox = await world.service.create(ME, spec_of())
        client = await world.client()
        result = execute(client, sandbox, "touch", "/nonexistent/never")
        await anyio.wait_all_tasks_blocked()
        result.stream.close()
        client.wake()
        await result.wait()
        world.runner.gate.set()
        await world.service.wait_for(ME, sandbox.record.sandbox_id, "running", 5)
        assert world.runner.executed == []

    async def test_goodbye_kills_what_was_started(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        result = execute(client, sandbox, "sleep", "1000", stdin=True)
        await result.confirmed_event.wait()
        command = command_of(world)
        client.mux.goodbye()
        client.wake()
        with anyio.fail_after(10):
            await client.socket.ended.wait()
        assert command.killed.is_set()

    async def test_a_detached_command_survives_the_goodbye(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        result = execute(client, sandbox, "sh", "-c", "sleep 0.3; echo ${#0} > $1", "x", "/dev/null", detach=True)
        await result.confirmed_event.wait()
        command = command_of(world)
        client.mux.goodbye()
        client.wake()
        with anyio.fail_after(10):
            await client.socket.ended.wait()
            assert not command.killed.is_set()
            await command.process.wait()
        assert command.process.returncode == 0

    async def test_a_detached_flood_does_not_block(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        result = execute(client, sandbox, "head", "-c", str(8 * MIB), "/dev/zero", detach=True, paced=False)
        await result.wait_output(WINDOW_BYTES)
        command = command_of(world)
        client.mux.goodbye()
        client.wake()
        with anyio.fail_after(10):
            await command.process.wait()
        assert command.process.returncode == 0

    async def test_a_stopped_sandbox_never_gives_an_exit_status(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        result = execute(client, sandbox, "sh", "-c", "echo begun; sleep 1000")
        await result.wait_output(6)
        world.service.stop(ME, sandbox.record.sandbox_id, 0)
        await result.wait()
        assert (result.status, result.signal) == (None, None)
        assert result.failure is not None
        assert result.failure.code is Code.FAILED_PRECONDITION
        assert result.failure.reason == Reason.SANDBOX_NOT_RUNNING

    async def test_a_lost_box_never_gives_an_exit_status(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        result = execute(client, sandbox, "sleep", "1000", stdin=True)
        await result.confirmed_event.wait()
        await world.runner.boxes[sandbox.record.sandbox_id].lose()
        await result.wait()
        assert result.failure is not None
        assert result.failure.reason == Reason.SANDBOX_NOT_RUNNING

    async def test_an_ended_sandbox_takes_no_commands_and_says_why(self, world: World) -> None:
        sandbox = await world.sandbox()
        await world.service.wait_for(ME, sandbox.record.sandbox_id, "running", 5)
        world.service.stop(ME, sandbox.record.sandbox_id, 0)
        client = await world.client()
        result = await execute(client, sandbox, "true").wait()
        assert result.failure is not None
        assert result.failure.metadata["state"] in {"STATE_TERMINATING", "STATE_TERMINATED"}
        assert result.failure.metadata["stateReason"] == "stopped by request"

    async def test_a_sandbox_that_is_not_running_in_time(self, world: World) -> None:
        world.runner.gate = anyio.Event()
        sandbox = await world.service.create(ME, spec_of())
        client = await world.client()
        result = await execute(client, sandbox, "true", wait_seconds=0.01).wait()
        assert result.failure is not None
        assert result.failure.code is Code.DEADLINE_EXCEEDED
        world.runner.gate.set()

    async def test_a_delete_ends_running_commands(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        result = execute(client, sandbox, "sleep", "1000", stdin=True)
        await result.confirmed_event.wait()
        await world.service.delete(ME, sandbox.record.sandbox_id)
        await result.wait()
        assert result.failure is not None

    async def test_a_time_out_is_not_for_a_slow_reader(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        size = WINDOW_BYTES + 1000  # Fits into the window and the pipe: the command ends in time.
        result = execute(client, sandbox, "head", "-c", str(size), "/dev/zero", timeout_seconds=1.5, paced=False)
        await result.wait_output(WINDOW_BYTES)
        await anyio.sleep(1.6)  # Longer than the command may take.
        result.paced = True
        result.stream.consumed(len(result.output[0]))
        client.wake()
        await result.wait()
        assert (result.status, len(result.output[0])) == (0, size)

    async def test_the_sandbox_bounds_time_outs(self, world: World) -> None:
        sandbox = await world.sandbox(max_timeout_seconds=0.2)
        client = await world.client()
        result = await execute(client, sandbox, "sleep", "1000", timeout_seconds=500).wait()
        assert result.failure is not None
        assert result.failure.reason == Reason.COMMAND_TIMEOUT

    async def test_wrong_parameters_are_refused_by_field(self, world: World) -> None:
        client = await world.client()

        class Params:
            def to_params(self) -> dict[str, object]:
                return {"sandboxId": "x", "argv": ["a"], "nonsense": 1}

        result = await client.open(StreamKind.EXEC, Params()).wait()
        assert result.failure is not None
        assert result.failure.code is Code.INVALID_ARGUMENT
        assert "nonsense" in result.failure.message

    @pytest.mark.parametrize("endless", ["sandbox_id", "path"])
    async def test_names_without_end_harm_nobody(self, world: World, endless: str) -> None:
        sandbox, client = await world.sandbox(), await world.client()
        name = "/" + "x" * 1_000_000
        if endless == "path":
            request = ReadOpen(sandbox_id=sandbox.record.sandbox_id, path=PosixPath(name))
        else:
            request = ReadOpen(sandbox_id=name, path=PosixPath("/f"))
        result = await client.open(StreamKind.READ, request).wait()
        assert result.failure is not None
        if endless == "sandbox_id":
            assert result.failure.reason == Reason.SANDBOX_NOT_FOUND
        else:
            assert result.failure.metadata["errno"] == str(errno.ENAMETOOLONG)
        assert (await execute(client, sandbox, "true").wait()).status == 0

    async def test_another_principals_sandbox_does_not_exist(self, world: World) -> None:
        sandbox = await world.service.create("other", spec_of())
        client = await world.client()
        result = await execute(client, sandbox, "true").wait()
        assert result.failure is not None
        assert result.failure.reason == Reason.SANDBOX_NOT_FOUND


class TestLostConnections:
    async def test_a_client_that_comes_back_misses_nothing(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; read -r x; echo got $x"
        result = execute(client, sandbox, "sh", "-c", script, stdin=True)
        await result.wait_output(100)
        client.socket.drop()
        await client.socket.ended.wait()
        await client.reconnect()
        result.stream.send(b"it\n")
        client.wake()
        await result.wait()
        expected = "".join(f"line {i}\n" for i in range(3000)) + "got it\n"
        assert result.stdout == expected.encode()
        assert result.status == 0

    async def test_it_may_come_back_before_the_loss_was_noticed(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        result = execute(client, sandbox, "cat", stdin=True)
        await result.confirmed_event.wait()
        old = client.socket
        client.mux = client.mux.resume()
        client.socket = type(old)(world.app, client._state)
        await client.connect()
        result.stream.send(b"still here")
        result.stream.send_eof()
        client.wake()
        await result.wait()
        assert (result.stdout, result.status) == (b"still here", 0)
        old.close()

    async def test_many_losses_during_a_large_transfer(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        script = "import sys\nfor i in range(2**20): sys.stdout.write('%07x\\n' % i)"
        result = execute(client, sandbox, "python3", "-c", script)
        for _ in range(5):
            size = len(result.output[0]) + 200_000
            await result.wait_output(size)
            client.socket.drop()
            await client.reconnect()
        await result.wait()
        assert result.stdout == b"".join(b"%07x\n" % i for i in range(2**20))

    async def test_a_repeated_open_runs_the_command_once(self, world: World) -> None:
        sandbox = await world.sandbox()
        first, second = await world.client(), await world.client()
        execute(first, sandbox, "cat", stdin=True, exec_id="same")
        await anyio.wait_all_tasks_blocked()
        first.socket.drop()
        result = execute(second, sandbox, "cat", stdin=True, exec_id="same")
        result.stream.send_eof()
        second.wake()
        await result.wait()
        assert result.status == 0
        assert len(world.runner.executed) == 1

    async def test_an_exec_id_in_use_for_another_kind_is_refused_and_its_stream_goes_on(self, world: World) -> None:
        sandbox = await world.sandbox()
        first, second = await world.client(), await world.client()
        result = execute(first, sandbox, "cat", stdin=True, exec_id="same")
        await result.confirmed_event.wait()
        for client in (first, second):
            request = ReadOpen(sandbox_id=sandbox.record.sandbox_id, path=PosixPath("/etc/hostname"))
            refused = await client.open(StreamKind.READ, request, "same").wait()
            assert refused.failure is not None
            assert refused.failure.code is Code.INVALID_ARGUMENT
            first.results["same"] = result
        result.stream.send(b"still here")
        result.stream.send_eof()
        first.wake()
        await result.wait()
        assert (result.stdout, result.status) == (b"still here", 0)

    async def test_the_end_waits_for_a_client_that_is_away(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        result = execute(client, sandbox, "sh", "-c", "sleep 0.2; echo late; exit 4", stdin=True)
        await result.confirmed_event.wait()
        client.socket.drop()
        await command_of(world).process.wait()
        await client.reconnect()
        await result.wait()
        assert (result.stdout, result.status) == (b"late\n", 4)

    async def test_a_stream_that_is_not_known_is_lost(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        result = execute(client, sandbox, "sleep", "1000", stdin=True)
        await result.confirmed_event.wait()
        task = world.service.streams.find(ME, result.stream.exec_id)
        assert task is not None
        client.socket.drop()
        await client.socket.ended.wait()
        task.abort()
        await task.wait_ended()
        await client.reconnect()
        await result.wait()
        assert result.failure is not None
        assert result.failure.code is Code.ABORTED

    async def test_a_client_that_stays_away_loses_its_commands(self, folder: Path) -> None:
        async with open_world(folder, limits=Limits(grace_seconds=0.1)) as world:
            sandbox = await world.sandbox()
            client = await world.client()
            result = execute(client, sandbox, "sleep", "1000", stdin=True)
            await result.confirmed_event.wait()
            command = command_of(world)
            client.socket.drop()
            await dead(command)

    async def test_coming_back_begins_a_new_grace(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with open_world(folder, limits=Limits(grace_seconds=1)) as world:
            expire, over = world.service.streams.expire, anyio.Event()

            async def tell(*arguments: Any) -> None:
                await expire(*arguments)
                over.set()

            monkeypatch.setattr(world.service.streams, "expire", tell)
            sandbox = await world.sandbox()
            client = await world.client()
            result = execute(client, sandbox, "sleep", "1000", stdin=True)
            await result.confirmed_event.wait()
            client.socket.drop()
            await client.reconnect()
            await execute(client, sandbox, "true").wait()
            monkeypatch.setattr(world.service, "limits", Limits(grace_seconds=1000))
            client.socket.drop()
            await over.wait()  # The first grace: it was of the first absence.
            assert not command_of(world, 0).killed.is_set()

    async def test_a_dead_client_process_has_no_grace(self, folder: Path) -> None:
        async with open_world(folder, limits=Limits(grace_seconds=1000)) as world:
            sandbox = await world.sandbox()
            peer = await anyio.open_process(["sleep", "1000"])
            client = await world.client(pid=peer.pid)
            result = execute(client, sandbox, "sleep", "1000", stdin=True)
            await result.confirmed_event.wait()
            command = command_of(world)
            client.socket.drop()
            await anyio.wait_all_tasks_blocked()
            assert not command.killed.is_set()
            peer.kill()
            await peer.wait()
            await dead(command)
            await peer.aclose()

    async def test_a_client_that_breaks_the_protocol_loses_its_commands(self, world: World) -> None:
        sandbox = await world.sandbox()
        client = await world.client()
        result = execute(client, sandbox, "sleep", "1000", stdin=True)
        await result.confirmed_event.wait()
        command = command_of(world)
        await client.socket.send(b"\xff" * 40)
        await dead(command)


async def test_a_hundred_commands_at_once(world: World) -> None:
    sandbox = await world.sandbox()
    client = await world.client()
    results = [execute(client, sandbox, "echo", str(number)) for number in range(100)]
    for number, result in enumerate(results):
        await result.wait()
        assert result.stdout == f"{number}\n".encode()
    await anyio.wait_all_tasks_blocked()
    assert world.service.streams._tasks == {}
    assert not client.mux.streams
