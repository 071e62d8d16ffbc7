"""`python -m tests.soak`: live for a while, then look what is left; exit status 1 if anything is wrong."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import anyio
import anyio.to_thread

from cwsandbox import Sandbox
from cwsandbox._client.folders import prepare_folders
from tests.soak.lives import Soak
from tests.support.leftovers import gateway_processes, shut_down_and_look
from tests.support.processes import new_marker, processes_with
from tests.support.relay import Relay, relay


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=sys.modules["tests.soak"].__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long (default 30)")
    parser.add_argument("--seed", type=int, default=None, help="repeats the choices of a run, though not its timing")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--lives", type=int, default=6, help="how many at a time (default 6)")
    trouble = parser.add_mutually_exclusive_group()
    trouble.add_argument("--kill-gateways", type=float, metavar="SECONDS", help="with SIGKILL, about so often")
    trouble.add_argument("--cut-connections", type=float, metavar="SECONDS", help="all at once, about so often")
    return parser


async def _soak(soak: Soak, arguments: argparse.Namespace, folder: Path, wire: Relay | None) -> None:
    ends = time.monotonic() + arguments.seconds
    async with anyio.create_task_group() as troubles:
        if arguments.kill_gateways:
            troubles.start_soon(_kill_gateways, folder, arguments.kill_gateways)
        if wire is not None:
            troubles.start_soon(_cut, wire, arguments.cut_connections)
        async with anyio.create_task_group() as lives:
            for _ in range(arguments.lives):
                lives.start_soon(soak.live, ends)
        troubles.cancel_scope.cancel()


async def _kill_gateways(folder: Path, seconds: float) -> None:
    """Kill those that serve: one that is killed while it starts is an error of whoever started it, a stop for one."""
    while True:
        await anyio.sleep(random.expovariate(1 / seconds))
        await Sandbox.list(base_url="local")
        for pid in await anyio.to_thread.run_sync(gateway_processes, folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def _cut(wire: Relay, seconds: float) -> None:
    while True:
        await anyio.sleep(random.expovariate(1 / seconds))
        wire.cut()


def main() -> int:
    """Run; print what happened."""
    arguments = _parser().parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    mark = new_marker()
    folder = Path(tempfile.mkdtemp(prefix="cws", dir="/tmp"))
    for name in ("RUNTIME", "STATE"):
        os.environ[f"CWSANDBOX_{name}_DIR"] = str(folder / name.lower())
    with ExitStack() as stack:
        Sandbox.list(base_url="local").result()  # Starts the gateway.
        wire = stack.enter_context(relay(f"unix://{prepare_folders().socket}")) if arguments.cut_connections else None
        in_trouble = bool(arguments.kill_gateways or arguments.cut_connections)
        soak = Soak(random.Random(seed), mark, wire.url if wire else "local", in_trouble=in_trouble)
        anyio.run(_soak, soak, arguments, folder, wire, backend=arguments.backend)
    soak.failures += [f"left: {sandbox!r}" for sandbox in Sandbox.list(tags=[mark], base_url="local").result()]
    soak.failures += [f"left: process {pid}" for pid in processes_with(mark)]
    soak.failures += [f"left: {line}" for line in shut_down_and_look(folder)]
    shutil.rmtree(folder)
    for outcome, count in sorted(soak.outcomes.items()):
        print(f"{count:6} {outcome}")
    for failure in soak.failures:
        print(f"\nFAILED {failure}")
    print(f"\nseed {seed}: {sum(soak.outcomes.values())} operations, {len(soak.failures)} failures")
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())
