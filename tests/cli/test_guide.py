"""The command lines of docs/guide/cli.md print what the page says."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.leftovers import shut_down_and_look
from tests.support.ports import free_port

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "cli.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOTICE = re.compile(r"^cwsandbox: sandboxes run at isolation level `process` .*\n", re.MULTILINE)
SECONDS = 140
PAGE_PORT = "8471"
# The page waits for the server as a person does; a test has to wait until it listens.
LISTENS = (
    "until python3 -c 'import socket, sys; socket.create_connection((\"127.0.0.1\", int(sys.argv[1])))' {port} 2>/dev/null; "
    "do sleep 0.1; done"
)


def steps() -> list[tuple[str, str]]:
    """Commands, and what they print."""
    found: list[tuple[str, str]] = []
    for block in BLOCK.findall(PAGE.read_text()):
        for line in block.splitlines(keepends=True):
            if line.startswith("$ "):
                found.append((line[2:], ""))
            else:
                command, printed = found.pop()
                found.append((command, printed + line))
    return found


def pattern(printed: str) -> str:
    """A regular expression: `…` is any text in a line, `...` any lines; columns are as wide as what is in them."""
    lines = []
    for line in printed.splitlines():
        if line == "...":
            lines.append(r"(.*\n)*")
        elif set(line) == {"-", " "}:
            lines.append(r"[- ]+\n")
        else:
            lines.append(r"\s+".join(re.escape(word).replace("…", ".*?") for word in line.split()) + r"[^\S\n]*\n")
    return "".join(lines)


@pytest.mark.timeout(SECONDS + 20)
def test_the_command_lines_of_the_guide_print_what_it_says() -> None:
    base = Path(tempfile.mkdtemp(prefix="cws", dir="/tmp"))
    for name in ("run", "state", "bin", "work"):
        (base / name).mkdir(mode=0o700)
    command = base / "bin" / "cwsandbox"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -W error -m cwsandbox "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CWSANDBOX_")},
        "CWSANDBOX_RUNTIME_DIR": str(base / "run"),
        "CWSANDBOX_STATE_DIR": str(base / "state"),
        "PATH": f"{base / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(PAGE.parents[2]),
    }
    port, mark = str(free_port()), "--- step ---"
    script = "".join(
        f"{{ {line.rstrip()}\n}} </dev/null 2>&1\necho '{mark}'\n".replace(PAGE_PORT, port).replace(
            "sleep 2", LISTENS.format(port=port)
        )
        for line, _ in steps()
    )
    try:
        done = subprocess.run(
            ["bash"], input=script + "wait\n", env=environment, cwd=base / "work", capture_output=True, text=True,
            timeout=SECONDS, check=False,
        )  # fmt: skip
        assert done.stderr == ""
        printed = NOTICE.sub("", done.stdout).split(mark + "\n")  # In a container it is said once.
        for (line, expected), actual in zip(steps(), printed, strict=False):
            assert re.fullmatch(pattern(expected), actual), f"$ {line}{actual}\nis not\n{expected}"
        assert len(printed) == len(steps()) + 1
    finally:
        shut_down_and_look(base)
        shutil.rmtree(base)
