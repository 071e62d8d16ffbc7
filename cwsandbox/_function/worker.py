"""A sandbox with an interpreter in it that waits for one payload: made for a call, or ahead of one."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from cwsandbox._files.whole import ReadFile
from cwsandbox._function.payload import MAX_RESULT_BYTES
from cwsandbox.defaults import SandboxDefaults
from cwsandbox.exceptions import (
    SandboxCommandTimeoutError,
    SandboxError,
    SandboxExecutionError,
    SandboxFileError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cwsandbox._client.stream import ClientStream
    from cwsandbox._core import SandboxCore
    from cwsandbox.process import ProcessResult
    from cwsandbox.session import Session

__all__ = ["Worker"]

logger: logging.Logger = logging.getLogger("cwsandbox")

_GRACE_SECONDS = 10.0
_STOP_SECONDS = 30.0
"""How long a call waits for its sandbox to end."""


@cache
def _driver() -> str:
    return Path(__file__).with_name("driver.py").read_text(encoding="utf-8")


class Worker:
    """One sandbox for one call. Making it is the start of its life; nothing has to be awaited before the payload.

    Args:
        session: Owns the sandbox, and stops it at its end whatever happens here.
        options: Of the sandbox.
        preload: Modules that a standby interpreter imports before the payload comes.
        limit: Seconds for the call; the gateway enforces them, from the start of the interpreter on.
        standby: It is made ahead of its call, so the limit must not run yet.

    Raises:
        SandboxError: The session is closed.
    """

    def __init__(
        self,
        session: Session,
        options: Mapping[str, Any],
        preload: tuple[str, ...],
        limit: float,
        *,
        standby: bool = False,
    ) -> None:
        self.options = options
        self.made_at = time.monotonic()
        self._limit = limit
        self._client_limit = limit if standby else math.inf
        # The built-in main command has nothing to shut down.
        self._grace = 0.0 if session._defaults.command == SandboxDefaults.command else _GRACE_SECONDS
        self._sandbox = session.sandbox(**options)
        self._process = self._sandbox.exec(
            ["python", "-c", _driver(), *(preload if standby else ())],
            stdin=True,
            timeout_seconds=math.inf if standby else limit,
        )

    @property
    def usable(self) -> bool:
        """False if its interpreter has ended, or could not be started, before it got a payload."""
        return not self._process._finished

    async def wait_running(self) -> None:
        """Wait until its sandbox runs."""
        await self._sandbox._core.wait_running(None)

    async def run(self, payload: bytes, result_path: str) -> tuple[ProcessResult, bytes | None]:
        """Make the call.

        Returns:
            What the interpreter printed and returned, and its result file; None if it wrote none.

        Raises:
            SandboxCommandTimeoutError: It took longer than the limit.
            SandboxFileError: The result is larger than `MAX_RESULT_BYTES`.
            SandboxError: The sandbox could not be started, or was lost.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(payload)
            self._process.stdin.close()
        except SandboxExecutionError:  # it has just ended: awaiting it says why
            logger.debug("%r ended before its payload", self._process)
        try:
            with anyio.fail_after(self._client_limit):
                done = await self._process
        except TimeoutError:
            limit = f"{self._limit:g}"
            raise SandboxCommandTimeoutError(f"killed after {limit} s", metadata={"timeoutSeconds": limit}) from None
        return done, await self._take(result_path)

    async def _take(self, path: str) -> bytes | None:
        """Read the result and remove it: at isolation level `process` the file would outlive the sandbox."""
        try:
            return await BoundedRead(self._sandbox._core, path, MAX_RESULT_BYTES)()
        except SandboxFileError as error:
            if error.reason == "CWSANDBOX_FILE_NOT_FOUND":
                return None
            raise
        finally:
            with contextlib.suppress(SandboxError):
                await self._sandbox.files.remove(path)

    async def stop(self) -> None:
        """Stop the sandbox, cancelled or not; what cannot be stopped stays with the session, which tries again."""
        with anyio.move_on_after(_STOP_SECONDS, shield=True):
            try:
                # Not as an operation of its own: the scope may take no more of them.
                await self._sandbox._stop(grace_seconds=self._grace, missing_ok=True)
            except Exception as error:
                logger.warning("the sandbox of a remote call could not be stopped: %s", error)


class BoundedRead(ReadFile):
    """Reads a whole file, unless it is larger than we take."""

    def __init__(self, sandbox: SandboxCore, filepath: str, limit_bytes: int) -> None:
        super().__init__(sandbox, filepath, sandbox.limit(None))
        self._limit_bytes = limit_bytes
        self._room = limit_bytes

    def data(self, code: int, data: bytes) -> None:
        """A part of the file; the one that is too much ends the transfer."""
        self._room -= len(data)
        if self._room < 0:
            self._wake()
        else:
            super().data(code, data)

    async def _until_done(self, stream: ClientStream) -> None:
        while self._outcome is None and self._room >= 0:
            await self._wait_changed()
        if self._room < 0:
            await self._give_up(stream)
            raise SandboxFileError(f"{self.filepath} is larger than {self._limit_bytes} bytes", filepath=self.filepath)
        await super()._until_done(stream)
