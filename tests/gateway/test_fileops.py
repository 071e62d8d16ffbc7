"""File operations over the application's exec channel: quick ones, streaming ones, and clients that come and go."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import anyio
import pytest

from cwsandbox.wire.channel import StreamKind
from cwsandbox.wire.codec import PosixPath
from cwsandbox.wire.errors import Code, Reason
from cwsandbox.wire.folderstream import Kind, encode
from cwsandbox.wire.packing import pack
from cwsandbox.wire.streams import FileAction, FileInfo, FilesOpen, SandboxInfo
from tests.gateway.test_files import write

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from cwsandbox.gateway.sandbox import LiveSandbox
    from tests.gateway.client import ChannelClient, Result
    from tests.gateway.conftest import World


def ask(
    client: ChannelClient, sandbox: LiveSandbox, action: str, path: object, exec_id: str = "", **fields: Any
) -> Result:
    request = FilesOpen(
        sandbox_id=sandbox.record.sandbox_id, action=FileAction(action), path=PosixPath(str(path)), **fields
    )
    return client.open(StreamKind.FILES, request, exec_id)


def rows(result: Result) -> list[list[Any]]:
    return [row for line in result.stdout.splitlines() for row in json.loads(line)]


async def test_a_quick_action_answers_in_one_message(world: World, folder: Path) -> None:
    sandbox, client = await world.sandbox(), await world.client()
    await ask(client, sandbox, "mkdir", folder / "new").wait()
    before = client.messages
    result = await ask(client, sandbox, "stat", folder / "new").wait()
    running = SandboxInfo.from_params(result.sandbox or {})
    assert (running.start_time is not None, running.isolation) == (True, "process")
    assert (FileInfo.from_params(result.confirmed or {}).mode, result.status) == ((folder / "new").stat().st_mode, 0)
    assert client.messages - before == 1


async def test_a_listing_streams(world: World, folder: Path) -> None:
    sandbox, client = await world.sandbox(), await world.client()
    (folder / "many").mkdir()
    for number in range(700):
        (folder / "many" / str(number)).touch()
    result = await ask(client, sandbox, "list", folder / "many").wait()
    assert {row[0] for row in rows(result)} == {str(number) for number in range(700)}
    assert result.status == 0


async def test_a_folder_goes_in_and_comes_out(world: World, folder: Path) -> None:
    sandbox, client = await world.sandbox(), await world.client()
    (folder / "source" / "sub").mkdir(parents=True)
    (folder / "source" / "sub" / "f").write_bytes(os.urandom(3_000_000))
    stream = b"".join(pack(str(folder / "source")))
    opened = ask(client, sandbox, "unpack", folder / "target")
    assert (await write(client, opened, stream)).status == 0
    assert (folder / "target" / "sub" / "f").read_bytes() == (folder / "source" / "sub" / "f").read_bytes()
    assert (await ask(client, sandbox, "pack", folder / "source").wait()).stdout == stream


@pytest.mark.parametrize(
    ("action", "path", "fields", "code", "reason"),
    [
        ("stat", "/no/such", {}, Code.NOT_FOUND, Reason.FILE_NOT_FOUND),
        ("list", "/no/such", {}, Code.NOT_FOUND, Reason.FILE_NOT_FOUND),
        ("list", "/etc/passwd", {}, Code.FAILED_PRECONDITION, Reason.FILE_NOT_A_DIRECTORY),
        ("mkdir", "full", {}, Code.ALREADY_EXISTS, Reason.FILE_EXISTS),
        ("rmdir", "full", {}, Code.FAILED_PRECONDITION, Reason.FILE_DIRECTORY_NOT_EMPTY),
        ("unlink", "full", {}, Code.FAILED_PRECONDITION, Reason.FILE_IS_DIRECTORY),
        ("move", "/no/such", {"target": "/tmp/x"}, Code.NOT_FOUND, Reason.FILE_NOT_FOUND),
        ("remove", "/proc", {}, Code.INTERNAL, Reason.FILE_IO_FAILED),
    ],
)
async def test_errors_are_typed(
    world: World, folder: Path, action: str, path: str, fields: dict[str, str], code: Code, reason: Reason
) -> None:
    (folder / "full" / "sub").mkdir(parents=True)
    path = str(folder / path)
    sandbox, client = await world.sandbox(), await world.client()
    result = await ask(client, sandbox, action, path, **fields).wait()
    assert result.failure is not None
    assert (result.failure.code, result.failure.reason) == (code, reason)
    assert result.failure.metadata["filepath"] == path


async def test_what_is_no_folder_stream_fails_and_leaves_nothing(world: World, folder: Path) -> None:
    sandbox, client = await world.sandbox(), await world.client()
    opened = ask(client, sandbox, "unpack", folder / "target")
    result = await write(client, opened, encode(Kind.FOLDER) + encode(Kind.FILE, b"..") + bytes(2_000_000))
    assert result.failure is not None
    assert result.failure.reason == Reason.FILE_IO_FAILED
    assert "leads elsewhere" in result.failure.message
    assert not [name for name in os.listdir(folder) if name == "target" or name.endswith(".part")]


async def test_an_operation_has_its_own_limit(world: World, folder: Path) -> None:
    sandbox, client = await world.sandbox(), await world.client()
    result = await ask(client, sandbox, "watch", folder, timeout_seconds=0.1).wait()
    assert result.failure is not None
    assert result.failure.code is Code.DEADLINE_EXCEEDED
    job = world.runner.boxes[sandbox.record.sandbox_id].jobs[0]
    assert job.process.returncode is not None


async def test_closing_the_stream_ends_the_job(world: World, folder: Path) -> None:
    sandbox, client = await world.sandbox(), await world.client()
    result = ask(client, sandbox, "watch", folder)
    await result.confirmed_event.wait()
    result.stream.close()
    client.wake()
    await result.wait()
    assert world.runner.boxes[sandbox.record.sandbox_id].jobs[0].process.returncode is not None


async def test_a_client_that_comes_back_misses_no_event(world: World, folder: Path) -> None:
    sandbox, client = await world.sandbox(), await world.client()
    result = ask(client, sandbox, "watch", folder, exec_id="w")
    await result.confirmed_event.wait()
    client.socket.drop()
    (folder / "while-away").touch()
    await client.reconnect()
    (folder / "after").touch()
    with anyio.fail_after(20):
        while b"after" not in result.stdout:
            await result.news.wait()
    paths = [row[1] for row in rows(result)]
    assert [os.path.basename(path) for path in paths if "sqlite" not in path] == ["while-away", "after"]
    result.stream.close()
    client.wake()
    await result.wait()


async def test_a_slow_client_is_waited_for(world: World, folder: Path) -> None:
    sandbox, client = await world.sandbox(), await world.client()
    (folder / "large").write_bytes(bytes(5_000_000))
    request = FilesOpen(
        sandbox_id=sandbox.record.sandbox_id, action=FileAction.PACK, path=PosixPath(str(folder / "large"))
    )
    result = client.open(StreamKind.FILES, request, "slow", paced=False)
    await result.wait_output(1024 * 1024)
    assert len(result.stdout) == 1024 * 1024  # The window, and no more.
    result.paced = True
    result.stream.consumed(len(result.stdout))
    client.wake()
    assert (await result.wait()).status == 0
    assert len(result.stdout) > 5_000_000


async def test_files_of_an_ended_sandbox_are_out_of_reach(world: World) -> None:
    sandbox, client = await world.sandbox(), await world.client()
    world.service.stop(sandbox.record.principal, sandbox.record.sandbox_id, 0)
    result = await ask(client, sandbox, "list", "/").wait()
    assert result.failure is not None
    assert result.failure.reason == Reason.SANDBOX_NOT_RUNNING


async def test_somebody_elses_sandbox_does_not_exist(world: World) -> None:
    client = await world.client()
    request = FilesOpen(sandbox_id="sb-none", action=FileAction.STAT, path=PosixPath("/"))
    result = await client.open(StreamKind.FILES, request).wait()
    assert result.failure is not None
    assert result.failure.reason == Reason.SANDBOX_NOT_FOUND
