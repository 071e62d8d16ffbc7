"""The driver in other Pythons: source text runs in any of them, bytecode only in the caller's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

from cwsandbox._function import driver, standin
from cwsandbox._function.payload import Failure, Snapshot, read_result

VERSIONS = ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14"]
T = TypeVar("T")
FACTOR = 3


class Pair(Generic[T]):
    def __init__(self, left: T, right: T) -> None:
        self.both = [left, right]


DEFAULT = Pair(1, 2)


def interpreter(version: str) -> list[str]:
    command = [f"python{version}"]
    try:
        subprocess.run([*command, "-c", ""], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"there is no {command[0]} here")
    return command


def run_driver(command: list[str], snapshot: Snapshot, arguments: bytes, folder: Path) -> Any:
    result = folder / "made by the driver" / "result"
    done = subprocess.run(
        [*command, "-c", Path(driver.__file__).read_text()],
        input=snapshot.payload(arguments, str(result)),
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stderr
    return read_result(result.read_bytes(), use_pickle=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_source_runs_in_every_python(version: str, tmp_path: Path) -> None:
    captured = [5]

    def first() -> int:
        return captured[0]

    def function(number: int, *, more: Any = DEFAULT) -> list[Any]:
        return [number * FACTOR, more.both, captured, Pair(3, 4), first()]

    snapshot = Snapshot(function, use_pickle=True)
    value = run_driver(interpreter(version), snapshot, snapshot.arguments((2,), {}), tmp_path)
    pair = value.pop(3)
    assert (type(pair), pair.both) == (Pair, [3, 4])
    assert value == [6, [1, 2], [5], 5]


@pytest.mark.parametrize("version", VERSIONS)
def test_bytecode_runs_in_the_same_python_only(version: str, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec("def without_source(n): return n + 1", names)
    snapshot = Snapshot(names["without_source"], use_pickle=True)
    value = run_driver(interpreter(version), snapshot, snapshot.arguments((2,), {}), tmp_path)
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        assert value == 3
    else:
        assert isinstance(value, Failure)
        assert value.python == version


def test_an_interpreter_that_is_given_up_ends_quietly() -> None:
    text = Path(driver.__file__).read_text()
    done = subprocess.run(
        [sys.executable, "-c", text, "no_such_module", "json"], input=b"", capture_output=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


USES_THE_STAND_IN = """
from cwsandbox import SandboxDefaults, SandboxError, Serialization, Session, results
class OurError(SandboxError): pass
with Session(SandboxDefaults(tags=("ours",))) as session:
    @session.function(serialization=Serialization.PICKLE)
    def function(): return 1
assert function() == function.local() == 1
try:
    raise OurError("is one")
except Exception as error:
    print(error)
for call in (lambda: results([]), lambda: session.sandbox().exec(["true"]), lambda: Session.list()):
    try:
        call()
    except ModuleNotFoundError as error:
        print(error)
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_the_stand_in_for_cwsandbox_runs_in_every_python(version: str, tmp_path: Path) -> None:
    (tmp_path / "cwsandbox.py").write_text(Path(standin.__file__).read_text())
    command = [*interpreter(version), "-W", "error", "-c", USES_THE_STAND_IN]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False)
    refused = [
        f"cwsandbox.{name}() cannot be called here: the sandbox's Python has no cwsandbox"
        for name in ("results", "Session.sandbox", "Session.list")
    ]
    assert (done.stdout.splitlines(), done.stderr) == (["is one", *refused], "")
