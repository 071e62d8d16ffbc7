"""What a person at a terminal sees while they wait; nothing where stderr is none."""

from __future__ import annotations

import sys
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

from cwsandbox.cli.output import printable
from cwsandbox.cli.running import helped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from rich.progress import Progress

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


@contextmanager
def transferring(description: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yield what a transfer calls with the bytes that are through and the bytes there are; shown if it takes long."""
    bars = _Bars(description)
    try:
        yield bars.update
    finally:
        bars.close()


class _Bars:
    def __init__(self, description: str) -> None:
        self._description = printable(description)
        self._begin = time.monotonic()
        self._shown = sys.stderr.isatty()
        self._progress: Progress | None = None

    def update(self, done: int, total: int | None) -> None:
        if self._shown and time.monotonic() - self._begin > _PATIENCE_SECONDS:
            if self._progress is None:
                self._progress = _make_progress()
                self._progress.start()
                self._task = self._progress.add_task(self._description, total=total)
            self._progress.update(self._task, completed=done, total=total)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def _make_progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
