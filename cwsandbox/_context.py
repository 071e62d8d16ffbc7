"""What the contexts of sandboxes and sessions have in common: a scope on the caller's loop, and how they are left."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio

from cwsandbox._runtime.scope import Scope
from cwsandbox.exceptions import SandboxTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cwsandbox._runtime.operation import OperationRef

__all__ = ["OwnScope", "await_shielded", "leave_failed"]

logger: logging.Logger = logging.getLogger("cwsandbox")


class OwnScope:
    """The scope that an `async with` opens on the caller's loop for what has none yet.

    Args:
        name: For logs.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._scope: Scope | None = None

    async def open(self, take: Callable[[Scope], bool]) -> None:
        """Open it; cancelled, nothing is left.

        Args:
            take: Given the scope once it runs. False: there is another one by now, as somebody else entered too.
        """
        scope = await Scope(self._name).enter()
        if take(scope):
            self._scope = scope
        else:
            await scope.aclose()

    async def close(self) -> None:
        """Leave it, if it was opened; bounded and shielded, any number of times."""
        scope, self._scope = self._scope, None
        if scope is not None:
            await scope.aclose()


async def await_shielded(ref: OperationRef[Any], seconds: float, what: str) -> None:
    """Wait for an operation while a context is left, cancelled or not, but not for ever.

    Raises:
        SandboxTimeoutError: Not finished after `seconds`.
    """
    with anyio.move_on_after(seconds, shield=True):
        await ref
        return
    raise SandboxTimeoutError(f"{what} has not finished after {seconds:g} s")


def leave_failed(error: Exception, what: str, *, body: BaseException | None) -> None:
    """The body's own exception wins; a failed end alone is raised.

    Raises:
        Exception: `error`, if the body raised nothing.
    """
    if body is None:
        raise error
    logger.warning("%s failed: %s", what, error)
