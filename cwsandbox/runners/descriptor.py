"""A descriptor that one task may let go of while another one waits on it, on any of anyio's event loops."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Descriptor:
    """Waits on a descriptor, and closes it when nobody waits on it any more.

    On asyncio, anyio (4.16) knows who waits by the descriptor's number. If a number is closed after `notify_closing`,
    and given out again before whoever was woken has had its turn, that one takes the registration of the number's next
    owner away with its own, and the next owner waits for ever. So a number stays taken until then.

    Args:
        number: The descriptor, which is owned from now on; -1 is one that was closed before.
        close: Closes it.
    """

    __slots__ = ("_close", "_waiting", "closed", "number")

    def __init__(self, number: int, close: Callable[[], object] | None = None) -> None:
        self.number: Final = number
        self.closed: bool = number < 0
        self._close = close
        self._waiting = 0

    async def wait_readable(self) -> None:
        """Wait until there is something to read, or the end. Cancelling stops waiting only.

        Raises:
            anyio.ClosedResourceError: It was closed on this side, or `wake` was called.
        """
        await self._wait(anyio.wait_readable)

    async def wait_writable(self) -> None:
        """Wait until there is room, or nobody reads any more. Otherwise as `wait_readable`."""
        await self._wait(anyio.wait_writable)

    def wake(self) -> None:
        """Wake who waits, to look again."""
        if not self.closed:
            anyio.notify_closing(self.number)

    def close(self) -> None:
        """Wake who waits, and close it. Again is harmless."""
        if not self.closed:
            self.wake()
            self.closed = True
            self._close_if_unused()

    async def _wait(self, wait: Callable[[int], Awaitable[None]]) -> None:
        if self.closed:
            raise anyio.ClosedResourceError
        self._waiting += 1
        try:
            await wait(self.number)
        finally:
            self._waiting -= 1
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self.closed and not self._waiting:
            if self._close is None:
                os.close(self.number)
            else:
                self._close()
