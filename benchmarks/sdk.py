"""The package's own operations, sync and awaited, against an embedded gateway."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from benchmarks.baseline import FLOOD
from benchmarks.timing import milliseconds, milliseconds_async
from cwsandbox import Sandbox
from tests.support.leftovers import shut_down_and_look

if TYPE_CHECKING:
    from collections.abc import Iterator


def exec_result(sandbox: Sandbox, times: int) -> list[float]:
    """`exec(["true"]).result()`."""
    return milliseconds(lambda: sandbox.exec(["true"]).result(), times)


def exec_awaited(backend: str, times: int) -> list[float]:
    """`await sandbox.exec(["true"])` in a scope on the caller's own loop."""

    async def main() -> list[float]:
        async with Sandbox() as sandbox:

            async def one() -> None:
                await sandbox.exec(["true"])

            return await milliseconds_async(one, times)

    return anyio.run(main, backend=backend)


def run_to_first_result(times: int) -> list[float]:
    """`Sandbox.run()` to the first command's result; the stop is not counted."""
    taken = []
    for _ in range(times + 1):
        begin = time.perf_counter()
        sandbox = Sandbox.run()
        sandbox.exec(["true"]).result()
        taken.append((time.perf_counter() - begin) * 1000)
        sandbox.stop().result()
    return taken[1:]


def in_flight_per_second(sandbox: Sandbox, count: int = 1000) -> list[float]:
    """`count` commands started at once, per second until the last result."""
    begin = time.perf_counter()
    for process in [sandbox.exec(["true"]) for _ in range(count)]:
        process.result()
    return [count / (time.perf_counter() - begin)]


def stdout_mb_per_second(sandbox: Sandbox) -> list[float]:
    """100 MB of lines, iterated."""
    begin, size = time.perf_counter(), 0
    for line in sandbox.exec(["sh", "-c", FLOOD]).stdout:
        size += len(line)
    return [size / (time.perf_counter() - begin) / 1e6]


def file_read(sandbox: Sandbox, times: int) -> list[float]:
    """1 KiB out."""
    sandbox.write_file("/tmp/kib", bytes(1024)).result()
    return milliseconds(lambda: sandbox.read_file("/tmp/kib").result(), times)


def file_write(sandbox: Sandbox, times: int) -> list[float]:
    """1 KiB in."""
    return milliseconds(lambda: sandbox.write_file("/tmp/kib", bytes(1024)).result(), times)


def client_cpu_per_thousand(sandbox: Sandbox, count: int = 250) -> list[float]:
    """CPU seconds of this process, all threads, for 1,000 sequential commands."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(count):
        sandbox.exec(["true"]).result()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return [(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000 / count]


COLD = """
import json, time
from cwsandbox import Sandbox
begin = time.perf_counter()
sandbox = Sandbox.run()
sandbox.exec(["true"]).result()
print(json.dumps((time.perf_counter() - begin) * 1000))
sandbox.stop().result()
"""


def cold_start() -> list[float]:
    """First result of a fresh interpreter when no gateway runs."""
    with own_folders() as environment:
        done = subprocess.run(
            [sys.executable, "-c", COLD], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
    return [float(json.loads(done.stdout))]


@contextlib.contextmanager
def own_folders() -> Iterator[dict[str, str]]:
    """An environment with runtime and state folders of its own; at the end its gateway is shut down."""
    with tempfile.TemporaryDirectory(prefix="cws", dir="/tmp") as base:
        folders = {f"CWSANDBOX_{name}_DIR": str(Path(base, name.lower())) for name in ("RUNTIME", "STATE")}
        for folder in folders.values():
            os.mkdir(folder, 0o700)
        try:
            yield {**os.environ, **folders}
        finally:
            for line in shut_down_and_look(Path(base)):
                print("left over:", line, file=sys.stderr)
