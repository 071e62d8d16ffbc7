"""`run`: a sandbox for one command, or one that stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cwsandbox.cli.execute import RemoteCommand, input_option, wants_input
from cwsandbox.cli.output import print_json, printable, sandbox_summary
from cwsandbox.cli.parameters import Duration, cwd_option, environment_option, output_option, timeout_option
from cwsandbox.cli.passing import command_argument
from cwsandbox.cli.running import run_in_session
from cwsandbox.cli.shell import TerminalCommand, require_terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from cwsandbox.sandbox import Sandbox
    from cwsandbox.session import Session


def _sandbox_options(function: Any) -> Any:
    """What a sandbox is made from, under the constructor's names."""
    options: list[Callable[[Any], Any]] = [
        click.option("--image", "container_image", help="Container image."),
        click.option("--tag", "tags", multiple=True, help="Label to find it by. May be repeated."),
        click.option(
            "--lifetime", "max_lifetime_seconds", metavar="DURATION", type=Duration(), help="End it after this long."
        ),
        click.option("--cpu", help="Processors, such as 2 or 500m."),
        click.option("--memory", help="Memory, such as 512Mi or 4Gi."),
        click.option("--gpu", type=click.IntRange(min=1), help="Number of GPUs."),
        click.option("--gpu-type", help="Kind of GPU."),
        click.option(
            "-p",
            "--port",
            "ports",
            metavar="PORT[:NAME]",
            multiple=True,
            callback=_read_ports,
            help="Port of the sandbox to declare and expose. May be repeated.",
        ),
        click.option("--ingress", "ingress_mode", help="Who may reach its ports, such as public."),
        click.option("--egress", "egress_mode", help="What it may reach, such as isolated or internet."),
        click.option(
            "--file",
            "mounted_files",
            metavar="LOCAL:PATH",
            multiple=True,
            callback=_read_files,
            help="Local file that it has, read-only, at the absolute PATH. May be repeated.",
        ),
        click.option("-r", "--profile-id", "profile_ids", multiple=True, help="Profile it may run with."),
        click.option("-T", "--runner-id", "runner_ids", multiple=True, help="Runner it may run on."),
        click.option(
            "--annotation",
            "annotations",
            metavar="NAME=VALUE",
            multiple=True,
            callback=_read_annotations,
            help="Metadata for the runner. May be repeated.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _read_ports(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[dict[str, Any]]:
    ports = []
    for value in values:
        number, _, name = value.partition(":")
        if not (number.isascii() and number.isdecimal() and 1 <= int(number) <= 65535):
            raise click.BadParameter(f"{value!r} is not a port number, or one with a name as in 8080:web", ctx, param)
        ports.append({"container_port": int(number), **({"name": name} if name else {})})
    return ports


def _read_files(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[dict[str, Any]]:
    files = []
    for value in values:
        local, colon, path = value.rpartition(":")
        if not colon or not local or not path.startswith("/"):
            raise click.BadParameter(f"{value!r} is not LOCAL:PATH with an absolute PATH", ctx, param)
        try:
            with open(local, "rb") as file:
                files.append({"path": path, "content": file.read()})
        except OSError as error:
            raise click.BadParameter(f"{local!r} cannot be read: {error.strerror}", ctx, param) from error
    return files


def _read_annotations(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE", ctx, param)
        pairs[name] = text
    return pairs


@click.command(
    context_settings={"allow_interspersed_args": False},
    short_help="Run a command in a sandbox of its own, or leave one running.",
)
@click.option(
    "-d", "--detach", is_flag=True, help="Leave it running, COMMAND as its main command; print its id and return."
)
@click.option("-k", "--keep", is_flag=True, help="Leave the sandbox when COMMAND has ended; its id goes to stderr.")
@click.option("--tty", is_flag=True, help="Give COMMAND this terminal, as `sh` does.")
@cwd_option
@timeout_option("Kill COMMAND after this long (default 5m; inf for no limit).")
@environment_option
@_sandbox_options
@input_option
@output_option
@command_argument(required=False)
def run(
    command: tuple[str, ...],
    detach: bool,
    keep: bool,
    tty: bool,
    cwd: str | None,
    timeout: float | None,
    environment: dict[str, str],
    stdin: bool | None,
    output: str,
    **options: Any,
) -> int:
    """Make a sandbox, run COMMAND in it, and stop it; output, input and exit code are yours.

    Options go before COMMAND; everything after its name is its own. Ctrl-C kills it all.

    \b
    cwsandbox run python -c 'print(6 * 7)'
    cwsandbox run --memory 512Mi -e DEBUG=1 -- sh -c 'echo $DEBUG'
    cwsandbox run --file train.py:/srv/train.py python /srv/train.py
    ID=$(cwsandbox run --detach --lifetime 1h)           a sandbox to exec in
    cwsandbox run --detach python -m http.server 8000    `logs` shows its output
    """
    if detach:
        waiting = {"--keep": keep, "--tty": tty, "--cwd": cwd, "--timeout": timeout, "--stdin": stdin}
        _refuse(waiting, "is for a command that is waited for, and --detach does not wait")
    elif not command:
        raise click.UsageError("a COMMAND is needed, or --detach for a sandbox that stays")
    if tty:
        _refuse({"--timeout": timeout, "--stdin": stdin, "--output json": output == "json"}, "does not go with --tty")
        require_terminal()
    wanted = {**_constructor_arguments(options), "environment_variables": environment}
    if detach:
        return run_in_session(lambda session: _leave_running(session, command, wanted, output))
    remote: RemoteCommand | TerminalCommand = RemoteCommand(command, cwd, timeout, {}, wants_input(stdin))
    if tty:
        remote = TerminalCommand(command, cwd, {})
    return run_in_session(lambda session: _run(session, remote, wanted, keep, output))


def _constructor_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The options that make up one argument of `Sandbox` put together; the others as they are."""
    amounts = {name: options.pop(name) for name in ("cpu", "memory")}
    gpu = {"count": options.pop("gpu"), "type": options.pop("gpu_type")}
    modes = {name: options.pop(name) for name in ("ingress_mode", "egress_mode")}
    amounts, gpu, modes = _given(amounts), _given(gpu), _given(modes)
    exposed = [port["container_port"] for port in options["ports"]]
    if exposed and "ingress_mode" in modes:
        modes["exposed_ports"] = exposed
    composed: dict[str, Any] = {}
    if amounts or gpu:
        composed["resources"] = _given({"limits": amounts, "gpu": gpu})
    if modes:
        composed["network"] = modes
    return {**_given(options), **composed}


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value not in (None, (), [], {})}


def _refuse(options: dict[str, Any], why: str) -> None:
    for name, given in options.items():
        if given:
            raise click.UsageError(f"{name} {why}")


async def _run(
    session: Session, remote: RemoteCommand | TerminalCommand, wanted: dict[str, Any], keep: bool, output: str
) -> int:
    from cwsandbox.cli.progress import waiting

    sandbox = session.sandbox(**wanted)
    async with waiting("Starting a sandbox"):
        await sandbox
    if output == "json" and isinstance(remote, RemoteCommand):
        outcome = await remote.run_to_json(sandbox)
        print_json(outcome)
        status = int(outcome["returncode"])
    else:
        status = await remote.run(sandbox)
    if keep:
        click.echo(f"Sandbox {printable(sandbox.sandbox_id)} is kept.", err=True)
        _release(session, sandbox)
    return status


async def _leave_running(session: Session, command: tuple[str, ...], wanted: dict[str, Any], output: str) -> int:
    from cwsandbox.cli.progress import waiting

    main: dict[str, Any] = {"command": command[0], "args": command[1:]} if command else {}
    sandbox = session.sandbox(**main, **wanted)
    async with waiting("Starting a sandbox"):
        await sandbox
    # Told first: a sandbox whose id reached nobody is stopped.
    if output == "json":
        print_json(sandbox_summary(sandbox))
    else:
        click.echo(printable(sandbox.sandbox_id))
    _release(session, sandbox)
    return 0


def _release(session: Session, sandbox: Sandbox) -> None:
    """It is to outlive this program: neither the session nor its end stops it, and nobody is warned of that."""
    from cwsandbox._exit import release

    session._forget(sandbox)
    release(sandbox._core)
    sandbox._core.started_here = False
