"""Agents that lie, resources that run out, descriptors that must not leak."""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from cwsandbox.runners.errors import BoxGoneError, CommandNotStartedError, CommandTooLargeError
from cwsandbox.runners.local import box as box_module
from cwsandbox.runners.local.link import connect
from cwsandbox.runners.local.protocol import INLINE_FILE_BYTES
from cwsandbox.runners.specs import ExecSpec, IsolationLevel, Limits
from tests.runners.conftest import box_spec
from tests.runners.liar import SURVIVORS
from tests.runners.support import (
    FINISH_SECONDS,
    agent_turn,
    asked,
    check_full_and_emptied,
    exec_id,
    read_all,
    read_until,
    run,
    shell,
    write_file,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from cwsandbox.runners.base import Box, Command
    from cwsandbox.runners.local.box import LocalBox
    from cwsandbox.runners.local.runner import LocalRunner

REPOSITORY = Path(__file__).parents[2]
LIES = [
    "not a message",
    "not json",
    "not an object",
    "a wrong length",
    "a deep nest",
    "an unknown event",
    "no event at all",
    "too few streams",
    "streams that are none",
    "too many streams",
    "more descriptors than fit",
    "a pid that is none",
    "an exit that is none",
    "a second introduction",
    "an introduction that is none",
    "a command that nobody started",
    "descriptors beside an event",
    "a message in memory",
    "the end",
]
LIES_ABOUT_FILES = ["a status that is none", "a status that is too large", "no status", "not json", "the end"]
LIES_ABOUT_JOBS = [
    "one pipe for a job",
    "pipes that are none",
    "too many streams",
    "more descriptors than fit",
    "a job that says nonsense",
    "a job that says no object",
    "a job that never ends a line",
    "a job whose error is none",
    "a job that nests",
    "the end",
]
LIES_ABOUT_CONNECTIONS = [
    "no connection",
    "two connections",
    "a pipe for a connection",
    "a datagram socket for a connection",
    "a Unix socket for a connection",
    "more descriptors than fit",
    "the end",
]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


ASKED: dict[str, Callable[[Box], Awaitable[object]]] = {
    **{f"command: {lie}": lambda box: box.exec(ExecSpec("e", ("true",))) for lie in LIES},
    **{f"files: {lie}": lambda box: box.file_info(asked("stat", "/")) for lie in LIES_ABOUT_FILES},
    **{f"connection: {lie}": lambda box: box.connect(80) for lie in LIES_ABOUT_CONNECTIONS},
    **{f"job: {lie}": lambda box: box.file_job(asked("list", "/")) for lie in LIES_ABOUT_JOBS},
}


@pytest.mark.parametrize("case", ASKED)
async def test_an_agent_that_lies_fails_its_own_box_only(
    runner: LocalRunner, box: Box, runtime_dir: Path, case: str
) -> None:
    async with lying(runtime_dir, case.split(": ")[1]) as (connection, ended):
        before = descriptors() - 1
        liar = runner._hold("liar", connection)
        liar.swept.set()
        with anyio.fail_after(FINISH_SECONDS):
            assert await liar.wait_listed()
            with pytest.raises(BoxGoneError):
                await ASKED[case](liar)
            await ended()
            await liar.wait_gone()
        assert descriptors() <= before
    assert (await run(box, "echo", "unharmed")).text == "unharmed\n"


@pytest.mark.parametrize("lie", SURVIVORS)
async def test_a_survivor_that_lies_about_a_command_is_not_taken_back(
    runner: LocalRunner, box: Box, runtime_dir: Path, lie: str
) -> None:
    async with lying(runtime_dir, lie) as (connection, ended):
        before = descriptors() - 1
        with anyio.fail_after(FINISH_SECONDS):
            liar = await runner._take_back("liar", connection)
            if liar is not None:
                assert lie == "one too many"  # Which comes after it was taken back, or before.
                await liar.wait_gone()
                liar.forget_commands()
            await ended()
            while "liar" in runner._boxes:
                await anyio.lowlevel.checkpoint()
        assert descriptors() <= before
    assert (await run(box, "echo", "unharmed")).text == "unharmed\n"


@asynccontextmanager
async def lying(runtime_dir: Path, kind: str) -> AsyncGenerator[tuple[socket.socket, Callable[[], Awaitable[int]]]]:
    """An agent that lies: a connection to it, and its end."""
    path = runtime_dir / "liar.sock"
    process = await anyio.open_process(
        [sys.executable, "-m", "tests.runners.liar", str(path), kind], cwd=REPOSITORY, stderr=None
    )
    assert process.stdout is not None
    async with process:
        await read_until(process.stdout, b"listening")
        yield connect(str(path)), process.wait


async def test_names_without_end_fail_by_themselves(box: Box) -> None:
    name = "/" + "x" * 200_000
    for spec, why in (
        (ExecSpec(exec_id(), (name,)), ": not found"),
        (ExecSpec(exec_id(), ("true",), cwd=name), ": File name too long"),
    ):
        with pytest.raises(CommandNotStartedError) as failure:
            await box.exec(spec)
        assert str(failure.value).endswith(why)
    for attempt in (box.open_file(name), box.create_file(name), box.file_info(asked("stat", name))):
        with pytest.raises(OSError, match="File name too long"):
            await attempt
    for action, options in (("list", {}), ("glob", {"pattern": "*"}), ("watch", {}), ("pack", {}), ("remove", {})):
        with pytest.raises(OSError, match="File name too long"):
            await box.file_job(asked(action, name, **options))
    assert (await run(box, "echo", "unharmed")).text == "unharmed\n"


async def test_an_environment_without_end_fails_its_own_box_only(runner: LocalRunner) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_make_and_stop, runner)
        with pytest.raises(CommandTooLargeError):
            await runner.create(box_spec(env={"X": "x" * 40_000_000}))
    await _make_and_stop(runner)


