"""Descriptors that run out, in the agent and in the gateway, fail single commands and nothing else."""

from __future__ import annotations

import contextlib
import os
import resource
from typing import TYPE_CHECKING

import pytest

from cwsandbox.runners.errors import RunnerError
from cwsandbox.runners.specs import ExecSpec, ExitStatus
from tests.runners.support import exec_id, input_of, read_all, run, shell
from tests.support.levels import needs_descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cwsandbox.runners.base import Command
    from cwsandbox.runners.local.box import LocalBox


async def end(commands: Sequence[Command]) -> None:
    for number, command in enumerate(commands):
        await input_of(command).send(b"%d" % number)
        await input_of(command).aclose()
    for number, command in enumerate(commands):
        assert await read_all(command.stdout) == b"%d" % number
        assert await command.wait() == ExitStatus(code=0)
        command.forget()


@needs_descriptors(2500)
async def test_an_agent_with_more_descriptors_than_programs_may_have_starts_them(box: LocalBox) -> None:
    # Five each in the agent: more than the 1024 that a program may have at first, which posix_spawn counts by.
    commands = [await box.exec(ExecSpec(exec_id(), ("cat",), stdin=True)) for _ in range(230)]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert (await shell(box, "ulimit -Sn; ulimit -Hn")).text == f"1024\n{hard}\n"
    assert (await run(box, "cat", stdin=b"more")).text == "more"
    await end(commands)


@contextlib.contextmanager
def room_for(more: int) -> Iterator[None]:
    """This process may have so many descriptors more than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_gateway_out_of_descriptors_fails_commands_and_not_the_sandbox(box: LocalBox) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for more in range(12):  # They run out at another step each time.
        commands: list[Command] = []
        with room_for(more), pytest.raises(RunnerError, match="the gateway is out of descriptors"):
            while True:
                commands.append(await box.exec(ExecSpec(exec_id(), ("cat",), stdin=True)))
        assert len(box.commands()) == len(commands)
        await end(commands)
        assert (await run(box, "echo", "there")).text == "there\n"
        assert len(os.listdir("/proc/self/fd")) <= before
