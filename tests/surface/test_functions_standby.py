"""Standby sandboxes of remote functions: ready, used once, replaced, stopped; and what a hostile sandbox may answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cwsandbox import (
    FunctionSerializationError,
    SandboxCommandTimeoutError,
    SandboxExecutionError,
    Serialization,
    Session,
)
from cwsandbox._function import payload
from cwsandbox._function.payload import BadResultError, Failure, read_result
from cwsandbox._operate import operate

if TYPE_CHECKING:
    from cwsandbox.function import RemoteFunction
    from tests.support.gateway import ServedGateway


def mark() -> list[str]:
    """What this sandbox has seen before."""
    import pathlib

    seen = sorted(path.name for path in pathlib.Path.home().glob("used"))
    pathlib.Path.home().joinpath("used").touch()
    return seen


def waiting(function: RemoteFunction[Any, Any]) -> list[str]:
    return [str(worker._sandbox.sandbox_id) for worker in function._standby._workers]


def test_each_standby_sandbox_serves_exactly_one_call(gateway: ServedGateway) -> None:
    with Session({"base_url": gateway.url}) as session:
        remote = session.function(standby=2)(mark)
        remote.prepare().result()
        assert session.sandbox_count == 2
        first = waiting(remote)
        assert [remote.remote().result() for _ in range(3)] == [[], [], []]
        remote.prepare().result()
        assert not set(first) & set(waiting(remote))
        assert gateway.count("create") == 5
        assert session.sandbox_count == 2
    assert gateway.count("stop") == 5


async def test_standby_sandboxes_end_with_an_async_session(gateway: ServedGateway) -> None:
    async with Session({"base_url": gateway.url}) as session:
        remote = session.function(standby=1)(mark)
        await remote.prepare()
        assert await remote.remote() == []
        assert [await ref for ref in remote.map([()] * 3)] == [[], [], []]
        await remote.prepare()
        assert session.sandbox_count == 1
    assert gateway.count("stop") == gateway.count("create")


def test_nothing_is_kept_unless_asked_for(gateway: ServedGateway) -> None:
    with Session({"base_url": gateway.url}) as session:
        remote = session.function()(mark)
        remote.prepare().result()
        assert gateway.count("create") == 0
        assert remote.remote().result() == []
        assert session.sandbox_count == 0


def test_changed_options_replace_standby_sandboxes(home_folder: object) -> None:
    environment = {"X": "1"}

    def read() -> str:
        import os

        return os.environ["X"]

    with Session() as session:
        remote = session.function(standby=1, environment_variables=environment)(read)
        remote.prepare().result()
        environment["X"] = "2"
        assert remote.remote().result() == "2"


def test_a_dead_standby_interpreter_is_not_used(home_folder: object) -> None:
    with Session() as session:
        remote = session.function(standby=1)(mark)
        remote.prepare().result()
        [worker] = remote._standby._workers
        worker._process.kill()
        worker._process.wait(20)
        assert remote.remote().result() == []
        assert worker not in remote._standby._workers


def test_an_old_standby_sandbox_is_not_used_when_lifetimes_are_limited(home_folder: object) -> None:
    with Session({"max_lifetime_seconds": 60}) as session:
        remote = session.function(standby=1)(mark)
        remote.prepare().result()
        [worker] = remote._standby._workers
        worker.made_at -= 31
        assert remote.remote().result() == []
        assert worker not in remote._standby._workers


def test_the_limit_of_a_call_does_not_run_while_standing_by(home_folder: object) -> None:
    def slow() -> None:
        import time

        time.sleep(60)

    with Session() as session:
        remote = session.function(standby=1, request_timeout_seconds=1.5)(slow)
        remote.prepare().result()
        [worker] = remote._standby._workers
        with pytest.raises(TimeoutError):
            worker._process.wait(1.7)
        with pytest.raises(SandboxCommandTimeoutError, match="slow"):
            remote.remote().result()


def test_standby_interpreters_have_imported_what_the_function_uses(home_folder: object) -> None:
    import decimal

    def imported() -> str:
        return str(decimal.Decimal(1))

    with Session() as session:
        remote = session.function(standby=1)(imported)
        assert remote._snapshot().imports() == ("decimal",)
        assert [remote.remote().result() for _ in range(3)] == ["1"] * 3


# ------------------------------------------------------------------------------------------------------ hostile answers


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json\n1",
        b"[]\n1",
        b'{"ok": 1}\n1',
        b'{"ok": true}',
        b'{"ok": true}\n' + b"[" * 200_000,
        b'{"ok": true}\n' + b"9" * 5000,
        b'{"ok": true}\ncos\nsystem\n(S"exit"\ntR.',
        b'{"ok": false, "stage": "call", "type": 1, "message": "", "traceback": ""}\n',
        b'{"ok": false, "stage": [], "type": "", "message": "", "traceback": ""}\n',
        b'{"ok": false}\n',
        b"\xff\xfe\n",
    ],
    ids=range(12),
)
def test_an_answer_that_is_no_result_is_refused(data: bytes) -> None:
    with pytest.raises(BadResultError):
        read_result(data, use_pickle=False)


def test_reports_are_cut_to_a_bearable_length() -> None:
    report = '{"ok": false, "stage": "call", "type": "%s", "message": "%s", "traceback": "%s"}' % (("x" * 10**6,) * 3)
    failure = read_result(report.encode(), use_pickle=False)
    assert isinstance(failure, Failure)
    assert len(failure.type) + len(failure.message) + len(failure.traceback) < 150_000


def forge(text: str) -> None:
    """Take the driver's place, and answer with something else."""
    import glob
    import os
    import sys

    main = sys._getframe(2).f_globals
    main["write_result"] = lambda path, head, body: None
    frame: Any = sys._getframe()
    while "payload" not in frame.f_locals:
        frame = frame.f_back
    path = frame.f_locals["payload"]["result"]
    assert not glob.glob(path)
    with open(path, "wb") as file:
        file.write(eval(text))
    os._exit(0)


