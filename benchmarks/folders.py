"""Folders in and out, beside what copies them locally."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cwsandbox import Sandbox

SMALL_FILES, SMALL_BYTES = 1000, 2048
LARGE_BYTES = 100 * 1024 * 1024


@contextlib.contextmanager
def prepared() -> Iterator[str]:
    """A folder with `small`, 1,000 files of 2 KiB in 20 folders, and `large`, one file of 100 MiB."""
    with tempfile.TemporaryDirectory(prefix="cws", dir="/tmp") as base:
        for number in range(SMALL_FILES):
            folder = f"{base}/small/{number % 20}"
            os.makedirs(folder, exist_ok=True)
            with open(f"{folder}/{number}", "wb") as file:
                file.write(os.urandom(SMALL_BYTES))
        os.mkdir(f"{base}/large")
        with open(f"{base}/large/file", "wb") as file:
            file.write(os.urandom(1024 * 1024) * (LARGE_BYTES // 1024 // 1024))
        yield base


def tar_milliseconds(base: str, kind: str) -> list[float]:
    """`tar` into `tar`, through a pipe."""
    target = f"{base}/copy"
    os.mkdir(target)
    script = 'tar -C "$1" -c . | tar -C "$2" -x'
    taken = _milliseconds(lambda: subprocess.run(["sh", "-c", script, "sh", f"{base}/{kind}", target], check=True))
    shutil.rmtree(target)
    return taken


def upload_milliseconds(sandbox: Sandbox, base: str, kind: str) -> list[float]:
    """Into a folder that is new."""
    taken = _milliseconds(lambda: sandbox.files.upload(f"{base}/{kind}", "/srv/bench").result())
    sandbox.files.remove("/srv/bench", recursive=True).result()
    return taken


def download_milliseconds(sandbox: Sandbox, base: str, kind: str) -> list[float]:
    """Out of the sandbox, into a folder that is new."""
    sandbox.files.upload(f"{base}/{kind}", "/srv/bench").result()
    taken = _milliseconds(lambda: sandbox.files.download("/srv/bench", f"{base}/copy").result())
    shutil.rmtree(f"{base}/copy")
    sandbox.files.remove("/srv/bench", recursive=True).result()
    return taken


def list_milliseconds(sandbox: Sandbox, times: int) -> list[float]:
    """Entries of a small folder."""
    return [value for _ in range(times) for value in _milliseconds(lambda: sandbox.files.list("/etc").result())]


def _milliseconds(function: Callable[[], object]) -> list[float]:
    begin = time.perf_counter()
    function()
    return [(time.perf_counter() - begin) * 1000]
