"""Sandboxes that are made, used and left, each at a random moment."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from cwsandbox import CWSandboxError, Sandbox, Session
from tests.soak.operations import ENDLESS, OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

_SHORT_SECONDS = (0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
_LONG_SECONDS = 60.0
_LATE_SECONDS = 30.0
"""How long something may take to end that was cancelled."""


class Soak:
    """What the lives share.

    Args:
        chance: All that is random, but for the timing.
        mark: An argument that finds the processes, and the tag of the sandboxes.
        base_url: The gateway's address.
        in_trouble: Gateways are killed or connections cut: the errors of the package are no failures then.

    Attributes:
        outcomes: What happened how often.
        failures: What must not happen.
    """

    def __init__(self, chance: Random, mark: str, base_url: str, *, in_trouble: bool) -> None:
        self._chance = chance
        self._mark = mark
        self._base_url = base_url
        self._in_trouble = in_trouble
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []

    async def live(self, ends: float) -> None:
        """One life after the other, until `ends` on the monotonic clock."""
        lives = (self._one_sandbox, self._sandbox_that_is_stopped, self._session)
        while time.monotonic() < ends:
            await self._try(
                "life", self._chance.choice((*_SHORT_SECONDS, 3, _LONG_SECONDS)), self._chance.choice(lives)
            )

    async def _one_sandbox(self) -> None:
        async with Sandbox(tags=[self._mark], base_url=self._base_url) as sandbox:
            await self._use(sandbox, self._chance.randrange(12))

    async def _sandbox_that_is_stopped(self) -> None:
        """While it is used: what runs in it then fails, and ends."""
        async with Sandbox(tags=[self._mark], base_url=self._base_url) as sandbox, anyio.create_task_group() as tasks:
            tasks.start_soon(self._use_to_the_end, sandbox)
            await anyio.sleep(self._chance.choice(_SHORT_SECONDS))
            await sandbox.stop(graceful_shutdown_seconds=0)

    async def _session(self) -> None:
        async with Session({"tags": [self._mark], "base_url": self._base_url}) as session:
            async with anyio.create_task_group() as tasks:
                for _ in range(self._chance.randrange(1, 4)):
                    tasks.start_soon(self._use, session.sandbox(), self._chance.randrange(6))

    async def _use(self, sandbox: Sandbox, count: int) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                operation = self._chance.choice(OPERATIONS)
                seconds = self._chance.choice(
                    _SHORT_SECONDS if operation in ENDLESS else (*_SHORT_SECONDS, _LONG_SECONDS)
                )
                tasks.start_soon(self._try, operation.__name__, seconds, self._bound(operation, sandbox))

    async def _use_to_the_end(self, sandbox: Sandbox) -> None:
        async def use(operation: Callable[[], Awaitable[None]]) -> None:
            with suppress(CWSandboxError, AssertionError):
                await operation()

        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                operation = self._bound(self._chance.choice(OPERATIONS), sandbox)
                tasks.start_soon(self._try, "use of what is stopped", _LONG_SECONDS, lambda op=operation: use(op))

    def _bound(
        self, operation: Callable[[Sandbox, Random, str], Awaitable[None]], sandbox: Sandbox
    ) -> Callable[[], Awaitable[None]]:
        return lambda: operation(sandbox, self._chance, self._mark)

    async def _try(self, name: str, seconds: float, operation: Callable[[], Awaitable[None]]) -> None:
        """Do something, cancel it after `seconds`, and look at how it ended and when."""
        began = time.monotonic()
        outcome = "done"
        try:
            with anyio.move_on_after(seconds) as limit:
                await operation()
            if limit.cancelled_caught:
                outcome = "cancelled"
                if seconds == _LONG_SECONDS:
                    self.failures.append(f"{name} did not end within {seconds:g} s")
        except CWSandboxError as error:
            outcome = type(error).__name__
            if not self._in_trouble:
                self.failures.append(f"{name}: {''.join(traceback.format_exception(error))}")
        except Exception as error:
            outcome = type(error).__name__
            if not (self._in_trouble and _is_ours(error)):
                self.failures.append(f"{name}: {''.join(traceback.format_exception(error))}")
        if time.monotonic() - began > seconds + _LATE_SECONDS:
            self.failures.append(f"{name} ended {time.monotonic() - began - seconds:.1f} s late")
        self.outcomes[f"{name}: {outcome}"] += 1


def _is_ours(error: Exception) -> bool:
    """A group of the package's errors, from a task group of the operation's own."""
    return isinstance(error, ExceptionGroup) and error.split(CWSandboxError)[1] is None
