"""`gateway`: the state and the end of the gateway in use, and the API keys of one on a port."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final

import click

from cwsandbox.cli.embedded import open_unstarted
from cwsandbox.cli.output import print_fields, print_json, print_table
from cwsandbox.cli.parameters import output_option, quiet_option
from cwsandbox.cli.running import run_attended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cwsandbox._client.http import Api

_ACCEPT_SECONDS: Final = 10.0
_END_SECONDS: Final = 30.0
"""A gateway takes 25 s at most to end its sandboxes and itself."""

key_file_option: Callable[[Any], Any] = click.option(
    "--api-key-file",
    "key_file",
    metavar="FILE",
    help="Where the API keys are, hashed. By default `api-keys` in your state folder.",
)


def default_key_file() -> str:
    """The key file unless one is named."""
    from cwsandbox._client.folders import prepare_folders

    return os.path.join(prepare_folders().state, "api-keys")


@click.group
def gateway() -> None:
    """Look at or end the gateway in use; manage API keys."""


@gateway.command
@output_option
def status(output: str) -> int:
    """Say whether the gateway in use runs, without starting it.

    Exit code: 0 if it answers, 1 if it does not run (the embedded one starts by itself when it is needed).
    """
    facts = run_attended(_look)
    if output == "json":
        print_json(facts)
    else:
        print_fields(
            (
                ("Gateway", facts["address"]),
                ("Running", "yes" if facts["running"] else "no"),
                ("Version", facts["version"]),
                ("Process", facts["pid"]),
                ("Up for", f"{facts['uptime_seconds']:.0f} s" if facts["running"] else None),
                ("Your sandboxes", facts["sandboxes"]),
                ("Socket", facts["socket"]),
                ("Log", facts["log"]),
            )
        )
    return 0 if facts["running"] else 1


@gateway.command
@click.option("-f", "--force", is_flag=True, help="Even if it has sandboxes: they end too.")
@quiet_option
@output_option
def stop(force: bool, quiet: bool, output: str) -> int:
    """End the embedded gateway and everything in it; wait until it is gone."""

    async def end() -> dict[str, Any]:
        from cwsandbox.cli.progress import waiting
        from cwsandbox.exceptions import CWSandboxError

        async with open_unstarted() as found:
            info = await found.info()
            if info is not None:
                if info.sandboxes and not force:
                    raise CWSandboxError(
                        f"sandboxes that have not ended would end with {found.address}: {info.sandboxes}; "
                        "stop them first (cwsandbox ls), or use --force"
                    )
                async with waiting("Stopping the gateway"):
                    await _shut_down(found.api, info.pid)
            return {"address": found.address, "was_running": info is not None, "running": False}

    outcome = run_attended(end)
    if output == "json":
        print_json(outcome)
    elif not quiet:
        click.echo("Stopped the gateway." if outcome["was_running"] else "No gateway runs.")
    return 0


async def _look() -> dict[str, Any]:
    async with open_unstarted() as gateway:
        info = await gateway.info()
        return {
            "address": gateway.address,
            "running": info is not None,
            "version": info.version if info else None,
            "protocol": info.protocol if info else None,
            "pid": info.pid if info else None,
            "instance_id": info.instance_id if info else None,
            "uptime_seconds": info.uptime_seconds if info else None,
            "sandboxes": info.sandboxes if info else None,
            "socket": gateway.socket,
            "log": gateway.log,
        }


async def _shut_down(api: Api, pid: int) -> None:
    """Tell it to end, and wait for its process to."""
    import anyio

    from cwsandbox.exceptions import CWSandboxError

    try:
        process = os.pidfd_open(pid)
    except OSError:
        process = -1  # In another PID namespace, or gone already.
    try:
        await api.shutdown(timeout=_ACCEPT_SECONDS)
        if process >= 0:
            with anyio.move_on_after(_END_SECONDS) as limit:
                await anyio.wait_readable(process)
            if limit.cancelled_caught:
                raise CWSandboxError(f"the gateway (process {pid}) has not ended after {_END_SECONDS:g} s")
    finally:
        if process >= 0:
            os.close(process)


@gateway.group
def keys() -> None:
    """Manage the API keys of a gateway on a port. A gateway that runs notices at the next request."""


@keys.command
@click.argument("name")
@key_file_option
@output_option
def add(name: str, key_file: str | None, output: str) -> None:
    """Make an API key for NAME and print it, this once; the file keeps a hash only."""
    from cwsandbox.gateway.keyfile import add_key

    path = key_file or default_key_file()
    key = add_key(path, name)
    _hand_out(name, key, path, output)


@keys.command
@click.argument("name")
@key_file_option
@output_option
def rotate(name: str, key_file: str | None, output: str) -> None:
    """Make another API key for NAME and print it, this once. The one before stays valid until the next rotation."""
    from cwsandbox.gateway.keyfile import rotate_key

    path = key_file or default_key_file()
    with _known(name, path):
        key = rotate_key(path, name)
    _hand_out(name, key, path, output)


@keys.command
@click.argument("name")
@key_file_option
@quiet_option
@output_option
def revoke(name: str, key_file: str | None, quiet: bool, output: str) -> None:
    """Take NAME's keys away. Who holds one is cut off; what runs for it ends after the grace, as for a lost client."""
    from cwsandbox.gateway.keyfile import revoke_key

    path = key_file or default_key_file()
    with _known(name, path):
        revoke_key(path, name)
    if output == "json":
        print_json({"name": name, "api_key_file": path})
    elif not quiet:
        click.echo(f"Revoked {name}.")


@keys.command("ls")
@key_file_option
@output_option
def list_keys(key_file: str | None, output: str) -> None:
    """List the names of the keys."""
    from cwsandbox.gateway.keyfile import key_names

    names = key_names(key_file or default_key_file())
    if output == "json":
        print_json([{"name": name} for name in names])
    elif names:
        print_table(("NAME",), [(name,) for name in names])
    else:
        click.echo("No keys found.")


def _hand_out(name: str, key: str, path: str, output: str) -> None:
    if output == "json":
        print_json({"name": name, "key": key, "api_key_file": path})
    else:
        click.echo(key)


@contextlib.contextmanager
def _known(name: str, path: str) -> Iterator[None]:
    """A name that the key file does not have is an error of the user's."""
    from cwsandbox.exceptions import CWSandboxError

    try:
        yield
    except KeyError:
        raise CWSandboxError(f"there is no key {name!r} in {path}") from None
