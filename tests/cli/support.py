"""Run `cwsandbox` as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMAND = (sys.executable, "-W", "error", "-m", "cwsandbox")
SECONDS = 50


def cws(
    *argv: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end; without `stdin` its input is empty."""
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run(
        [*COMMAND, *argv], capture_output=True, timeout=SECONDS, env={**os.environ, **(env or {})}, check=False, **given
    )


def start(*argv: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start a command whose streams are pipes."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*COMMAND, *argv], **{**pipes, **options})


def document(*argv: str, status: int = 0) -> Any:
    """What a command prints with `-o json`; nothing may go to stderr."""
    done = cws(*argv[:1], "-o", "json", *argv[1:]) if argv[0] != "gateway" else cws(*argv, "-o", "json")
    assert (done.returncode, done.stderr) == (status, b"")
    return json.loads(done.stdout)


def sandboxes(*argv: str) -> list[str]:
    """The ids that `ls` prints."""
    done = cws("ls", "-q", *argv)
    assert done.returncode == 0
    return done.stdout.decode().split()
