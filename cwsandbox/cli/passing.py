"""Where our options end and the remote command begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping


class PassingCommand(click.Command):
    """A command whose last argument is a remote command: what follows the remote program's name is the program's own.

    Our options may stand before the first argument (the sandbox) and between it and the remote program. A `--` in
    either place ends them; any further one belongs to the remote command.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings: MutableMapping[str, Any] = {**self.context_settings, "allow_interspersed_args": False}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move options from behind the first argument to before it; then as always."""
        before, rest = self._split(ctx, args)
        if rest:
            between, command = self._split(ctx, rest[1:])
            args = [*before, *between, "--", rest[0], *command]
        return super().parse_args(ctx, args)

    def _split(self, ctx: click.Context, args: list[str]) -> tuple[list[str], list[str]]:
        """The options at the beginning, without the `--` that may end them, and the rest."""
        values, _, _ = self.make_parser(ctx).parse_args(list(args))
        rest: list[str] = []
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Argument):
                value = values.get(parameter.name or "")
                rest += [value] if isinstance(value, str) else value if isinstance(value, tuple) else ()
        options = args[: len(args) - len(rest)]
        return (options[:-1] if options[-1:] == ["--"] else options), rest


def command_argument(required: bool = True) -> Callable[[Any], Any]:
    """The remote command: its program and arguments, whatever they look like."""
    return click.argument("command", metavar="COMMAND [ARG]...", nargs=-1, required=required, type=click.UNPROCESSED)
