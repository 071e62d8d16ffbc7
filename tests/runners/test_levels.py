"""The same suite as an ordinary user, and where namespaces are forbidden; and what the runner says about its level."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from cwsandbox.runners.errors import BoxGoneError, IsolationUnavailableError
from cwsandbox.runners.specs import BoxNetwork, BoxSpec, ExitStatus, IsolationLevel
from cwsandbox.wire.packing import pack
from tests.runners.confined import USER
from tests.runners.conftest import box_spec
from tests.runners.support import (
    asked,
    file_job,
    file_rows,
    host_children,
    python,
    read_file,
    read_until,
    shell,
    started,
)
from tests.support.levels import needs_namespaces

if TYPE_CHECKING:
    from tests.runners.support import MakeRunner

REPOSITORY = Path(__file__).parents[2]
CONFINED = os.environ.get("CWSANDBOX_TEST_CONFINED")
PACKAGES = os.pathsep.join([str(REPOSITORY), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
needs_root = pytest.mark.skipif(os.geteuid() != 0 or CONFINED is not None, reason="needs root, to become somebody else")


def interpreter_for_everybody() -> str:
    """An interpreter of this version that another user can run; this one may live in somebody's home."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/local/bin/{version}", f"/usr/bin/{version}"):
        try:
            done = subprocess.run(
                [candidate, "-c", "import anyio, attrs, pytest, trio, cwsandbox"],
                env={"PYTHONPATH": PACKAGES},
                cwd="/",
                user=USER,
                group=USER,
                extra_groups=[],
                capture_output=True,
            )
        except OSError:
            continue
        if done.returncode == 0:
            return candidate
    pytest.skip("no interpreter that an ordinary user could run")


def run_confined(kind: str, interpreter: str, *arguments: str, **environment: str) -> None:
    with tempfile.TemporaryDirectory(prefix="cwsandbox-confined-") as folder:
        os.chmod(folder, 0o777)
        done = subprocess.run(
            [
                interpreter,
                "-m",
                "tests.runners.confined",
                kind,
                "-q",
                "-p",
                "no:cacheprovider",
                "--timeout=60",
                *arguments,
            ],
            cwd=REPOSITORY,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": PACKAGES,
                "PYTHONDONTWRITEBYTECODE": "1",
                "TMPDIR": folder,
                "CWSANDBOX_TEST_CONFINED": kind,
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=280,
        )
    assert done.returncode == 0, done.stdout[-6000:]


@needs_namespaces
@needs_root
@pytest.mark.timeout(300)
def test_an_ordinary_user_gets_the_same_sandboxes() -> None:
    tests = ["test_local.py", "test_isolation.py", "test_leftovers.py", "test_limits.py"]
    run_confined("user", interpreter_for_everybody(), *(f"tests/runners/{name}" for name in tests))


@needs_namespaces  # Else the suite itself runs at that level.
@needs_root
@pytest.mark.timeout(300)
def test_without_namespaces_the_contract_holds_at_level_process() -> None:
    tests = ["test_local.py", "test_leftovers.py", "test_levels.py", "test_limits.py"]
    run_confined(
        "container",
        sys.executable,
        *(f"tests/runners/{name}" for name in tests),
        container="test",
    )


SAMPLE = (
    "output_and_exit or python_is or files_come_back or file_mounts or nothing_runs or default_working or terminal_is"
)


@needs_namespaces
@needs_root
@pytest.mark.timeout(120)
def test_layers_are_kept_in_memory_where_the_disk_is_an_overlay() -> None:
    run_confined("overlay", sys.executable, "tests/runners/test_local.py", "-k", SAMPLE)


@needs_namespaces
@needs_root
@pytest.mark.timeout(120)
def test_a_usr_with_mounts_below_is_used_read_only() -> None:
    run_confined("mounts", interpreter_for_everybody(), "tests/runners/test_local.py", "-k", SAMPLE)


