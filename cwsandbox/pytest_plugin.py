"""The pytest plugin: fixtures `session` and `sandbox`, and a check that no test leaves anything behind.

It is loaded by pytest wherever this package is installed, so it imports nothing of the package before one of its
fixtures is asked for. The fixtures are of the sync face: every operation can be asked with `.result()` and awaited from
any event loop, so that they serve plain tests and those of anyio's plugin, pytest-asyncio and pytest-trio alike.
"""

from __future__ import annotations

import os
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from cwsandbox._core import SandboxCore
    from cwsandbox._running import RunningCommand
    from cwsandbox.defaults import SandboxDefaults
    from cwsandbox.sandbox import Sandbox
    from cwsandbox.session import Session

__all__ = ["no_sandbox_leaks", "sandbox", "session"]

_ISOLATIONS = ("namespaces", "process")
_ISOLATION_VARIABLE = "CWSANDBOX_ISOLATION"
_FINISH_SECONDS = 1.0
"""How long a command that a test did not wait for may still take: shorter ones are not worth a failure."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The settings of a suite."""
    parser.addini("cwsandbox_image", "container image of the sandboxes that the fixtures make")
    parser.addini("cwsandbox_isolation", "isolation level of the embedded gateway: namespaces or process")


def pytest_configure(config: pytest.Config) -> None:
    """The marker that sets options for a test, a class or a module."""
    config.addinivalue_line(
        "markers",
        "cwsandbox(isolation=None, **defaults): what the `session` and `sandbox` fixtures make: fields of "
        "SandboxDefaults, and the isolation level without which the test must not run.",
    )


