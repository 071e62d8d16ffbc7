"""One command in a box, on the gateway's side."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from cwsandbox.runners.errors import BoxGoneError
from cwsandbox.runners.local.journal import Journal, is_journal
from cwsandbox.runners.local.link import LinkClosedError
from cwsandbox.runners.local.pipes import adopt_pipes
from cwsandbox.runners.local.protocol import ProtocolError
from cwsandbox.runners.local.streams import InputStream, OutputStream, TerminalOutput
from cwsandbox.runners.specs import ExitStatus, TerminalSize

if TYPE_CHECKING:
    from cwsandbox.runners.local import protocol
    from cwsandbox.runners.local.box import LocalBox

_PIPES = {"stdin": os.O_WRONLY, "stdout": os.O_RDONLY, "stderr": os.O_RDONLY}
_RELAY = {"relay_out": os.O_RDONLY, "relay_in": os.O_WRONLY}
_OF_PIPES = {"stdout", "stderr", "output", "errors"}
_OF_TERMINAL = {"stdout", "output", "input", *_RELAY}


class LocalCommand:
    """A command and its streams; the agent knows it by `exec_id`.

    Args:
        box: The box it runs in.
        exec_id: Unique in the box.
        message: What the agent says of it; the command owns the descriptors that come with it.

    Raises:
        ProtocolError: The agent sent something else than a command's streams; the descriptors are closed.
    """

    def __init__(self, box: LocalBox, exec_id: str, message: protocol.Message) -> None:
        self._box = box
        self._exec_id = exec_id
        self._note = message.body.get("note")
        self._status: ExitStatus | None = None
        self._ended = anyio.Event()
        self._forgotten = False
        try:
            self._pid = _pid(message)
            fds = _descriptors(message)
        except (ProtocolError, OSError):
            message.close_fds()
            raise
        self._terminal = "relay_in" in fds
        journals = {name: Journal(fds[name]) for name in ("input", "output", "errors") if name in fds}
        self._stdin = self._stderr = None
        self._stdout: OutputStream
        if self._terminal:
            self._stdout = TerminalOutput(fds["stdout"], (fds["relay_out"], fds["relay_in"]), journals["output"])
            self._stdin = InputStream(fds["stdin"], journals["input"], self._stdin_closed, terminal=True)
        else:
            self._stdout = OutputStream(fds["stdout"], journals["output"])
            self._stderr = OutputStream(fds["stderr"], journals["errors"])
            if "input" in journals:
                self._stdin = InputStream(fds.get("stdin", -1), journals["input"], self._stdin_closed)

    @property
    def exec_id(self) -> str:
        """What the command is found by after a restart."""
        return self._exec_id

    @property
    def pid(self) -> int:
        """The process id inside the box."""
        return self._pid

    @property
    def note(self) -> Any:
        """What came with its `ExecSpec`, from the agent: not to be trusted."""
        return self._note

    @property
    def stdin(self) -> InputStream | None:
        """Its input, if it was asked for."""
        return self._stdin

    @property
    def stdout(self) -> OutputStream:
        """Its output; with a terminal all of it."""
        return self._stdout

    @property
    def stderr(self) -> OutputStream | None:
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
            self._stdin.hang_up()

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
        if isinstance(self._stdout, TerminalOutput):
            self._stdout.set_size(size.columns, size.rows)  # First: what is typed next is for the new size.
        await anyio.lowlevel.checkpoint()

    def _close(self) -> None:
        """Close what this side holds."""
        for stream in (self._stdin, self._stdout, self._stderr):
            if stream is not None:
                stream.close()

    def forget(self) -> None:
        """Forget the command: here and in the agent. A running command is not killed; what it prints is discarded."""
        if not self._forgotten:
            self._forgotten = True
            self._box._forget(self)
            self._close()


def _pid(message: protocol.Message) -> int:
    pid = message.body.get("pid")
    if not isinstance(pid, int) or not 0 < pid < 2**31:
        raise ProtocolError("a command without its process")
    return pid


def _descriptors(message: protocol.Message) -> dict[str, int]:
    """A command's descriptors by name, all of the kind that they should be.

    Pipes are opened anew: a passed descriptor shares its flags with the agent's copy, and one that the agent could
    make blocking has no place on the event loop. A terminal has two, one of them as "stdin".
    """
    names = message.body.get("fds")
    if not isinstance(names, list) or len(names) != len(message.fds) or len({*map(str, names)}) != len(names):
        raise ProtocolError("a command without its streams")
    fds = dict(zip(map(str, names), message.fds, strict=True))
    terminal = fds.keys() == _OF_TERMINAL
    if not terminal and fds.keys() - {"stdin", "input"} != _OF_PIPES:
        raise ProtocolError("a command without its streams")
    if "stdin" in fds and "input" not in fds:
        raise ProtocolError("an input without its journal")
    pipes = {name: flags for name, flags in (_RELAY if terminal else _PIPES).items() if name in fds}
    for name, fd in fds.items():
        if name in pipes:
            fine = stat.S_ISFIFO(os.fstat(fd).st_mode)
        elif name == "stdout":
            fine = stat.S_ISCHR(os.fstat(fd).st_mode) and os.isatty(fd)
        else:
            fine = is_journal(fd)
        if not fine:
            raise ProtocolError(f"a command whose {name} is none")
    ours = dict(zip(pipes, adopt_pipes((fds[name], flags) for name, flags in pipes.items()), strict=True))
    if terminal:
        try:
            ours["stdin"] = os.dup(fds["stdout"])
        except OSError:
            for fd in ours.values():
                os.close(fd)
            raise
    for name in pipes:
        os.close(fds[name])
    return fds | ours
