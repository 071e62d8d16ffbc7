"""The command line as a user has it: processes, against one embedded gateway for the whole run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.support import cws

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def at_home(home_folder: object) -> None:
    """No test of these uses another gateway by accident."""


@pytest.fixture(scope="module")
def kept(home_folder: object) -> Iterator[str]:
    """The id of a sandbox to run commands in."""
    sandbox_id = cws("run", "--detach", "--tag", "kept").stdout.decode().strip()
    yield sandbox_id
    assert cws("rm", sandbox_id).returncode == 0
