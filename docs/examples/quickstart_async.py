"""The same with async and await. Pass `trio` to run it on trio instead of asyncio."""

import sys

import anyio

from cwsandbox import Sandbox


async def main() -> None:
    async with Sandbox() as sandbox:
        result = await sandbox.exec(["echo", "hello"])
        print(result.stdout, end="")


anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