@pytest.mark.skipif(CONFINED != "container", reason="is about hosts that forbid namespaces")
class TestForbidden:
    async def test_in_a_container_the_level_is_process_and_that_is_said(self, make_runner: MakeRunner) -> None:
        async with make_runner(isolation="auto") as runner:
            assert runner.capabilities().isolation is IsolationLevel.PROCESS
            notice = runner.isolation_notice or ""
            assert "process" in notice
            assert "container" in notice

    async def test_namespaces_can_be_insisted_on(self, make_runner: MakeRunner) -> None:
        async with make_runner(isolation="namespaces") as runner:
            with pytest.raises(IsolationUnavailableError, match="CWSANDBOX_ISOLATION=process"):
                await runner.create(box_spec())

    async def test_outside_of_a_container_nothing_is_weaker_in_silence(
        self, make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cwsandbox.runners.local.probe.in_container", lambda: False)
        async with make_runner(isolation="auto") as runner:
            with pytest.raises(IsolationUnavailableError, match="cannot isolate"):
                await runner.create(box_spec())


@needs_namespaces
@pytest.mark.skipif(CONFINED is not None, reason="is about hosts that allow namespaces")
class TestAllowed:
    async def test_namespaces_are_the_default(self, make_runner: MakeRunner) -> None:
        async with make_runner(isolation="auto") as runner:
            assert runner.capabilities().isolation is IsolationLevel.NAMESPACES
            assert runner.isolation_notice is None
            assert "processes" in runner.capabilities().enforced_limits

    async def test_process_can_be_asked_for(self, make_runner: MakeRunner) -> None:
        async with make_runner(isolation="process") as runner:
            box = await runner.create(box_spec())
            assert box.isolation is runner.capabilities().isolation is IsolationLevel.PROCESS
            assert "as asked for" in (runner.isolation_notice or "")
            await box.stop(0)


async def test_boxes_that_end_take_no_box_in_the_making_along(make_runner: MakeRunner) -> None:
    """Without PID namespaces the zygote looks for orphans whenever a box ends; new agents must not look like some."""
    async with make_runner(isolation="process") as runner:
        at_once = anyio.CapacityLimiter(16)

        async def live_and_die(number: int) -> None:
            async with at_once:
                box = await runner.create(BoxSpec(f"sandbox-{number}", argv=("true",)))
            assert await box.main.wait() == ExitStatus(code=0)
            await box.stop(0)
            box.main.forget()

        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(live_and_die, number)


async def test_an_isolated_box_without_namespaces_has_no_sockets_but_unix_ones(make_runner: MakeRunner) -> None:
    program = (
        "import socket\n"
        "for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):\n"
        "    try: socket.socket(family, socket.SOCK_DGRAM)\n"
        "    except OSError as error: print(error.strerror)\n"
        "socket.socketpair(); socket.socket(socket.AF_UNIX); print('unix')"
    )
    async with make_runner(isolation="process") as runner:
        assert runner.capabilities().egress_modes == ("host", "isolated")
        box = await runner.create(box_spec(network=BoxNetwork(egress_mode="isolated")))
        result = await python(box, program)
        assert result.text.splitlines() == ["Address family not supported by protocol"] * 3 + ["unix"]
        with pytest.raises(OSError, match="Address family"):
            await box.listen(40000)
        await box.stop(0)


async def test_file_operations_work_without_namespaces_and_end_with_the_box(
    make_runner: MakeRunner, tmp_path: Path
) -> None:
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "sub" / "f").write_bytes(b"content")
    async with make_runner(isolation="process") as runner:
        box = await runner.create(box_spec())
        await file_job(box, asked("unpack", "here"), pack(str(tmp_path / "source")))
        assert await read_file(box, "here/sub/f") == b"content"
        assert [row[0] for row in await file_rows(box, asked("glob", "here", pattern="**/f"))] == ["sub/f"]
        job = await box.file_job(asked("watch", "here", recursive=True))
        async with started(box, "sleep", "600") as command:
            await command.kill()
        await shell(box, "touch here/sub/g")
        await read_until(job.output, b"sub/g")
        child = f"/proc/{host_children(box)[-1]}"
        await box.stop(0)
        assert not os.path.exists(child)
        with pytest.raises(BoxGoneError):
            await job.wait()
        await job.aclose()
