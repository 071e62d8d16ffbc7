"""`doctor`: what this machine can enforce, found by making a sandbox."""

from __future__ import annotations

import logging
import os
import platform
import resource
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cwsandbox._version import __version__
from cwsandbox.cli.output import print_fields, print_json, printable
from cwsandbox.cli.parameters import output_option
from cwsandbox.cli.running import run_attended

if TYPE_CHECKING:
    from cwsandbox.runners.specs import Capabilities

_SETTINGS: Final = (
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
    "user.max_user_namespaces",
    "kernel.yama.ptrace_scope",
)
_LIMITS: Final = ("processes", "memory", "cpu", "disk")
_CGROUP_REMEDY: Final = {
    True: "run the gateway where it may write to a cgroup, for limits of memory and processors",
    False: "run the gateway as root, or below your own systemd (systemd-run --user --scope), for limits of memory and "
    "processors",
}
_ENOUGH_DESCRIPTORS: Final = 4096
_STOP_SECONDS: Final = 10.0


@click.command(short_help="Say what this machine can enforce.")
@output_option
def doctor(output: str) -> int:
    """Say what sandboxes on this machine are kept from, by making one, and what would make it more.

    Exit code: 0 if sandboxes can be made (whatever their isolation; `CWSANDBOX_ISOLATION=namespaces` accepts no less
    than full), else 1.
    """
    report = _examine()
    if output == "json":
        print_json(report)
    else:
        _print(report)
    return 0 if report["ok"] else 1


def _examine() -> dict[str, Any]:
    from cwsandbox._client.folders import prepare_folders
    from cwsandbox.exceptions import CWSandboxError
    from cwsandbox.runners.errors import RunnerError

    try:
        folders = prepare_folders()
        with ExitStack() as stack:
            state, runtime = (
                stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="doctor-", dir=folder, ignore_cleanup_errors=True)
                )
                for folder in (folders.state, folders.runtime)
            )
            return run_attended(lambda: _try_out(Path(state), Path(runtime), folders.isolation))
    except (CWSandboxError, RunnerError, OSError) as error:
        return _report(None, "", problem=str(error))


async def _try_out(state: Path, runtime: Path, isolation: str) -> dict[str, Any]:
    """Make a sandbox and run a command in it."""
    import anyio

    from cwsandbox.runners.local.runner import LocalRunner
    from cwsandbox.runners.specs import BoxSpec, ExecSpec

    # What the runner has to say is in the report.
    logging.getLogger("cwsandbox.runner").addHandler(logging.NullHandler())
    async with LocalRunner(state, runtime, isolation=isolation) as runner:  # type: ignore[arg-type]
        box = await runner.create(BoxSpec("doctor", ("sleep", "60")))
        try:
            status = await (await box.exec(ExecSpec("doctor", ("true",)))).wait()
        finally:
            with anyio.move_on_after(_STOP_SECONDS, shield=True):
                await box.stop(0)
        problem = None if status.returncode == 0 else f"`true` ended with {status.returncode} in a sandbox"
        return _report(runner.capabilities(), runner.isolation_notice or "", problem=problem)


def _report(capabilities: Capabilities | None, notice: str, *, problem: str | None) -> dict[str, Any]:
    from cwsandbox.runners.local import cgroups, probe
    from cwsandbox.runners.specs import IsolationLevel

    weak = capabilities is None or capabilities.isolation is not IsolationLevel.NAMESPACES
    enforced = capabilities.enforced_limits if capabilities is not None else frozenset()
    root = os.geteuid() == 0
    writable = sorted(cgroups.find_cgroups().limits)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "ok": problem is None,
        "problem": problem,
        "isolation": str(capabilities.isolation) if capabilities is not None else None,
        "notice": notice or None,
        "remedies": [
            *(probe.ways_out() if weak else ()),
            *(() if {"memory", "cpu"} <= set(writable) else (_CGROUP_REMEDY[root],)),
            *(
                (f"raise the limit of open files (ulimit -Hn), which is {hard}: a running command takes five",)
                if hard != resource.RLIM_INFINITY and hard < _ENOUGH_DESCRIPTORS
                else ()
            ),
        ],
        "limits": {name: name in enforced for name in _LIMITS},
        "limits_per_process": sorted(capabilities.per_process_limits) if capabilities is not None else [],
        "egress_modes": list(capabilities.egress_modes) if capabilities is not None else [],
        "cpu_millicores": probe.cpu_millicores(),
        "memory_bytes": probe.memory_bytes(),
        "architecture": probe.architecture(),
        "user": "root" if root else str(os.geteuid()),
        "in_container": probe.in_container(),
        "cgroups": writable,
        "settings": {name: _setting(name) for name in _SETTINGS},
        "open_files": {"soft": soft, "hard": hard},
        "kernel": platform.release(),
        "python": platform.python_version(),
        "version": __version__,
    }


def _setting(name: str) -> str | None:
    try:
        return Path("/proc/sys", *name.split(".")).read_text(encoding="ascii").strip()
    except OSError:
        return None  # This kernel does not have it.


def _print(report: dict[str, Any]) -> None:
    limits = [name for name, enforced in report["limits"].items() if enforced]
    container = "inside a container" if report["in_container"] else "not in a container"
    print_fields(
        (
            ("Sandboxes", "can be made" if report["ok"] else f"cannot be made: {report['problem']}"),
            ("Isolation", report["isolation"]),
            ("Limits enforced", ", ".join(limits) or "none"),
            ("Limits per process", ", ".join(report["limits_per_process"]) or None),
            ("Network", ", ".join(report["egress_modes"])),
            ("Machine", f"{report['cpu_millicores'] / 1000:g} processors, {_gib(report['memory_bytes'])} of memory"),
            ("Cgroups", ", ".join(report["cgroups"]) or "not writable for this user"),
            ("User", f"{report['user']}, {container}"),
            *((name, value) for name, value in report["settings"].items() if value is not None),
            ("Open files", f"{report['open_files']['soft']}, at most {report['open_files']['hard']}"),
            ("Software", f"cwsandbox {report['version']}, Python {report['python']}, Linux {report['kernel']}"),
        )
    )
    if report["notice"]:
        click.echo(f"\nNote: {printable(report['notice'])}.")
    if report["remedies"]:
        click.echo("\nFor more:")
        for remedy in report["remedies"]:
            click.echo(f"- {printable(remedy)}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
