"""What tests of the surface start from."""

from __future__ import annotations

import gc
import warnings
from typing import TYPE_CHECKING

import pytest

from cwsandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def at_home(home_folder: Path) -> None:
    """No test of these uses another gateway by accident."""


@pytest.fixture
def never_stopped(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """For tests whose sandboxes cannot be stopped through their own handles: these go without the warning about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* was never stopped", ResourceWarning)
        yield
        caplog.get_records("call").clear()  # What was logged about them holds them.
        gc.collect()


@pytest.fixture
def sb(home_folder: Path) -> Iterator[Sandbox]:
    """A running sandbox of the sync face."""
    with Sandbox.run() as sandbox:
        yield sandbox.wait()


@pytest.fixture
async def asb(home_folder: Path) -> AsyncIterator[Sandbox]:
    """A running sandbox in a scope on the test's own loop."""
    async with Sandbox() as sandbox:
        yield await sandbox
