"""Run a program that uses the SDK in an interpreter of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def run_client(code: str, *, seconds: float = 50, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `code` to its end; warnings are shown, so that a test can insist on an empty stderr."""
    return subprocess.run(
        [sys.executable, "-W", "default", "-c", code],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, **env},
        check=False,
    )


@contextlib.contextmanager
def started_client(code: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Run `code` beside the test; it is killed at the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-W", "default", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    ) as client:
        try:
            yield client
        finally:
            client.kill()
