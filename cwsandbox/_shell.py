"""The operation behind a `TerminalSession`: an exec whose command has a terminal, and whose output is not kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cwsandbox._exec import CommandOperation
from cwsandbox.terminal import TerminalResult

if TYPE_CHECKING:
    from cwsandbox._core import SandboxCore
    from cwsandbox.terminal import TerminalSession
    from cwsandbox.wire.streams import TerminalSize

__all__ = ["ShellOperation"]


class ShellOperation(CommandOperation[TerminalResult]):
    """Runs one command on a terminal.

    Args:
        sandbox: Where.
        session: What the caller holds.
        cwd: Directory in the sandbox, or None for its own.
        env: Added to the sandbox's environment.
        width: Columns; None is 80.
        height: Rows; None is 24.
    """

    name = "shell"

    def __init__(
        self,
        sandbox: SandboxCore,
        session: TerminalSession,
        *,
        cwd: str | None,
        env: dict[str, str],
        width: int | None,
        height: int | None,
    ) -> None:
        super().__init__(sandbox, session, cwd=cwd, env=env, timeout_seconds=None)
        self._width = width
        self._height = height

    def _terminal(self) -> TerminalSize:
        from cwsandbox.wire.streams import TerminalSize

        usual = TerminalSize()
        return TerminalSize(columns=self._width or usual.columns, rows=self._height or usual.rows)

    async def _make_result(self, returncode: int) -> TerminalResult:
        return TerminalResult(returncode, self._process.command)
