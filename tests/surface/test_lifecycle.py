"""Start, run, wait, stop and the context managers (S14 to S22, S31 to S44, S129, S130; FIX-A, D, E, F, R)."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

import cwsandbox
from cwsandbox import (
    OperationRef,
    Sandbox,
    SandboxDefaults,
    SandboxFailedError,
    SandboxNotFoundError,
    SandboxNotRunningError,
    SandboxStatus,
    SandboxTerminatedError,
    SandboxTimeoutError,
    Session,
    _core,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.gateway import ServedGateway

TERMINAL = {SandboxStatus.COMPLETED, SandboxStatus.FAILED, SandboxStatus.TERMINATED}
STARTING = {SandboxStatus.PENDING, SandboxStatus.CREATING}


@pytest.mark.row("S14")
def test_s014_with_run_stops_once_on_exit(gateway: ServedGateway) -> None:
    with Sandbox(base_url=gateway.url) as sandbox:
        assert sandbox.exec(["echo", "hello"]).result().stdout == "hello\n"
    assert gateway.count("stop") == 1
    assert sandbox.status in TERMINAL


@pytest.mark.row("S14")
def test_s014_with_run(home_folder: object) -> None:
    with Sandbox.run() as sandbox:
        assert sandbox.exec(["echo", "hello"]).result().stdout == "hello\n"
    assert sandbox.status in TERMINAL


@pytest.mark.row("S15")
async def test_s015_async_with_starts_on_entry_and_stops_on_exit(gateway: ServedGateway) -> None:
    sandbox = Sandbox(base_url=gateway.url)
    async with sandbox as entered:
        assert entered is sandbox
        assert sandbox.sandbox_id
        assert (await sandbox.exec(["echo", "hello"])).stdout == "hello\n"
    assert gateway.count("create") == 1
    assert gateway.count("stop") == 1
    assert sandbox.status in TERMINAL


@pytest.mark.row("S16")
def test_s016_run_returns_with_an_id_when_the_start_was_accepted_late(
    gateway: ServedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CWSANDBOX_BASE_URL", gateway.url)
    gateway.accepting.close()
    started: list[Sandbox] = []
    thread = threading.Thread(target=lambda: started.append(Sandbox.run()))
    thread.start()
    gateway.accepting.wait_for_arrivals(1)
    assert started == []
    gateway.accepting.open()
    thread.join(30)
    assert started[0].sandbox_id
    started[0].stop().result()


@pytest.mark.row("S16")
async def test_s016_start_ends_with_an_id_when_it_was_accepted_late_async(gateway: ServedGateway) -> None:
    gateway.accepting.close()
    sandbox = Sandbox(base_url=gateway.url)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_start, sandbox)
        await anyio.to_thread.run_sync(gateway.accepting.wait_for_arrivals, 1)
        assert sandbox.sandbox_id is None
        gateway.accepting.open()
    assert sandbox.sandbox_id
    await sandbox.stop()


async def _start(sandbox: Sandbox) -> None:
    await sandbox.start()


@pytest.mark.row("S17", "S21")
def test_s017_s021_run_and_start_return_while_the_sandbox_is_pending(
    gateway: ServedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CWSANDBOX_BASE_URL", gateway.url)
    gateway.making.close()
    sandbox = Sandbox.run()
    other = Sandbox()
    other.start().result()
    assert sandbox.status in STARTING
    assert sandbox.get_status() in STARTING
    assert other.get_status() in STARTING
    gateway.making.open()
    assert sandbox.wait().status == SandboxStatus.RUNNING
    sandbox.stop().result()
    other.stop().result()


@pytest.mark.row("S17", "S21")
async def test_s017_s021_start_ends_while_the_sandbox_is_pending_async(gateway: ServedGateway) -> None:
    gateway.making.close()
    sandbox = Sandbox(base_url=gateway.url)
    await sandbox.start()
    assert sandbox.status in STARTING
    assert await anyio.to_thread.run_sync(sandbox.get_status) in STARTING
    gateway.making.open()
    assert (await sandbox).status == SandboxStatus.RUNNING
    await sandbox.stop()


@pytest.mark.row("S21")
async def test_s021_start_resolves_while_the_sandbox_is_pending_async(gateway: ServedGateway) -> None:
    gateway.making.close()
    sandbox = Sandbox(base_url=gateway.url)
    await sandbox.start()
    assert sandbox.status in STARTING
    gateway.making.open()
    await sandbox
    await sandbox.stop()


@pytest.mark.row("S18")
def test_s018_the_first_argument_of_run_is_the_command(home_folder: object) -> None:
    sandbox = Sandbox.run("python", "-c", "import sys; print('argv', sys.argv[1:])", "one", "two")
    sandbox.wait_until_complete().result()
    assert sandbox.returncode == 0
    assert "".join(sandbox.stream_logs()) == "argv ['one', 'two']\n"


@pytest.mark.row("S19")
def test_s019_run_without_arguments_stays_running(sb: Sandbox) -> None:
    assert sb.wait().status == SandboxStatus.RUNNING
    assert sb.exec(["echo", "alive"]).result().stdout == "alive\n"
    assert sb.get_status() == SandboxStatus.RUNNING
    assert list(sb.stream_logs()) == []


@pytest.mark.row("S19")
async def test_s019_a_sandbox_without_a_command_stays_running_async(asb: Sandbox) -> None:
    assert (await asb).status == SandboxStatus.RUNNING
    assert (await asb.exec(["echo", "alive"])).stdout == "alive\n"
    assert await anyio.to_thread.run_sync(asb.get_status) == SandboxStatus.RUNNING
    assert [line async for line in asb.stream_logs()] == []


@pytest.mark.row("S20")
def test_s020_start_sets_the_id_and_resolves_to_none(home_folder: object) -> None:
    sandbox = Sandbox()
    assert sandbox.start().result() is None
    assert sandbox.sandbox_id
    sandbox.stop().result()


@pytest.mark.row("S20")
async def test_s020_start_sets_the_id_and_resolves_to_none_async(home_folder: object) -> None:
    sandbox = Sandbox()
    await sandbox.start()
    assert sandbox.sandbox_id
    await sandbox.stop()


@pytest.mark.row("S22")
def test_s022_three_starts_overlap(gateway: ServedGateway) -> None:
    gateway.accepting.close()
    sandboxes = [Sandbox(base_url=gateway.url) for _ in range(3)]
    refs = [sandbox.start() for sandbox in sandboxes]
    gateway.accepting.wait_for_arrivals(3)
    gateway.accepting.open()
    for ref in refs:
        ref.result()
    assert len({sandbox.sandbox_id for sandbox in sandboxes}) == 3
    for sandbox in sandboxes:
        sandbox.stop().result()


@pytest.mark.row("S22")
async def test_s022_three_starts_overlap_async(gateway: ServedGateway) -> None:
    gateway.accepting.close()
    sandboxes = [Sandbox(base_url=gateway.url) for _ in range(3)]
    refs = [sandbox.start() for sandbox in sandboxes]
    await anyio.to_thread.run_sync(gateway.accepting.wait_for_arrivals, 3)
    gateway.accepting.open()
    for ref in refs:
        await ref
    for sandbox in sandboxes:
        await sandbox.stop()


@pytest.mark.row("S31")
def test_s031_stop_resolves_to_none_after_the_end(home_folder: object) -> None:
    sandbox = Sandbox.run()
    assert sandbox.stop().result() is None
    assert sandbox.status in TERMINAL
    assert sandbox.stop().result() is None


@pytest.mark.row("S31")
async def test_s031_stop_resolves_to_none_after_the_end_async(home_folder: object) -> None:
    sandbox = Sandbox()
    await sandbox.start()
    await sandbox.stop()
    assert sandbox.status in TERMINAL


@pytest.mark.row("S32", "S33")
def test_s032_s033_stop_of_a_deleted_sandbox(home_folder: object) -> None:
    tolerant, strict = Sandbox.run(), Sandbox.run()
    for sandbox in (tolerant, strict):
        assert sandbox.sandbox_id is not None
        Sandbox.delete(sandbox.sandbox_id).result()
    tolerant.stop(missing_ok=True).result()
    assert tolerant.status == SandboxStatus.TERMINATED
    with pytest.raises(SandboxNotFoundError):
        strict.stop().result()
    strict.stop(missing_ok=True).result()


@pytest.mark.row("S32", "S33")
async def test_s032_s033_stop_of_a_deleted_sandbox_async(home_folder: object) -> None:
    tolerant, strict = Sandbox(), Sandbox()
    for sandbox in (tolerant, strict):
        await sandbox.start()
        assert sandbox.sandbox_id is not None
        await Sandbox.delete(sandbox.sandbox_id)
    await tolerant.stop(missing_ok=True)
    with pytest.raises(SandboxNotFoundError):
        await strict.stop()
    await strict.stop(missing_ok=True)


@pytest.mark.row("FIX-F")
def test_fix_f_a_sandbox_deleted_while_it_drains_counts_as_gone(gateway: ServedGateway) -> None:
    sandbox = Sandbox(base_url=gateway.url)
    sandbox.wait()
    gateway.ending.close()
    stopping = sandbox.stop(missing_ok=True)
    gateway.ending.wait_for_arrivals(1)
    assert sandbox.sandbox_id is not None
    deleting = Sandbox.delete(sandbox.sandbox_id, base_url=gateway.url)
    gateway.ending.open()
    deleting.result()
    stopping.result()
    assert sandbox.status in TERMINAL


@pytest.mark.row("FIX-F")
async def test_fix_f_a_sandbox_deleted_while_it_drains_counts_as_gone_async(gateway: ServedGateway) -> None:
    sandbox = await Sandbox(base_url=gateway.url)
    assert sandbox.sandbox_id is not None
    gateway.ending.close()
    stopping = sandbox.stop(missing_ok=True)
    await anyio.to_thread.run_sync(gateway.ending.wait_for_arrivals, 1)
    deleting = Sandbox.delete(sandbox.sandbox_id, base_url=gateway.url)
    gateway.ending.open()
    await deleting
    await stopping
    assert sandbox.status in TERMINAL


@pytest.mark.row("S34")
def test_s034_wait_returns_the_running_sandbox(home_folder: object) -> None:
    sandbox = Sandbox.run()
    assert sandbox.wait() is sandbox
    assert sandbox.status == SandboxStatus.RUNNING
    sandbox.stop().result()


@pytest.mark.row("S35", "S36")
async def test_s035_s036_await_reaches_running_while_the_loop_goes_on(gateway: ServedGateway) -> None:
    gateway.making.close()
    sandbox = Sandbox(base_url=gateway.url)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        await anyio.to_thread.run_sync(gateway.making.wait_for_arrivals, 1)
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
            ticks += 1
        gateway.making.open()

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        assert await sandbox is sandbox
    assert ticks == 50
    assert sandbox.status == SandboxStatus.RUNNING
    assert (await sandbox.exec(["echo", "ready"])).stdout == "ready\n"
    await sandbox.stop()


@pytest.mark.row("S37", "S39")
@pytest.mark.parametrize("code", [0, 3])
def test_s037_s039_wait_until_complete_fills_returncode(home_folder: object, code: int) -> None:
    sandbox = Sandbox.run("python", "-c", f"raise SystemExit({code})")
    assert sandbox.wait_until_complete().result() is sandbox
    assert sandbox.status == SandboxStatus.COMPLETED
    assert sandbox.returncode == code


@pytest.mark.row("S37", "S39")
@pytest.mark.parametrize("code", [0, 3])
async def test_s037_s039_wait_until_complete_fills_returncode_async(home_folder: object, code: int) -> None:
    async with Sandbox(command="python", args=["-c", f"raise SystemExit({code})"]) as sandbox:
        assert await sandbox.wait_until_complete() is sandbox
        assert sandbox.status == SandboxStatus.COMPLETED
        assert sandbox.returncode == code


@pytest.mark.row("S38")
async def test_s038_wait_until_complete_fills_returncode_async(home_folder: object) -> None:
    sandbox = Sandbox(command="python", args=["-c", "print('done')"])
    assert await sandbox.wait_until_complete() is sandbox
    assert sandbox.returncode == 0
    assert sandbox.status == SandboxStatus.COMPLETED


@pytest.mark.row("S40", "S41")
def test_s040_s041_termination_from_elsewhere_raises_unless_asked_not_to(home_folder: object) -> None:
    sandbox = Sandbox.run()
    assert sandbox.sandbox_id is not None
    strict = sandbox.wait_until_complete()
    lenient = sandbox.wait_until_complete(raise_on_termination=False)
    Sandbox.from_id(sandbox.sandbox_id).result().stop().result()
    with pytest.raises(SandboxTerminatedError):
        strict.result()
    assert lenient.result() is sandbox
    assert sandbox.status == SandboxStatus.TERMINATED


@pytest.mark.row("S40", "S41")
async def test_s040_s041_termination_from_elsewhere_raises_unless_asked_not_to_async(home_folder: object) -> None:
    sandbox = Sandbox()
    await sandbox
    assert sandbox.sandbox_id is not None
    await (await Sandbox.from_id(sandbox.sandbox_id)).stop()
    with pytest.raises(SandboxTerminatedError):
        await sandbox.wait_until_complete()
    assert await sandbox.wait_until_complete(raise_on_termination=False) is sandbox


@pytest.mark.row("S42")
def test_s042_command_and_args_of_the_constructor(home_folder: object) -> None:
    sandbox = Sandbox(command="python", args=["-c", "import sys; print(sys.argv[1:])", "a b", "c"])
    sandbox.wait_until_complete().result()
    assert "".join(sandbox.stream_logs()) == "['a b', 'c']\n"


@pytest.mark.row("FIX-A")
@pytest.mark.parametrize("command", ["true", "env"])
def test_fix_a_a_named_command_has_no_arguments_of_the_default_one(home_folder: object, command: str) -> None:
    sandbox = Sandbox.run(command)
    sandbox.wait_until_complete().result()
    assert sandbox.returncode == 0


@pytest.mark.row("S43", "S44")
def test_s043_s044_get_status_fetches_the_current_state(gateway: ServedGateway) -> None:
    gateway.making.close()
    sandbox = Sandbox(base_url=gateway.url)
    sandbox.start().result()
    early = sandbox.get_status()
    assert type(early) is SandboxStatus
    assert early in STARTING
    gateway.making.open()
    sandbox.wait()
    assert sandbox.get_status() == SandboxStatus.RUNNING
    sandbox.stop().result()
    requests = len(gateway.requests)
    assert sandbox.get_status() in TERMINAL
    assert len(gateway.requests) == requests


@pytest.mark.row("S43", "S44")
async def test_s043_get_status_in_async_code(home_folder: object) -> None:
    sandbox = Sandbox()
    await sandbox
    assert await anyio.to_thread.run_sync(sandbox.get_status) == SandboxStatus.RUNNING
    await sandbox.stop()


@pytest.mark.row("S129")
def test_s129_exec_waits_for_running(gateway: ServedGateway) -> None:
    gateway.making.close()
    sandbox = Sandbox(base_url=gateway.url)
    process = sandbox.exec(["echo", "late"])
    gateway.making.wait_for_arrivals(1)
    assert process.poll() is None
    gateway.making.open()
    assert process.result().stdout == "late\n"
    sandbox.stop().result()


ANY_OPERATION: dict[str, Callable[[Sandbox], Any]] = {
    "exec": lambda sandbox: sandbox.exec(["no such program"]).result(),
    "shell": lambda sandbox: sandbox.shell(["true"]).result(),
    "write": lambda sandbox: sandbox.write_file("/tmp/x", b"").result(),
    "read": lambda sandbox: sandbox.read_file("/etc/hosts").result(),
    "stat": lambda sandbox: sandbox.files.stat("/").result(),
    "list": lambda sandbox: list(sandbox.files.iterdir("/")),
    "logs": lambda sandbox: list(sandbox.stream_logs()),
}


@pytest.mark.parametrize("operation", ANY_OPERATION)
def test_what_is_known_once_it_runs_is_known_after_any_operation(home_folder: object, operation: str) -> None:
    before = dt.datetime.now(dt.UTC)
    with Sandbox.run() as sandbox:
        ANY_OPERATION[operation](sandbox)
        assert sandbox.status is SandboxStatus.RUNNING
        assert sandbox.started_at is not None
        assert before <= sandbox.started_at <= dt.datetime.now(dt.UTC)
        assert sandbox.isolation is not None
        known = sandbox.started_at, sandbox.isolation
        sandbox.get_status()
        assert (sandbox.started_at, sandbox.isolation) == known


def test_a_command_that_prints_nothing_shows_that_its_sandbox_runs(
    home_folder: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends the time that the start is counted with."""
    seen = threading.Event()
    with Session() as session:
        assert session._metrics is not None
        monkeypatch.setattr(session._metrics, "sandbox_started", lambda seconds: seen.set())
        sandbox = session.sandbox()
        process = sandbox.exec(["sleep", "600"])
        assert seen.wait(30)
        assert (process.poll(), sandbox.status) == (None, SandboxStatus.RUNNING)
        process.kill()


