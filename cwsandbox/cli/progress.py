"""What a person at a terminal sees while they wait; nothing where stderr is none."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from cwsandbox.cli.running import helped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_PATIENCE_SECONDS: Final = 0.5
"""What is quicker needs no indicator; most sandboxes start in milliseconds."""


@asynccontextmanager
async def waiting(message: str) -> AsyncIterator[None]:
    """Show `message` and a spinner on the terminal if the body takes long."""
    if not sys.stderr.isatty():
        yield
        return
    import anyio

    async def show() -> None:
        await anyio.sleep(_PATIENCE_SECONDS)
        from rich.console import Console

        with Console(stderr=True).status(message):
            await anyio.sleep_forever()

    async with helped() as tasks:
        tasks.start_soon(show)
        yield
