"""Start one command, in the agent: find the program, make its pipes or terminal, `posix_spawn` it."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import stat
import struct
import termios
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_RESET = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
_OUT_OF_RESOURCES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class NotStartedError(Exception):
    """The command could not be started; `status` is a shell's exit status for that."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Started(NamedTuple):
    """A running command and the gateway's ends of its streams; -1 where there is none."""

    pid: int
    stdin: int
    stdout: int
    stderr: int


class Spawner:
    """Starts commands with the limits that the box itself was started with."""

    def __init__(self) -> None:
        self._soft, self._hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._hard, self._hard))

    def start(
        self, argv: list[str], env: dict[str, str], cwd: str, *, stdin: bool, terminal: tuple[int, int] | None
    ) -> Started:
        """Start `argv`.

        Raises:
            NotStartedError: The command's own fault.
            OSError: The box is out of processes, memory or descriptors.
        """
        try:
            os.chdir(cwd)
        except OSError as error:
            raise NotStartedError(f"cd: {cwd}: {error.strerror}", 2) from error
        try:
            program = find_program(argv[0], env.get("PATH", DEFAULT_PATH))
            if terminal is not None:
                return self._start_on_terminal(program, argv, env, terminal)
            return self._start_on_pipes(program, argv, env, stdin=stdin)
        finally:
            os.chdir("/")

    def _start_on_pipes(self, program: str, argv: list[str], env: dict[str, str], *, stdin: bool) -> Started:
        opened: list[int] = []
        try:
            for _ in range(2 + stdin):
                opened += os.pipe()
            out_read, out_write, err_read, err_write = opened[:4]
            in_read, in_write = opened[4:] if stdin else (self._null, -1)
            actions = [
                (os.POSIX_SPAWN_DUP2, in_read, 0),
                (os.POSIX_SPAWN_DUP2, out_write, 1),
                (os.POSIX_SPAWN_DUP2, err_write, 2),
            ]
            pid = self._spawn(program, argv, env, actions)
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        for fd in (out_write, err_write, *opened[4:5]):
            os.close(fd)
        for fd in (out_read, err_read, *opened[5:]):
            os.set_blocking(fd, False)
        return Started(pid, in_write, out_read, err_read)

    def _start_on_terminal(
        self, program: str, argv: list[str], env: dict[str, str], terminal: tuple[int, int]
    ) -> Started:
        master, slave = os.openpty()
        try:
            columns, rows = terminal
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            # A session leader's first terminal becomes its controlling one, if it opens it itself.
            actions = [
                (os.POSIX_SPAWN_OPEN, 0, os.ttyname(slave), os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, 0, 2),
            ]
            pid = self._spawn(program, argv, env, actions)
            os.set_blocking(master, False)
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)
        return Started(pid, -1, master, -1)

    def _spawn(
        self, program: str, argv: list[str], env: dict[str, str], actions: Sequence[tuple[int | str, ...]]
    ) -> int:
        # The agent's own limit is raised to hold many pipes; programs expect the usual one.
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._soft, self._hard))
        try:
            return os.posix_spawn(
                program, argv, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=_RESET
            )
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES or error.errno == errno.E2BIG:
                raise
            if error.errno in {errno.ENOENT, errno.ENOTDIR}:
                raise NotStartedError(f"{argv[0]}: not found (or the interpreter it names)", 127) from error
            raise NotStartedError(f"{argv[0]}: {error.strerror}", 126) from error
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._hard, self._hard))


def find_program(name: str, path: str) -> str:
    """Look a program up as a shell does.

    Raises:
        NotStartedError: 127 if there is none, 126 if there is one that cannot be run.
    """
    candidates = [name] if "/" in name else [f"{folder or '.'}/{name}" for folder in path.split(":")]
    denied = False
    for candidate in candidates if name else ():
        try:
            mode = os.stat(candidate).st_mode
        except PermissionError:
            denied = True
            continue
        except OSError:
            continue
        if stat.S_ISREG(mode) and os.access(candidate, os.X_OK):
            return candidate
        denied = True
    if denied:
        raise NotStartedError(f"{name}: Permission denied", 126)
    raise NotStartedError(f"{name}: not found", 127)
