"""The log of the main command (behaviour 5.8, FIX-S, newer-features A.8; contract 3, 4 and 7)."""

from __future__ import annotations

import shutil
import tempfile
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from cwsandbox import (
    Sandbox,
    SandboxNotFoundError,
    SandboxNotRunningError,
    SandboxTimeoutError,
    SandboxUnavailableError,
)
from tests.support.clients import run_client
from tests.support.leftovers import shut_down_and_look
from tests.support.relay import Relay, relay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.gateway import ServedGateway

STAY = "trap exit TERM; while :; do sleep 0.1; done"


def ended(script: str) -> Sandbox:
    sandbox = Sandbox.run("sh", "-c", script)
    sandbox.wait_until_complete().result()
    return sandbox


def staying(script: str, base_url: str | None = None) -> Sandbox:
    return Sandbox(command="sh", args=["-c", f"{script}; {STAY}"], base_url=base_url)


# What there is.


def test_history_of_an_ended_sandbox(home_folder: Path) -> None:
    sandbox = ended("seq 3; printf unfinished")
    assert list(sandbox.stream_logs()) == ["1\n", "2\n", "3\n", "unfinished"]
    assert list(Sandbox.from_id(str(sandbox.sandbox_id)).result().stream_logs(tail_lines=1)) == ["unfinished"]


async def test_history_async(home_folder: Path) -> None:
    async with staying("seq 3") as sandbox:
        following = sandbox.stream_logs(follow=True)
        assert [await anext(following) for _ in range(3)] == ["1\n", "2\n", "3\n"]
        following.close()
        assert [line async for line in sandbox.stream_logs()] == ["1\n", "2\n", "3\n"]


async def test_iterating_on_the_loop_that_receives_is_an_error_and_no_deadlock(asb: Sandbox) -> None:
    with pytest.raises(RuntimeError, match="use `async for`") as caught:
        list(asb.stream_logs())
    assert caught.value.__context__ is None  # How a reader looks for items is not the caller's business.


def test_commands_are_not_in_the_log_and_both_streams_are(home_folder: Path) -> None:
    with staying("echo out; echo err >&2") as sandbox:
        following = sandbox.stream_logs(follow=True)
        assert {next(following), next(following)} == {"out\n", "err\n"}
        sandbox.exec(["echo", "no"]).result()
        assert set(sandbox.stream_logs()) == {"out\n", "err\n"}


def test_the_default_command_prints_nothing(sb: Sandbox) -> None:
    assert list(sb.stream_logs()) == []


def test_streaming_starts_the_sandbox(home_folder: Path) -> None:
    sandbox = staying("echo hi")
    assert next(sandbox.stream_logs(follow=True)) == "hi\n"
    assert sandbox.status == "running"
    sandbox.stop().result()


@pytest.mark.parametrize(("lines", "seen"), [(1, ["9\n"]), (3, ["7\n", "8\n", "9\n"]), (100, None), (0, None)])
def test_tail_lines(home_folder: Path, lines: int, seen: list[str] | None) -> None:
    assert list(ended("seq 9").stream_logs(tail_lines=lines)) == (seen or [f"{n}\n" for n in range(1, 10)])


def test_since_time_leaves_out_what_is_older_and_a_naive_time_is_utc(home_folder: Path) -> None:
    sandbox = ended("echo old")
    now = datetime.now(UTC)
    assert list(sandbox.stream_logs(since_time=now + timedelta(seconds=1))) == []
    assert list(sandbox.stream_logs(since_time=now - timedelta(minutes=1))) == ["old\n"]
    naive = now.replace(tzinfo=None)
    assert list(sandbox.stream_logs(since_time=naive + timedelta(seconds=1))) == []
    assert list(sandbox.stream_logs(since_time=naive - timedelta(minutes=1))) == ["old\n"]


def test_timestamps_come_before_every_line(home_folder: Path) -> None:
    before = datetime.now(UTC)
    lines = list(ended("echo a; echo; echo b").stream_logs(timestamps=True))
    assert [line.partition(" ")[2] for line in lines] == ["a\n", "\n", "b\n"]
    for line in lines:
        assert before <= datetime.fromisoformat(line.partition(" ")[0]) <= datetime.now(UTC)


@pytest.mark.row("FIX-S")
def test_fix_s_output_without_newlines_comes_in_bounded_items(home_folder: Path) -> None:
    items = list(ended("head -c 2400000 /dev/zero | tr '\\0' x").stream_logs())
    assert "".join(items) == "x" * 2_400_000
    assert max(map(len, items)) < 1024 * 1024 + 256 * 1024


