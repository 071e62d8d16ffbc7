"""One embedded gateway of our own for all tests of a run, and proof at the end that it left nothing behind."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cwsandbox import _exit
from tests.support.gateway import ServedGateway, served_gateway
from tests.support.leftovers import gateway_processes, shut_down_and_look

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIGURATION = """
[runner]
group_id = "tests"

[profiles.small]
egress_modes = ["isolated"]
service_exposure_modes = []
max_lifetime_seconds = 600
limits = { memory = "64Mi", processes = 40 }
"""
OUTSIDE_SETTINGS = ("CWSANDBOX_BASE_URL", "CWSANDBOX_API_KEY", "WANDB_API_KEY", "WANDB_ENTITY_NAME")


@pytest.fixture(scope="session")
def home_folder() -> Iterator[Path]:
    """A short-named folder that holds the run's runtime and state folders; at the end nothing else may be left."""
    base = Path(tempfile.mkdtemp(prefix="cws", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        for name in OUTSIDE_SETTINGS:
            patch.delenv(name, raising=False)
        (base / "gateway.toml").write_text(CONFIGURATION)
        patch.setenv("CWSANDBOX_CONFIG", str(base / "gateway.toml"))
        for name, folder in (("CWSANDBOX_RUNTIME_DIR", base / "run"), ("CWSANDBOX_STATE_DIR", base / "state")):
            folder.mkdir(mode=0o700)
            patch.setenv(name, str(folder))
        yield base
        (base / "gateway.toml").unlink()
        # At the end of the program these would be stopped, by a gateway started for that.
        left = [f"held to the end: {core!r}" for core in _exit._held] + shut_down_and_look(base)
    shutil.rmtree(base)
    assert left == [], "\n".join(left)


@pytest.fixture(scope="session")
def runner_state() -> Iterator[Path]:
    """The runner's folder for gateways of the tests' own, which follow each other; no box may be left in it."""
    folder = Path(tempfile.mkdtemp(prefix="cws", dir="/tmp"))
    yield folder
    left = [*folder.glob("boxes/*"), *gateway_processes(folder)]
    shutil.rmtree(folder)
    assert left == []


@pytest.fixture
def gateway(runner_state: Path) -> Iterator[ServedGateway]:
    """A gateway of the test's own, with doors to shut."""
    with served_gateway(runner_state) as gateway:
        yield gateway
