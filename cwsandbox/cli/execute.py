"""`exec`, and what `run` shares with it: one remote command attached to our standard streams."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any

import click
from attrs import field, frozen

from cwsandbox.cli.output import print_json
from cwsandbox.cli.parameters import cwd_option, environment_option, output_option, sandbox_argument, timeout_option
from cwsandbox.cli.passing import PassingCommand, command_argument
from cwsandbox.cli.running import helped, run_in_session

if TYPE_CHECKING:
    from cwsandbox.process import ProcessResult
    from cwsandbox.sandbox import Sandbox
    from cwsandbox.session import Session


@frozen
class RemoteCommand:
    """A command to run in a sandbox, attached to our streams.

    Attributes:
        argv: Program and arguments.
        cwd: Directory in the sandbox.
        timeout: Its limit in seconds; None is the default of 300, infinity has no limit.
        env: Its environment, over the sandbox's.
        forward_input: Pass our standard input on; else it is empty.
    """

    argv: tuple[str, ...]
    cwd: str | None = None
    timeout: float | None = None
    env: dict[str, str] = field(factory=dict, repr=False)
    forward_input: bool = False

    async def run(self, sandbox: Sandbox) -> int:
        """Run it and pass its output on as it comes; return its exit code, or 0 if nobody reads the output any more."""
        from cwsandbox._exec import ExecOperation
        from cwsandbox._validate import check_command
        from cwsandbox.cli.streams import follow
        from cwsandbox.process import Process

        process = Process(check_command(self.argv), stdin=self.forward_input, keep_output=False)
        core = sandbox._core
        limit = core.limit(self.timeout)
        ExecOperation(core, process, cwd=self.cwd, env=self.env, check=False, timeout_seconds=limit).start()
        return await follow(process, process._chunks())

    async def run_to_json(self, sandbox: Sandbox) -> dict[str, Any]:
        """Run it; return what it did, as `-o json` shows it."""
        from cwsandbox.cli.streams import feed

        process = sandbox.exec(
            self.argv, cwd=self.cwd, timeout_seconds=self.timeout, env=self.env, stdin=self.forward_input
        )
        async with helped() as tasks:
            if process.stdin is not None:
                tasks.start_soon(feed, process.stdin)
            result = await process
        return {"sandbox_id": sandbox.sandbox_id, **_described(result)}


def input_option(function: Any) -> Any:
    """`-i` and `-n`: whether our standard input goes to the remote command."""
    return click.option(
        "-i/-n",
        "--stdin/--no-stdin",
        "stdin",
        default=None,
        help="Pass standard input on, or give the command an empty one. By default it is passed on unless it is a "
        "terminal.",
    )(function)


def wants_input(chosen: bool | None) -> bool:
    """Whether to forward our input: as chosen; else what is piped in, but no terminal: the caller may be using it."""
    return not os.isatty(0) if chosen is None else chosen


@click.command("exec", cls=PassingCommand, short_help="Run a command in a sandbox.")
@cwd_option
@timeout_option("Kill the command, and what it started, after this long (default 5m; inf for no limit).")
@environment_option
@input_option
@output_option
@sandbox_argument
@command_argument()
def exec_(
    sandbox_id: str,
    command: tuple[str, ...],
    cwd: str | None,
    timeout: float | None,
    environment: dict[str, str],
    stdin: bool | None,
    output: str,
) -> int:
    """Run COMMAND in a sandbox; its output, input and exit code are yours.

    Options go before COMMAND; everything after its name is its own.

    \b
    cwsandbox exec ID ls -la
    cwsandbox exec -w /srv -t 10s ID python train.py -t 5
    cwsandbox exec ID -- sh -c 'exit 7'; echo $?
    tar c . | cwsandbox exec ID tar x -C /srv

    Exit code: the command's; 126 if it cannot be executed, 127 if there is none, 128+N if signal N ended it, 1 if it
    could not be run. Ctrl-C kills it and what it started (130).
    """
    remote = RemoteCommand(command, cwd, timeout, environment, wants_input(stdin))

    async def run(session: Session) -> int:
        sandbox = await session.from_id(sandbox_id, adopt=False)
        if output != "json":
            return await remote.run(sandbox)
        outcome = await remote.run_to_json(sandbox)
        print_json(outcome)
        return int(outcome["returncode"])

    return run_in_session(run)


def _described(result: ProcessResult) -> dict[str, Any]:
    return {
        "command": result.command,
        "returncode": result.returncode,
        **_text_or_base64("stdout", result.stdout_bytes),
        **_text_or_base64("stderr", result.stderr_bytes),
        "truncated": result.stdout_truncated or result.stderr_truncated,
    }


def _text_or_base64(name: str, data: bytes) -> dict[str, str | None]:
    try:
        return {name: data.decode(), f"{name}_base64": None}
    except UnicodeDecodeError:
        return {name: None, f"{name}_base64": base64.b64encode(data).decode()}
