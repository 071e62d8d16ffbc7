"""The group `cwsandbox`: finds commands, and turns failures into messages and exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final, cast

import click
from click.shell_completion import shell_complete

from cwsandbox._version import __version__
from cwsandbox.cli.output import error_line
from cwsandbox.cli.running import Interrupted, hard_exit

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM: Final = "cwsandbox"
COMPLETION_VARIABLE: Final = "_CWSANDBOX_COMPLETE"

# Where each command is; the order and the headings are those of the help.
_SECTIONS: Final = {
    "Sandboxes": {
        "run": "run",
        "ls": "listing",
        "get": "listing",
        "exec": "execute",
        "sh": "shell",
        "logs": "logs",
        "stop": "ending",
        "rm": "ending",
    },
    "Files": {"cp": "copy", "files": "files"},
    "Gateway": {"runners": "discovery", "profiles": "discovery", "serve": "serve", "gateway": "gateway"},
    "This machine": {"doctor": "doctor", "completion": "completion"},
}
_MODULES: Final = {name: module for section in _SECTIONS.values() for name, module in section.items()}
_ALIASES: Final = {"delete": "rm", "list": "ls", "shell": "sh"}


class _Commands(click.Group):
    """Imports a command's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, as the help shows them."""
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name or alias."""
        name = _ALIASES.get(cmd_name, cmd_name)
        module = _MODULES.get(name)
        if module is None:
            return None
        return cast("click.Command", getattr(import_module(f"cwsandbox.cli.{module}"), name.replace("exec", "exec_")))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands under their headings."""
        for heading, names in _SECTIONS.items():
            with formatter.section(heading):
                commands = [(name, self.get_command(ctx, name)) for name in names]
                formatter.write_dl([(name, command.get_short_help_str(80)) for name, command in commands if command])


@click.group(
    cls=_Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`cwsandbox COMMAND --help` says more about each. Which gateway is used: CWSANDBOX_BASE_URL "
    "(http(s)://host:port, unix:///path, or local), with CWSANDBOX_API_KEY; by default the embedded one of this user, "
    "which starts by itself.",
)
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Run commands in isolated sandboxes.

    \b
    cwsandbox run python -c 'print(6 * 7)'   a sandbox for one command
    cwsandbox run --detach                   a sandbox that stays; prints its id
    cwsandbox exec ID ls -la                 a command in it
    cwsandbox stop ID                        and its end
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit status.

    Args:
        arguments: Default: those of the process.

    Returns:
        What the remote command returned, for the commands that run one; else 0, 1 for what failed, 2 for wrong usage,
        130 and 143 (and so on) when a signal ended it.
    """
    _fill_standard_descriptors()
    status = 0
    try:
        status = _invoke(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough. What is still buffered has nowhere to go.
        hard_exit(0)
    except OSError as problem:
        if not status:
            click.echo(error_line(problem), err=True)
        # What is still buffered cannot be written; at an ordinary exit Python would try once more and complain.
        hard_exit(status or 1)
    except (Interrupted, KeyboardInterrupt) as interruption:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        # A thread may still be writing to a reader that does not read; an ordinary exit would wait for it.
        hard_exit(interruption.status if isinstance(interruption, Interrupted) else 130)
    return status


def _invoke(arguments: Sequence[str] | None) -> int:
    # Not click's own main(): it takes a reader that left for a failure.
    try:
        if completing := os.environ.get(COMPLETION_VARIABLE):
            return shell_complete(cli, {}, PROGRAM, COMPLETION_VARIABLE, completing)
        with cli.make_context(PROGRAM, list(sys.argv[1:] if arguments is None else arguments)) as context:
            status = cli.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as problem:
        problem.show()
        return problem.exit_code
    except ValueError as problem:
        # The SDK's word for an argument that cannot be meant, such as a malformed CWSANDBOX_BASE_URL.
        click.echo(error_line(problem), err=True)
        return 2
    except Exception as problem:
        from cwsandbox.exceptions import CWSandboxError

        if isinstance(problem, BrokenPipeError) or not isinstance(problem, CWSandboxError | OSError):
            raise
        click.echo(error_line(problem), err=True)
        return 1
    return status if isinstance(status, int) else 0


def _fill_standard_descriptors() -> None:
    """Open /dev/null where a standard descriptor is closed: else a socket of ours would take its number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - to the end
