"""What all tests share: the event loops they run on, the markers, and the gateway of the run."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

# Here, not in the folders that use them: one worker runs tests of several folders in any order, and in each it has to be
# the same gateway.
from tests.support.home import gateway as gateway  # noqa: PLC0414 - fixtures, passed on
from tests.support.home import home_folder as home_folder  # noqa: PLC0414
from tests.support.home import runner_state as runner_state  # noqa: PLC0414
from tests.support.levels import NAMESPACES, tidied

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """One at a time where there are no namespaces: sandboxes share one file system there, whatever test they are of."""
    if not NAMESPACES and getattr(config.option, "numprocesses", None):
        config.option.numprocesses = 0
        config.option.dist = "no"


def pytest_configure(config: pytest.Config) -> None:
    # A run in the background of a shell script starts with these ignored, and what tests signal would inherit that.
    for ignored in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(ignored) is signal.SIG_IGN:
            signal.signal(ignored, signal.default_int_handler if ignored is signal.SIGINT else signal.SIG_DFL)
    config.addinivalue_line("markers", "row(*ids): the rows of the behaviour checklist that the test holds.")
    config.addinivalue_line("markers", "slow: takes more than about five seconds; left out by `-m 'not slow'`.")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every async test runs on both loops."""
    return str(request.param)


@pytest.fixture(autouse=not NAMESPACES)
def tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests name fixed files; without namespaces the next one's sandboxes would find them."""
    with tidied(request.path):
        yield
