"""`serve`: a gateway on a port, in this process."""

from __future__ import annotations

import ipaddress
import os
from typing import Final

import click

from cwsandbox.cli.gateway import default_key_file, key_file_option
from cwsandbox.cli.parameters import Duration, output_option

_DEFAULT_ADDRESS: Final = "127.0.0.1:8471"


@click.command(short_help="Serve sandboxes to a team on a port.")
@click.argument("address", metavar="[HOST:PORT]", default=_DEFAULT_ADDRESS)
@key_file_option
@click.option("--tls-cert", metavar="FILE", type=click.Path(exists=True, dir_okay=False), help="Certificate and chain.")
@click.option("--tls-key", metavar="FILE", type=click.Path(exists=True, dir_okay=False), help="Its key, if elsewhere.")
@click.option("--state-dir", metavar="DIR", help="For records and logs. By default in your state folder.")
@click.option("--runtime-dir", metavar="DIR", help="For sockets of sandboxes. By default in your runtime folder.")
@click.option(
    "--isolation",
    type=click.Choice(["auto", "namespaces", "process"]),
    help="What is required of sandboxes. Default: CWSANDBOX_ISOLATION, or auto.",
)
@click.option(
    "--sandbox-idle",
    metavar="DURATION",
    type=Duration(zero=True),
    default=1800.0,
    show_default=True,
    help="End sandboxes that were not used for this long; 0 for never.",
)
@click.option(
    "--grace",
    metavar="DURATION",
    type=Duration(zero=True),
    default=30.0,
    show_default=True,
    help="How long a client that was lost may come back to its commands.",
)
@click.option("--config", metavar="FILE", help="The gateway's configuration: its profiles and labels.")
@click.option(
    "--egress-allow", metavar="LIST", help="What sandboxes may reach beside the internet: ADDRESS[/BITS][:PORT],..."
)
@click.option("--ingress-host", metavar="ADDRESS", help="Where ports exposed as public are listened on.")
@click.option("--ingress-name", metavar="NAME", help="What clients are told instead of the ingress host.")
@click.option("--log-file", metavar="FILE", help="Log there instead of to stderr.")
@output_option
def serve(
    address: str,
    key_file: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    state_dir: str | None,
    runtime_dir: str | None,
    isolation: str | None,
    sandbox_idle: float,
    grace: float,
    output: str,
    **passed_on: str | None,
) -> int:
    """Serve sandboxes to a team on HOST:PORT (default 127.0.0.1:8471; port 0 chooses one).

    Callers need an API key. Each sees its own sandboxes only. With `-o json` one line says where it listens.

    \b
    cwsandbox gateway keys add ada        prints a key, once
    cwsandbox serve 0.0.0.0:8471 --tls-cert cert.pem --tls-key key.pem
    CWSANDBOX_BASE_URL=https://host:8471 CWSANDBOX_API_KEY=... cwsandbox ls

    SIGTERM and Ctrl-C end it and its sandboxes.
    """
    from cwsandbox._client.folders import prepare_folders
    from cwsandbox.gateway.__main__ import main

    host, port = _host_and_port(address)
    if tls_key and not tls_cert:
        raise click.UsageError("--tls-key needs --tls-cert")
    folders = prepare_folders()
    keys = key_file or default_key_file()
    if not os.path.exists(keys):
        raise click.UsageError(f"there are no API keys in {keys}; make one with `cwsandbox gateway keys add NAME`")
    if not tls_cert and not _is_loopback(host):
        click.echo(f"Warning: keys and data travel to {host} in the clear; use --tls-cert, or a TLS proxy", err=True)
    arguments = ["--host", host, "--port", str(port), "--api-key-file", keys]
    arguments += ["--state-dir", state_dir or os.path.join(folders.state, "serve")]
    arguments += ["--runtime-dir", runtime_dir or os.path.join(folders.runtime, "serve")]
    arguments += ["--isolation", isolation or folders.isolation]
    arguments += ["--sandbox-idle-seconds", str(sandbox_idle), "--grace-seconds", str(grace)]
    for name, value in {"tls_cert": tls_cert, "tls_key": tls_key, **passed_on}.items():
        arguments += [f"--{name.replace('_', '-')}", value] if value else []
    if output == "json":
        arguments += ["--ready-fd", str(os.dup(1))]
    return main(arguments)


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise click.BadParameter(f"{address!r} is not HOST:PORT, such as 127.0.0.1:8471 or [::1]:8471")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
