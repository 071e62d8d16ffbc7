"""What ends sandboxes that nobody ends: lifetimes, idleness, and the retention of ended ones.

One task sleeps until the next deadline. A new sandbox or one that ended wakes it early, because it may bring an earlier
deadline; operations do not, because they only move an idle deadline away.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from cwsandbox.gateway.sandbox import LiveSandbox
    from cwsandbox.gateway.service import Service


async def reap(service: Service) -> None:
    """Enforce the limits of `service` until cancelled."""
    while True:
        seconds = max(0.0, sweep(service))
        with anyio.move_on_after(None if seconds == math.inf else seconds):
            await service.population.wait()


def sweep(service: Service) -> float:
    """End and forget what is due now; return the seconds until the next one is."""
    ended: list[LiveSandbox] = []
    remaining = math.inf
    for sandbox in service.sandboxes():
        if sandbox.terminal:
            ended.append(sandbox)
        else:
            remaining = min(remaining, _sweep_live(service, sandbox))
    surplus = len(ended) - service.limits.ended_records
    for sandbox in sorted(ended, key=_end_time):
        age = (datetime.now(UTC) - _end_time(sandbox)).total_seconds()
        left = service.limits.retention_seconds - age
        if left <= 0 or surplus > 0:
            service.forget(sandbox)
            surplus -= 1
        else:
            remaining = min(remaining, left)
            break  # All that follow ended later.
    return remaining


def _sweep_live(service: Service, sandbox: LiveSandbox) -> float:
    if sandbox.ending:
        return math.inf
    remaining = math.inf
    lifetime = sandbox.record.spec.max_lifetime_seconds
    if lifetime:
        # On the wall clock, because a lifetime counts on through a restart of the gateway.
        remaining = lifetime - (datetime.now(UTC) - sandbox.record.create_time).total_seconds()
        if remaining <= 0:
            sandbox.stop(f"its lifetime of {lifetime} s is over", 0)
            return math.inf
    idle_limit, idle_since = service.limits.idle_seconds, sandbox.idle_since
    if idle_limit is not None:
        # One that is in use now cannot be due before a whole limit has passed.
        idle = 0.0 if idle_since is None else monotonic() - idle_since
        if idle >= idle_limit:
            sandbox.stop(f"it was not used for {idle_limit:g} s", 0)
            return math.inf
        remaining = min(remaining, idle_limit - idle)
    return remaining


def _end_time(sandbox: LiveSandbox) -> datetime:
    return sandbox.record.end_time or sandbox.record.create_time
