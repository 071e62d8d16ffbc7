"""After its end nothing is left of a sandbox: no process, mount, cgroup, socket or folder, however it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from cwsandbox.runners.errors import CommandNotStartedError, ImageNotFoundError, RunnerError
from cwsandbox.runners.specs import ExecSpec, ExitStatus, FileMount, Limits
from tests.runners.conftest import box_spec
from tests.runners.support import (
    FINISH_SECONDS,
    exec_id,
    input_of,
    read_all,
    read_until,
    run,
    shell,
    started,
    token,
    until_ended,
    until_gone,
)
from tests.support.processes import descendants, processes_with

if TYPE_CHECKING:
    from cwsandbox.runners.local.runner import LocalRunner
    from tests.runners.support import MakeRunner

REPOSITORY = Path(__file__).parents[2]


def leftovers(state_dir: Path, runtime_dir: Path) -> list[str]:
    found = [str(path) for path in (state_dir / "boxes").iterdir()]
    found += [str(path) for path in runtime_dir.iterdir()]
    names = {Path(path).name.partition(".")[0] for path in found}
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(state_dir) in line]
    for name in names:
        found += [path for path in cgroups() if path.endswith(f"/cwsandbox-{name}")]
    return found


def cgroups() -> set[str]:
    """The boxes' cgroups; those of other gateways may come and go meanwhile, which `os.walk` bears."""
    folders = (folder for folder, _, _ in os.walk("/sys/fs/cgroup"))
    return {folder for folder in folders if "/cwsandbox-" in folder}


async def test_after_stop(runner: LocalRunner, state_dir: Path, runtime_dir: Path) -> None:
    word = token()
    limits = Limits(memory_bytes=2**30, cpu_millicores=1000, processes=100)
    box = await runner.create(box_spec(limits=limits, files=(FileMount("/tmp/m", b"x"),)))
    await shell(
        box, f"setsid sh -c 'sleep 600; echo {word}' & mkdir -p deep/er; chmod 0 deep/er deep; mkdir -m 0 /tmp/no"
    )
    assert leftovers(state_dir, runtime_dir)
    (name,) = (path.name for path in state_dir.glob("boxes/*"))
    own = f"/cwsandbox-{name}"  # Other runs on this machine have theirs.
    if "memory" in runner.capabilities().enforced_limits:
        assert any(path.endswith(own) for path in cgroups())
    await box.stop(0)
    assert processes_with(word) == []
    assert leftovers(state_dir, runtime_dir) == []
    assert not any(path.endswith(own) for path in cgroups())


async def test_after_very_deep_and_very_many_files(runner: LocalRunner, state_dir: Path, runtime_dir: Path) -> None:
    box = await runner.create(box_spec())
    script = "import os\nfor _ in range(300):\n os.mkdir('d'); os.chdir('d')\n"
    assert (await run(box, "python3", "-c", script)).status == ExitStatus(code=0)
    await run(box, "python3", "-c", "for n in range(500): open(f'f{n}', 'w')")
    await box.stop(0)
    assert leftovers(state_dir, runtime_dir) == []


async def test_after_a_main_command_that_cannot_start(runner: LocalRunner, state_dir: Path, runtime_dir: Path) -> None:
    with pytest.raises(CommandNotStartedError) as raised:
        await runner.create(box_spec(argv=("no-such-program",)))
    assert raised.value.status == 127
    assert leftovers(state_dir, runtime_dir) == []


async def test_after_an_unknown_image(runner: LocalRunner, state_dir: Path, runtime_dir: Path) -> None:
    with pytest.raises(ImageNotFoundError, match="alpine"):
        await runner.create(box_spec(image="alpine:3"))
    assert leftovers(state_dir, runtime_dir) == []


@pytest.mark.parametrize("image", ["", "python:3.11", "docker.io/library/python:3.12-slim", "debian", "ubuntu:24.04"])
async def test_images_that_stand_for_this_machine(runner: LocalRunner, image: str) -> None:
    box = await runner.create(box_spec(image=image))
    await box.stop(0)


@pytest.mark.parametrize("delay", [0, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012])
async def test_after_a_cancelled_create(runner: LocalRunner, state_dir: Path, runtime_dir: Path, delay: float) -> None:
    word = token()
    with anyio.move_on_after(delay) as scope:
        box = await runner.create(box_spec(argv=("sh", "-c", f"sleep 600; echo {word}")))
    if not scope.cancelled_caught:
        await box.stop(0)
    assert processes_with(word) == []
    assert leftovers(state_dir, runtime_dir) == []


async def test_after_the_agent_died(runner: LocalRunner, state_dir: Path, runtime_dir: Path) -> None:
    word = token()
    box = await runner.create(box_spec())
    async with started(box, "sh", "-c", f"echo ready; sleep 600; echo {word}") as command:
        await read_until(command.stdout, b"ready")
        assert processes_with(word)
        os.kill(box._agent_pid, signal.SIGKILL)
        with anyio.fail_after(FINISH_SECONDS):
            with pytest.raises(RunnerError, match="unexpectedly"):
                await command.wait()
            await box.wait_gone()
    assert processes_with(word) == []
    assert leftovers(state_dir, runtime_dir) == []


