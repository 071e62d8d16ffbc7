"""Rows of the checklist that other modules hold for sync code: awaited, on asyncio and on trio, in scopes of the test's loop."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from cwsandbox import OperationRef, Sandbox, SandboxStatus, Session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def own(home_folder: object) -> AsyncIterator[Session]:
    """A session on the test's own loop, with a tag of its own."""
    async with Session({"tags": [uuid.uuid4().hex]}) as session:
        yield session


@pytest.mark.row("S39", "S42", "FIX-A")
async def test_a_command_without_arguments_runs_to_its_end(own: Session) -> None:
    sandbox = own.sandbox(command="true")
    assert await sandbox.wait_until_complete() is sandbox
    assert sandbox.returncode == 0


@pytest.mark.row("S60", "S63", "S66", "FIX-N")
async def test_sorted_lines(asb: Sandbox) -> None:
    process = asb.exec(["sort"], stdin=True)
    assert process.stdin is not None
    with pytest.raises(TypeError):
        process.stdin.write("text")  # type: ignore[arg-type]
    for word in ("pear", "apple", "fig"):
        ref = process.stdin.writeline(word)
        assert isinstance(ref, OperationRef)
        await ref
    await process.stdin.close()
    assert (await process).stdout == "apple\nfig\npear\n"


@pytest.mark.row("S64")
async def test_an_interactive_python(asb: Sandbox) -> None:
    process = asb.exec(["python3"], stdin=True)
    assert process.stdin is not None
    await process.stdin.writeline("answer = 6 * 7")
    await process.stdin.writeline("print('answer:', answer)")
    await process.stdin.close()
    assert (await process).stdout == "answer: 42\n"


@pytest.mark.row("S90", "S94", "S100")
async def test_a_function_called_here_makes_no_sandbox(own: Session) -> None:
    @own.function()
    def doubled(values: list[int]) -> list[int]:
        return [2 * value for value in values]

    assert doubled.local([1, 2]) == [2, 4]
    assert own.sandbox_count == 0
    own.sandbox()
    own.sandbox()
    assert own.sandbox_count == 2
    assert await doubled.remote((1, 2)) == [2, 4]  # type: ignore[arg-type]


@pytest.mark.row("S102", "S106")
async def test_counts_without_a_run_are_kept(own: Session) -> None:
    sandbox = own.sandbox()
    await sandbox.exec(["true"])
    await sandbox.exec(["false"])
    assert own.log_metrics(step=1) is False
    metrics = own.get_metrics()
    assert (metrics["cwsandbox/executions"], metrics["cwsandbox/exec_completed_nonzero"]) == (2, 1)
    async with Session(report_to=[]) as silent:
        assert silent.get_metrics() == {}


@pytest.mark.row("S130", "FIX-G")
async def test_statuses_up_to_the_end_of_the_session(own: Session) -> None:
    sandbox, cancelled = own.sandbox(), own.sandbox()
    seen = [sandbox.status]
    await sandbox.start()
    seen.append(sandbox.status)
    await sandbox
    seen.append(sandbox.status)
    await cancelled.stop()
    assert own.sandbox_count == 1
    await own.close()
    assert own.sandbox_count == 0
    assert seen == [None, SandboxStatus.PENDING, SandboxStatus.RUNNING]
    assert sandbox.status is not None
    assert sandbox.status.is_terminal


@pytest.mark.row("S118", "S119", "S120")
async def test_listings_have_the_sessions_tags_and_ended_sandboxes_when_asked(own: Session) -> None:
    running, ended = own.sandbox(), own.sandbox(command="true")
    other = own.sandbox(tags=["other"])
    await running
    await other
    await ended.wait_until_complete()

    async def ids(**filters: object) -> set[str | None]:
        return {sandbox.sandbox_id for sandbox in await own.list(**filters)}  # type: ignore[arg-type]

    assert await ids() == {running.sandbox_id, other.sandbox_id}
    assert await ids(tags=["other"]) == {other.sandbox_id}
    assert await ids(include_stopped=True) == {running.sandbox_id, other.sandbox_id, ended.sandbox_id}
    assert await ids(status="completed") == {ended.sandbox_id}


@pytest.mark.row("S122", "S124")
async def test_attaching_without_adopting(own: Session) -> None:
    with pytest.raises(ValueError, match="no id"):
        own.adopt(Sandbox())
    async with Sandbox() as sandbox:
        assert sandbox.sandbox_id is not None
        async with Session() as session:
            found = await session.from_id(sandbox.sandbox_id, adopt=False)
            assert session.sandbox_count == 0
            assert (await found.exec(["echo", "a"])).stdout == "a\n"
        assert (await sandbox.exec(["echo", "b"])).stdout == "b\n"