def test_reading_the_log_of_an_ended_sandbox_does_not_make_it_running(home_folder: object) -> None:
    with Sandbox.run("sh", "-c", "echo done") as sandbox:
        assert sandbox.sandbox_id is not None
        Sandbox.from_id(sandbox.sandbox_id).result().wait_until_complete().result()
        assert list(sandbox.stream_logs()) == ["done\n"]
        assert sandbox.status is not SandboxStatus.RUNNING


async def test_entering_in_two_tasks_at_once_opens_one_scope(home_folder: object) -> None:
    async def use(context: Sandbox | Session, sandbox: Sandbox) -> None:
        async with context:
            await sandbox.exec(["true"])

    session = Session()
    lone, member = Sandbox(), session.sandbox()
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(use, lone, lone)
            tasks.start_soon(use, session, member)
    assert [task.name for task in anyio.get_running_tasks() if "cwsandbox" in (task.name or "")] == []


@pytest.mark.row("S129")
async def test_s129_exec_waits_for_running_async(gateway: ServedGateway) -> None:
    gateway.making.close()
    async with Sandbox(base_url=gateway.url) as sandbox:
        process = sandbox.exec(["echo", "late"])
        await anyio.to_thread.run_sync(gateway.making.wait_for_arrivals, 1)
        gateway.making.open()
        assert (await process).stdout == "late\n"


