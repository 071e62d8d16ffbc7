"""Limits that a gateway took but cannot hold for a sandbox as a whole: its user is told, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cwsandbox.wire.resources import Sandbox as Record

__all__ = ["tell_of_weak_limits"]


def tell_of_weak_limits(record: Record) -> None:
    """Say it on stderr and in the log, once in this process for each kind of weakness."""
    from cwsandbox._client.gateway import tell_once
    from cwsandbox.wire.resources import LimitHold

    holds = record.status.limit_holds if record.status is not None else {}
    each = [name for name, hold in holds.items() if hold is LimitHold.PROCESS]
    unheld = [name for name, hold in holds.items() if hold is LimitHold.NONE]
    weak = [f"{' and '.join(each)} for each process by itself only"] if each else []
    weak += [f"{' and '.join(unheld)} not at all"] if unheld else []
    if weak:
        tell_once(
            f"limits of sandboxes are held here as follows: {', '.join(weak)}; Sandbox.limit_holds says it for each, "
            "and a gateway that may make cgroups holds them all"
        )