async def test_a_new_zygote_replaces_one_that_died(runner: LocalRunner, state_dir: Path, runtime_dir: Path) -> None:
    survivor = await runner.create(box_spec())
    os.kill(runner._zygote_pid, signal.SIGKILL)
    assert (await run(survivor, "echo", "alive")).text == "alive\n"
    with anyio.fail_after(FINISH_SECONDS):
        await survivor.swept.wait()  # There is nobody left to ask for that.
    other = await runner.create(box_spec())
    await other.stop(0)
    await survivor.stop(0)
    assert leftovers(state_dir, runtime_dir) == []


async def test_a_later_run_takes_the_boxes_back(make_runner: MakeRunner, state_dir: Path, runtime_dir: Path) -> None:
    async with make_runner() as first:
        box = await first.create(box_spec(env={"FROM_BOX": "kept"}))
        command = await box.exec(
            ExecSpec("survivor", ("sh", "-c", "echo one; read x; echo two $x; exit 5"), stdin=True)
        )
        await read_until(command.stdout, b"one\n")
        command.stdout.release(2)
        await box.exec(ExecSpec("exited", ("sh", "-c", "echo rest; exit 3")))
    async with make_runner() as second:
        (again,) = await second.recover()
        assert again.sandbox_id == "sandbox-1"
        assert again.isolation == second.capabilities().isolation
        assert again.main.exec_id == "main"
        found = {command.exec_id: command for command in again.commands()}
        assert set(found) == {"survivor", "exited"}
        assert found["survivor"].stdout.position == 2
        assert found["survivor"].stdout.recall() == b"e\n"
        await input_of(found["survivor"]).send(b"x\n")
        assert await read_all(found["survivor"].stdout) == b"two x\n"
        assert await found["survivor"].wait() == ExitStatus(code=5)
        assert await read_all(found["exited"].stdout) == b"rest\n"
        assert await found["exited"].wait() == ExitStatus(code=3)
        assert (await shell(again, "echo $FROM_BOX")).text == "kept\n"
        await again.stop(5)
    assert leftovers(state_dir, runtime_dir) == []


async def test_boxes_that_nobody_takes_back_end_after_the_grace(
    make_runner: MakeRunner, state_dir: Path, runtime_dir: Path
) -> None:
    word = token()
    async with make_runner(orphan_grace_seconds=0.2) as first:
        box = await first.create(box_spec())
        command = await box.exec(ExecSpec(exec_id(), ("sh", "-c", f"echo ready; sleep 600; echo {word}")))
        await read_until(command.stdout, b"ready")
        zygote = first._zygote_pid
    await until_gone(word)
    await until_ended(zygote)
    assert leftovers(state_dir, runtime_dir) == []


@pytest.mark.parametrize("when", ["busy", "ready"])
async def test_after_the_gateway_was_killed(state_dir: Path, runtime_dir: Path, when: str) -> None:
    word = token()
    program = [sys.executable, "-m", "tests.runners.victim", str(state_dir), str(runtime_dir), word]
    process = await anyio.open_process(program, cwd=REPOSITORY, stderr=None)
    assert process.stdout is not None
    async with process:
        if when == "ready":
            await read_until(process.stdout, b"ready\n")
            assert processes_with(word)
        else:
            await process.stdout.receive()
        family = descendants(process.pid)
        process.send_signal(signal.SIGKILL)
    for pid in family:
        await until_ended(pid)  # The zygote among them stays for the boxes.
    assert processes_with(word) == []
    assert leftovers(state_dir, runtime_dir) == []


async def test_a_later_run_removes_what_a_crash_of_everything_left(
    make_runner: MakeRunner, state_dir: Path, runtime_dir: Path
) -> None:
    word = token()
    async with make_runner() as first:
        box = await first.create(box_spec(argv=("sh", "-c", f"sleep 600; echo {word}")))
        zygote, agent = first._zygote_pid, box._agent_pid
    os.kill(zygote, signal.SIGKILL)
    os.kill(agent, signal.SIGKILL)
    await until_ended(agent)
    assert leftovers(state_dir, runtime_dir)
    async with make_runner() as second:
        assert await second.recover() == []
        await until_gone(word)
        assert leftovers(state_dir, runtime_dir) == []


async def test_a_box_that_was_only_half_made_is_not_taken_back(
    make_runner: MakeRunner, state_dir: Path, runtime_dir: Path
) -> None:
    async with make_runner() as first:  # As one that is killed between the box and its main command.
        await first._bear("half", first._plan("half", box_spec(), first.capabilities().isolation))
        box = first._join("half")
        assert await box.wait_listed()
    async with make_runner() as second:
        assert await second.recover() == []
        await until_ended(box._agent_pid)
        for left in list(second._boxes.values()):
            await left.wait_gone()
        assert leftovers(state_dir, runtime_dir) == []


async def test_an_error_in_the_runners_scope_comes_out_as_itself(make_runner: MakeRunner) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with make_runner():
            raise KeyError("mine")


def test_the_zygote_imports_no_third_party_code() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import cwsandbox.runners.local.zygote; "
        "print([n for n in ('anyio', 'attrs', 'attr', 'asyncio', 'threading', 'subprocess', 'typing_extensions') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
