"""A repeatable event: everybody who waits now is woken by the next notification."""

from __future__ import annotations

import anyio


class Pulse:
    """Wakes all present waiters on each `notify`; costs nothing when nobody waits."""

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def notify(self) -> None:
        """Wake everybody who waits. Never blocks."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Wait for the next `notify`: check your condition before, there is no memory."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()
