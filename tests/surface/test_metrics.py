"""What a session counts and where it logs it (S101 to S107), with the real wandb in a program of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from cwsandbox import Sandbox, SandboxExecutionError, SandboxTimeoutError, Session
from cwsandbox._metrics import Metrics
from tests.support.processes import GONE_SECONDS, wait_ended

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAM = Path(__file__).with_name("wandb_program.py")
ZEROS = {
    "cwsandbox/sandboxes_created": 0,
    "cwsandbox/executions": 0,
    "cwsandbox/exec_completed_ok": 0,
    "cwsandbox/exec_completed_nonzero": 0,
    "cwsandbox/exec_failures": 0,
}


def counts(session: Session) -> dict[str, Any]:
    """Without the prefix, and without zeros."""
    return {name.removeprefix("cwsandbox/"): value for name, value in session.get_metrics().items() if value}


def wandb_processes(folder: Path) -> list[int]:
    """wandb's own processes that were told of the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            argv = (entry / "cmdline").read_bytes()
            if b"wandb" in argv and os.fsencode(folder) in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


class FakeRun:
    """A run that refuses, for faults that the real one cannot be made to have on time."""

    step = 0

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def log(self, values: dict[str, Any], **options: Any) -> None:
        self.calls.append((values, options))
        if self.error is not None:
            raise self.error


