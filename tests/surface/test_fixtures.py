"""Scopes that are entered and left in different tasks: the fixtures of pytest-asyncio, pytest-trio and anyio's plugin."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.processes import assert_gone, new_marker

if TYPE_CHECKING:
    from pathlib import Path

ASYNCIO = """
import os
import pytest, pytest_asyncio
from cwsandbox import Sandbox, Session

@pytest_asyncio.fixture
async def sandbox():
    async with Sandbox() as sandbox:
        yield sandbox

@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def session():
    async with Session() as session:
        yield session

@pytest.mark.asyncio
async def test_sandbox(sandbox):
    assert (await sandbox.exec(["echo", "a"])).stdout == "a\\n"

@pytest.mark.asyncio
async def test_left_running(sandbox):
    process = sandbox.exec(["sh", "-c", "echo up; exec sleep $0", os.environ["MARKER"]])
    assert await anext(process.stdout) == "up\\n"

@pytest.mark.asyncio(loop_scope="module")
async def test_session(session):
    assert (await session.sandbox().exec(["echo", "b"])).stdout == "b\\n"

@pytest.mark.asyncio(loop_scope="module")
async def test_session_again(session):
    assert session.sandbox_count == 1
    assert (await session.sandbox().exec(["echo", "c"])).stdout == "c\\n"
"""

TRIO = """
import os
import pytest
from cwsandbox import Sandbox, Session

@pytest.fixture
async def sandbox():
    async with Sandbox() as sandbox:
        yield sandbox

@pytest.fixture
async def session():
    async with Session() as session:
        yield session

async def test_sandbox(sandbox):
    assert (await sandbox.exec(["echo", "a"])).stdout == "a\\n"

async def test_left_running(sandbox):
    process = sandbox.exec(["sh", "-c", "echo up; exec sleep $0", os.environ["MARKER"]])
    assert await anext(process.stdout) == "up\\n"

async def test_session(session):
    assert (await session.sandbox().exec(["echo", "b"])).stdout == "b\\n"

async def test_both(session, sandbox):
    assert (await session.sandbox().exec(["echo", "c"])).stdout == "c\\n"
    assert (await sandbox.exec(["echo", "d"])).stdout == "d\\n"
"""

ANYIO = """
import os
import pytest
from cwsandbox import Sandbox, Session

pytestmark = pytest.mark.anyio

@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param

@pytest.fixture
async def sandbox(anyio_backend):
    async with Sandbox() as sandbox:
        yield sandbox

@pytest.fixture(scope="module")
async def session(anyio_backend):
    async with Session() as session:
        yield session

async def test_sandbox(sandbox):
    assert (await sandbox.exec(["echo", "a"])).stdout == "a\\n"

async def test_left_running(session):
    process = session.sandbox().exec(["sh", "-c", "echo up; exec sleep $0", os.environ["MARKER"]])
    assert await anext(process.stdout) == "up\\n"

async def test_session(session):
    assert (await session.sandbox().exec(["echo", "b"])).stdout == "b\\n"
"""


@pytest.mark.parametrize(
    ("program", "options", "count"),
    [
        pytest.param(
            ASYNCIO,
            [
                "-p",
                "no:trio",
                "-p",
                "no:anyio",
                "-o",
                "asyncio_mode=strict",
                "-o",
                "asyncio_default_fixture_loop_scope=function",
            ],
            4,
            id="pytest-asyncio",
        ),
        pytest.param(TRIO, ["-p", "no:asyncio", "-p", "no:anyio", "-o", "trio_mode=true"], 4, id="pytest-trio"),
        pytest.param(ANYIO, ["-p", "no:asyncio", "-p", "no:trio"], 6, id="anyio"),
    ],
)
def test_scopes_are_left_in_another_task(
    home_folder: object, tmp_path: Path, program: str, options: list[str], count: int
) -> None:
    marker = new_marker()
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (tmp_path / "test_program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "MARKER": marker},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} passed" in done.stdout
    assert_gone(marker)


async def test_enter_and_leave_in_different_tasks(home_folder: object) -> None:
    import anyio

    from cwsandbox import Sandbox

    sandbox = Sandbox()

    async def enter() -> None:
        await sandbox.__aenter__()

    async def leave() -> None:
        await sandbox.__aexit__(None, None, None)

    for step in (enter, leave):
        async with anyio.create_task_group() as group:
            group.start_soon(step)
    assert sandbox.status in {"completed", "failed", "terminated"}


async def test_a_generator_with_a_scope_may_be_dropped(home_folder: object) -> None:
    import anyio

    from cwsandbox import Sandbox, Session

    async with Session() as session:
        sandbox: Sandbox = session.sandbox()
        with anyio.move_on_after(0.2) as scope:
            async for _ in sandbox.exec(["sh", "-c", "echo one; sleep 60"]).stdout:
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert (await sandbox.exec(["echo", "goes on"])).stdout == "goes on\n"
