"""Your terminal on a shell in a sandbox: job control, colours, resizing. End it with `exit`."""

import os
import shutil
import signal
import sys
import termios
import tty

import anyio

from cwsandbox import Sandbox, TerminalSession


async def type_into(shell: TerminalSession) -> None:
    data = b"first"
    while data:
        await anyio.wait_readable(sys.stdin)
        data = os.read(sys.stdin.fileno(), 1024)
        await (shell.stdin.write(data) if data else shell.stdin.close())


async def follow_size(shell: TerminalSession) -> None:
    with anyio.open_signal_receiver(signal.SIGWINCH) as resized:
        async for _ in resized:
            shell.resize(*shutil.get_terminal_size())


async def main() -> int:
    columns, rows = shutil.get_terminal_size()
    async with Sandbox() as sandbox, anyio.create_task_group() as tasks:
        shell = sandbox.shell(["/bin/sh"], width=columns, height=rows)
        tasks.start_soon(type_into, shell)
        tasks.start_soon(follow_size, shell)
        async for data in shell.output:
            os.write(sys.stdout.fileno(), data)
        result = await shell
        tasks.cancel_scope.cancel()
    return result.returncode


before = termios.tcgetattr(sys.stdin)
tty.setraw(sys.stdin)  # what is typed goes to the sandbox's terminal as it is, Ctrl-C included
try:
    returncode = anyio.run(main)
finally:
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
sys.exit(returncode)