@pytest.mark.row("FIX-S")
async def test_fix_s_output_without_newlines_comes_in_bounded_items_async(home_folder: Path) -> None:
    async with Sandbox(command="sh", args=["-c", "head -c 2400000 /dev/zero | tr '\\0' x"]) as sandbox:
        await sandbox.wait_until_complete()
        items = [item async for item in sandbox.stream_logs()]
    assert "".join(items) == "x" * 2_400_000
    assert max(map(len, items)) < 1024 * 1024 + 256 * 1024


@pytest.mark.row("FIX-K")
def test_fix_k_characters_stay_whole(home_folder: Path) -> None:
    assert list(ended(r"printf '\303'; sleep 0.05; printf '\244\n'").stream_logs()) == ["ä\n"]


@pytest.mark.row("FIX-K")
async def test_fix_k_characters_stay_whole_async(home_folder: Path) -> None:
    script = r"printf '\303'; sleep 0.05; printf '\244\n'"
    async with Sandbox(command="sh", args=["-c", script]) as sandbox:
        await sandbox.wait_until_complete()
        assert [line async for line in sandbox.stream_logs()] == ["ä\n"]


def test_bad_arguments_are_refused_at_the_call() -> None:
    sandbox = Sandbox()
    with pytest.raises(ValueError, match="tail_lines"):
        sandbox.stream_logs(tail_lines=-1)
    with pytest.raises(TypeError, match="tail_lines"):
        sandbox.stream_logs(tail_lines=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="since_time"):
        sandbox.stream_logs(since_time=12)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="since_time is no date in UTC"):
        sandbox.stream_logs(since_time=datetime.min.replace(tzinfo=timezone(timedelta(hours=1))))
    with pytest.raises(ValueError, match="timeout_seconds"):
        sandbox.stream_logs(timeout_seconds=0)
    assert sandbox.status is None


# Following.


async def test_following_ends_with_the_sandbox(home_folder: Path) -> None:
    script = "trap 'echo bye; exit' TERM; echo up; while :; do sleep 0.05; done"
    async with Sandbox(command="sh", args=["-c", script]) as sandbox:
        following = sandbox.stream_logs(follow=True)
        assert await anext(following) == "up\n"
        stopping = sandbox.stop()
        assert [line async for line in following] == ["bye\n"]
        await stopping


def test_an_ended_sandbox_cannot_be_followed(home_folder: Path) -> None:
    sandbox = ended("echo was here")
    following = sandbox.stream_logs(follow=True)
    with pytest.raises(SandboxNotRunningError, match="follow=False"):
        next(following)
    assert list(following) == []


async def test_an_ended_sandbox_cannot_be_followed_async(home_folder: Path) -> None:
    sandbox = ended("echo was here")
    with pytest.raises(SandboxNotRunningError):
        await anext(sandbox.stream_logs(follow=True))
    assert [line async for line in sandbox.stream_logs()] == ["was here\n"]


def test_close_ends_the_stream_and_wakes_its_reader(gateway: ServedGateway) -> None:
    with staying("echo up", base_url=gateway.url) as sandbox:
        following = sandbox.stream_logs(follow=True)
        assert next(following) == "up\n"
        rest: list[str] = []
        reader = threading.Thread(target=lambda: rest.extend(following))
        reader.start()
        following.close()
        following.close()
        reader.join(10)
        assert not reader.is_alive()
        assert rest == []


async def test_cancelling_a_reader_loses_no_line(home_folder: Path) -> None:
    async with staying("echo a; until [ -e /tmp/go ]; do sleep 0.01; done; echo b") as sandbox:
        following = sandbox.stream_logs(follow=True)
        assert await anext(following) == "a\n"
        with anyio.move_on_after(0.05):
            await anext(following)
        await sandbox.write_file("/tmp/go", b"")
        assert await anext(following) == "b\n"


# Ends that are errors.


def test_the_time_limit_is_an_error_after_the_unfinished_line(home_folder: Path) -> None:
    with staying("echo whole; printf part") as sandbox:
        assert next(sandbox.stream_logs(follow=True)) == "whole\n"
        following = sandbox.stream_logs(follow=True, timeout_seconds=1)
        assert next(following) == "whole\n"
        assert next(following) == "part"
        with pytest.raises(SandboxTimeoutError):
            next(following)
        assert list(following) == []


def test_a_sandbox_that_is_not_known_is_an_error_from_the_reader(home_folder: Path) -> None:
    sandbox = ended("echo x")
    Sandbox.delete(str(sandbox.sandbox_id)).result()
    with pytest.raises(SandboxNotFoundError):
        list(sandbox.stream_logs())


# Pace.


