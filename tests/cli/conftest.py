"""The command line as a user has it: processes, against one embedded gateway for the whole run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.support import cws
from tests.surface.conftest import gateway as gateway  # noqa: PLC0414 - fixtures, passed on
from tests.surface.conftest import home_folder as home_folder  # noqa: PLC0414
from tests.surface.conftest import runner_state as runner_state  # noqa: PLC0414

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def kept(home_folder: object) -> Iterator[str]:
    """The id of a sandbox to run commands in."""
    sandbox_id = cws("run", "--detach", "--tag", "kept").stdout.decode().strip()
    yield sandbox_id
    assert cws("rm", sandbox_id).returncode == 0
