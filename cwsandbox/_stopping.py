"""How a sandbox is stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from cwsandbox._lifecycle import Phase
from cwsandbox.exceptions import SandboxNotFoundError, SandboxTimeoutError

if TYPE_CHECKING:
    from cwsandbox._core import SandboxCore

__all__ = ["stop_sandbox"]

_LAST_WORDS_SECONDS = 2.0
"""How long the end of a stop waits for its commands to be told that their sandbox has ended."""


async def stop_sandbox(sandbox: SandboxCore, *, snapshot: bool, grace_seconds: float, missing_ok: bool) -> None:
    """Stop a sandbox and wait until it and its commands have ended; one on its way up is waited for first.

    Args:
        sandbox: What to stop.
        snapshot: Keep a snapshot of its files.
        grace_seconds: Between TERM and KILL.
        missing_ok: A sandbox that the gateway does not know is taken as stopped.

    Raises:
        SandboxNotFoundError: The gateway does not know it, and not `missing_ok`.
        SandboxTimeoutError: It has not ended long after its grace period.
        SandboxError: The gateway refused; the sandbox is as it was, and stopping may be tried again.

    Cancelled, the sandbox may or may not have been told to stop.
    """
    if sandbox.starting is not None:
        async with sandbox.starting:
            pass
    if not sandbox.life.ended and not sandbox.life.cancel():
        try:
            await _stop_started(sandbox, snapshot, grace_seconds)
        except SandboxNotFoundError:
            sandbox.life.gone()
            if not missing_ok:
                raise
    # Whoever stops it often leaves its scope next, and a command that was not told by then would end as cancelled.
    with anyio.move_on_after(_LAST_WORDS_SECONDS):
        await sandbox.stats.wait_idle()


async def _stop_started(sandbox: SandboxCore, snapshot: bool, grace_seconds: float) -> None:
    assert sandbox.sandbox_id is not None
    if sandbox.life.phase is not Phase.STOPPING:
        client = await sandbox.client()
        await client.api.stop(
            sandbox.sandbox_id,
            grace_period_seconds=grace_seconds,
            snapshot_on_stop=snapshot,
            timeout=sandbox.timeout,
        )
        sandbox.life.stopping()
    limit = grace_seconds + sandbox.timeout
    with anyio.move_on_after(limit):
        await sandbox.poll_until_ended()
        return
    raise SandboxTimeoutError(f"{sandbox!r} was told to stop and has not ended after {limit:g} s")
