"""What sandboxes are used for, each with a check that what came back is what went in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cwsandbox import SandboxTimeoutError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from cwsandbox import Sandbox

MIB = 1024**2


async def run_to_the_end(sandbox: Sandbox, chance: Random, mark: str) -> None:
    done = await sandbox.exec(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)


async def run_for_ever(sandbox: Sandbox, chance: Random, mark: str) -> None:
    """Only ever cancelled."""
    await sandbox.exec(["sh", "-c", f": {mark}; sleep {mark} & sleep {mark}"])


async def run_out_of_time(sandbox: Sandbox, chance: Random, mark: str) -> None:
    try:
        done = await sandbox.exec(["sleep", mark], timeout_seconds=chance.choice([0.05, 0.2]))
    except SandboxTimeoutError:
        return
    raise AssertionError(done)


async def kill(sandbox: Sandbox, chance: Random, mark: str) -> None:
    process = sandbox.exec(["sh", "-c", "while :; do echo x; done"])
    async for _ in process.stdout:
        break
    process.kill()
    assert (await process).returncode == 137


async def give_up(sandbox: Sandbox, chance: Random, mark: str) -> None:
    sandbox.exec(["sleep", mark]).cancel()


async def echo(sandbox: Sandbox, chance: Random, mark: str) -> None:
    data = os.urandom(chance.choice([1, 5000, 3 * MIB]))
    process = sandbox.exec(["cat"], stdin=True)
    assert process.stdin is not None
    await process.stdin.write(data)
    await process.stdin.close()
    assert (await process).stdout_bytes == data


async def iterate(sandbox: Sandbox, chance: Random, mark: str) -> None:
    count = chance.choice([10, 1000, 100_000])
    process = sandbox.exec(["seq", str(count)])
    lines = [line async for line in process.stdout]
    await process
    assert lines == [f"{number}\n" for number in range(1, count + 1)]


async def transfer(sandbox: Sandbox, chance: Random, mark: str) -> None:
    data, path = os.urandom(chance.choice([0, 10, 5000, 2 * MIB])), f"/tmp/{chance.randrange(10**12)}"
    await sandbox.write_file(path, data)
    assert await sandbox.read_file(path) == data


async def look_around(sandbox: Sandbox, chance: Random, mark: str) -> None:
    entries = [entry async for entry in sandbox.files.iterdir("/tmp")]
    assert all(entry.name for entry in entries)


async def read_log(sandbox: Sandbox, chance: Random, mark: str) -> None:
    assert [line async for line in sandbox.stream_logs()] == []


async def follow_log(sandbox: Sandbox, chance: Random, mark: str) -> None:
    """Only ever cancelled, or ended by the end of its sandbox."""
    assert [line async for line in sandbox.stream_logs(follow=True)] == []


async def use_a_shell(sandbox: Sandbox, chance: Random, mark: str) -> None:
    session = sandbox.shell(["sh"])
    await session.stdin.write(b"exit 4\n")
    assert (await session).returncode == 4


OPERATIONS: tuple[Callable[[Sandbox, Random, str], Awaitable[None]], ...] = (
    run_to_the_end,
    run_for_ever,
    run_out_of_time,
    kill,
    give_up,
    echo,
    iterate,
    transfer,
    look_around,
    read_log,
    follow_log,
    use_a_shell,
)
ENDLESS = frozenset({run_for_ever, follow_log})