def test_a_slow_reader_slows_only_itself(home_folder: Path) -> None:
    with staying("seq 300000; touch /tmp/through") as sandbox:
        slow = sandbox.stream_logs(follow=True)
        assert next(slow) == "1\n"
        sandbox.exec(["sh", "-c", "until [ -e /tmp/through ]; do sleep 0.01; done"]).wait(timeout=50)
        numbers = [next(slow) for _ in range(299_999)]
        assert numbers == [f"{n}\n" for n in range(2, 300_001)]


# Broken connections.


@pytest.fixture
def wire(gateway: ServedGateway) -> Iterator[Relay]:
    with relay(gateway.url) as wire:
        yield wire


class Cutter:
    """Cuts the wire after every 20 kB that come over it."""

    def __init__(self, wire: Relay) -> None:
        self._wire = wire
        self.first = self._connections = wire.connections

    def look(self) -> None:
        if self._wire.connections != self._connections:
            self._connections = self._wire.connections
            self._wire.cut_after(20_000)

    @property
    def cuts(self) -> int:
        return self._connections - self.first


@pytest.mark.parametrize("timestamps", [False, True])
def test_many_cuts_lose_and_repeat_nothing(wire: Relay, timestamps: bool) -> None:
    with staying("seq 1000000", base_url=wire.url) as sandbox:
        cutter = Cutter(wire)
        following = sandbox.stream_logs(follow=True, timestamps=timestamps)
        for number in range(1, 1_000_001):
            assert next(following).rpartition(" ")[2] == f"{number}\n"
            cutter.look()
        assert cutter.cuts > 5


async def test_many_cuts_lose_and_repeat_nothing_async(wire: Relay) -> None:
    async with staying("seq 1000000", base_url=wire.url) as sandbox:
        cutter = Cutter(wire)
        following = sandbox.stream_logs(follow=True)
        for number in range(1, 1_000_001):
            assert await anext(following) == f"{number}\n"
            cutter.look()
        assert cutter.cuts > 5


def test_a_gateway_that_stays_away_is_an_error_after_the_unfinished_line(wire: Relay, gateway: ServedGateway) -> None:
    with staying("printf part", base_url=gateway.url) as sandbox:
        assert next(sandbox.stream_logs(follow=True, timeout_seconds=1)) == "part"
        watcher = Sandbox.from_id(str(sandbox.sandbox_id), base_url=wire.url).result()
        following = watcher.stream_logs(follow=True)
        watcher.exec(["true"]).wait()  # On the same connection, after the log was asked for.
        wire.refuse()
        wire.cut()
        assert next(following) == "part"
        with pytest.raises(SandboxUnavailableError):
            next(following)


RESTARTS = """
import os, signal
from cwsandbox import Sandbox, SandboxUnavailableError
from tests.support.leftovers import gateway_processes
from pathlib import Path

def write(path):
    while True:
        try:
            return sandbox.write_file(path, b"").result(timeout=30)
        except SandboxUnavailableError:
            pass  # It was on its way to the gateway that died.

def block(number):
    return f"until [ -e /tmp/go{number} ]; do sleep 0.01; done; seq {number}000 {number}499"

script = "; ".join(block(number) for number in range(1, 5))
with Sandbox(command="sh", args=["-c", script + "; trap exit TERM; while :; do sleep 0.1; done"]) as sandbox:
    sandbox.wait()
    following = sandbox.stream_logs(follow=True, timestamps=TIMESTAMPS)
    for number in range(1, 5):
        write(f"/tmp/go{number}")
        lines = [next(following).rpartition(" ")[2] for _ in range(500)]
        assert lines == [f"{n}\\n" for n in range(number * 1000, number * 1000 + 500)], (number, lines[:3], lines[-3:])
        if number < 4:
            for pid in gateway_processes(Path(os.environ["CWSANDBOX_RUNTIME_DIR"])):
                os.kill(pid, signal.SIGKILL)
    following.close()
    print("complete", len(list(sandbox.stream_logs())))
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("timestamps", [False, True])
def test_a_killed_gateway_loses_and_repeats_nothing(timestamps: bool) -> None:
    base = Path(tempfile.mkdtemp(prefix="cws", dir="/tmp"))
    folders = {f"CWSANDBOX_{name}_DIR": str(base / name.lower()) for name in ("RUNTIME", "STATE")}
    try:
        done = run_client(RESTARTS.replace("TIMESTAMPS", str(timestamps)), seconds=100, **folders)
        assert (done.returncode, done.stdout) == (0, "complete 2000\n"), done.stderr
        assert shut_down_and_look(base) == []
    finally:
        shutil.rmtree(base, ignore_errors=True)
