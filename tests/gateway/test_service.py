"""The service without HTTP: creating once, waiting, stopping, racing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from cwsandbox.gateway.errors import StatusError
from cwsandbox.gateway.records import ListFilter
from cwsandbox.gateway.service import Limits
from cwsandbox.runners.errors import ImageNotFoundError, RunnerError
from cwsandbox.wire.errors import Code, Reason
from cwsandbox.wire.resources import State
from tests.gateway.conftest import ME, World, open_world, spec_of
from tests.gateway.hostrunner import HostBox, HostRunner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cwsandbox.runners.specs import BoxSpec


async def ended(world: World, sandbox_id: str) -> State:
    with anyio.fail_after(15):
        sandbox = await world.service.wait_for(ME, sandbox_id, "terminal", 10)
    return sandbox.record.state


async def test_create_answers_before_the_box_is_there(world: World) -> None:
    world.runner.gate = anyio.Event()
    sandbox = await world.service.create(ME, spec_of())
    answered = sandbox.record.state
    assert answered in {State.PENDING, State.CREATING}
    world.runner.gate.set()
    await world.service.wait_for(ME, sandbox.record.sandbox_id, "running", 10)
    assert sandbox.record.state is State.RUNNING
    assert sandbox.record.start_time is not None


@pytest.mark.parametrize("code", [0, 3])
async def test_a_main_command_that_ends_completes_the_sandbox(world: World, code: int) -> None:
    sandbox = await world.service.create(ME, spec_of("sh", "-c", f"exit {code}"))
    assert await ended(world, sandbox.record.sandbox_id) is State.COMPLETED
    assert sandbox.record.exit_code == code
    assert world.runner.boxes == {}


async def test_a_main_command_killed_by_a_signal_has_the_shells_exit_code(world: World) -> None:
    sandbox = await world.service.create(ME, spec_of("sh", "-c", "kill -USR1 $$"))
    assert await ended(world, sandbox.record.sandbox_id) is State.COMPLETED
    assert sandbox.record.exit_code == 128 + 10


@pytest.mark.parametrize("failure", [ImageNotFoundError("no such image"), RunnerError("no boxes today")])
async def test_a_create_that_fails_gives_its_reason(world: World, failure: Exception) -> None:
    world.runner.failure = failure
    sandbox = await world.service.create(ME, spec_of())
    assert await ended(world, sandbox.record.sandbox_id) is State.FAILED
    assert sandbox.record.state_reason == str(failure)
    assert world.service.active == 0


async def test_a_defect_of_the_runner_fails_one_sandbox_only(world: World) -> None:
    world.runner.failure = ZeroDivisionError("oops")
    sandbox = await world.service.create(ME, spec_of())
    assert await ended(world, sandbox.record.sandbox_id) is State.FAILED
    assert "oops" not in sandbox.record.state_reason
    world.runner.failure = None
    assert (await world.sandbox()).record.state is State.RUNNING


async def test_a_lost_box_fails_the_sandbox(world: World) -> None:
    sandbox = await world.sandbox()
    await world.runner.boxes[sandbox.record.sandbox_id].lose()
    assert await ended(world, sandbox.record.sandbox_id) is State.FAILED
    assert "lost" in sandbox.record.state_reason


async def test_a_box_that_will_not_go_fails_its_sandbox_and_the_log_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cwsandbox.gateway.sandbox._REMOVE_SECONDS", 0.05)
    sandbox = await world.sandbox()
    monkeypatch.setattr(HostBox, "wait_gone", lambda _: anyio.sleep_forever())
    world.service.stop(ME, sandbox.record.sandbox_id, 0)
    assert await ended(world, sandbox.record.sandbox_id) is State.TERMINATED
    assert "log says more" in sandbox.record.state_reason
    assert f"{sandbox.record.sandbox_id} was not gone" in caplog.text


class TestRequestIds:
    async def test_the_same_request_makes_one_sandbox(self, world: World) -> None:
        found = []

        async def create() -> None:
            found.append(await world.service.create(ME, spec_of(tags=("a",)), "r1"))

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(create)
        assert len({sandbox.record.sandbox_id for sandbox in found}) == 1
        assert world.runner.created == 1

    async def test_another_specification_is_refused(self, world: World) -> None:
        await world.service.create(ME, spec_of(), "r1")
        with pytest.raises(StatusError) as caught:
            await world.service.create(ME, spec_of("sleep", "7"), "r1")
        assert caught.value.status.code is Code.ALREADY_EXISTS

    async def test_environment_values_count_as_specification(self, world: World) -> None:
        await world.service.create(ME, spec_of(container={"environment_variables": {"A": "1"}}), "r1")
        with pytest.raises(StatusError):
            await world.service.create(ME, spec_of(container={"environment_variables": {"A": "2"}}), "r1")

    async def test_principals_do_not_share_request_ids(self, world: World) -> None:
        first = await world.service.create(ME, spec_of(), "r1")
        second = await world.service.create("other", spec_of(), "r1")
        assert first is not second

    async def test_a_request_whose_sandbox_was_deleted_makes_no_other_one(self, folder: Path) -> None:
        """Who gives a start up deletes what it made, and a copy of the request may come late."""
        async with open_world(folder, limits=Limits(ended_records=2)) as world:
            for name in ("r1", "r2", "r3"):
                made = await world.service.create(ME, spec_of(), name)
                await world.service.delete(ME, made.record.sandbox_id)
            with pytest.raises(StatusError) as caught:
                await world.service.create(ME, spec_of(), "r3")
            assert caught.value.status.reason == Reason.SANDBOX_NOT_FOUND
            assert caught.value.status.metadata == {"sandboxId": made.record.sandbox_id}
            await world.service.create("other", spec_of(), "r3")
            await world.service.create(ME, spec_of(), "r1")  # So many are remembered and no more.
            assert world.runner.created == 5

    async def test_a_request_is_remembered_after_its_sandbox_ended(self, world: World) -> None:
        first = await world.service.create(ME, spec_of("true"), "r1")
        await ended(world, first.record.sandbox_id)
        assert await world.service.create(ME, spec_of("true"), "r1") is first


class TestStop:
    async def test_a_graceful_stop_keeps_the_exit_code(self, world: World) -> None:
        sandbox = await world.sandbox("sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.01; done")
        with anyio.fail_after(5):
            while not (await sandbox.log.read()).entries:
                await sandbox.log.wait_beyond(0)
        stopped = world.service.stop(ME, sandbox.record.sandbox_id, 10)
        assert stopped.record.state is State.TERMINATING
        assert await ended(world, sandbox.record.sandbox_id) is State.TERMINATED
        assert sandbox.record.exit_code == 5
        assert sandbox.record.state_reason == "stopped by request"

    async def test_a_stop_without_grace_kills(self, world: World) -> None:
        sandbox = await world.sandbox("sh", "-c", "trap '' TERM; while :; do sleep 1; done")
        world.service.stop(ME, sandbox.record.sandbox_id, 0)
        assert await ended(world, sandbox.record.sandbox_id) is State.TERMINATED
        assert sandbox.record.exit_code is None

    async def test_stops_join_and_repeat(self, world: World) -> None:
        sandbox = await world.sandbox()
        for _ in range(3):
            world.service.stop(ME, sandbox.record.sandbox_id, 5)
        assert await ended(world, sandbox.record.sandbox_id) is State.TERMINATED
        assert world.service.stop(ME, sandbox.record.sandbox_id, 5).record.state is State.TERMINATED

    async def test_a_second_stop_without_grace_cuts_the_first_short(self, world: World) -> None:
        sandbox = await world.sandbox("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done")
        await sandbox.log.wait_beyond(0)
        world.service.stop(ME, sandbox.record.sandbox_id, 200)
        await anyio.wait_all_tasks_blocked()
        world.service.stop(ME, sandbox.record.sandbox_id, 0)
        assert await ended(world, sandbox.record.sandbox_id) is State.TERMINATED

    async def test_a_stop_during_create_waits_for_it_and_leaves_nothing(self, world: World) -> None:
        world.runner.gate = anyio.Event()
        sandbox = await world.service.create(ME, spec_of())
        await world.runner.arrived.wait()
        assert world.service.stop(ME, sandbox.record.sandbox_id, 0).record.state is State.TERMINATING
        world.runner.gate.set()
        assert await ended(world, sandbox.record.sandbox_id) is State.TERMINATED
        assert world.runner.boxes == {}
        assert sandbox.record.start_time is None

    async def test_a_stop_of_a_pending_sandbox_makes_no_box(self, folder: Path) -> None:
        async with open_world(folder, limits=Limits(creations=1)) as world:
            world.runner.gate = anyio.Event()
            await world.service.create(ME, spec_of())
            second = await world.service.create(ME, spec_of())
            await world.runner.arrived.wait()
            assert second.record.state is State.PENDING
            world.service.stop(ME, second.record.sandbox_id, 0)
            world.runner.gate.set()
            assert await ended(world, second.record.sandbox_id) is State.TERMINATED
            assert world.runner.created == 1

    async def test_a_create_that_fails_during_a_stop_is_a_stop(self, world: World) -> None:
        world.runner.gate = anyio.Event()
        sandbox = await world.service.create(ME, spec_of())
        await world.runner.arrived.wait()
        world.service.stop(ME, sandbox.record.sandbox_id, 0)
        world.runner.failure = RunnerError("no")
        world.runner.gate.set()
        assert await ended(world, sandbox.record.sandbox_id) is State.TERMINATED

    async def test_a_negative_grace_is_refused(self, world: World) -> None:
        sandbox = await world.sandbox()
        for grace in (-1.0, float("nan"), float("inf")):
            with pytest.raises(StatusError):
                world.service.stop(ME, sandbox.record.sandbox_id, grace)


class TestDelete:
    async def test_delete_kills_and_forgets(self, world: World) -> None:
        sandbox = await world.sandbox("sh", "-c", "trap '' TERM; while :; do sleep 1; done")
        with anyio.fail_after(5):
            await world.service.delete(ME, sandbox.record.sandbox_id)
        assert world.runner.boxes == {}
        with pytest.raises(StatusError) as caught:
            world.service.get(ME, sandbox.record.sandbox_id)
        assert caught.value.status.reason == Reason.SANDBOX_NOT_FOUND

    async def test_delete_cuts_a_graceful_stop_short(self, world: World) -> None:
        sandbox = await world.sandbox("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done")
        await sandbox.log.wait_beyond(0)
        world.service.stop(ME, sandbox.record.sandbox_id, 200)
        with anyio.fail_after(5):
            await world.service.delete(ME, sandbox.record.sandbox_id)

    async def test_an_ended_sandbox_is_forgotten_on_disk_too(self, world: World) -> None:
        sandbox = await world.service.create(ME, spec_of("true"))
        await ended(world, sandbox.record.sandbox_id)
        await world.service.delete(ME, sandbox.record.sandbox_id)
        await world.store.flush()
        assert await world.store.load() == ()


class TestWaiting:
    async def test_time_is_up(self, world: World) -> None:
        sandbox = await world.sandbox()
        with anyio.fail_after(5):
            same = await world.service.wait_for(ME, sandbox.record.sandbox_id, "terminal", 0.01)
        assert same.record.state is State.RUNNING

    async def test_many_waiters_wake_together(self, world: World) -> None:
        sandbox = await world.sandbox()
        states = []

        async def wait() -> None:
            states.append((await world.service.wait_for(ME, sandbox.record.sandbox_id, "terminal", 10)).record.state)

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            world.service.stop(ME, sandbox.record.sandbox_id, 0)
        assert states == [State.TERMINATED] * 20

    async def test_waiting_for_running_ends_when_it_never_will(self, world: World) -> None:
        world.runner.failure = RunnerError("no")
        sandbox = await world.service.create(ME, spec_of())
        with anyio.fail_after(5):
            await world.service.wait_for(ME, sandbox.record.sandbox_id, "running", 100)
        assert sandbox.record.state is State.FAILED

    async def test_an_unknown_target_is_refused(self, world: World) -> None:
        sandbox = await world.sandbox()
        with pytest.raises(StatusError):
            await world.service.wait_for(ME, sandbox.record.sandbox_id, "paused", 1)


class TestLists:
    async def test_filters(self, world: World) -> None:
        a = await world.sandbox(tags=("x", "y"))
        b = await world.sandbox(tags=("x",))
        over = await world.service.create(ME, spec_of("true", tags=("x",)))
        await ended(world, over.record.sandbox_id)
        other = await world.service.create("other", spec_of())

        def found(**fields: object) -> list[str]:
            page, token = world.service.list(ME, ListFilter(**fields))  # type: ignore[arg-type]
            assert token == ""
            return [sandbox.record.sandbox_id for sandbox in page]

        a_id, b_id, over_id = a.record.sandbox_id, b.record.sandbox_id, over.record.sandbox_id
        assert found() == [a_id, b_id]
        assert found(tags=("x", "y")) == [a_id]
        assert found(tags=("z",)) == []
        assert found(show_terminated=True) == [a_id, b_id, over_id]
        assert found(state=State.COMPLETED) == [over_id]
        assert found(state=State.RUNNING, show_terminated=True) == [a_id, b_id]
        assert found(runner_ids=("host", "else")) == [a_id, b_id]
        assert found(runner_ids=("else",)) == []
        assert found(profile_ids=("p",)) == []
        assert other.record.sandbox_id not in found(show_terminated=True)

    async def test_pages_cover_everything_once(self, world: World) -> None:
        made = [(await world.sandbox()).record.sandbox_id for _ in range(5)]
        seen: list[str] = []
        after, pages = 0, 0
        while True:
            page, token = world.service.list(ME, ListFilter(page_size=2, after=after))
            seen += [sandbox.record.sandbox_id for sandbox in page]
            pages += 1
            if not token:
                break
            if pages == 1:
                await world.service.delete(ME, made[0])  # A page that was read may change.
            after = int(token.removeprefix("after-"))
        assert (seen, pages) == (made, 3)


async def test_other_principals_see_nothing(world: World) -> None:
    sandbox = await world.sandbox()
    sandbox_id = sandbox.record.sandbox_id
    calls: tuple[Callable[[], object], ...] = (
        lambda: world.service.get("other", sandbox_id),
        lambda: world.service.stop("other", sandbox_id, 0),
    )
    for call in calls:
        with pytest.raises(StatusError) as caught:
            call()
        assert caught.value.status.code is Code.NOT_FOUND
    with pytest.raises(StatusError):
        await world.service.delete("other", sandbox_id)
    assert sandbox.record.state is State.RUNNING


async def test_a_full_gateway_refuses_and_says_so(folder: Path) -> None:
    async with open_world(folder, limits=Limits(sandboxes=2)) as world:
        first = await world.sandbox()
        await world.sandbox()
        with pytest.raises(StatusError) as caught:
            await world.sandbox()
        assert caught.value.status.code is Code.RESOURCE_EXHAUSTED
        await world.service.delete(ME, first.record.sandbox_id)
        assert (await world.sandbox()).record.state is State.RUNNING


async def test_leaving_the_service_ends_every_sandbox(folder: Path) -> None:
    runner = HostRunner()
    async with open_world(folder, runner) as world:
        sandboxes = [await world.sandbox() for _ in range(3)]
        processes = [box.main.process for box in runner.boxes.values()]
    assert [sandbox.record.state for sandbox in sandboxes] == [State.TERMINATED] * 3
    assert all(process.returncode is not None for process in processes)
    assert {sandbox.record.state_reason for sandbox in sandboxes} == {"the gateway was shut down"}


async def test_a_sandbox_gets_what_was_asked_for(world: World) -> None:
    seen: list[BoxSpec] = []
    make = world.runner.create

    async def create(spec: BoxSpec) -> object:
        seen.append(spec)
        return await make(spec)

    world.runner.create = create  # type: ignore[method-assign,assignment]
    await world.sandbox("sleep", "9", container={"environment_variables": {"A": "b"}, "image": "python:3.11"})
    assert (seen[0].argv, dict(seen[0].env), seen[0].image) == (("sleep", "9"), {"A": "b"}, "python:3.11")
