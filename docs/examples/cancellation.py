"""Structured concurrency across the border: when the await is cancelled, the command in the sandbox is dead."""

import sys

import anyio

from cwsandbox import Sandbox


async def main() -> None:
    async with Sandbox() as sandbox:
        with anyio.move_on_after(0.5):
            await sandbox.exec(["sh", "-c", "sleep 1234 & sleep 1234"])
        listing = await sandbox.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"])
        print("still running" if "sleep 1234 " in listing.stdout else "all gone")


anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
