"""`runners` and `profiles`: what sandboxes can run on."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from cwsandbox.cli.output import print_json, print_table
from cwsandbox.cli.parameters import output_option
from cwsandbox.cli.running import run_attended

_architecture_option = click.option("--architecture", help="Only of this architecture, such as amd64.")
_gpu_option = click.option("--gpu-type", help="Only with GPUs of this type.")
_ingress_option = click.option("--ingress", "service_exposure_mode", help="Only with this way to reach ports.")
_egress_option = click.option("--egress", "egress_mode", help="Only with this reach to the outside.")


@click.command
@click.argument("runner_id", required=False)
@click.option("--group", "runner_group_id", help="Only in this group.")
@click.option("-r", "--profile-id", "profile_name", help="Only with this profile.")
@_gpu_option
@_architecture_option
@_ingress_option
@_egress_option
@click.option("--healthy", "healthy_only", is_flag=True, help="Only those that can make sandboxes.")
@output_option
def runners(runner_id: str | None, output: str, **filters: Any) -> None:
    """List what sandboxes can run on, or show one runner."""
    from cwsandbox.discovery import format_bytes, format_cpu, get_runner_async, list_runners_async

    if runner_id is not None:
        _refuse_filters(filters)
        found = [run_attended(lambda: get_runner_async(runner_id))]
    else:
        found = run_attended(lambda: list_runners_async(include_resources=True, **filters))
    if output == "json":
        print_json([dataclasses.asdict(runner) for runner in found])
    elif not found:
        click.echo("No runners found.")
    else:
        rows = []
        for runner in found:
            left = runner.resources
            free = (
                (format_cpu(left.available_cpu_millicores), format_bytes(left.available_memory_bytes)) if left else ()
            )
            rows.append(
                (
                    runner.runner_id,
                    "yes" if runner.healthy else "no",
                    left.running_sandboxes if left else None,
                    " ".join((format_cpu(runner.max_cpu_millicores), *(f"({amount} free)" for amount in free[:1]))),
                    " ".join((format_bytes(runner.max_memory_bytes), *(f"({amount} free)" for amount in free[1:]))),
                    runner.max_gpu_count,
                    " ".join(runner.supported_architectures),
                    " ".join(runner.profile_names),
                )
            )
        print_table(("RUNNER", "HEALTHY", "SANDBOXES", "CPU", "MEMORY", "GPUS", "ARCHITECTURE", "PROFILES"), rows)


@click.command
@click.argument("profile_name", required=False)
@click.option("-T", "--runner-id", help="Only of this runner.")
@_gpu_option
@_architecture_option
@_ingress_option
@_egress_option
@output_option
def profiles(profile_name: str | None, output: str, runner_id: str | None, **filters: Any) -> None:
    """List what sandboxes may be made as, or show one profile."""
    from cwsandbox.discovery import get_profile_async, list_profiles_async

    if profile_name is not None:
        _refuse_filters(filters)
        found = [run_attended(lambda: get_profile_async(profile_name, runner_id=runner_id))]
    else:
        found = run_attended(lambda: list_profiles_async(runner_id=runner_id, **filters))
    if output == "json":
        print_json([dataclasses.asdict(profile) for profile in found])
    elif not found:
        click.echo("No profiles found.")
    else:
        print_table(
            ("PROFILE", "RUNNER", "INGRESS", "EGRESS", "GPUS", "ARCHITECTURE"),
            [
                (
                    profile.profile_name,
                    profile.runner_id,
                    " ".join(mode.name for mode in profile.service_exposure_modes),
                    " ".join(mode.name for mode in profile.egress_modes),
                    " ".join(profile.supported_gpu_types),
                    " ".join(profile.supported_architectures),
                )
                for profile in found
            ],
        )


def _refuse_filters(filters: dict[str, Any]) -> None:
    if any(filters.values()):
        raise click.UsageError("options that choose from a list do not go with a name")
