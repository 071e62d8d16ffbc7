"""`stop` and `rm`: the end of sandboxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cwsandbox.cli.output import error_line, print_json
from cwsandbox.cli.parameters import Duration, output_option, quiet_option, sandboxes_argument, timeout_option
from cwsandbox.cli.running import run_in_session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from cwsandbox.session import Session

_missing_ok_option = click.option("--missing-ok", is_flag=True, help="Do not mind a sandbox that is not there.")


@click.command(short_help="Stop sandboxes, giving them time to end.")
@sandboxes_argument
@click.option(
    "--graceful-shutdown-seconds",
    "grace",
    metavar="DURATION",
    type=Duration(zero=True),
    default=10.0,
    show_default=True,
    help="How long the main command may take to end after SIGTERM, before everything is killed.",
)
@click.option("--snapshot-on-stop", is_flag=True, help="Keep a snapshot of its files.")
@_missing_ok_option
@quiet_option
@output_option
def stop(
    sandbox_ids: tuple[str, ...], grace: float, snapshot_on_stop: bool, missing_ok: bool, quiet: bool, output: str
) -> int:
    """Stop sandboxes: SIGTERM to the main command, a grace period, then SIGKILL to everything.

    Their records stay for a while: `ls --all`, `get` and `logs` still know them.
    """

    async def end(session: Session, sandbox_id: str) -> str:
        from cwsandbox.exceptions import SandboxNotFoundError

        try:
            sandbox = await session.from_id(sandbox_id, adopt=False)
            await sandbox.stop(
                snapshot_on_stop=snapshot_on_stop, graceful_shutdown_seconds=grace, missing_ok=missing_ok
            )
        except SandboxNotFoundError:
            if not missing_ok:
                raise
            return "missing"
        return "stopped"

    return _end_all(sandbox_ids, end, quiet, output)


@click.command(short_help="Kill sandboxes at once and forget them.")
@sandboxes_argument
@_missing_ok_option
@timeout_option("Give up after this long (default 5m).")
@quiet_option
@output_option
def rm(sandbox_ids: tuple[str, ...], missing_ok: bool, timeout: float | None, quiet: bool, output: str) -> int:
    """Kill sandboxes at once and forget them; `delete` is the same command."""

    async def end(session: Session, sandbox_id: str) -> str:
        from cwsandbox.exceptions import SandboxNotFoundError
        from cwsandbox.sandbox import Sandbox

        try:
            await Sandbox.delete(sandbox_id, timeout_seconds=timeout)
        except SandboxNotFoundError:
            if not missing_ok:
                raise
            return "missing"
        return "deleted"

    return _end_all(sandbox_ids, end, quiet, output)


def _end_all(
    sandbox_ids: Sequence[str], end: Callable[[Session, str], Awaitable[str]], quiet: bool, output: str
) -> int:
    """End them all at once; what fails does not keep the others. One line or object each, in the order given."""
    outcomes: dict[str, dict[str, Any]] = {}

    async def end_one(session: Session, sandbox_id: str) -> None:
        from cwsandbox.exceptions import CWSandboxError

        try:
            outcomes[sandbox_id] = {"sandbox_id": sandbox_id, "result": await end(session, sandbox_id), "error": None}
        except CWSandboxError as problem:
            outcomes[sandbox_id] = {"sandbox_id": sandbox_id, "result": "failed", "error": str(problem)}
            click.echo(error_line(problem), err=True)

    async def run(session: Session) -> None:
        import anyio

        from cwsandbox.cli.progress import waiting

        async with waiting("Stopping"), anyio.create_task_group() as tasks:
            for sandbox_id in dict.fromkeys(sandbox_ids):
                tasks.start_soon(end_one, session, sandbox_id)

    run_in_session(run)
    ordered = [outcomes[sandbox_id] for sandbox_id in dict.fromkeys(sandbox_ids)]
    if output == "json":
        print_json(ordered)
    elif not quiet:
        for outcome in ordered:
            if outcome["result"] == "missing":
                click.echo(f"Sandbox {outcome['sandbox_id']} is already missing.")
            elif outcome["result"] != "failed":
                click.echo(f"{outcome['result'].capitalize()} sandbox {outcome['sandbox_id']}.")
    return int(any(outcome["error"] for outcome in ordered))
