"""The resource calls (wraps httpx): one deadline per call, retries inside it, errors as the package's own."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cwsandbox.wire.resources import Sandbox, State


class WaitFor(enum.StrEnum):
    """What a `get` may wait for."""

    RUNNING = "running"
    TERMINAL = "terminal"


class Api:
    """The calls. All raise the exceptions of `cwsandbox.exceptions`; `timeout` is the total for a call, retries included."""

    async def create(self, sandbox: Sandbox, *, request_id: str, timeout: float) -> Sandbox:
        """Create a sandbox, once, however often the call is repeated with this `request_id`."""
        raise NotImplementedError

    async def get(
        self, sandbox_id: str, *, wait_for: WaitFor | None = None, wait_seconds: float = 0.0, timeout: float
    ) -> Sandbox:
        """Read one record; with `wait_for` answer when that is reached or `wait_seconds` are over, whichever is first.

        The waiting time comes on top of `timeout`.
        """
        raise NotImplementedError

    async def list(
        self,
        *,
        tags: Sequence[str] = (),
        state: State | None = None,
        show_terminated: bool = False,
        runner_ids: Sequence[str] = (),
        profile_ids: Sequence[str] = (),
        timeout: float,
    ) -> list[Sandbox]:
        """All sandboxes that match, across pages."""
        raise NotImplementedError

    async def stop(
        self, sandbox_id: str, *, grace_period_seconds: float, snapshot_on_stop: bool = False, timeout: float
    ) -> Sandbox:
        """Ask for a graceful stop; answers when it is accepted."""
        raise NotImplementedError

    async def delete(self, sandbox_id: str, *, allow_missing: bool = False, timeout: float) -> Sandbox | None:
        """Kill a sandbox and forget it. None: there was none, and `allow_missing` was given."""
        raise NotImplementedError
