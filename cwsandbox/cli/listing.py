"""`ls` and `get`: what sandboxes there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cwsandbox.cli.output import (
    print_fields,
    print_json,
    print_table,
    sandbox_details,
    sandbox_summary,
    shown_time,
)
from cwsandbox.cli.parameters import output_option, sandbox_argument
from cwsandbox.cli.running import run_in_session
from cwsandbox.status import SandboxStatus

if TYPE_CHECKING:
    from cwsandbox.sandbox import Sandbox
    from cwsandbox.session import Session

_STATUSES = [status.value for status in SandboxStatus if status is not SandboxStatus.UNSPECIFIED]


@click.command
@click.option(
    "-s",
    "--status",
    type=click.Choice(_STATUSES, case_sensitive=False),
    help="Only these; completed, failed and terminated show sandboxes that have ended.",
)
@click.option("-t", "--tag", "tags", multiple=True, help="Only with this tag. Repeated: with all of them.")
@click.option("-r", "--profile-id", "profile_ids", multiple=True, help="Only with this profile, or another given one.")
@click.option("-T", "--runner-id", "runner_ids", multiple=True, help="Only on this runner, or another given one.")
@click.option("-a", "--all", "show_all", is_flag=True, help="Also those that have ended, while they are remembered.")
@click.option("-q", "--quiet", "ids_only", is_flag=True, help="Ids only, one a line.")
@output_option
def ls(
    status: str | None,
    tags: tuple[str, ...],
    profile_ids: tuple[str, ...],
    runner_ids: tuple[str, ...],
    show_all: bool,
    ids_only: bool,
    output: str,
) -> None:
    """List sandboxes, whoever started them.

    \b
    cwsandbox ls                       those that have not ended
    cwsandbox ls -t ci -s running      of those with the tag ci, what runs
    cwsandbox ls -q -t ci | xargs -r cwsandbox stop
    """

    async def find(session: Session) -> list[Sandbox]:
        return await session.list(
            tags=tags or None,
            status=status,
            profile_ids=profile_ids or None,
            runner_ids=runner_ids or None,
            include_stopped=show_all,
        )

    found = run_in_session(find)
    if output == "json":
        print_json([sandbox_summary(sandbox) for sandbox in found])
    elif ids_only:
        for sandbox in found:
            click.echo(sandbox.sandbox_id)
    elif not found:
        click.echo("No sandboxes found.")
    else:
        print_table(
            ("SANDBOX ID", "STATUS", "RUNNER", "PROFILE", "STARTED AT"),
            [(s.sandbox_id, s.status, s.runner_id, s.profile_id, shown_time(s.started_at)) for s in found],
        )


@click.command
@sandbox_argument
@output_option
def get(sandbox_id: str, output: str) -> None:
    """Show one sandbox, an ended one included."""

    async def find(session: Session) -> Sandbox:
        return await session.from_id(sandbox_id, adopt=False)

    sandbox = run_in_session(find)
    if output == "json":
        print_json(sandbox_details(sandbox))
        return
    ports = ", ".join(f"{port} {name}".rstrip() for port, name in sandbox.exposed_ports or ())
    print_fields(
        (
            ("Sandbox", sandbox.sandbox_id),
            ("Status", sandbox.status),
            ("Exit code", sandbox.returncode),
            ("Started at", shown_time(sandbox.started_at)),
            ("Runner", sandbox.runner_id),
            ("Runner group", sandbox.runner_group_id),
            ("Profile", sandbox.profile_id),
            ("Isolation", sandbox.isolation),
            ("Address", sandbox.service_address),
            ("Ports", ports),
            ("Ingress", sandbox.applied_ingress_mode),
            ("Egress", sandbox.applied_egress_mode),
            ("Requests", _amounts(sandbox.resource_requests)),
            ("Limits", _amounts(sandbox.resource_limits)),
            ("GPU", _amounts(sandbox.resource_gpu)),
            ("Held for", _amounts(sandbox.limit_holds)),
            ("Tags", ", ".join(sandbox.tags)),
            ("Annotations", ", ".join(f"{name}={value}" for name, value in sandbox.annotations.items())),
        )
    )


def _amounts(amounts: dict[str, str] | None) -> str:
    return ", ".join(f"{name} {amount}" for name, amount in (amounts or {}).items())
