"""One command in a box, on the gateway's side."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from cwsandbox.runners.base import BoxGoneError, ExitStatus, TerminalSize
from cwsandbox.runners.local.link import LinkClosedError
from cwsandbox.runners.local.streams import PipeSink, PipeSource, adopt_pipe

if TYPE_CHECKING:
    from cwsandbox.runners.local.box import LocalBox


class LocalCommand:
    """A command and its streams; the agent knows it by `exec_id`.

    Args:
        box: The box it runs in.
        exec_id: Unique in the box.
        pid: Its process id inside the box.
        fds: Descriptors from the agent, which the command owns: stdin if there is one, stdout, stderr unless there is
            a terminal.
        stdin: Whether there is a stdin.
        terminal: Whether stdout is a terminal's master side.
    """

    def __init__(self, box: LocalBox, exec_id: str, pid: int, fds: list[int], *, stdin: bool, terminal: bool) -> None:
        self._box = box
        self._exec_id = exec_id
        self._pid = pid
        self._terminal = terminal
        self._stdin: PipeSink | None = None
        self._stderr: PipeSource | None = None
        self._status: ExitStatus | None = None
        self._ended = anyio.Event()
        self._forgotten = False
        if terminal:
            self._stdout = PipeSource(fds[0], terminal=True)
            if stdin:
                self._stdin = PipeSink(os.dup(fds[0]), self._stdin_closed, terminal=True)
        else:
            if stdin:
                self._stdin = PipeSink(adopt_pipe(fds[0], os.O_WRONLY), self._stdin_closed)
            self._stdout = PipeSource(adopt_pipe(fds[-2], os.O_RDONLY))
            self._stderr = PipeSource(adopt_pipe(fds[-1], os.O_RDONLY))

    @property
    def exec_id(self) -> str:
        """What the command is found by after a restart."""
        return self._exec_id

    @property
    def pid(self) -> int:
        """The process id inside the box."""
        return self._pid

    @property
    def stdin(self) -> PipeSink | None:
        """Its input, if it was asked for."""
        return self._stdin

    @property
    def stdout(self) -> PipeSource:
        """Its output; with a terminal all of it."""
        return self._stdout

    @property
    def stderr(self) -> PipeSource | None:
        """Its diagnostics; None with a terminal."""
        return self._stderr

    def _stdin_closed(self) -> None:
        if not self._terminal:
            self._box._post({"op": "close_stdin", "exec": self._exec_id})

    def _exited(self, status: int) -> None:
        """The agent reaped the command's first process."""
        if self._ended.is_set():
            return
        self._status = ExitStatus(code=status) if status >= 0 else ExitStatus(signal=-status)
        self._ended.set()
        for source in (self._stdout, self._stderr):
            if source is not None:
                source.command_exited()

    def _box_ended(self) -> None:
        """There will be no exit status any more."""
        self._ended.set()

    def _settle(self) -> None:
        """The box's processes are gone: what they wrote can still be read, without its descriptors."""
        for source in (self._stdout, self._stderr):
            if source is not None:
                source.settle()
        if self._stdin is not None:
            self._stdin.close()

    async def wait(self) -> ExitStatus:
        """Wait for the first process to end. Cancelling stops waiting only.

        Raises:
            BoxGoneError: The box ended before an exit was seen.
        """
        await self._ended.wait()
        if self._status is None:
            raise BoxGoneError(self._box._why_gone())
        return self._status

    async def signal(self, signum: int) -> None:
        """Send a signal to the first process; nothing happens once it has ended."""
        if not self._ended.is_set():
            await self._request({"op": "signal", "exec": self._exec_id, "signal": int(signum)})

    async def kill(self) -> None:
        """Kill the command and everything it started; returns when they are gone.

        If cancelled, the kill goes on.
        """
        await self._request({"op": "kill", "exec": self._exec_id})

    async def _request(self, body: dict[str, object]) -> None:
        if self._forgotten:
            return
        try:
            reply = await self._box._request(body)
        except LinkClosedError:
            await self._box.wait_gone()  # Then the command is gone too.
            return
        reply.close_fds()

    async def resize(self, size: TerminalSize) -> None:
        """Tell the terminal its new size; the programs in the foreground get SIGWINCH."""
        await anyio.lowlevel.checkpoint()
        if self._terminal:
            self._stdout.set_terminal_size(size.columns, size.rows)

    def _close(self) -> None:
        """Close what this side holds."""
        for stream in (self._stdin, self._stdout, self._stderr):
            if stream is not None:
                stream.close()

    async def aclose(self) -> None:
        """Forget the command: here and in the agent. A running command is not killed; what it prints is discarded."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        if not self._forgotten:
            self._forgotten = True
            self._box._forget(self)
            self._close()