@pytest.mark.row("S130")
def test_s130_the_status_follows_the_lifecycle_and_the_end_sticks(gateway: ServedGateway) -> None:
    gateway.making.close()
    sandbox = Sandbox(base_url=gateway.url)
    seen = [sandbox.status]
    sandbox.start().result()
    seen.append(sandbox.status)
    gateway.making.open()
    seen.append(sandbox.wait().status)
    assert sandbox.started_at is not None
    assert sandbox.started_at.tzinfo is not None
    sandbox.stop().result()
    seen.append(sandbox.status)
    assert seen[0] is None
    assert seen[1] in STARTING
    assert seen[2] == SandboxStatus.RUNNING
    assert seen[3] in TERMINAL
    assert sandbox.get_status() == seen[3]
    assert sandbox.sandbox_id
    assert isinstance(sandbox.status_updated_at, dt.datetime)
    assert sandbox.status_updated_at.tzinfo is not None


@pytest.mark.row("FIX-D")
def test_fix_d_stop_waits_for_a_start_in_flight_and_stops_what_it_made(gateway: ServedGateway) -> None:
    gateway.accepting.close()
    sandbox = Sandbox(base_url=gateway.url)
    starting = sandbox.start()
    gateway.accepting.wait_for_arrivals(1)
    stopping = sandbox.stop()
    gateway.accepting.open()
    stopping.result()
    starting.result()
    assert Sandbox.list(base_url=gateway.url).result() == []
    assert sandbox.status is None or sandbox.status in TERMINAL