def test_no_result_file_is_left_and_nobody_else_could_read_it(home_folder: object) -> None:
    def folder() -> str:
        import os

        return f"{os.getpid()}"

    with Session() as session:
        remote = session.function(temp_dir="/srv/results")(folder)
        worker = remote._standby.take({}, ())
        snapshot = remote._snapshot()
        payload_bytes = snapshot.payload(snapshot.arguments((), {}), "/srv/results/one")
        process = worker._process
        assert process.stdin is not None
        process.stdin.write(payload_bytes)
        process.stdin.close()
        assert process.wait() == 0
        stat = worker._sandbox.exec(["stat", "-c", "%a", "/srv/results/one"]).result()
        assert stat.stdout == "600\n"

        taken = operate(session._operations_scope, worker._take, "/srv/results/one", name="take").result()
        assert taken is not None
        assert read_result(taken, use_pickle=False).isdigit()
        assert worker._sandbox.exec(["ls", "-A", "/srv/results"]).result().stdout == ""


def test_json_results_are_never_unpickled(home_folder: object) -> None:
    with Session() as session:
        remote = session.function()(forge)
        with pytest.raises(SandboxExecutionError, match="broken"):
            remote.remote(r"""b'{"ok": true, "pickle": true}\n' + __import__("pickle").dumps(1)""").result()


def test_a_pickle_that_does_not_load_is_a_serialization_error(home_folder: object) -> None:
    with Session() as session:
        remote = session.function(serialization=Serialization.PICKLE)(forge)
        with pytest.raises(FunctionSerializationError, match="unpickled"):
            remote.remote(r"""b'{"ok": true}\n' + b'garbage'""").result()
        with pytest.raises(FunctionSerializationError, match="SystemExit: 7"):
            remote.remote(r"""b'{"ok": true}\n' + b'csys\nexit\n(I7\ntR.'""").result()


async def test_a_result_that_is_too_large_is_refused(home_folder: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from cwsandbox._function import worker

    monkeypatch.setattr(worker, "MAX_RESULT_BYTES", 3_000_000)
    async with Session() as session:
        remote = session.function()(lambda size: "x" * size)
        assert len(await remote.remote(2_900_000)) == 2_900_000
        with pytest.raises(SandboxExecutionError, match="larger than 3000000 bytes"):
            await remote.remote(3_000_000)
    assert payload.MAX_RESULT_BYTES > 3_000_000