async def _make_and_stop(runner: LocalRunner) -> None:
    box = await runner.create(box_spec())
    await box.stop(0)
    box.main.forget()


async def test_a_thousand_commands_leak_no_descriptors(box: LocalBox) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may look at the agent's descriptors")
    await run(box, "true", stdin=b"")
    agent = f"/proc/{box._agent_pid}/fd"
    before, agent_before = descriptors(), len(os.listdir(agent))
    for _ in range(50):
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(_run_and_forget, box)
    with anyio.fail_after(FINISH_SECONDS):
        while len(os.listdir(agent)) > agent_before:
            await agent_turn(box)  # What was forgotten is closed when the agent has read its end.
    assert descriptors() <= before  # Fewer if something of an earlier test was collected.


async def _run_and_forget(box: Box) -> None:
    command = await box.exec(ExecSpec(exec_id(), ("true",), stdin=True))
    await command.wait()
    command.forget()


async def test_boxes_leak_no_descriptors_here(runner: LocalRunner) -> None:
    for number in range(12):
        box = await runner.create(box_spec())
        await box.stop(0)
        box.main.forget()
        if number == 1:
            before = descriptors()
    assert descriptors() <= before  # Fewer if something of an earlier test was collected.


async def test_a_command_whose_box_ends_as_it_is_started_ends(runner: LocalRunner) -> None:
    """The answer to its start and the end of the box are read in one go, before whoever asked has its turn."""
    box = await runner.create(box_spec())
    begun = anyio.Event()
    commands: list[Command] = []

    async def execute() -> None:
        begun.set()
        commands.append(await box.exec(ExecSpec(exec_id(), ("sh", "-c", "echo said; exec sleep 600"))))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(execute)
        await begun.wait()
        agent = os.pidfd_open(box._agent_pid)
        select.select([box._link._connection], [], [], FINISH_SECONDS)  # Nothing else runs meanwhile.
        os.kill(box._agent_pid, signal.SIGKILL)
        select.select([agent], [], [], FINISH_SECONDS)
        os.close(agent)
    (command,) = commands
    with anyio.fail_after(FINISH_SECONDS):
        with pytest.raises(BoxGoneError):
            await command.wait()
        await read_all(command.stdout)
        await box.wait_gone()
    command.forget()


async def test_a_full_box_says_so_and_can_still_be_emptied(runner: LocalRunner) -> None:
    if runner.capabilities().isolation is IsolationLevel.PROCESS:
        pytest.skip("a program that forks without end is only run where the kernel counts; test_limits.py has the rest")
    box = await runner.create(box_spec(limits=Limits(processes=20)))
    try:
        hog = await box.exec(
            ExecSpec("hog", ("python3", "-c", "import os\nwhile 1:\n try: os.fork()\n except OSError: pass"))
        )
        await check_full_and_emptied(box, hog)
    finally:
        await box.stop(0)


async def test_a_fork_bomb_is_killed_or_the_sandbox_ends(runner: LocalRunner) -> None:
    if runner.capabilities().isolation is IsolationLevel.PROCESS:
        pytest.skip("a fork bomb is only run where the kernel counts")
    box = await runner.create(box_spec(limits=Limits(processes=500)))
    try:
        bomb_script = (
            "import os\nfull = 0\nwhile 1:\n try: os.fork()\n except OSError: full = full or os.write(1, b'full')"
        )
        bomb = await box.exec(
            ExecSpec(
                "bomb",
                ("python3", "-c", bomb_script),
            )
        )
        with anyio.fail_after(FINISH_SECONDS):
            await read_until(bomb.stdout, b"full")
            await bomb.kill()
        bomb.forget()
    finally:
        await box.stop(0)


async def test_a_daemon_that_floods_a_forgotten_pipe_does_not_slow_its_agent_to_a_halt(box: Box) -> None:
    command = await box.exec(ExecSpec("flood", ("sh", "-c", "yes & echo started")))
    await command.wait()
    command.forget()
    with anyio.fail_after(FINISH_SECONDS):
        for _ in range(20):
            assert (await shell(box, "echo still here")).text == "still here\n"


async def test_an_agent_that_stops_reading_loses_its_box_and_not_the_gateways_memory(
    runner: LocalRunner, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_module, "_UNREAD_BYTES", 1024 * 1024)
    monkeypatch.setattr(box_module, "_BOX_HAS_ITS_END_SECONDS", 2.0)  # It will not end by itself.
    deaf = await runner.create(box_spec())
    os.kill(deaf._agent_pid, signal.SIGSTOP)
    content = bytes(INLINE_FILE_BYTES)

    async def write(number: int) -> None:
        with pytest.raises(BoxGoneError):
            await write_file(deaf, f"/tmp/{number}", content, size=len(content))

    with anyio.fail_after(FINISH_SECONDS):
        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(write, number)
        await deaf.wait_gone()
    assert (await run(box, "echo", "unharmed")).text == "unharmed\n"