@pytest.mark.row("FIX-D")
async def test_fix_d_leaving_a_session_with_a_start_in_flight_leaks_nothing(gateway: ServedGateway) -> None:
    gateway.accepting.close()
    async with anyio.create_task_group() as group:
        async with Session({"base_url": gateway.url}) as session:
            session.sandbox().start()
            await anyio.to_thread.run_sync(gateway.accepting.wait_for_arrivals, 1)
            group.start_soon(anyio.to_thread.run_sync, gateway.accepting.open)
    assert await Sandbox.list(base_url=gateway.url) == []


@pytest.mark.row("FIX-E")
def test_fix_e_an_exec_in_flight_at_stop_is_an_error(home_folder: object) -> None:
    sandbox = Sandbox.run()
    process = sandbox.exec(["sh", "-c", "echo up; exec sleep 60"])
    assert next(process.stdout) == "up\n"
    sandbox.stop().result()
    with pytest.raises(SandboxNotRunningError):
        process.result()
    assert process.returncode is None
    assert list(process.stdout) == []


@pytest.mark.row("FIX-E")
async def test_fix_e_an_exec_in_flight_at_stop_is_an_error_async(home_folder: object) -> None:
    async with Sandbox() as sandbox:
        process = sandbox.exec(["sh", "-c", "echo up; exec sleep 60"])
        assert await anext(process.stdout) == "up\n"
        await sandbox.stop()
        with pytest.raises(SandboxNotRunningError):
            await process


