"""Fixtures of the runner tests."""

from __future__ import annotations

import resource
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cwsandbox.runners.local.runner import LocalRunner
from cwsandbox.runners.specs import BoxSpec, FileMount
from tests.runners.support import read_until, shell

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import Any

    from cwsandbox.runners.local.box import LocalBox
    from tests.runners.support import MakeRunner

MAIN = ("sh", "-c", "trap 'echo main ended; exit 42' TERM; echo ready; while :; do sleep 0.05; done")


@pytest.fixture(scope="session", autouse=True)
def many_descriptors() -> Iterator[None]:
    """As the gateway raises its own limit, whose part the tests play."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="session")
def state_dir() -> Iterator[Path]:
    """One state folder for all tests, so that the image's template is made once."""
    folder = Path(tempfile.mkdtemp(prefix="cwsandbox-runner-"))
    yield folder / "state"
    shutil.rmtree(folder)


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cwsandbox-run-") as folder:
        yield Path(folder)


@pytest.fixture
def make_runner(state_dir: Path, runtime_dir: Path) -> MakeRunner:
    """A runner at the level this run is about, with folders of its own."""

    def make(**options: Any) -> LocalRunner:
        options.setdefault("orphan_grace_seconds", 10)
        return LocalRunner(state_dir, runtime_dir, **options)

    return make


@pytest.fixture
async def runner(make_runner: MakeRunner) -> AsyncIterator[LocalRunner]:
    async with make_runner() as runner:
        yield runner


def box_spec(**options: Any) -> BoxSpec:
    options.setdefault("argv", MAIN)
    return BoxSpec("sandbox-1", **options)


@pytest.fixture
async def box(runner: LocalRunner) -> AsyncIterator[LocalBox]:
    spec = box_spec(
        env={"FROM_BOX": "x", "ALSO_FROM_BOX": "kept"},
        files=(FileMount("/tmp/mounted/deep.txt", b"mounted content"),),
    )
    box = await runner.create(spec)
    await read_until(box.main.stdout, b"ready\n")
    yield box
    await box.stop(0)
    box.main.forget()


@pytest.fixture
async def home(box: LocalBox) -> str:
    """The box's home: a folder that is its own also where `/tmp` is everybody's."""
    return (await shell(box, "printf %s $HOME")).text