@pytest.fixture(scope="session")
def _embedded_isolation(pytestconfig: pytest.Config) -> Iterator[None]:
    """Choose the embedded gateway's isolation for the run; each level has a gateway of its own."""
    level = pytestconfig.getini("cwsandbox_isolation")
    if not level:
        yield
        return
    _check_isolation(level, "the ini option cwsandbox_isolation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_ISOLATION_VARIABLE, level)
        yield


@pytest.fixture
def no_sandbox_leaks(request: pytest.FixtureRequest, _embedded_isolation: None) -> None:
    """Fails a test that leaves a command running or a sandbox not stopped, and ends what it left.

    `session` and `sandbox` come with it; tests that make sandboxes of their own ask for it by name, or with
    `pytest.mark.usefixtures("no_sandbox_leaks")`. What fixtures start, and what belongs to a `Session`, is theirs to
    end.
    """
    request.node.stash[_WATCH] = _LeakWatch()


@pytest.fixture
def session(request: pytest.FixtureRequest, no_sandbox_leaks: None) -> Iterator[Session]:
    """A `Session` of the test's own; its sandboxes are stopped when the test is over.

    Its defaults are those of the marker `cwsandbox` and the ini options, with a tag that no other test has: so
    `session.list()` finds the test's own sandboxes only, whatever runs beside it.
    """
    from cwsandbox.session import Session

    defaults, _ = _options(request)
    with Session(defaults) as session:
        yield session


@pytest.fixture
def sandbox(request: pytest.FixtureRequest, session: Session) -> Sandbox:
    """A started sandbox of the test's `session`.

    Operations wait until it runs. In async tests `await` them; nothing here blocks the test's loop.
    """
    _, isolation = _options(request)
    sandbox = session.sandbox()
    sandbox.start().result()
    if isolation is not None and sandbox.wait().isolation != isolation:
        pytest.fail(
            f"the test needs isolation {isolation!r}, and this gateway gives {sandbox.isolation!r}; set "
            f"{_ISOLATION_VARIABLE}={isolation} to have it or an error that says why this machine cannot",
            pytrace=False,
        )
    return sandbox


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Look for commands that the test left running; a test that failed has enough to say."""
    watch = item.stash.get(_WATCH, None)
    if watch is None:
        yield
        return
    watch.begin()
    try:
        yield
    finally:
        commands = watch.end()
    if commands:
        left = "\n".join(f"  {command!r}" for command in commands)
        pytest.fail(
            f"the test left commands running (they were killed):\n{left}\n"
            "wait for their results, or end them with cancel(), terminate() or kill()",
            pytrace=False,
        )
    watch.passed = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Look for sandboxes that the test and its fixtures left, once the fixtures had their turn."""
    watch = item.stash.get(_WATCH, None)
    if watch is None:
        yield
        return
    del item.stash[_WATCH]
    try:
        yield
    finally:
        left = watch.stop_sandboxes()
    if left and watch.passed:
        pytest.fail(
            f"the test left sandboxes that nobody stopped (they were stopped now): {', '.join(left)}\n"
            "use `with`, `async with`, the `session` fixture, or stop()",
            pytrace=False,
        )


class _LeakWatch:
    """What one test starts."""

    def __init__(self) -> None:
        self.passed = False
        self._started: list[SandboxCore] = []
        self._before: set[RunningCommand[Any]] = set()

    def begin(self) -> None:
        """The test's body begins."""
        from cwsandbox import _core

        self._before = _running_commands()
        _core.on_started = self._started.append

    def end(self) -> Sequence[RunningCommand[Any]]:
        """The test's body is over.

        Returns:
            The commands that it left running; they are killed.
        """
        from cwsandbox import _core

        _core.on_started = None
        left = _unfinished(_running_commands() - self._before)
        for command in left:
            command.cancel()
        return left

    def stop_sandboxes(self) -> Sequence[str]:
        """Stop the sandboxes that were started by themselves and still run; return their ids."""
        return [core.sandbox_id or "" for core in self._started if _stop_if_left(core)]


_WATCH: pytest.StashKey[_LeakWatch] = pytest.StashKey()


def _running_commands() -> set[RunningCommand[Any]]:
    from cwsandbox._running import RunningCommand
    from cwsandbox._runtime.scope import running_operations

    return {operation for operation in running_operations() if isinstance(operation, RunningCommand)}


def _unfinished(commands: set[RunningCommand[Any]]) -> Sequence[RunningCommand[Any]]:
    from cwsandbox.waiting import wait

    # One on a loop that stands still between tests cannot finish; waiting for it ends with the time.
    wait(list(commands), timeout=_FINISH_SECONDS)
    return sorted((command for command in commands if not command._finished), key=repr)


def _stop_if_left(core: SandboxCore) -> bool:
    from cwsandbox._runtime.portal import portal_scope
    from cwsandbox._stopping import stop_sandbox

    if not core.belongs_to(portal_scope) or core.life.ended:
        return False
    core.operate(core.refresh, name="look after sandbox").result()
    if not core.life.usable:
        return False
    stop = partial(stop_sandbox, core, snapshot=False, grace_seconds=0, missing_ok=True)
    core.operate(stop, name="stop sandbox").result()
    return True


def _options(request: pytest.FixtureRequest) -> tuple[SandboxDefaults, str | None]:
    """The defaults for a test's sandboxes, and the isolation that it insists on."""
    from cwsandbox.defaults import SandboxDefaults

    chosen: dict[str, Any] = {}
    if image := request.config.getini("cwsandbox_image"):
        chosen["container_image"] = image
    for marker in reversed(list(request.node.iter_markers("cwsandbox"))):  # The test's own is the last word.
        if marker.args:
            raise pytest.UsageError(f"{request.node.nodeid}: the marker cwsandbox takes keywords only")
        chosen.update(marker.kwargs)
    isolation = chosen.pop("isolation", None)
    if isolation is not None:
        _check_isolation(isolation, f"{request.node.nodeid}: the marker's isolation")
    if unknown := sorted(chosen.keys() - SandboxDefaults.__dataclass_fields__.keys()):
        raise pytest.UsageError(
            f"{request.node.nodeid}: the marker cwsandbox takes isolation and the fields of SandboxDefaults, not "
            f"{', '.join(unknown)}"
        )
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    own = request.node.stash.setdefault(_TAG, f"pytest-{worker}-{uuid.uuid4().hex[:12]}")
    return SandboxDefaults.from_dict({**chosen, "tags": [*chosen.get("tags", ()), own]}), isolation


_TAG: pytest.StashKey[str] = pytest.StashKey()


def _check_isolation(level: object, what: str) -> None:
    if level not in _ISOLATIONS:
        raise pytest.UsageError(f"{what} is one of {', '.join(_ISOLATIONS)}, not {level!r}")
