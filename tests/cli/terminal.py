"""A terminal of the test's own, with `cwsandbox` on it: typed at and read like the one of a person."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING

from tests.cli.support import COMMAND, SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Become the leader of a session whose controlling terminal is standard input; then the command.
_ON_TERMINAL = "import os, sys; os.login_tty(os.dup(0)); os.execvp(sys.argv[1], sys.argv[1:])"


class Terminal:
    """A pseudo-terminal and the program on it."""

    def __init__(self, argv: Sequence[str], rows: int, columns: int) -> None:
        self._near, self._far = pty.openpty()
        self.resize(rows, columns)
        self.mode = termios.tcgetattr(self._far)
        self.seen = b""
        self._read = 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ON_TERMINAL, *argv], stdin=self._far, stdout=self._far, stderr=self._far
        )

    def resize(self, rows: int, columns: int) -> None:
        """Give it a size, as a terminal emulator does."""
        fcntl.ioctl(self._near, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        """Type keys."""
        os.write(self._near, text)

    def wait_for(self, pattern: bytes) -> re.Match[bytes]:
        """Read until the pattern shows in what was not matched before."""
        assert self.shows(pattern, within=SECONDS), f"{pattern!r} does not show in {self.seen[self._read :]!r}"
        return self.match

    def shows(self, pattern: bytes, *, within: float) -> bool:
        """Whether the pattern shows by then."""
        deadline = time.monotonic() + within
        while (match := re.compile(pattern, re.DOTALL).search(self.seen, self._read)) is None:
            if not select.select([self._near], [], [], max(0, deadline - time.monotonic()))[0]:
                return False
            self.seen += os.read(self._near, 65536)
        self._read = match.end()
        self.match = match
        return True

    def wait(self) -> int:
        """The exit status; reads on, as a terminal does."""
        deadline = time.monotonic() + SECONDS
        pidfd = os.pidfd_open(self.process.pid)
        try:
            while True:
                ready, _, _ = select.select([self._near, pidfd], [], [], max(0, deadline - time.monotonic()))
                assert ready, f"it does not end; it showed {self.seen[self._read :]!r}"
                if pidfd in ready:
                    return self.process.wait()
                self.seen += os.read(self._near, 65536)
        finally:
            os.close(pidfd)

    @property
    def is_as_before(self) -> bool:
        """Whether its mode is what it was before the program."""
        return termios.tcgetattr(self._far) == self.mode

    def close(self) -> None:
        """End what is still on it."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._near)
        os.close(self._far)


@contextlib.contextmanager
def on_terminal(*argv: str, rows: int = 24, columns: int = 80, program: Sequence[str] = COMMAND) -> Iterator[Terminal]:
    """Run `cwsandbox ...` on a terminal."""
    terminal = Terminal([*program, *argv], rows, columns)
    try:
        yield terminal
    finally:
        terminal.close()
