"""Start one command, in the agent: find the program, make its pipes or terminal, `posix_spawn` it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import stat
import struct
import termios
from typing import TYPE_CHECKING, NamedTuple

from cwsandbox.runners.local import journal, protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_RESET = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
_OUT_OF_RESOURCES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_NAME_CHARS = 4000
"""Names may be as long as arguments; the gateway takes messages of 4096 characters."""
_USUAL_DESCRIPTORS = 1024
"""The soft limit that programs start with, wherever the gateway runs: the kernel's own default (INR_OPEN_CUR) and
systemd's. What needs more raises it to the hard limit; what still uses select() breaks above it."""
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class NotStartedError(Exception):
    """The command could not be started; `status` is a shell's exit status for that."""

    def __init__(self, name: str, why: str, status: int) -> None:
        super().__init__(f"{name[:_NAME_CHARS]}: {why}")
        self.status = status


class Started(NamedTuple):
    """A running command and what the gateway gets of its streams, by the names in `protocol`."""

    pid: int
    fds: dict[str, int]


class Spawner:
    """Starts commands with the usual soft limit of descriptors, while the agent itself may have as many as the hard."""

    def __init__(self) -> None:
        _, self._hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._soft = _USUAL_DESCRIPTORS if self._hard == resource.RLIM_INFINITY else min(_USUAL_DESCRIPTORS, self._hard)
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        # Low numbers to pass high ones under: posix_spawn refuses (EBADF) those above the soft limit of the moment.
        self._seats = [fcntl.fcntl(self._null, fcntl.F_DUPFD_CLOEXEC, 3) for _ in range(3)]
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
            raise NotStartedError(f"cd: {cwd}", str(error.strerror), 2) from error
        try:
            program = find_program(argv[0], env.get("PATH", DEFAULT_PATH))
            if terminal is not None:
                return self._start_on_terminal(program, argv, env, terminal)
            return self._start_on_pipes(program, argv, env, stdin=stdin)
        finally:
            os.chdir("/")

    def _start_on_pipes(self, program: str, argv: list[str], env: dict[str, str], *, stdin: bool) -> Started:
        ours: dict[str, int] = {}
        theirs: list[int] = []
        try:
            for name in ("stdout", "stderr"):
                ours[name], end = os.pipe()
                theirs.append(end)
            if stdin:
                end, ours["stdin"] = os.pipe()
                theirs.append(end)
            for name, fd in list(ours.items()):
                os.set_blocking(fd, False)
                ours[protocol.JOURNALS[name]] = journal.make()
            streams = (theirs[2] if stdin else self._null, theirs[0], theirs[1])
            with self._seated(streams) as seated:
                actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(seated)]
                pid = self._spawn(program, argv, env, actions)
        except BaseException:
            for fd in ours.values():
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        return Started(pid, ours)

    def _start_on_terminal(
        self, program: str, argv: list[str], env: dict[str, str], terminal: tuple[int, int]
    ) -> Started:
        ours: dict[str, int] = {}
        ours["stdout"], slave = os.openpty()
        try:
            ours["relay_out"], ours["relay_in"] = os.pipe()
            ours["output"], ours["input"] = journal.make(), journal.make()
            for name in ("stdout", "relay_out", "relay_in"):
                os.set_blocking(ours[name], False)
            columns, rows = terminal
            fcntl.ioctl(ours["stdout"], termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            # A session leader's first terminal becomes its controlling one, if it opens it itself.
            actions = [
                (os.POSIX_SPAWN_OPEN, 0, os.ttyname(slave), os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, 0, 2),
            ]
            pid = self._spawn(program, argv, env, actions)
        except BaseException:
            for fd in ours.values():
                os.close(fd)
            raise
        finally:
            os.close(slave)
        return Started(pid, ours)

    @contextlib.contextmanager
    def _seated(self, fds: Sequence[int]) -> Iterator[list[int]]:
        """The same descriptors by numbers below the soft limit."""
        seated = [
            fd if fd < self._soft else os.dup2(fd, seat, inheritable=False)
            for fd, seat in zip(fds, self._seats, strict=True)
        ]
        try:
            yield seated
        finally:
            for seat in set(seated) - set(fds):
                os.dup2(self._null, seat, inheritable=False)

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
                raise NotStartedError(argv[0], "not found (or the interpreter it names)", 127) from error
            raise NotStartedError(argv[0], str(error.strerror), 126) from error
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
        raise NotStartedError(name, "Permission denied", 126)
    raise NotStartedError(name, "not found", 127)
