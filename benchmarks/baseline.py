"""The same work without a sandbox."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

from benchmarks.timing import milliseconds, milliseconds_async


def subprocess_run(times: int) -> list[float]:
    """`subprocess.run` with both outputs captured."""
    return milliseconds(lambda: subprocess.run(["true"], capture_output=True, check=True), times)


def asyncio_subprocess(times: int) -> list[float]:
    """`asyncio.create_subprocess_exec` with pipes, waited for with `communicate`."""

    async def one() -> None:
        process = await asyncio.create_subprocess_exec("true", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        await process.communicate()

    return asyncio.run(milliseconds_async(one, times))


def pipe_mb_per_second() -> list[float]:
    """Lines of a local command, iterated as text."""
    import time

    begin, size = time.perf_counter(), 0
    with subprocess.Popen(["sh", "-c", FLOOD], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            size += len(line)
    return [size / (time.perf_counter() - begin) / 1e6]


FLOOD = f"yes {'x' * 99} | head -c 100000000"


def import_milliseconds(module: str, times: int) -> list[float]:
    """What `import module` adds to the start of an interpreter."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    bare = milliseconds(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True, env=environment), times)
    with_it = milliseconds(
        lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True, env=environment), times
    )
    return [max(0.0, more - less) for more, less in zip(sorted(with_it), sorted(bare), strict=True)]
