"""Commands through the application's exec channel."""

from __future__ import annotations

import anyio
import pytest

from cwsandbox.gateway.controls import Controls
from cwsandbox.gateway.stdin import StdinFeeder
from cwsandbox.runners.errors import BoxGoneError
from cwsandbox.runners.specs import TerminalSize
from cwsandbox.wire.errors import Code, Reason
from cwsandbox.wire.streams import SandboxInfo
from tests.gateway.conftest import World, execute


async def test_a_command_gives_its_output_and_exit_status(world: World) -> None:
    sandbox = await world.sandbox()
    client = await world.client()
    result = await execute(client, sandbox, "sh", "-c", "echo out; echo err >&2; exit 7").wait()
    assert (result.stdout, result.stderr, result.status) == (b"out\n", b"err\n", 7)
    assert result.confirmed is not None
    assert result.confirmed["pid"] > 0
    assert SandboxInfo.from_params(result.sandbox or {}).start_time == sandbox.record.start_time
    assert result.eof == {0, 1}


async def test_a_silent_command_is_one_message_each_way(world: World) -> None:
    sandbox = await world.sandbox()
    client = await world.client()
    await execute(client, sandbox, "true").wait()
    before = client.messages
    await execute(client, sandbox, "true").wait()
    assert client.messages == before + 1


async def test_a_command_that_cannot_start_says_why_on_stderr(world: World) -> None:
    sandbox = await world.sandbox()
    client = await world.client()
    result = await execute(client, sandbox, "no-such-program").wait()
    assert (result.status, result.stderr) == (127, b"no-such-program: not found\n")
    result = await execute(client, sandbox, "true", cwd="/no/such").wait()
    assert result.status == 2


async def test_a_killed_command_reports_its_signal(world: World) -> None:
    sandbox = await world.sandbox()
    client = await world.client()
    result = execute(client, sandbox, "sleep", "1000", stdin=True)
    with anyio.fail_after(5):
        await result.confirmed_event.wait()
    result.stream.signal("TERM")
    client.wake()
    assert (await result.wait()).signal == "TERM"


async def test_a_time_out_kills_and_delivers_what_was_printed(world: World) -> None:
    sandbox = await world.sandbox()
    client = await world.client()
    result = await execute(client, sandbox, "sh", "-c", "echo begun; sleep 1000 & wait", timeout_seconds=1).wait()
    assert result.stdout == b"begun\n"
    assert result.status is None
    assert result.failure is not None
    assert result.failure.code is Code.DEADLINE_EXCEEDED
    assert result.failure.reason == Reason.COMMAND_TIMEOUT


async def test_stdin_reaches_the_command_and_its_end_too(world: World) -> None:
    sandbox = await world.sandbox()
    client = await world.client()
    result = execute(client, sandbox, "cat", stdin=True)
    result.stream.send(b"hello")
    result.stream.send_eof()
    client.wake()
    await result.wait()
    assert (result.stdout, result.status) == (b"hello", 0)


class CutSink:
    """An input that is cut while it is written or ended."""

    taken_bytes = sent_bytes = 0

    def __init__(self, problem: Exception) -> None:
        self.problem = problem

    async def send(self, data: bytes) -> None:
        raise self.problem

    async def aclose(self) -> None:
        raise self.problem


@pytest.mark.parametrize(
    "problem", [OSError(), anyio.BrokenResourceError(), anyio.ClosedResourceError(), BoxGoneError("gone")], ids=repr
)
async def test_an_input_that_is_cut_harms_nobody(problem: Exception) -> None:
    taken: list[int] = []
    async with anyio.create_task_group() as service:
        feeder = StdinFeeder(service.start_soon, taken.append)
        feeder.feed(b"hello")
        feeder.end()
        feeder.begin(CutSink(problem))
    assert taken == [5]


class SlowCommand:
    """Takes signals when it is let."""

    exec_id = "slow"

    def __init__(self) -> None:
        self.gate = anyio.Event()
        self.taken: list[int | TerminalSize] = []

    async def signal(self, signum: int) -> None:
        await self.gate.wait()
        self.taken.append(signum)

    async def resize(self, size: TerminalSize) -> None:
        self.taken.append(size)


async def test_signals_arrive_in_order_and_a_flood_is_bounded() -> None:
    command = SlowCommand()
    async with anyio.create_task_group() as service:
        controls = Controls(service.start_soon)
        controls.signal(1)
        controls.begin(command)  # type: ignore[arg-type]
        await anyio.wait_all_tasks_blocked()
        for number in range(10, 10_000):
            controls.resize(TerminalSize(number, 1))
            controls.signal(number)
        command.gate.set()
    assert command.taken == [1, TerminalSize(9_999, 1), *range(10, 74)]