@pytest.mark.row("FIX-R")
def test_fix_r_exec_on_a_sandbox_that_completed_is_an_error(home_folder: object) -> None:
    sandbox = Sandbox.run("true")
    sandbox.wait_until_complete().result()
    with pytest.raises(SandboxNotRunningError):
        sandbox.exec(["echo", "too late"]).result()


@pytest.mark.row("FIX-R")
async def test_fix_r_exec_on_a_sandbox_that_completes_during_startup_is_an_error(home_folder: object) -> None:
    sandbox = Sandbox(command="true")
    await sandbox.start()
    await sandbox.wait_until_complete()
    with pytest.raises(SandboxNotRunningError):
        await sandbox.exec(["echo", "too late"])


def test_a_stop_returns_when_the_commands_have_been_told(sb: Sandbox) -> None:
    # What leaves its scope next would otherwise cancel those that were not.
    processes = [sb.exec(["sh", "-c", "echo up; exec sleep 60"]) for _ in range(20)]
    for process in processes:
        assert next(process.stdout) == "up\n"
    sb.stop().result()
    for process in processes:
        with pytest.raises(SandboxNotRunningError):
            process.result(timeout=0)


def test_operations_after_our_own_stop(home_folder: object) -> None:
    sandbox = Sandbox.run("sh", "-c", "echo from main; trap 'exit 0' TERM; while :; do sleep 1; done")
    sandbox.wait()
    follower = sandbox.stream_logs(follow=True)
    assert next(follower) == "from main\n"
    sandbox.stop().result()
    for operation in (
        lambda: sandbox.exec(["true"]).result(),
        lambda: sandbox.read_file("/etc/hostname").result(),
        lambda: sandbox.write_file("/tmp/a", b"").result(),
        lambda: list(sandbox.stream_logs(follow=True)),
    ):
        with pytest.raises(SandboxNotRunningError):
            operation()
    assert list(sandbox.stream_logs()) == ["from main\n"]
    with pytest.raises(SandboxTerminatedError):
        sandbox.wait()
    with pytest.raises(SandboxTerminatedError):
        sandbox.wait_until_complete().result()
    assert sandbox.wait_until_complete(raise_on_termination=False).result() is sandbox
    sandbox.start().result()
    with sandbox as same:
        assert same is sandbox


