"""What keeps and what ends: the store, the reaper, a restart."""

from __future__ import annotations

import sqlite3
import stat
from time import monotonic
from typing import TYPE_CHECKING

import anyio
import pytest

from cwsandbox.gateway import reaper
from cwsandbox.gateway.execution import Note
from cwsandbox.gateway.service import Limits
from cwsandbox.gateway.store import Store
from cwsandbox.runners.specs import ExecSpec
from cwsandbox.wire.errors import Code
from cwsandbox.wire.resources import State
from tests.gateway.conftest import ME, execute, open_world, spec_of
from tests.gateway.hostrunner import HostRunner

if TYPE_CHECKING:
    from pathlib import Path

    from cwsandbox.gateway.sandbox import LiveSandbox
    from tests.gateway.conftest import World


class TestStore:
    async def test_what_was_flushed_is_there_and_private(self, folder: Path) -> None:
        path = folder / "db"
        async with Store.open(str(path)) as store:
            for number in range(100):
                store.put(f"s{number}", f"body {number}")
            store.put("s0", "newer")
            store.delete("s1")
            await store.flush()
            async with Store.open(str(path)) as other:
                stored = await other.load()
            assert len(stored) == 99
            assert "newer" in stored
            assert {stat.S_IMODE(file.stat().st_mode) for file in folder.glob("db*")} == {0o600}

    async def test_leaving_writes_what_is_left(self, folder: Path) -> None:
        async with Store.open(str(folder / "db")) as store:
            store.put("a", "body")
        async with Store.open(str(folder / "db")) as store:
            assert await store.load() == ("body",)

    async def test_a_failed_write_is_reported_and_made_up_for(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with Store.open(str(folder / "db")) as store:
            with monkeypatch.context() as broken:

                def fail(*args: object) -> None:
                    raise sqlite3.OperationalError("disk full")

                broken.setattr(store, "_write", fail)
                store.put("a", "1")
                with pytest.raises(sqlite3.OperationalError):
                    await store.flush()
            store.put("b", "2")
            await store.flush()
            assert set(await store.load()) == {"1", "2"}

    async def test_something_else_than_a_database(self, folder: Path) -> None:
        (folder / "db").write_bytes(b"not a database" * 100)
        with pytest.raises(sqlite3.Error):
            async with Store.open(str(folder / "db")):
                pass


async def ended(world: World, sandbox_id: str) -> State:
    with anyio.fail_after(15):
        return (await world.service.wait_for(ME, sandbox_id, "terminal", 10)).record.state


async def over(world: World, sandbox: LiveSandbox) -> None:
    """Wait for the end without using the sandbox."""
    with anyio.fail_after(10):
        while not sandbox.terminal:
            await world.service.population.wait()


class TestReaper:
    async def test_a_lifetime_ends_the_sandbox(self, world: World) -> None:
        world.tasks.start_soon(reaper.reap, world.service)
        sandbox = await world.sandbox(max_lifetime_seconds=0.2)
        other = await world.sandbox(max_lifetime_seconds=100)
        assert await ended(world, sandbox.record.sandbox_id) is State.TERMINATED
        assert "lifetime" in sandbox.record.state_reason
        assert other.record.state is State.RUNNING

    async def test_an_unused_sandbox_is_ended_and_a_used_one_is_not(self, folder: Path) -> None:
        async with open_world(folder, limits=Limits(idle_seconds=0.3)) as world:
            unused, used = await world.sandbox(), await world.sandbox()
            client = await world.client()
            result = execute(client, used, "sleep", "1000", stdin=True)
            await result.confirmed_event.wait()
            world.tasks.start_soon(reaper.reap, world.service)  # Not before: to come so far may take longer than that.
            await over(world, unused)
            assert "not used" in unused.record.state_reason
            assert used.record.state is State.RUNNING
            result.stream.close()
            client.wake()
            await over(world, used)

    async def test_ended_sandboxes_are_forgotten_in_time(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with open_world(folder, limits=Limits(retention_seconds=0.1)) as world:
            forget, forgotten = world.service.forget, anyio.Event()

            def tell(sandbox: LiveSandbox) -> None:
                forget(sandbox)
                forgotten.set()

            monkeypatch.setattr(world.service, "forget", tell)
            world.tasks.start_soon(reaper.reap, world.service)
            sandbox = await world.service.create(ME, spec_of("echo", "hi"))
            await ended(world, sandbox.record.sandbox_id)
            with anyio.fail_after(5):
                await forgotten.wait()
            assert list(world.service.sandboxes()) == []
            await world.store.flush()
            assert (await world.store.load()) == ()

    async def test_only_so_many_ended_ones_are_kept(self, folder: Path) -> None:
        async with open_world(folder, limits=Limits(ended_records=2)) as world:
            made = []
            for _ in range(4):
                made.append(await world.service.create(ME, spec_of("true")))
                await ended(world, made[-1].record.sandbox_id)
            reaper.sweep(world.service)
            assert list(world.service.sandboxes()) == made[2:]

    async def test_it_sleeps_until_something_is_due(self, world: World) -> None:
        await world.sandbox(max_lifetime_seconds=500)
        assert 490 < reaper.sweep(world.service) <= 500
        await world.sandbox()
        assert 490 < reaper.sweep(world.service) <= 500


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The boxes that are kept from the first service do not settle."""
    monkeypatch.setattr("cwsandbox.gateway.sandbox._SETTLE_SECONDS", 0.05)


@pytest.mark.usefixtures("impatient")
class TestRestart:
    """A service that ends without its boxes, as when its process is killed, and its successor."""

    async def test_a_record_of_another_form_is_skipped(self, folder: Path) -> None:
        async with Store.open(str(folder / "sandboxes.sqlite")) as store:
            store.put("a", '{"sandbox_id": "a"}')
            store.put("b", "nonsense")
        async with open_world(folder) as world:
            assert list(world.service.sandboxes()) == []
            assert (await world.sandbox()).record.state is State.RUNNING

    async def survivors(self, folder: Path, runner: HostRunner, *argvs: tuple[str, ...]) -> list[str]:
        """Make sandboxes, copy the disk as it is, and keep the boxes."""
        async with Store.open(str(folder / "sandboxes.sqlite")) as store:
            scratch = folder / "first"
            (scratch / "logs").mkdir(parents=True)
            first = HostRunner()
            async with open_world(scratch, first) as world:
                made = [await world.sandbox(*argv) for argv in argvs]
                for sandbox in made:
                    await sandbox.log.wait_beyond(0)
                await world.store.flush()
                for number, body in enumerate(await world.store.load()):
                    store.put(f"{number}", body)
                runner.survivors = list(first.boxes.values())
                first.boxes.clear()
                for box in runner.survivors:
                    box._runner = runner
                    runner.boxes[box.sandbox_id] = box
                    box.kept = True
            for box in runner.survivors:
                box.kept = False
            return [sandbox.record.sandbox_id for sandbox in made]

    async def test_survivors_run_on_and_the_others_are_failed(self, folder: Path) -> None:
        runner = HostRunner()
        alive, dead = await self.survivors(
            folder, runner, ("sh", "-c", "echo a; sleep 1000"), ("sh", "-c", "echo b; sleep 1000")
        )
        await runner.boxes.pop(dead).lose()
        runner.survivors = [box for box in runner.survivors if box.sandbox_id == alive]
        async with open_world(folder, runner) as world:
            assert world.service.get(ME, alive).record.state is State.RUNNING
            record = world.service.get(ME, dead).record
            assert (record.state, "restart" in record.state_reason) == (State.FAILED, True)
            client = await world.client()
            result = await execute(client, world.service.get(ME, alive), "echo", "still here").wait()
            assert result.stdout == b"still here\n"
            newer = await world.sandbox()
            assert newer.record.sequence > record.sequence
            await world.service.delete(ME, alive)
        assert runner.boxes == {}

    async def test_a_box_without_a_record_is_removed(self, folder: Path) -> None:
        runner = HostRunner()
        (stray,) = await self.survivors(folder, runner, ("sh", "-c", "echo a; sleep 1000"))
        (folder / "sandboxes.sqlite").unlink()
        async with open_world(folder, runner) as world:
            assert runner.boxes == {}
            with pytest.raises(Exception, match=stray):
                world.service.get(ME, stray)

    async def test_commands_of_the_dead_gateway_wait_for_their_clients_and_are_killed_after_the_grace(
        self, folder: Path
    ) -> None:
        runner = HostRunner()
        (alive,) = await self.survivors(folder, runner, ("sh", "-c", "echo a; sleep 1000"))
        left = await runner.boxes[alive].exec(ExecSpec(exec_id="x1", argv=("sleep", "1000")))
        async with open_world(folder, runner, Limits(grace_seconds=0.1)):
            with anyio.fail_after(5):
                await left.killed.wait()

    async def test_a_client_goes_on_with_its_command_at_the_next_gateway(self, folder: Path) -> None:
        runner = HostRunner()
        (alive,) = await self.survivors(folder, runner, ("sh", "-c", "echo a; sleep 1000"))
        await runner.boxes[alive].exec(ExecSpec(exec_id="x1", argv=("sh", "-c", "read x; echo $x; exit 5"), stdin=True))
        async with open_world(folder, runner) as world:
            client = await world.client()
            result = execute(client, world.service.get(ME, alive), "not", "run", exec_id="x1", stdin=True)
            result.stream.confirmed = result.stream._heard = True  # By the dead gateway.
            result.stream.send(b"word\n")
            client.mux = client.mux.resume()
            client.socket.drop()
            await client.reconnect()
            await result.wait()
            assert (result.stdout, result.status) == (b"word\n", 5)
            assert [spec.argv for spec in runner.executed] == [("sh", "-c", "read x; echo $x; exit 5")]

    async def test_the_time_of_a_command_goes_on_at_the_next_gateway(self, folder: Path) -> None:
        runner = HostRunner()
        (alive,) = await self.survivors(folder, runner, ("sh", "-c", "echo a; sleep 1000"))
        note = Note(limit=60.0, deadline=monotonic() + 0.05).to_json()
        left = await runner.boxes[alive].exec(ExecSpec(exec_id="x1", argv=("sleep", "1000"), note=note))
        async with open_world(folder, runner) as world:
            with anyio.fail_after(5):
                await left.killed.wait()
            client = await world.client()
            result = execute(client, world.service.get(ME, alive), "sleep", "1000", exec_id="x1")
            await result.wait()
            assert result.failure is not None
            assert result.failure.code is Code.DEADLINE_EXCEEDED
            assert "60 s" in result.failure.message

    @pytest.mark.parametrize(
        "note",
        [
            None,
            [],
            "x",
            {"limit": "1", "deadline": []},
            {"limit": 1},
            {"deadline": float("nan"), "limit": 1.0},
            {"deadline": 10**400, "limit": 1},
            {"deadline": 1, "limit": -1},
        ],
    )
    async def test_a_note_from_a_box_that_lies_limits_nothing_and_breaks_nothing(self, note: object) -> None:
        assert Note.from_json(note) == Note()

    async def test_detached_commands_survive_a_restart(self, folder: Path) -> None:
        runner = HostRunner()
        (alive,) = await self.survivors(folder, runner, ("sh", "-c", "echo a; sleep 1000"))
        kept, left = [
            await runner.boxes[alive].exec(ExecSpec(exec_id=name, argv=("sleep", "1000"), note=note))
            for name, note in (("kept", Note(detach=True).to_json()), ("left", Note().to_json()))
        ]
        async with open_world(folder, runner, Limits(grace_seconds=0.1)) as world:
            with anyio.fail_after(5):
                await left.killed.wait()
            assert kept.process.returncode is None
            assert world.service.get(ME, alive).record.state is State.RUNNING
