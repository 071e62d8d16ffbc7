"""The command line: what a process that runs one command costs, from its start to its end."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.timing import milliseconds


def bare_python(times: int) -> list[float]:
    """An interpreter that does nothing."""
    return milliseconds(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True), times)


def command(times: int, *argv: str) -> list[float]:
    """`python -m cwsandbox ARGV`."""
    line = [sys.executable, "-m", "cwsandbox", *argv]
    return milliseconds(lambda: subprocess.run(line, check=True, capture_output=True), times)