async def test_operations_after_leaving_the_context(home_folder: object) -> None:
    """The same, on whichever loop: what ended can still be asked how, and what it printed."""
    async with Sandbox(
        command="sh", args=["-c", "echo from main; trap 'exit 0' TERM; while :; do sleep 1; done"]
    ) as sandbox:
        follower = sandbox.stream_logs(follow=True)
        assert await anext(follower) == "from main\n"
    for operation in (lambda: sandbox.exec(["true"]), lambda: sandbox.read_file("/etc/hostname")):
        with pytest.raises(SandboxNotRunningError, match="terminated"):
            await operation()
    assert [line async for line in sandbox.stream_logs()] == ["from main\n"]
    with pytest.raises(SandboxTerminatedError):
        await sandbox
    with pytest.raises(SandboxTerminatedError):
        await sandbox.wait_until_complete()
    assert await sandbox.wait_until_complete(raise_on_termination=False) is sandbox
    await sandbox.start()
    await sandbox.stop()
    async with sandbox as same:
        assert same is sandbox


async def test_entering_that_is_cancelled_as_the_start_is_accepted_leaves_nothing(
    gateway: ServedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = Sandbox(base_url=gateway.url)
    with anyio.CancelScope() as scope:
        monkeypatch.setattr(_core, "on_started", lambda core: scope.cancel())
        async with sandbox:
            pytest.fail("was entered")
    assert scope.cancelled_caught
    assert sandbox.sandbox_id is not None
    assert sandbox.status in TERMINAL
    assert await Sandbox.list(base_url=gateway.url) == []


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("accepted_first", [False, True])
@pytest.mark.parametrize("entered", [False, True])
def test_a_signal_while_a_sandbox_starts_leaves_nothing(
    gateway: ServedGateway,
    monkeypatch: pytest.MonkeyPatch,
    entered: bool,
    accepted_first: bool,
    signal: type[BaseException],
) -> None:
    gateway.accepting.close()
    accepted, blocked = threading.Event(), threading.current_thread()

    def interrupt(ref: OperationRef[None]) -> None:
        if threading.current_thread() is not blocked:
            return
        gateway.accepting.wait_for_arrivals(1)
        gateway.accepting.open()
        if accepted_first:
            accepted.wait(30)
        monkeypatch.undo()
        raise signal

    monkeypatch.setattr(_core, "on_started", lambda core: accepted.set())
    monkeypatch.setattr(OperationRef, "_on_wait_begin", interrupt)
    defaults = SandboxDefaults(base_url=gateway.url)
    with pytest.raises(signal):
        if entered:
            Sandbox(defaults=defaults).__enter__()
        else:
            Sandbox.run(defaults=defaults)
    assert Sandbox.list(base_url=gateway.url).result() == []


async def test_what_ran_and_was_stopped_by_somebody_else_is_not_running(asb: Sandbox) -> None:
    await asb
    await (await Sandbox.from_id(str(asb.sandbox_id))).stop()
    for _ in range(2):
        with pytest.raises(SandboxNotRunningError, match="stopped by request"):
            await asb.exec(["true"])
    assert asb.status is SandboxStatus.TERMINATED


@pytest.mark.parametrize("own_loop", [False, True])
async def test_a_stop_that_nobody_waits_for_any_more_stops_all_the_same(home_folder: object, own_loop: bool) -> None:
    sandbox = Sandbox()
    if own_loop:
        await sandbox.__aenter__()
    await sandbox
    with anyio.CancelScope() as scope:
        scope.cancel()
        await sandbox.stop()
    await sandbox.wait_until_complete(timeout=20, raise_on_termination=False)
    assert sandbox.status is SandboxStatus.TERMINATED
    await sandbox.__aexit__(None, None, None)


def test_concurrent_stops_share_one_request(gateway: ServedGateway) -> None:
    sandbox = Sandbox(base_url=gateway.url)
    sandbox.wait()
    for ref in [sandbox.stop() for _ in range(4)]:
        ref.result()
    assert gateway.count("stop") == 1


def test_a_stop_that_failed_may_be_tried_again(gateway: ServedGateway) -> None:
    sandbox = Sandbox(base_url=gateway.url)
    sandbox.wait()
    gateway.refuse("stop", times=1)
    with pytest.raises(cwsandbox.SandboxError):
        sandbox.stop().result()
    assert sandbox.status == SandboxStatus.RUNNING
    sandbox.stop().result()
    assert sandbox.status in TERMINAL


def test_a_start_that_failed_may_be_tried_again(gateway: ServedGateway) -> None:
    sandbox = Sandbox(base_url=gateway.url)
    gateway.refuse("create", times=1)
    with pytest.raises(cwsandbox.SandboxError):
        sandbox.start().result()
    assert not sandbox.sandbox_id
    sandbox.start().result()
    assert sandbox.exec(["true"]).result().returncode == 0
    sandbox.stop().result()


def test_a_start_that_timed_out_leaves_no_sandbox(gateway: ServedGateway) -> None:
    gateway.accepting.close()
    gateway.ending.close()
    sandbox = Sandbox(base_url=gateway.url, request_timeout_seconds=0.2)
    with pytest.raises(cwsandbox.SandboxRequestTimeoutError):
        sandbox.start().result()
    gateway.accepting.wait_for_arrivals(2)  # The start, and what asks what became of it.
    gateway.accepting.open()
    gateway.ending.wait_for_arrivals(1)
    assert Sandbox.list(include_stopped=True, base_url=gateway.url).result() == []


def test_our_stop_ends_a_wait_for_running(gateway: ServedGateway) -> None:
    gateway.making.close()
    sandbox = Sandbox(base_url=gateway.url)
    sandbox.start().result()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            sandbox.wait()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    gateway.making.wait_for_arrivals(1)
    stopping = sandbox.stop()
    gateway.making.open()
    stopping.result()
    thread.join(30)
    assert len(errors) <= 1
    assert all(isinstance(error, SandboxNotRunningError | SandboxTerminatedError) for error in errors)


def test_wait_that_times_out_leaves_the_sandbox_alone(gateway: ServedGateway) -> None:
    gateway.making.close()
    sandbox = Sandbox(base_url=gateway.url)
    sandbox.start().result()
    with pytest.raises(SandboxTimeoutError):
        sandbox.wait(timeout=0.05)
    with pytest.raises(SandboxTimeoutError):
        sandbox.wait(timeout=0)
    with pytest.raises(SandboxTimeoutError):
        sandbox.wait_until_complete(timeout=0.05).result()
    gateway.making.open()
    assert sandbox.wait().status == SandboxStatus.RUNNING
    sandbox.stop().result()


def test_a_body_exception_wins_over_a_failing_stop(gateway: ServedGateway) -> None:
    sandbox = Sandbox(base_url=gateway.url)
    with pytest.raises(KeyError, match="body"), sandbox:
        sandbox.wait()
        gateway.refuse("stop", times=1)
        raise KeyError("body")
    sandbox.stop().result()


@pytest.mark.usefixtures("never_stopped")
async def test_a_body_exception_wins_over_a_failing_stop_async(gateway: ServedGateway) -> None:
    sandbox = Sandbox(base_url=gateway.url)
    with pytest.raises(KeyError, match="body"):
        async with sandbox:
            await sandbox
            gateway.refuse("stop", times=1)
            raise KeyError("body")
    left = await Sandbox.list(base_url=gateway.url)
    for other in left:
        await other.stop()


def test_a_failing_stop_raises_from_leaving_a_clean_body(gateway: ServedGateway) -> None:
    sandbox = Sandbox(base_url=gateway.url)
    with pytest.raises(cwsandbox.SandboxError), sandbox:
        sandbox.wait()
        gateway.refuse("stop", times=1)
    sandbox.stop().result()


def test_a_main_command_that_does_not_exist_fails_the_sandbox(home_folder: object) -> None:
    sandbox = Sandbox.run("/no/such/program")
    with pytest.raises(SandboxFailedError):
        sandbox.wait()
    assert sandbox.status == SandboxStatus.FAILED
    with pytest.raises(SandboxFailedError):
        sandbox.wait_until_complete(raise_on_termination=False).result()


def test_properties_before_and_after(home_folder: object) -> None:
    sandbox = Sandbox()
    assert sandbox.sandbox_id is None
    assert sandbox.status is None
    assert sandbox.status_updated_at is None
    assert sandbox.started_at is None
    assert sandbox.returncode is None
    assert sandbox.exec_stats == {
        "exec_count": 0,
        "exec_completed_ok": 0,
        "exec_completed_nonzero": 0,
        "exec_failures": 0,
    }
    with sandbox:
        sandbox.wait()
        assert sandbox.runner_id
        assert str(sandbox.sandbox_id) in repr(sandbox)
        assert "running" in repr(sandbox)
        assert isinstance(sandbox.isolation, str)
        assert sandbox.isolation in {"namespaces", "process"}


def test_unknown_keywords_are_type_errors() -> None:
    with pytest.raises(TypeError):
        Sandbox(colour="red")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Sandbox.run(colour="red")
    with pytest.raises(TypeError):
        Sandbox("echo")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Sandbox.run(command="echo")


def test_mounted_files_in_both_spellings_are_in_place_and_read_only(home_folder: object) -> None:
    files = [{"path": "/opt/a.txt", "content": "grün"}, {"mount_path": "/opt/b.bin", "file_content": b"\x00\xff"}]
    with Sandbox.run(mounted_files=files) as sandbox:
        assert sandbox.read_file("/opt/a.txt").result() == "grün".encode()
        assert sandbox.read_file("/opt/b.bin").result() == b"\x00\xff"


def test_environment_variables_reach_main_and_commands(home_folder: object) -> None:
    with Sandbox.run("sh", "-c", 'echo "main $COLOUR"; sleep 60', environment_variables={"COLOUR": "red"}) as sandbox:
        assert sandbox.exec(["sh", "-c", 'echo "$COLOUR"']).result().stdout == "red\n"
        assert next(sandbox.stream_logs(follow=True)) == "main red\n"


def warnings_of(code: str) -> str:
    """What a program prints on stderr that shows every warning."""
    done = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", code], capture_output=True, text=True, check=True
    )
    return done.stderr


def test_a_sandbox_that_nobody_can_stop_any_more_is_warned_about(home_folder: object) -> None:
    """Whether the object was dropped before or after its start."""
    code = (
        "import gc; from cwsandbox import Sandbox\n"
        "{}\n"
        "gc.collect()\n"
        "for each in Sandbox.list(tags=['dropped']).result(): each.stop().result()"
    )
    for body in ("Sandbox(tags=['dropped']).exec(['true']).result()", "Sandbox.run(tags=['dropped'])"):
        assert warnings_of(code.format(body)).count("was never stopped") == 1


def test_a_sandbox_whose_stop_was_accepted_is_not_warned_about(home_folder: object) -> None:
    code = (
        "import gc, time; from cwsandbox import Sandbox\n"
        "sandbox = Sandbox.run('sh', '-c', 'trap \"\" TERM; echo up; while :; do sleep 0.1; done')\n"
        "log = sandbox.stream_logs(follow=True); next(log)\n"
        "ref = sandbox.stop(graceful_shutdown_seconds=2)\n"  # Only its end can be waited for, not that it was accepted.
        "while sandbox.status == 'running': time.sleep(0.01)\n"
        "del sandbox, ref, log; gc.collect()"
    )
    assert "never stopped" not in warnings_of(code)
