"""A gateway to be killed: makes sandboxes, says so, and waits."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio

from cwsandbox.runners.local.runner import LocalRunner
from cwsandbox.runners.specs import BoxSpec, ExecSpec, Limits


async def main(state_dir: str, runtime_dir: str, word: str) -> None:
    async with LocalRunner(Path(state_dir), Path(runtime_dir), orphan_grace_seconds=0.2) as runner:
        script = f"setsid sleep 600 & sleep 600; echo {word}"
        for number in range(3):
            spec = BoxSpec(f"sandbox-{number}", ("sh", "-c", script), limits=Limits(processes=100))
            print("making", flush=True)
            box = await runner.create(spec)
            await box.exec(ExecSpec("e", ("sh", "-c", script)))
        print("ready", flush=True)
        await anyio.sleep_forever()


state, runtime, marker = sys.argv[1:]
anyio.run(main, state, runtime, marker)