@pytest.fixture
def run_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Sets the active run of a module called wandb."""
    module = type(sys)("wandb")
    monkeypatch.setitem(sys.modules, "wandb", module)

    def set_run(run: FakeRun | None) -> FakeRun | None:
        module.run = run  # type: ignore[attr-defined]
        return run

    return set_run


@pytest.mark.row("S101", "S102", "S103", "S104", "S105")
@pytest.mark.parametrize("mode", ["sync", "asyncio", "trio"])
def test_s101_to_s105_a_real_run_gets_the_rows(home_folder: Path, tmp_path: Path, mode: str) -> None:
    wandb = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    folders = {f"WANDB_{name}_DIR": str(tmp_path) for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT")}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), mode],
        env={**os.environ, **wandb, **folders, "WANDB_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    seen, rows = told["seen"], told["rows"]
    assert seen == {
        "without a run": False,
        "logged": [True, False],  # Nothing had happened since.
        "kept": [True, True],
        "unread": "<class 'cwsandbox.exceptions.SandboxNotRunningError'>",
        "refused": [False, 1],
    }
    names = ("sandboxes_created", "executions", "exec_completed_ok", "exec_completed_nonzero", "exec_failures")
    assert [[row["_step"], *(row[f"cwsandbox/{name}"] for name in names)] for row in rows] == [
        [0, 1, 1, 1, 0, 0],  # What happened before the run began is not lost.
        [1, 0, 1, 0, 1, 0],
        [2, 0, 1, 0, 1, 0],  # reset=False kept it.
        [3, 1, 1, 0, 0, 1],  # Logged on close, after the command that the close ended.
        [9, 1, 0, 0, 0, 0],
    ]
    assert rows[0]["cwsandbox/startup_count"] == 1
    assert 0 < rows[0]["cwsandbox/avg_startup_seconds"] < 60
    assert "cwsandbox/startup_count" not in rows[1]
    deadline = time.monotonic() + GONE_SECONDS
    assert [pid for pid in wandb_processes(tmp_path) if not wait_ended(pid, deadline)] == []


@pytest.mark.row("S102", "S106")
def test_s102_s106_without_a_reporter_there_is_nothing() -> None:
    with Session(report_to=[]) as session:
        session.sandbox()
        assert session.get_metrics() == {}
        assert session.log_metrics() is False


@pytest.mark.row("S102")
def test_s102_without_a_run_nothing_is_logged_and_wandb_not_imported() -> None:
    before = "wandb" in sys.modules
    with Session() as session:
        session.sandbox()
        assert session.log_metrics(step=3) is False
        assert counts(session) == {"sandboxes_created": 1}
    assert ("wandb" in sys.modules) is before


@pytest.mark.row("S106")
def test_s106_a_new_session_has_the_five_zeros() -> None:
    for report_to in (None, ["wandb"]):
        with Session(report_to=report_to) as session:
            assert session.get_metrics() == ZEROS


def test_report_to_says_what_it_ignores(caplog: pytest.LogCaptureFixture) -> None:
    with Session(report_to=["wandb", "tensorboard"]) as session:
        assert session.get_metrics() == ZEROS
    assert "'tensorboard' ignored" in caplog.text
    with Session(report_to=["mlflow"]) as session:
        assert session.get_metrics() == {}
    assert "'mlflow' ignored" in caplog.text
    caplog.clear()
    with Session(report_to=["wandb"]), Session(report_to=[]):
        pass
    assert not caplog.records
    with pytest.raises(TypeError, match="report_to"):
        Session(report_to="wandb")


@pytest.mark.row("S101", "S103", "S104")
def test_s103_a_failed_log_keeps_the_counts(run_of: Callable[..., FakeRun], caplog: pytest.LogCaptureFixture) -> None:
    run = run_of(FakeRun(OSError("no disk")))
    with Session() as session:
        session.sandbox()
        assert session.log_metrics(step=1) is False
        assert "no disk" in caplog.text
        assert counts(session) == {"sandboxes_created": 1}
        run.error = None
        assert session.log_metrics(step=2, reset=False) is True
        assert counts(session) == {"sandboxes_created": 1}
        assert session.log_metrics(step=3) is True
        assert session.get_metrics() == ZEROS
        assert session.log_metrics() is False
        with pytest.raises(TypeError):
            session.log_metrics("4")  # type: ignore[arg-type]
    assert [options for _, options in run.calls] == [{"step": 1}, {"step": 2}, {"step": 3}]


@pytest.mark.row("S105")
def test_s105_closing_logs_once_more_and_a_refusal_is_only_logged(
    run_of: Callable[..., FakeRun], caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of(None)
    with Session() as session:
        session.sandbox()
        assert session.log_metrics() is False
        run = run_of(FakeRun())
    assert [(values["cwsandbox/sandboxes_created"], options) for values, options in run.calls] == [(1, {})]
    run_of(FakeRun(RuntimeError("refused")))
    with Session() as session:
        session.sandbox()
    assert "refused" in caplog.text


def test_the_first_run_found_is_kept(run_of: Callable[..., FakeRun]) -> None:
    first = run_of(FakeRun())
    with Session() as session:
        session.sandbox()
        assert session.log_metrics()
        second = run_of(FakeRun())
        session.sandbox()
    assert (len(first.calls), len(second.calls)) == (2, 0)


@pytest.mark.row("S107")
def test_s107_every_command_counts_once_however_it_ends(home_folder: Path) -> None:
    with Session() as session:
        sandbox, other = session.sandbox(), session.sandbox()
        for expected in (1, 2):
            sandbox.exec(["true"]).result()
            assert counts(session)["executions"] == expected  # Counted before result() returns.
        assert list(sandbox.exec(["echo", "streamed"]).stdout) == ["streamed\n"]
        assert other.shell(["sh", "-c", "exit 3"]).result().returncode == 3
        with pytest.raises(SandboxExecutionError):
            sandbox.exec(["false"], check=True).result()
        with pytest.raises(SandboxTimeoutError):
            sandbox.exec(["sleep", "1000"], timeout_seconds=0.1).result()
        killed = sandbox.exec(["sleep", "1000"])
        killed.cancel()
        killed._latch.wait_blocking()
        found = counts(session)
        startups = [found.pop(name) for name in list(found) if "startup_seconds" in name]
        assert len(startups) == 3
        assert min(startups) > 0
        assert found == {
            "sandboxes_created": 2,
            "executions": 7,
            "exec_completed_ok": 3,
            "exec_completed_nonzero": 1,
            "exec_failures": 3,
            "exec_completion_rate": 3 / 7,
            "exec_failure_rate": 3 / 7,
            "startup_count": 2,
            "avg_execs_per_sandbox": 3.5,
            "min_execs_per_sandbox": 1,
            "max_execs_per_sandbox": 6,
        }


@pytest.mark.row("S107")
def test_s107_a_remote_function_counts_its_sandbox_and_its_command(home_folder: Path) -> None:
    with Session() as session:

        @session.function()
        def add(x: int, y: int) -> int:
            return x + y

        assert add.remote(2, 3).result() == 5
        found = counts(session)
        assert [found[name] for name in ("sandboxes_created", "exec_completed_ok", "startup_count")] == [1, 1, 1]


@pytest.mark.row("S107")
async def test_s107_every_command_counts_once_async(home_folder: Path) -> None:
    async with Session() as session:
        sandbox = session.sandbox()
        async with anyio.create_task_group() as tasks:
            for argv in (["true"], ["false"], ["true"]):
                tasks.start_soon(sandbox.exec(argv)._wait)
        with anyio.move_on_after(0.1):
            await sandbox.exec(["sleep", "1000"])
        found = counts(session)
        assert [found[name] for name in ("executions", "exec_completed_ok", "exec_failures")] == [4, 2, 1]
        assert found["max_execs_per_sandbox"] == 4


@pytest.mark.row("S107")
def test_s107_adopted_sandboxes_count_for_the_session_that_has_them(home_folder: Path) -> None:
    with Sandbox.run() as sandbox, Session() as first, Session() as second:
        sandbox.exec(["true"]).result()
        first.adopt(sandbox)
        sandbox.exec(["true"]).result()
        second.adopt(sandbox)
        sandbox.exec(["false"]).result()
        assert (first.sandbox_count, second.sandbox_count) == (0, 1)
        found = counts(first)
        assert (found["executions"], found["exec_completed_ok"]) == (1, 1)
        assert "sandboxes_created" not in found
        assert counts(second)["exec_completed_nonzero"] == 1
        attached = second.from_id(str(sandbox.sandbox_id)).result()
        attached.exec(["true"]).result()
        assert counts(second)["executions"] == 2
        assert "startup_count" not in counts(second)


def test_threads_lose_nothing_to_a_report() -> None:
    metrics = Metrics()
    reported: list[int] = []

    def work(number: int) -> None:
        for _ in range(500):
            metrics.exec_ended(number, "exec_completed_ok")

    def send(values: dict[str, Any]) -> bool:
        worked = len(reported) % 2 == 0
        reported.append(values["cwsandbox/executions"] if worked else 0)
        return worked

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        metrics.report(send, reset=True)
    assert sum(reported) + metrics.values()["cwsandbox/executions"] == 2000
