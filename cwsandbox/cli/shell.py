"""`sh`, and what `run --tty` shares with it: a remote command on our own terminal."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from attrs import field, frozen

from cwsandbox.cli.parameters import cwd_option, environment_option, sandbox_argument
from cwsandbox.cli.running import before_hard_exit, helped, run_in_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anyio.abc import TaskStatus

    from cwsandbox.sandbox import Sandbox
    from cwsandbox.session import Session
    from cwsandbox.terminal import TerminalSession


@frozen
class TerminalCommand:
    """A command to run in a sandbox on our terminal.

    Attributes:
        argv: Program and arguments.
        cwd: Directory in the sandbox.
        env: Its environment, over the sandbox's; TERM is ours unless given.
    """

    argv: tuple[str, ...]
    cwd: str | None = None
    env: dict[str, str] = field(factory=dict, repr=False)

    async def run(self, sandbox: Sandbox) -> int:
        """Run it, with the terminal in raw mode while it runs; return its exit code."""
        from cwsandbox.cli.streams import STDIN, follow

        term = {"TERM": os.environ["TERM"]} if os.environ.get("TERM") else {}
        with _raw_mode(STDIN) as enter:
            size = _terminal_size()
            width, height = size or (None, None)
            session = sandbox.shell(self.argv, width=width, height=height, cwd=self.cwd, env={**term, **self.env})
            async with helped() as tasks:
                await tasks.start(_follow_terminal, session, size, enter)
                return await follow(session, [session.output])


@click.command(short_help="Open a shell in a sandbox, on this terminal.")
@click.option("--cmd", metavar="COMMAND", default="/bin/bash", show_default=True, help="The shell, with its arguments.")
@cwd_option
@environment_option
@sandbox_argument
def sh(sandbox_id: str, cmd: str, cwd: str | None, environment: dict[str, str]) -> int:
    """Open a shell in a sandbox, on this terminal.

    Every key goes to the remote side, Ctrl-C and Ctrl-Z too; leave with `exit` or Ctrl-D. When it ends, what it left
    running is killed.

    Exit code: the shell's.
    """
    try:
        argv = shlex.split(cmd)
    except ValueError as problem:
        raise click.BadParameter(f"{cmd!r}: {problem}", param_hint="'--cmd'") from None
    if not argv:
        raise click.BadParameter("must not be empty", param_hint="'--cmd'")
    require_terminal()
    command = TerminalCommand(tuple(argv), cwd, environment)

    async def run(session: Session) -> int:
        return await command.run(await session.from_id(sandbox_id, adopt=False))

    return run_in_session(run)


def require_terminal() -> None:
    """Refuse to go on where standard input and output are not a terminal.

    Raises:
        click.ClickException: They are not.
    """
    if sys.platform == "win32" or not (os.isatty(0) and os.isatty(1)):
        raise click.ClickException("standard input and output must be a terminal; `cwsandbox exec` needs none")


@contextmanager
def _raw_mode(descriptor: int) -> Iterator[Callable[[], None]]:
    """The terminal passes every key on as it is; whatever happens, it is put back as it was.

    Yields:
        What puts it into raw mode again, after somebody else changed it.
    """
    import termios
    import tty

    before = termios.tcgetattr(descriptor)

    def restore() -> None:
        # At once: a terminal whose output is stopped must not keep us.
        termios.tcsetattr(descriptor, termios.TCSANOW, before)

    # Changing a terminal's mode from the background, as after a kill, would stop us instead.
    ignored = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    before_hard_exit.append(restore)
    try:
        # What was typed ahead is for the remote side.
        tty.setraw(descriptor, termios.TCSADRAIN)
        yield lambda: tty.setraw(descriptor, termios.TCSADRAIN)
    finally:
        before_hard_exit.remove(restore)
        restore()
        signal.signal(signal.SIGTTOU, ignored)


def _terminal_size() -> tuple[int, int] | None:
    """Columns and rows; None for a terminal that nobody gave a size."""
    columns, rows = os.get_terminal_size(0)
    return (columns, rows) if columns and rows else None


async def _follow_terminal(
    session: TerminalSession,
    size: tuple[int, int] | None,
    enter_raw_mode: Callable[[], None],
    *,
    task_status: TaskStatus[None],
) -> None:
    """Tell the remote side when our terminal gets another size; take the terminal again when we are resumed."""
    import anyio

    from cwsandbox.exceptions import SandboxExecutionError

    with anyio.open_signal_receiver(signal.SIGWINCH, signal.SIGCONT) as signals:
        task_status.started()
        while True:
            seen, size = size, _terminal_size()  # It may have changed before we listened.
            if size is not None and size != seen:
                try:
                    session.resize(*size)
                except SandboxExecutionError:
                    return  # It has just ended.
            if await anext(signals) == signal.SIGCONT:
                enter_raw_mode()
