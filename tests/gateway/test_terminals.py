"""Commands on terminals over the application's exec channel; the terminal itself is the runner's (its contract tests it)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from cwsandbox.gateway.service import Limits
from cwsandbox.runners.specs import TerminalSize as RunnerSize
from cwsandbox.wire.channel import StreamKind
from cwsandbox.wire.streams import ExecOpen, TerminalSize
from tests.gateway.conftest import World, open_world

if TYPE_CHECKING:
    from pathlib import Path

    from cwsandbox.gateway.sandbox import LiveSandbox
    from tests.gateway.client import ChannelClient, Result
    from tests.gateway.hostrunner import HostCommand

HANGS_UP = "trap 'echo hung up > $SAID; exit' HUP; echo up; while :; do sleep 0.01; done"


def shell(client: ChannelClient, sandbox: LiveSandbox, *argv: str, **fields: Any) -> Result:
    params = ExecOpen(sandbox_id=sandbox.record.sandbox_id, argv=argv, stdin=True, terminal=TerminalSize(), **fields)
    return client.open(StreamKind.SHELL, params)


def command_of(world: World) -> HostCommand:
    (box,) = world.runner.boxes.values()
    return box._commands[-1]


class TestTerminals:
    async def test_what_is_typed_and_what_is_shown(self, world: World) -> None:
        sandbox, client = await world.sandbox(), await world.client()
        result = shell(client, sandbox, "sh", "-c", "read x; echo got $x; echo error >&2; exit 4")
        await result.confirmed_event.wait()
        result.stream.send(b"word\n")
        client.wake()
        await result.wait()
        assert (result.stdout, result.stderr, result.status) == (b"got word\nerror\n", b"", 4)

    async def test_what_cannot_be_started_is_told_on_the_terminal(self, world: World) -> None:
        sandbox, client = await world.sandbox(), await world.client()
        result = await shell(client, sandbox, "/no/such/program").wait()
        assert (result.status, result.stderr) == (127, b"")
        assert result.stdout.endswith(b"not found\r\n")

    async def test_sizes_reach_the_runner(self, world: World) -> None:
        sandbox, client = await world.sandbox(), await world.client()
        result = shell(client, sandbox, "sh", "-c", "read x")
        await result.confirmed_event.wait()
        result.stream.window_change(120, 50)
        result.stream.send(b"\n")
        client.wake()
        await result.wait()
        assert command_of(world).sizes == [RunnerSize(120, 50)]

    async def test_what_the_first_process_leaves_is_killed_and_does_not_keep_the_stream_open(
        self, world: World
    ) -> None:
        sandbox, client = await world.sandbox(), await world.client()
        result = await shell(client, sandbox, "sh", "-c", "sleep 1000 & echo left; exit 3").wait()
        assert (result.stdout, result.status) == (b"left\n", 3)
        assert command_of(world).killed.is_set()

    async def test_a_closed_session_is_hung_up_on_before_it_is_killed(self, world: World, folder: Path) -> None:
        sandbox, client = await world.sandbox(), await world.client()
        result = shell(client, sandbox, "sh", "-c", HANGS_UP, env={"SAID": str(folder / "said")})
        await result.wait_output(3)
        result.stream.close()
        client.wake()
        await result.wait()
        assert (folder / "said").read_text() == "hung up\n"
        assert command_of(world).killed.is_set()

    async def test_what_ignores_the_hang_up_is_killed(self, world: World) -> None:
        sandbox, client = await world.sandbox(), await world.client()
        result = shell(client, sandbox, "sh", "-c", "trap '' HUP; echo up; while :; do sleep 1; done")
        await result.wait_output(3)
        result.stream.close()
        client.wake()
        await result.wait()
        assert command_of(world).process.returncode == -9

    async def test_a_client_that_stays_away_is_hung_up_on_after_the_grace(self, folder: Path) -> None:
        async with open_world(folder, limits=Limits(grace_seconds=0.1)) as world:
            sandbox, client = await world.sandbox(), await world.client()
            result = shell(client, sandbox, "sh", "-c", HANGS_UP, env={"SAID": str(folder / "said")})
            await result.wait_output(3)
            client.socket.drop()
            with anyio.fail_after(10):
                await command_of(world).killed.wait()
            assert (folder / "said").read_text() == "hung up\n"
