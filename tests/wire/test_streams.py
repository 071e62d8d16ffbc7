from __future__ import annotations

import json
import os
from datetime import UTC, datetime

import pytest

from cwsandbox.wire.codec import Int64, PosixPath
from cwsandbox.wire.errors import WireError
from cwsandbox.wire.streams import (
    ExecInfo,
    ExecOpen,
    FileAction,
    FileInfo,
    FilesOpen,
    LogsOpen,
    ReadInfo,
    ReadOpen,
    TerminalSize,
    WriteOpen,
)

OPENS = [
    ExecOpen(sandbox_id="s", argv=("true",)),
    ExecOpen(
        sandbox_id="s",
        argv=("sh", "-c", ""),
        cwd="/tmp",
        env={"A": "ä=b"},
        timeout_seconds=1.5,
        wait_seconds=0.0,
        stdin=True,
        terminal=TerminalSize(columns=1, rows=2),
        detach=True,
    ),
    ReadOpen(sandbox_id="s", path=PosixPath("a b")),
    WriteOpen(sandbox_id="s", path=PosixPath("/x"), size=2**40, timeout_seconds=3.0, wait_seconds=4.0),
    LogsOpen(sandbox_id="s", follow=True, tail_lines=0, since_time=datetime(2026, 1, 1, tzinfo=UTC), timestamps=True),
    ReadOpen(sandbox_id="s", path=PosixPath(os.fsdecode(b"/not-utf-8-\xff"))),
    FilesOpen(
        sandbox_id="s",
        action=FileAction.MOVE,
        path=PosixPath("/a"),
        target=PosixPath(os.fsdecode(b"/\xfe")),
        timeout_seconds=1.0,
    ),
    FilesOpen(sandbox_id="s", action=FileAction.GLOB, path=PosixPath("/a"), pattern=PosixPath("**"), wait_seconds=1.0),
    FilesOpen(sandbox_id="s", action=FileAction.MKDIR, path=PosixPath("/a"), parents=True, exist_ok=True, follow=False),
    FilesOpen(sandbox_id="s", action=FileAction.WATCH, path=PosixPath("/a"), recursive=True),
    FileInfo(mode=0o100644, size=Int64(2**60), mtime_ns=Int64(-1)),
    ExecInfo(pid=3),
    ReadInfo(size=4),
]


@pytest.mark.parametrize("model", OPENS, ids=lambda model: type(model).__name__)
def test_parameters_survive_the_way(model: ExecOpen) -> None:
    assert type(model).from_params(json.loads(json.dumps(model.to_params()))) == model


def test_the_names_are_camel_case() -> None:
    assert OPENS[1].to_params() == {
        "sandboxId": "s",
        "argv": ["sh", "-c", ""],
        "cwd": "/tmp",
        "env": {"A": "ä=b"},
        "timeoutSeconds": 1.5,
        "waitSeconds": 0,
        "stdin": True,
        "terminal": {"columns": 1, "rows": 2},
        "detach": True,
    }


def test_environment_values_are_not_part_of_a_repr() -> None:
    assert "secret" not in repr(ExecOpen(sandbox_id="s", argv=("x",), env={"K": "secret"}))


@pytest.mark.parametrize(
    "change",
    [
        {"argv": []},
        {"argv": [""]},
        {"argv": ["a\0b"]},
        {"argv": "ls"},
        {"argv": None},
        {"cwd": "a\0"},
        {"env": {"": "x"}},
        {"env": {"A=B": "x"}},
        {"env": {"A": "x\0"}},
        {"timeoutSeconds": -1},
        {"timeoutSeconds": "1"},
        {"waitSeconds": -0.1},
        {"terminal": {"columns": -1}},
        {"terminal": {"columns": 65536}},
        {"terminal": True},
        {"stdin": 1},
        {"sandboxId": None},
        {"container": "main"},
    ],
)
def test_wrong_parameters_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(WireError):
        ExecOpen.from_params({"sandboxId": "s", "argv": ["x"], **change})


@pytest.mark.parametrize("path", ["", "a\0b", None])
def test_a_path_that_cannot_be_one_is_refused(path: str | None) -> None:
    for cls in (ReadOpen, WriteOpen):
        with pytest.raises(WireError):
            cls.from_params({"sandboxId": "s", "path": path})


@pytest.mark.parametrize(
    "change",
    [
        {"action": "burn"},
        {"action": None},
        {"action": "move"},
        {"target": "/b"},
        {"action": "glob"},
        {"pattern": "*"},
        {"path": ""},
        {"path": {"base64": "AA=="}},
        {"path": {"base64": "?"}},
        {"path": {"base64": "YQ==", "more": "YQ=="}},
        {"timeoutSeconds": -1},
        {"recursive": 1},
    ],
)
def test_a_wrong_file_operation_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(WireError):
        FilesOpen.from_params({"sandboxId": "s", "action": "stat", "path": "/a", **change})


def test_what_is_wrong_with_a_value_does_not_show_it() -> None:
    with pytest.raises(WireError) as caught:
        ExecOpen.from_params({"sandboxId": "s", "argv": ["x"], "env": {"KEY": "secret\0"}})
    assert "secret" not in str(caught.value)
