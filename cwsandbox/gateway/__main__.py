"""`python -I -m cwsandbox.gateway`: the gateway as a process, embedded for one user or on a port."""

from __future__ import annotations

import argparse
import os
import sys

from cwsandbox.gateway.embedded import Options, run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cwsandbox.gateway", description="Serve sandboxes.")
    where = parser.add_argument_group("where to listen (one of)")
    where.add_argument("--embedded", action="store_true", help="serve one user on a Unix socket, and end when idle")
    where.add_argument("--host", default="", help="serve a team on this address; needs --api-key-file")
    parser.add_argument("--port", type=int, default=0, help="with --host: 0 chooses one")
    parser.add_argument("--api-key-file", default="", help="with --host: lines of name:sha256")
    parser.add_argument("--tls-cert", default="", help="with --host: certificate and chain (PEM); else plain HTTP")
    parser.add_argument("--tls-key", default="", help="its key, if the certificate's file does not hold it")
    parser.add_argument("--socket", default="", help="with --embedded: the path of the Unix socket")
    parser.add_argument("--state-dir", required=True, help="for what outlives a restart of the machine")
    parser.add_argument("--runtime-dir", required=True, help="for what does not")
    parser.add_argument("--ready-fd", type=int, default=-1, help="where to write one JSON line when ready")
    parser.add_argument(
        "--start-lock-fd", type=int, default=-1, help="what to close when ready: no other one is started"
    )
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="with --embedded: end after so long unused")
    parser.add_argument("--sandbox-idle-seconds", type=float, default=1800.0, help="end sandboxes unused for so long")
    parser.add_argument("--grace-seconds", type=float, default=30.0, help="how long a lost client may come back")
    parser.add_argument(
        "--isolation", default="auto", choices=["auto", "namespaces", "process"], help="what is required"
    )
    parser.add_argument(
        "--config", default="", help="the configuration file; default $CWSANDBOX_CONFIG or the XDG config folder's"
    )
    parser.add_argument("--log-file", default="", help="instead of stderr")
    network = parser.add_argument_group("what sandboxes are connected to")
    network.add_argument(
        "--egress-allow",
        metavar="LIST",
        default=os.environ.get("CWSANDBOX_EGRESS_ALLOW", ""),
        help="what sandboxes may reach beside the internet: addresses and blocks, with or without a port, separated by "
        "commas, such as 10.1.0.0/16,10.2.3.4:5432 (default: CWSANDBOX_EGRESS_ALLOW)",
    )
    network.add_argument("--ingress-host", default="", help="where ports exposed as public are listened on, an address")
    network.add_argument("--ingress-name", default="", help="what clients are told instead of --ingress-host")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run until told to end; return the exit status: 0, 2 for wrong arguments, 1 for anything that failed."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.embedded == bool(arguments.host):
        parser.error("one of --embedded and --host is needed")
    if arguments.embedded and not arguments.socket:
        parser.error("--embedded needs --socket")
    if arguments.host and not arguments.api_key_file:
        parser.error("--host needs --api-key-file")
    if arguments.tls_key and not arguments.tls_cert:
        parser.error("--tls-key needs --tls-cert")
    options = vars(arguments)
    del options["embedded"]
    return run(Options(**options))


if __name__ == "__main__":
    sys.exit(main())
