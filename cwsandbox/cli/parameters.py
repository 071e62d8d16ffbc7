"""Options and arguments that several commands have."""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from cwsandbox.cli.completion import complete_sandbox_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    F = TypeVar("F", bound=Callable[..., Any])
    _Seconds = click.ParamType[float, Any]
else:
    _Seconds = click.ParamType  # Not generic in every version.

OUTPUT_FORMATS: Final = ("table", "json")
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(_Seconds):
    """A number of seconds, or one with the unit s, m, h or d.

    Args:
        zero: Zero is one, too.
        endless: "inf" is one, too, and has no end.
    """

    name = "duration"

    def __init__(self, *, zero: bool = False, endless: bool = False) -> None:
        self._zero = zero
        self._endless = endless

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """`value` in seconds."""
        if isinstance(value, int | float):
            return value
        if value == "inf" and self._endless:
            return math.inf
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", value, re.ASCII)
        seconds = float(match[1]) * _UNITS[match[2]] if match else -1.0
        if seconds < 0 or (seconds == 0 and not self._zero):
            at_least = "zero or more" if self._zero else "more than zero"
            forms = "90, 1.5s, 10m, 2h" + (", inf" if self._endless else "")
            self.fail(f"{value!r} is not a duration ({at_least}; such as {forms})", param, ctx)
        return seconds


def output_option(function: F) -> F:
    """`-o table|json`."""
    return click.option(
        "-o", "--output", type=click.Choice(OUTPUT_FORMATS), default="table", show_default=True, help="Output format."
    )(function)


def quiet_option(function: F) -> F:
    """`-q`."""
    return click.option("-q", "--quiet", is_flag=True, help="Print nothing when it succeeds.")(function)


def sandbox_argument(function: F) -> F:
    """One sandbox id, completed by the shell."""
    return click.argument("sandbox_id", callback=_check_id, shell_complete=complete_sandbox_ids)(function)


def sandboxes_argument(function: F) -> F:
    """Sandbox ids, at least one."""
    return click.argument(
        "sandbox_ids",
        metavar="SANDBOX_ID...",
        nargs=-1,
        required=True,
        callback=_check_id,
        shell_complete=complete_sandbox_ids,
    )(function)


def cwd_option(function: F) -> F:
    """`-w DIR`: an absolute directory in the sandbox."""
    return click.option(
        "-w", "--cwd", metavar="DIR", callback=_check_cwd, help="Directory in the sandbox to run in; absolute."
    )(function)


def timeout_option(what: str) -> Callable[[F], F]:
    """`-t DURATION`."""
    return click.option("-t", "--timeout", metavar="DURATION", type=Duration(endless=True), help=what)


def environment_option(function: F) -> F:
    """`-e NAME=VALUE`, again and again."""
    return click.option(
        "-e",
        "--env",
        "environment",
        metavar="NAME[=VALUE]",
        multiple=True,
        callback=_read_environment,
        help="Environment variable; a NAME alone takes its value from here. May be repeated.",
    )(function)


def _check_id(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    if value == "" or (isinstance(value, tuple) and "" in value):
        raise click.BadParameter("must not be empty; is a variable not set?", ctx, param)
    return value


def _check_cwd(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and (not value.startswith("/") or "\0" in value):
        raise click.BadParameter(f"must be an absolute path in the sandbox, not {value!r}", ctx, param)
    return value


def _read_environment(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for entry in values:
        name, equals, value = entry.partition("=")
        if not name:
            raise click.BadParameter("has no name before the =", ctx, param)
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
        else:
            raise click.BadParameter(f"{name!r} has no value, and is not set here", ctx, param)
    return found
